"""Which predictions belong to which references, and what is odd about them, in sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean

from captune.errors import MetricInputError
from captune.metrics.caption_files import Predictions, References

__all__ = ["Aligned", "align", "caption_warnings", "near_miss"]

LENGTH_RATIO = 2.0
SAMPLES = 3
SAMPLE_WIDTH = 100
# Of images; and what pandas puts behind whole numbers.
_ENDING = re.compile(r"\.(jpe?g|jfif|jpe|png|webp|gif|bmp|tiff?|avif|heic|0+)$")


@dataclass(frozen=True)
class Aligned:
    """Predictions and references of the same images, in the references' order.

    Args:
        predictions: image id to caption.
        references: image id to references, at least one each.
        warnings: a sentence for each thing that was left out.
    """

    predictions: dict[str, str]
    references: dict[str, list[str]]
    warnings: tuple[str, ...]


def align(predictions: Predictions, references: References, *, subset: bool = False) -> Aligned:
    """Match predictions to references by id.

    Args:
        predictions: of one system.
        references: of the images to score.
        subset: score only images that have both; otherwise a missing prediction is an error.

    Raises:
        MetricInputError: images have no prediction, predicted images have no references, or no id matches at all.
    """
    _check_ids(predictions, references)
    described = {image: captions for image, captions in references.captions.items() if captions}
    shared = [image for image in described if image in predictions.captions]
    missing = [image for image in described if image not in predictions.captions]
    extra = [image for image in predictions.captions if image not in described]
    if not shared:
        raise MetricInputError(
            f"No id of {predictions.source} is in {references.source}: "
            f"{_some(predictions.captions)} against {_some(described)}{near_miss(extra, missing)}."
        )
    if missing and not subset:
        raise MetricInputError(
            f"{len(missing):,} of {len(described):,} images have no prediction in {predictions.source}, for example "
            f"{_some(missing)}{near_miss(extra, missing)}{_split_hint(references)}; caption them, or score only "
            "the images that have both with --subset."
        )
    warnings = []
    if predictions.repeated:
        warnings.append(
            f"{_count(predictions.repeated, 'image stands', 'images stand')} more than once in {predictions.source} "
            "with the same caption each time, and each was counted once."
        )
    if extra:
        why = "belong to images without references" if len(extra) > 1 else "belongs to an image without references"
        warnings.append(
            f"{_count(extra, 'prediction', 'predictions')} of {predictions.source} {why} and "
            f"{'were' if len(extra) > 1 else 'was'} left out, for example {_some(extra)}{near_miss(extra, missing)}."
        )
    if missing:
        warnings.append(
            f"{len(missing):,} of {len(described):,} images have no prediction and are left out (--subset); scores of "
            "other subsets cannot be compared with these."
        )
    return Aligned(
        {image: predictions.captions[image] for image in shared},
        {image: described[image] for image in shared},
        tuple(warnings),
    )


def _check_ids(predictions: Predictions, references: References) -> None:
    """See that both files have ids, or that both have a line for each image."""
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
    """What is odd about captions that can be scored: empty ones, and a mean length far from the references'.

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
            f"for example of {_some(empty)}."
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


def near_miss(extra: Iterable[str], missing: Iterable[str]) -> str:
    """Explain ids that would match if only they were written alike.

    Args:
        extra: ids that are in one file only.
        missing: ids that are in the other only.

    Returns:
        A clause that begins with "; ", or nothing.
    """
    bare: dict[str, str] = {}
    for image in extra:
        bare.setdefault(_bare(image), image)
    pairs = [(bare[key], image) for image in missing if (key := _bare(image)) in bare]
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


def _bare(image: str) -> str:
    """An id in one Unicode form and case, without folder, ending, COCO's prefix, leading zeros and pandas' ".0"."""
    name = PurePath(unicodedata.normalize("NFC", image).casefold().replace("\\", "/")).name
    name = _ENDING.sub("", name)
    if name.startswith("coco_"):
        name = name.rsplit("_", 1)[1]
    return name.lstrip("0") or "0"


def _split_hint(references: References) -> str:
    if len(references.splits) < 2:
        return ""
    splits = ", ".join(f"{name} ({count:,})" for name, count in references.splits.items())
    return f"; {references.source} holds the splits {splits}, of which --split chooses one"


def _some(images: Iterable[str]) -> str:
    names = list(images)
    shown = ", ".join(f"'{_shorten(name)}'" for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _count(things: Sequence[object], one: str, many: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "?" for character in line[: SAMPLE_WIDTH + 1])
    return line if len(line) <= SAMPLE_WIDTH else line[: SAMPLE_WIDTH - 3] + "..."
