"""Check captions and match predictions with references by image id; each error and warning is one sentence.

An id is compared as text: 42 and "42" are the same image. Dictionaries from Python callers go through
`check_references`, `check_predictions` and `order_predictions`; `align` matches files and names them in its messages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePath
from statistics import fmean
from typing import cast

from captune.common import Thinking
from captune.errors import MetricInputError
from captune.metrics.caption_files import PredictionFile, ReferenceFile

__all__ = [
    "Aligned",
    "ImageId",
    "Predictions",
    "References",
    "align",
    "caption_warnings",
    "check_predictions",
    "check_references",
    "match_stems",
    "order_predictions",
    "similar_ids_hint",
    "thinking_warnings",
]

ImageId = str | int

# A mapping's key type is exact to a type checker, so each kind of dictionary that a user may have is named.
References = Mapping[str, Sequence[str]] | Mapping[int, Sequence[str]] | Mapping[ImageId, Sequence[str]]
Predictions = Mapping[str, str] | Mapping[int, str] | Mapping[ImageId, str]


def _by_text(images: Iterable[ImageId], what: str) -> dict[str, ImageId]:
    """From an id's text to the id, so that 42 and "42" are the same image."""
    images = list(images)
    if set(map(type, images)) == {str}:
        # A mapping has every text once.
        return dict(zip(cast("list[str]", images), images, strict=True))
    by_text: dict[str, ImageId] = {}
    for image in images:
        if isinstance(image, bool) or not isinstance(image, (str, int)):
            raise MetricInputError(
                f"the {what} have {image!r} ({type(image).__name__}) as an image id; ids are strings or integers"
            )
        if by_text.setdefault(str(image), image) is not image:
            raise MetricInputError(f"the {what} hold image {image!r} twice, once as text and once as a number")
    return by_text


def _some(names: Sequence[object]) -> str:
    """Up to three names, and how many more there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3:,} more"


def check_references(references: Mapping[ImageId, Sequence[str]]) -> None:
    """Check that every image has a list of at least one caption.

    Raises:
        MetricInputError: a value is of another kind.
    """
    if not isinstance(references, Mapping):
        raise MetricInputError(
            f"references are a {type(references).__name__}; give a dictionary from image id to a list of captions"
        )
    if not references:
        raise MetricInputError("there are no references; give a dictionary from image id to a list of captions")
    without = [image for image, captions in references.items() if not isinstance(captions, str) and not len(captions)]
    if without:
        raise MetricInputError(f"no references for image {_some(without)}; every image needs at least one")
    if set(map(type, references.values())) <= {list, tuple} and set(
        map(type, chain.from_iterable(references.values()))
    ) == {str}:
        return
    for image, captions in references.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise MetricInputError(
                f"the references of image {image!r} are a {type(captions).__name__}; give a list of captions"
            )
        for caption in captions:
            if not isinstance(caption, str):
                raise MetricInputError(
                    f"image {image!r} has a {type(caption).__name__} among its references; captions are strings"
                )


def check_predictions(predictions: Mapping[ImageId, str]) -> None:
    """Check that every image has one caption.

    Raises:
        MetricInputError: a value is of another kind.
    """
    if not isinstance(predictions, Mapping):
        raise MetricInputError(
            f"predictions are a {type(predictions).__name__}; give a dictionary from image id to one caption"
        )
    if not predictions:
        raise MetricInputError("there are no predictions; give a dictionary from image id to one caption")
    if set(map(type, predictions.values())) == {str}:
        return
    for image, caption in predictions.items():
        if not isinstance(caption, str):
            raise MetricInputError(
                f"the prediction of image {image!r} is a {type(caption).__name__}; give one string for an image"
            )


def order_predictions(
    predictions: Mapping[ImageId, str], references: Iterable[ImageId], subset: bool
) -> tuple[list[int], list[ImageId]]:
    """Put predictions into the order of the references.

    An id is its text: the prediction of 42 belongs to the references of "42".

    Args:
        predictions: one caption for an image.
        references: the ids of the images with references, in order.
        subset: whether to leave out images without a prediction.

    Returns:
        The rows of the predicted images among the references, ascending, and the predictions' own ids of them.

    Raises:
        MetricInputError: the images are not the same, or (with `subset`) some have no references.
    """
    by_text = _by_text(predictions, "predictions")
    texts = list(_by_text(references, "references"))
    extra = by_text.keys() - set(texts)
    if extra:
        named = [image for text, image in by_text.items() if text in extra]
        raise MetricInputError(
            f"{len(extra):,} of {len(by_text):,} predictions belong to images without references: "
            f"{_some(named)}; give these images' references or drop the predictions"
        )
    rows = [row for row, text in enumerate(texts) if text in by_text]
    if len(rows) < len(texts) and not subset:
        missing = [text for text in texts if text not in by_text]
        raise MetricInputError(
            f"{len(missing):,} of {len(texts):,} images have no prediction: {_some(missing)}; "
            "caption them, or score the others only with subset=True (--subset)"
        )
    return rows, [by_text[texts[row]] for row in rows]


# Which predictions belong to which references, and what is odd about them, in sentences.

_REMEDY = "caption them, or score only the images that have both with --subset"
LENGTH_RATIO = 2.0
SAMPLES = 3
SAMPLE_WIDTH = 100
# Extensions of image files, and the ".0" that pandas adds to integers.
_IMAGE_ENDING = re.compile(r"\.(jpe?g|jfif|jpe|png|webp|gif|bmp|tiff?|avif|hei[cf])$", re.IGNORECASE)
_ENDING = re.compile(r"\.(jpe?g|jfif|jpe|png|webp|gif|bmp|tiff?|avif|heic|0+)$")


@dataclass(frozen=True)
class Aligned:
    """Predictions and references of the same images, in the references' order.

    Args:
        predictions: image id to caption.
        references: image id to references, at least one each.
        warnings: one sentence for each kind of ignored entry.
    """

    predictions: dict[str, str]
    references: dict[str, list[str]]
    warnings: tuple[str, ...]


def align(
    predictions: PredictionFile, references: ReferenceFile, *, subset: bool = False, remedy: str = _REMEDY
) -> Aligned:
    """Match predictions to references by id.

    Args:
        predictions: of one system.
        references: of the images to score.
        subset: score only images that have both; otherwise a missing prediction is an error.
        remedy: what to do about a missing prediction, the end of the message.

    Raises:
        MetricInputError: images have no prediction, predicted images have no references, or no id matches at all.
    """
    _check_ids(predictions, references)
    described = {image: captions for image, captions in references.captions.items() if captions}
    shared = [image for image in described if image in predictions.captions]
    missing = [image for image in described if image not in predictions.captions]
    extra = [image for image in predictions.captions if image not in described]
    stems = _stem_hint(predictions, references, missing) if missing and extra else ""
    if not shared:
        raise MetricInputError(
            f"No id of {predictions.source} is in {references.source}: "
            f"{_named(predictions.captions)} against {_named(described)}{similar_ids_hint(extra, missing)}{stems}."
        )
    if missing and not subset:
        raise MetricInputError(
            f"{len(missing):,} of {len(described):,} images have no prediction in {predictions.source}, for example "
            f"{_named(missing)}{similar_ids_hint(extra, missing)}{stems}{_split_hint(references)}; {remedy}."
        )
    warnings = []
    if predictions.repeated:
        warnings.append(
            f"{_count(predictions.repeated, 'image occurs', 'images occur')} more than once in {predictions.source} "
            "with the same caption each time, and each was counted once."
        )
    if extra:
        why = "belong to images without references" if len(extra) > 1 else "belongs to an image without references"
        warnings.append(
            f"{_count(extra, 'prediction', 'predictions')} of {predictions.source} {why} and "
            f"{'were' if len(extra) > 1 else 'was'} left out, for example {_named(extra)}"
            f"{similar_ids_hint(extra, missing)}."
        )
    if missing:
        warnings.append(
            f"{len(missing):,} of {len(described):,} images have no prediction and are left out (--subset); scores of "
            "other subsets cannot be compared with these."
        )
    warnings += thinking_warnings([predictions.thinking.get(image, "none") for image in shared])
    return Aligned(
        {image: predictions.captions[image] for image in shared},
        {image: described[image] for image in shared},
        tuple(warnings),
    )


def thinking_warnings(thinking: Sequence[Thinking]) -> list[str]:
    """A warning of captions with thinking text, which is not scored; none if there are none.

    Args:
        thinking: of each caption.
    """
    count, endless = len(thinking) - thinking.count("none"), thinking.count("unclosed")
    if not count:
        return []
    captions = "1 caption" if count == 1 else f"{count:,} captions"
    which = "" if not endless else "; it never ends" if count == 1 else f"; in {endless:,} of them it never ends"
    return [f"{captions} had thinking text, which was removed before scoring{which}."]


def match_stems(predictions: PredictionFile, references: ReferenceFile) -> PredictionFile:
    """Give predictions the ids of references that differ from theirs by folder or file ending only.

    Ids that are equal as text are matched first; of the others, `photos/IMG_1.JPG` belongs to the references of
    `IMG_1`.

    Args:
        predictions: of one system.
        references: of the images to score.

    Returns:
        The predictions, under the references' ids where there is one.

    Raises:
        MetricInputError: two ids of one file have the same stem; names both.
    """
    open_references = {image: text for image, text in references.captions.items() if image not in predictions.captions}
    open_predictions = [image for image in predictions.captions if image not in references.captions]
    stems = _by_stem(open_references, references.source)
    names = {
        image: stems[stem]
        for stem, image in _by_stem(open_predictions, predictions.source, of=stems).items()
        if stem in stems
    }
    if not names:
        return predictions
    return replace(
        predictions,
        captions={names.get(image, image): caption for image, caption in predictions.captions.items()},
        finished={names.get(image, image): finished for image, finished in predictions.finished.items()},
        thinking={names.get(image, image): kind for image, kind in predictions.thinking.items()},
        repeated=tuple(names.get(image, image) for image in predictions.repeated),
    )


def _by_stem(images: Iterable[str], source: str, of: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ids by their stem.

    Args:
        images: ids of one file.
        source: name of the file.
        of: stems that matter; all by default.

    Raises:
        MetricInputError: two have the same stem.
    """
    stems: dict[str, str] = {}
    for image in images:
        stem = _stem(image)
        if of is not None and stem not in of:
            continue
        if stem in stems:
            raise MetricInputError(
                f"Stems are ambiguous: '{stems[stem]}' and '{image}' of {source} have the same stem '{stem}'; "
                "give them ids that are equal in both files."
            )
        stems[stem] = image
    return stems


def _stem(image: str) -> str:
    """An id without its folder and the ending of an image file."""
    return _IMAGE_ENDING.sub("", image.replace("\\", "/").rstrip("/").rpartition("/")[2])


def _stem_hint(predictions: PredictionFile, references: ReferenceFile, missing: Sequence[str]) -> str:
    """A clause about `--match stem`, if it would join all predictions that are missing."""
    try:
        joined = match_stems(predictions, references).captions
    except MetricInputError:
        return ""
    if any(image not in joined for image in missing):
        return ""
    return "; --match stem joins them without folder and ending (match='stem' in Python)"


def _check_ids(predictions: PredictionFile, references: ReferenceFile) -> None:
    """Check that both files have ids, or that both have a line for each image."""
    if predictions.by_line and references.by_line:
        if len(predictions.captions) != len(references.captions):
            raise MetricInputError(
                f"{predictions.source} has {len(predictions.captions):,} lines and {references.source} "
                f"{len(references.captions):,}; files of lines have the captions of an image on the same line."
            )
    elif predictions.by_line or references.by_line:
        lines, ids = predictions.source, references.source
        if references.by_line:
            lines, ids = ids, lines
        raise MetricInputError(
            f"{lines} has captions without ids, one a line, and {ids} has ids; give both as lines, or both with ids."
        )


def caption_warnings(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> list[str]:
    """Warn of empty captions and of a mean length far from that of the references.

    Args:
        predictions: image id to caption.
        references: image id to references.

    Returns:
        Sentences; the one about length shows three captions.
    """
    warnings = []
    empty = [image for image, caption in predictions.items() if not caption or caption.isspace()]
    if empty:
        warnings.append(
            f"{_count(empty, 'caption is', 'captions are')} empty and {'score' if len(empty) > 1 else 'scores'} 0, "
            f"for example of {_named(empty)}."
        )
    predicted = fmean(len(caption.split()) for caption in predictions.values())
    referred = fmean(len(caption.split()) for captions in references.values() for caption in captions)
    if predicted > LENGTH_RATIO * referred or predicted * LENGTH_RATIO < referred:
        how = "longer" if predicted > referred else "shorter"
        ends = sorted(predictions, key=lambda image: len(predictions[image]), reverse=predicted > referred)
        picked = ends[:: max(1, len(ends) // (2 * SAMPLES))][:SAMPLES]
        shown = "".join(f"\n    {image}: {_shorten(predictions[image])}" for image in picked)
        warnings.append(
            f"Predictions have {predicted:.1f} words on average and references {referred:.1f}; captions that much "
            f"{how} get low scores whatever they say.{shown}"
        )
    return warnings


def similar_ids_hint(extra: Iterable[str], missing: Iterable[str]) -> str:
    """Describe ids that differ only in how they are written.

    Args:
        extra: ids that are in one file only.
        missing: ids that are in the other only.

    Returns:
        A clause that begins with "; ", or nothing.
    """
    bare: dict[str, str] = {}
    for image in extra:
        bare.setdefault(_normalized_id(image), image)
    pairs = [(bare[key], image) for image in missing if (key := _normalized_id(image)) in bare]
    if not pairs:
        return ""
    extra_id, missing_id = pairs[0]
    if unicodedata.normalize("NFC", extra_id) == unicodedata.normalize("NFC", missing_id):
        letter = next(c for c in unicodedata.normalize("NFC", extra_id) if c != unicodedata.normalize("NFD", c))
        hint = f"'{extra_id}' and '{missing_id}' differ only in how {letter} is written (Unicode NFC and NFD)"
    else:
        hint = (
            f"'{extra_id}' and '{missing_id}' may be the same image, but ids are compared as text, with case, leading "
            "zeros, folders and file endings"
        )
    others = f", and so may {_count(pairs[1:], 'other pair', 'other pairs')}" if len(pairs) > 1 else ""
    return f"; {hint}{others}"


def _normalized_id(image: str) -> str:
    """An id in one Unicode form and case, without folder, ending, COCO's prefix, leading zeros and pandas' ".0"."""
    name = PurePath(unicodedata.normalize("NFC", image).casefold().replace("\\", "/")).name
    name = _ENDING.sub("", name)
    if name.startswith("coco_"):
        name = name.rsplit("_", 1)[1]
    return name.lstrip("0") or "0"


def _split_hint(references: ReferenceFile) -> str:
    if len(references.splits) < 2:
        return ""
    splits = ", ".join(f"{name} ({count:,})" for name, count in references.splits.items())
    return f"; {references.source} holds the splits {splits}, of which --split chooses one"


def _named(images: Iterable[str]) -> str:
    names = list(images)
    shown = ", ".join(f"'{_shorten(name)}'" for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _count(things: Sequence[object], one: str, many: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "?" for character in line[: SAMPLE_WIDTH + 1])
    return line if len(line) <= SAMPLE_WIDTH else line[: SAMPLE_WIDTH - 3] + "..."
