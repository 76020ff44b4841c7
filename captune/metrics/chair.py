"""CHAIR: how often captions mention objects that are not in the image, with any vocabulary of objects.

Rohrbach et al., "Object Hallucination in Image Captioning" (EMNLP 2018):

    CHAIR-s = captions with a hallucinated object / captions
    CHAIR-i = mentions of hallucinated objects / mentions of objects

With C the classes that are in the images, and H those of them that the captions mention, each counted once an image:

    CHAIR-recall = H / C
    CHAIR-F1     = harmonic mean of 1 - CHAIR-i and CHAIR-recall

What is in an image is known from annotations of objects, from the references, or from both as in the paper.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.inputs import ImageId, Predictions, References
from captune.metrics.json_files import parse_json, read_text
from captune.metrics.metric import Column, Metric
from captune.metrics.object_vocabulary import Mention, ObjectVocabulary, coco_vocabulary, split_words
from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch, ReferenceIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from captune.metrics.scores import Scores

__all__ = ["Chair", "ObjectTruth", "find_hallucinations", "leave_one_out", "read_objects", "truncate_caption"]


class ObjectTruth:
    """The classes of objects that are in each image.

    Args:
        references: image id to references.
        options: `vocabulary`, `objects`, `truth` and `truncate` of the scorer.

    Attributes:
        vocabulary: the classes and words.
        kind: "references", "objects" or "both".
        classes: image id to the classes in it.

    Raises:
        MetricInputError: the options do not fit, a file cannot be used, an image has no annotations, or no image has
            an object.
    """

    def __init__(self, references: Mapping[ImageId, Sequence[str]], options: ScoringOptions) -> None:
        self.vocabulary = _vocabulary(options)
        self.kind = _kind(options)
        self.truncate = options.truncate
        truncate_caption("", self.truncate)
        self.classes: dict[ImageId, frozenset[str]] = {image: frozenset() for image in references}
        if self.kind != "objects":
            for image, captions in references.items():
                self.classes[image] = frozenset(m.name for text in captions for m in self.vocabulary.mentions(text))
        if options.objects is not None and self.kind != "references":
            for image, names in _annotated(references, options.objects, self.vocabulary).items():
                self.classes[image] |= names
        if not any(self.classes.values()):
            raise MetricInputError(
                f"chair: no image has an object of the vocabulary {self.vocabulary.name} in its {_SOURCES[self.kind]}; "
                "give a vocabulary of what these images show (vocabulary=FILE, --vocabulary FILE)."
            )

    def hallucinations(self, image: ImageId, caption: str) -> list[Mention]:
        """Mentions, in the scored part of a caption, of objects that are not in the image."""
        return [mention for mention in self.mentions(caption) if mention.name not in self.classes[image]]

    def mentions(self, caption: str) -> list[Mention]:
        """Mentions of objects in the scored part of a caption."""
        return self.vocabulary.mentions(truncate_caption(caption, self.truncate))

    def signature(self) -> str:
        """Vocabulary, kind of truth, images, their objects and truncation, such as
        "voc=coco80-0a1b2c3d,truth=both-4e5f6a7b,images=8c9d0e1f,cut=none"."""
        names = sorted(map(str, self.classes))
        objects = [[str(image), sorted(self.classes[image])] for image in sorted(self.classes, key=str)]
        return ",".join(
            (
                f"voc={self.vocabulary.name}-{self.vocabulary.hash}",
                f"truth={self.kind}-{_hash(objects)}",
                f"images={_hash(names)}",
                f"cut={self.truncate or 'none'}",
            )
        )


_SOURCES = {"references": "references", "objects": "annotations", "both": "references and annotations"}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _vocabulary(options: ScoringOptions) -> ObjectVocabulary:
    if options.vocabulary is None:
        return coco_vocabulary()
    if isinstance(options.vocabulary, ObjectVocabulary):
        return options.vocabulary
    return ObjectVocabulary.read(options.vocabulary)


def _kind(options: ScoringOptions) -> str:
    """The truth: as in the options, by default "both" with annotations and "references" without."""
    if options.truth is None:
        return "references" if options.objects is None else "both"
    if options.truth not in _SOURCES:
        raise MetricInputError(f"truth is {options.truth!r}; choose one of {', '.join(_SOURCES)}")
    if (options.truth == "references") != (options.objects is None):
        raise MetricInputError(
            f"truth is '{options.truth}' and there are annotations of objects; leave one of them out"
            if options.objects is not None
            else f"truth is '{options.truth}', which needs annotations of objects (objects=FILE, --objects FILE)"
        )
    return options.truth


# The end of a sentence: a mark, perhaps a closing quotation mark or bracket, and white space or the end of the text.
_SENTENCE_END = re.compile("[.!?]+[\"'\u201d\u2019)\\]]*(?=\\s|$)|[\u3002\uff01\uff1f]+")
_RULE = re.compile(r"(words|complete|sentences)=([1-9]\d{0,5})")


def truncate_caption(caption: str, rule: str | None) -> str:
    """The part of a caption that is scored.

    Args:
        caption: any text.
        rule: "words=64" keeps the first 64 words; "complete=64" keeps the sentences that end within them, and all 64
            words of a sentence that is longer; "sentences=2" keeps the first two sentences; None keeps everything.

    Raises:
        MetricInputError: the rule is something else.
    """
    if rule is None:
        return caption
    match = _RULE.fullmatch(rule)
    if match is None:
        raise MetricInputError(
            f"the truncation is {rule!r}; give words=N, complete=N (complete sentences within N words) or sentences=N"
        )
    kind, count = match[1], int(match[2])
    ends = [end.end() for end in _SENTENCE_END.finditer(caption)]
    if kind == "sentences":
        return caption[: ends[count - 1]] if len(ends) >= count else caption
    words = list(split_words(caption))
    if len(words) <= count:
        return caption
    if kind == "complete":
        complete = [end for end in ends if end <= words[count].start]
        if complete:
            return caption[: complete[-1]]
    return caption[: words[count].start].rstrip()


def read_objects(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The objects of images.

    Args:
        path: COCO's instances as JSON (`images`, `annotations`, `categories`), or {image id: [names]}; may be .gz.

    Returns:
        Image id to categories, each once. Images of COCO are there by id, and by the name of their file with and
        without its ending where that is no other image's id.

    Raises:
        MetricInputError: the file cannot be read, or is something else.
    """
    stat = Path(path).stat() if Path(path).is_file() else None
    # Instances of COCO take seconds to read; a scorer of some of the images would read them again.
    return _read_objects(str(path), (stat.st_mtime_ns, stat.st_size) if stat else None)


@lru_cache(maxsize=2)
def _read_objects(name: str, _state: tuple[int, int] | None) -> dict[str, tuple[str, ...]]:
    tree = parse_json(read_text(name), name).value
    if isinstance(tree, dict) and {"annotations", "categories"} <= tree.keys():
        return _coco_objects(tree, name)
    is_plain = isinstance(tree, dict) and all(
        isinstance(names, list) and all(isinstance(text, str) for text in names) for names in tree.values()
    )
    if not is_plain or not tree:
        raise MetricInputError(
            f"{name} has no objects of images; expected COCO's instances ('images', 'annotations', 'categories'), or "
            '{"image id": ["dog", "ball"]}.'
        )
    return {image: tuple(dict.fromkeys(names)) for image, names in tree.items()}


def _coco_objects(tree: Mapping[str, Any], name: str) -> dict[str, tuple[str, ...]]:
    try:
        categories = {row["id"]: str(row["name"]) for row in tree["categories"]}
        objects: dict[str, dict[str, None]] = {str(row["id"]): {} for row in tree.get("images", [])}
        for row in tree["annotations"]:
            if "category_id" not in row and "caption" in row:
                raise MetricInputError(f"{name} has captions, not objects; give COCO's instances_*.json.")
            objects.setdefault(str(row["image_id"]), {})[categories[row["category_id"]]] = None
        files = [(str(row["file_name"]), str(row["id"])) for row in tree.get("images", []) if "file_name" in row]
    except (KeyError, TypeError, AttributeError) as error:
        raise MetricInputError(
            f"{name} has the form of COCO's instances, and an entry has no or an unknown {error}; download it again."
        ) from None
    result = {image: tuple(names) for image, names in objects.items()}
    for file, image in files:
        for alias in (file, Path(file).stem):
            result.setdefault(alias, result[image])
    return result


def _annotated(
    images: Iterable[ImageId], objects: str | Path | Mapping[Any, Sequence[str]], vocabulary: ObjectVocabulary
) -> dict[ImageId, frozenset[str]]:
    """The classes of the annotated objects of each image."""
    if isinstance(objects, Mapping):
        source, annotated = "objects", {str(image): tuple(names) for image, names in objects.items()}
    else:
        source, annotated = str(objects), read_objects(objects)
    images = list(images)
    missing = [image for image in images if str(image) not in annotated]
    if missing:
        raise MetricInputError(
            f"chair: {source} has no entry for {len(missing):,} of {len(images):,} images, such as {missing[0]!r}; its "
            f"images are {', '.join(map(repr, list(annotated)[:2]))}, ... An image without objects has an empty list."
        )
    of_category = vocabulary.classes_of((name for image in images for name in annotated[str(image)]), source)
    return {
        image: frozenset(of_category[name] for name in annotated[str(image)] if name in of_category) for image in images
    }


class Chair(Metric):
    """CHAIR-s, CHAIR-i, recall and F1 of mentioned objects.

    The statistics of an image are 5 integers: mentions, mentions of hallucinated objects, whether there is one, classes
    in the image, and those of them that are mentioned.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("CHAIR-s", 1.0, False, "Share of captions that mention an object that is not in the image."),
        Column("CHAIR-i", 1.0, False, "Share of mentioned objects that are not in the image."),
        Column("CHAIR-recall", description="Share of the objects in the images that the captions mention."),
        Column("CHAIR-F1", description="Harmonic mean of the share of mentions that are correct, and recall."),
    )
    forks: ClassVar[bool] = True

    def __init__(self, options: ScoringOptions) -> None:
        super().__init__(options)
        self._truth: ObjectTruth | None = None

    @classmethod
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise the error of wrong options, a wrong vocabulary or a missing file of annotations."""
        _vocabulary(options)
        _kind(options)
        truncate_caption("", options.truncate)
        if isinstance(options.objects, str | Path) and not Path(options.objects).is_file():
            raise MetricInputError(f"There is no file '{options.objects}' with the objects of the images.")

    def prepare(self, references: ReferenceIndex) -> None:
        """Collect the objects of every image."""
        self._truth = ObjectTruth(references.captions, self.options)

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.int64]:
        """Counts of each image, (N, 5)."""
        assert self._truth is not None
        rows = np.zeros((len(predictions), 5), np.int64)
        for index, (image, caption) in enumerate(zip(predictions.ids, predictions.captions, strict=True)):
            mentioned = [mention.name for mention in self._truth.mentions(caption)]
            real = self._truth.classes[image]
            wrong = sum(name not in real for name in mentioned)
            rows[index] = len(mentioned), wrong, wrong > 0, len(real), len(real.intersection(mentioned))
        return rows

    @classmethod
    def from_sums(cls, sums: NDArray[Any], images: int) -> NDArray[np.float64]:
        """The scores of B corpora, from (B, 5) summed counts to (B, 4); a share of nothing is 0."""
        mentions, wrong, captions, real, recalled = sums.astype(np.float64).T
        chair = np.divide(wrong, mentions, out=np.zeros_like(wrong), where=mentions > 0)
        precision = np.divide(mentions - wrong, mentions, out=np.zeros_like(wrong), where=mentions > 0)
        recall = np.divide(recalled, real, out=np.zeros_like(wrong), where=real > 0)
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        return np.column_stack((captions / images, chair, recall, f1))

    def signature(self) -> Mapping[str, str]:
        """Vocabulary, truth, images and truncation."""
        assert self._truth is not None
        return {"chair": self._truth.signature()}


def find_hallucinations(
    predictions: Predictions, references: References, options: ScoringOptions | None = None
) -> dict[ImageId, list[Mention]]:
    """The words of captions that name an object that is not in the image.

    Args:
        predictions: image id to caption.
        references: of the same images.
        options: `vocabulary`, `objects`, `truth` and `truncate`.

    Returns:
        For each image whose caption hallucinates, its mentions with their positions in the caption.

    Raises:
        MetricInputError: as `ObjectTruth`.
    """
    truth = ObjectTruth(cast("Mapping[ImageId, Sequence[str]]", references), options or ScoringOptions())
    by_text = {str(image): image for image in truth.classes}
    result: dict[ImageId, list[Mention]] = {}
    for image, caption in predictions.items():
        if mentions := truth.hallucinations(by_text[str(image)], caption):
            result[image] = mentions
    return result


def leave_one_out(references: References, options: ScoringOptions | None = None) -> list[Scores]:
    """CHAIR of people: each reference of an image scored against the other references.

    With the references as truth this is the base rate of the measurement: people mention what other people left out.

    Args:
        references: for each image at least two; images with fewer than the most have no caption in later rounds.
        options: how, without `objects` by default.

    Returns:
        The scores of every round: of the first references of all images, the second, ...

    Raises:
        MetricInputError: an image has one reference only.
    """
    from captune.metrics.scorer import Scorer

    options = replace(options or ScoringOptions(), metrics=("chair",))
    fewest = min((len(captions) for captions in references.values()), default=0)
    if fewest < 2:
        raise MetricInputError("leave-one-out needs at least two references for every image")
    rounds = []
    for index in range(max(map(len, references.values()))):
        left_out = {image: texts[index] for image, texts in references.items() if len(texts) > index}
        others = {image: [*references[image][:index], *references[image][index + 1 :]] for image in left_out}  # type: ignore[index]
        rounds.append(Scorer(others, options).score(left_out))
    return rounds
