"""ROUGE-L as coco-caption computes it.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004): the longest common subsequence of prediction and
reference, as an F-score with beta 1.2 of the best precision and the best recall over the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.encoding import Rows
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.references import PredictionBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RougeL", "common_subsequences", "scores_of_images"]

_BETA = 1.2
# Tokens of a prediction times tokens of all its references; beyond this the table takes more than seconds.
_MOST_CELLS = 2 * 10**10
_BITS = 64
_LONGEST_STEPS = 512
_BLOCK = 1 << 15


class RougeL(MeanOfImages):
    """ROUGE-L."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("ROUGE-L", description="Longest sequence of words in common with a reference, by precision and recall."),
    )
    forks: ClassVar[bool] = True

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """ROUGE-L of each image, (N, 1)."""
        tokens, references = predictions.tokens, predictions.reference_tokens
        return scores_of_images(tokens, references, predictions.offsets, predictions.ids)[:, None]


def scores_of_images(
    predictions: Rows, references: Rows, image_offsets: NDArray[np.int64], ids: Sequence[object] = ()
) -> NDArray[np.float64]:
    """ROUGE-L of each image, (N,) float64.

    Args:
        predictions: N rows of tokens.
        references: C rows of tokens.
        image_offsets: (N + 1,) where each image's references begin.
        ids: the images' names, for messages.

    Raises:
        MetricInputError: a prediction and its references are too long to be compared in bounded time.
    """
    common = common_subsequences(predictions, references, image_offsets, ids)
    # The original splits an empty caption into one empty token.
    lengths = np.maximum(1, predictions.lengths)
    reference_lengths = np.maximum(1, references.lengths)
    precision = np.maximum.reduceat(common / np.repeat(lengths, np.diff(image_offsets)), image_offsets[:-1])
    recall = np.maximum.reduceat(common / reference_lengths, image_offsets[:-1])
    beta_squared = _BETA**2
    denominator = recall + beta_squared * precision
    denominator[denominator == 0] = 1.0
    scores: NDArray[np.float64] = ((1 + beta_squared) * precision * recall) / denominator
    return scores


def common_subsequences(
    predictions: Rows, references: Rows, image_offsets: NDArray[np.int64], ids: Sequence[object] = ()
) -> NDArray[np.int64]:
    """The length of the longest common subsequence of each reference with its image's prediction, (C,) int64.

    Bit-parallel (Hyyrö 2004): bit i of a number represents the prediction's token i. Where 64 bits are enough numpy
    works on many references at once; long captions take Python's integers.

    Raises:
        MetricInputError: see `scores_of_images`.
    """
    image_of = np.repeat(np.arange(len(predictions)), np.diff(image_offsets))
    lengths, reference_lengths = predictions.lengths[image_of], references.lengths
    # The original splits an empty caption into one empty token, which two empty captions share.
    result: NDArray[np.int64] = ((lengths == 0) & (reference_lengths == 0)).astype(np.int64)
    short = (lengths <= _BITS) & (reference_lengths <= _LONGEST_STEPS)
    pairs = np.flatnonzero(short & (lengths > 0) & (reference_lengths > 0))
    # Captions of similar length are processed together, to save steps.
    pairs = pairs[np.argsort(lengths[pairs] * (_LONGEST_STEPS + 1) + reference_lengths[pairs])]
    ends = np.cumsum(reference_lengths[pairs])
    start = 0
    while start < len(pairs):
        tokens_before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, tokens_before + _BLOCK, side="right")))
        block = pairs[start:end]
        result[block] = _common_of_short(predictions, references, image_of[block], block)
        start = end
    _check_cells(predictions, references, image_offsets, ids)
    long = np.flatnonzero(~short & (lengths > 0))
    for captions in np.split(long, np.flatnonzero(np.diff(image_of[long])) + 1) if len(long) else ():
        prediction = predictions.row(int(image_of[captions[0]]))
        result[captions] = _common_of_long(prediction, [references.row(c) for c in captions.tolist()])
    return result


def _common_of_short(
    predictions: Rows, references: Rows, images: NDArray[np.int64], captions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The lengths for some captions, (B,), whose predictions, (B,) `images`, ascend in length."""
    begin, lengths = predictions.offsets[images], predictions.lengths[images]
    steps = references.lengths[captions]
    owner = np.repeat(np.arange(len(captions)), steps)
    ends = np.cumsum(steps)
    token_at = np.arange(int(ends[-1])) + np.repeat(references.offsets[captions] - (ends - steps), steps)
    tokens = references.values[token_at]
    # masks[t] has bit i set where token t of a reference is token i of its prediction.
    masks = np.zeros(len(tokens), np.uint64)
    for bit in range(int(lengths[-1])):
        column = np.where(lengths > bit, predictions.values.take(begin + bit, mode="clip"), -1)
        masks |= (column[owner] == tokens).astype(np.uint64) << np.uint64(bit)
    longest_first = np.argsort(-steps, kind="stable")
    token_at = (ends - steps)[longest_first]
    active = np.searchsorted(-steps[longest_first], -np.arange(int(steps.max())), side="left").tolist()
    free = np.full(len(captions), ~np.uint64(0))
    for step, count in enumerate(active):
        left = free[:count]
        hit = left & masks[token_at[:count] + step]
        free[:count] = (left + hit) | (left - hit)
    inside = ~np.uint64(0) >> (_BITS - lengths[longest_first]).astype(np.uint64)
    result = np.empty(len(captions), np.int64)
    result[longest_first] = np.bitwise_count(~free & inside)
    return result


def _common_of_long(prediction: NDArray[np.int32], references: list[NDArray[np.int32]]) -> list[int]:
    """The lengths for references of one image."""
    # Shifting a long integer for every token would be quadratic: the masks are packed token by token instead.
    masks = {}
    for token in np.intersect1d(prediction, np.concatenate(references)).tolist():
        masks[token] = int.from_bytes(np.packbits(prediction == token, bitorder="little").tobytes(), "little")
    everything = (1 << len(prediction)) - 1
    result = []
    for reference in references:
        free = everything
        for token in reference.tolist():
            mask = masks.get(token)
            if mask is not None:
                hit = free & mask
                free = (free + hit) | (free - hit)
        result.append(len(prediction) - (free & everything).bit_count())
    return result


def _check_cells(predictions: Rows, references: Rows, image_offsets: NDArray[np.int64], ids: Sequence[object]) -> None:
    compared = np.diff(references.offsets[image_offsets])
    too_many = np.flatnonzero(predictions.lengths.astype(np.float64) * compared > _MOST_CELLS)
    if len(too_many):
        image = int(too_many[0])
        name = repr(ids[image]) if ids else f"number {image + 1}"
        raise MetricInputError(
            f"ROUGE-L of image {name} would compare {predictions.lengths[image]:,} tokens with {compared[image]:,}; "
            "shorten these captions or leave ROUGE-L out"
        )
