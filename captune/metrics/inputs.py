"""What users give, checked once, with one sentence for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import cast

from captune.errors import MetricInputError

__all__ = ["ImageId", "Predictions", "References", "check_predictions", "check_references", "in_order"]

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


def _some(names: Iterable[object], count: int) -> str:
    """Up to three names, and how many more there are."""
    shown = ", ".join(map(repr, list(names)[:3]))
    return shown if count <= 3 else f"{shown} and {count - 3:,} more"


def check_references(references: Mapping[ImageId, Sequence[str]]) -> None:
    """Every image has a list of at least one caption.

    Raises:
        MetricInputError: it is otherwise.
    """
    if not isinstance(references, Mapping):
        raise MetricInputError(
            f"references are a {type(references).__name__}; give a dictionary from image id to a list of captions"
        )
    if not references:
        raise MetricInputError("there are no references; give a dictionary from image id to a list of captions")
    without = [image for image, captions in references.items() if not isinstance(captions, str) and not len(captions)]
    if without:
        raise MetricInputError(
            f"no references for image {_some(without, len(without))}; every image needs at least one"
        )
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
    """Every image has one caption.

    Raises:
        MetricInputError: it is otherwise.
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


def in_order(
    predictions: Mapping[ImageId, str], references: Iterable[ImageId], subset: bool
) -> tuple[list[int], list[ImageId]]:
    """Put predictions into the order of the references.

    An id is its text: the prediction of 42 belongs to the references of "42".

    Args:
        predictions: one caption for an image.
        references: the ids of the images with references, in order.
        subset: whether images without a prediction are left out.

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
            f"{_some(named, len(named))}; give these images' references or drop the predictions"
        )
    rows = [row for row, text in enumerate(texts) if text in by_text]
    if len(rows) < len(texts) and not subset:
        missing = [text for text in texts if text not in by_text]
        raise MetricInputError(
            f"{len(missing):,} of {len(texts):,} images have no prediction: {_some(missing, len(missing))}; "
            "caption them, or score the others only with subset=True (--subset)"
        )
    return rows, [by_text[texts[row]] for row in rows]
