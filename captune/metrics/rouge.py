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

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RougeL", "common_subsequences", "scores_of_images"]

_BETA = 1.2
# Tokens of a prediction times tokens of all its references; beyond this the table takes more than seconds.
_MOST_CELLS = 2 * 10**10
_LONG = 1024


class RougeL:
    """ROUGE-L from the score of each image; the statistics are these scores, (N, 1) float64."""

    key: ClassVar[str] = "rouge-l"
    names: ClassVar[tuple[str, ...]] = ("ROUGE-L",)

    def per_image(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores as they are, (N, 1)."""
        return statistics

    def corpus(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over images, (1,)."""
        return np.array([np.mean(np.ascontiguousarray(statistics[:, 0]))])

    def from_sums(self, sums: NDArray[np.float64], images: int) -> NDArray[np.float64]:
        """The mean of resampled sets, from (B, 1) sums."""
        scores: NDArray[np.float64] = sums / images
        return scores


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
    own = np.maximum(1, predictions.lengths)
    theirs = np.maximum(1, references.lengths)
    precision = np.maximum.reduceat(common / np.repeat(own, np.diff(image_offsets)), image_offsets[:-1])
    recall = np.maximum.reduceat(common / theirs, image_offsets[:-1])
    beta_squared = _BETA**2
    denominator = recall + beta_squared * precision
    denominator[denominator == 0] = 1.0
    return ((1 + beta_squared) * precision * recall) / denominator


def common_subsequences(
    predictions: Rows, references: Rows, image_offsets: NDArray[np.int64], ids: Sequence[object] = ()
) -> NDArray[np.int64]:
    """The length of the longest common subsequence of each reference with its image's prediction, (C,) int64.

    Bit-parallel (Hyyrö 2004): bit i of a Python integer stands for the prediction's token i.
    """
    result: list[int] = []
    tokens = references.values.tolist()
    ends = references.offsets.tolist()
    borders = image_offsets.tolist()
    own_ends = predictions.offsets.tolist()
    own_tokens = predictions.values
    for image in range(len(predictions)):
        first, last = borders[image], borders[image + 1]
        own = own_tokens[own_ends[image] : own_ends[image + 1]]
        if len(own) * (ends[last] - ends[first]) > _MOST_CELLS:
            name = repr(ids[image]) if ids else f"number {image + 1}"
            raise MetricInputError(
                f"ROUGE-L of image {name} would compare {len(own):,} tokens with {ends[last] - ends[first]:,}; "
                "shorten these captions or leave ROUGE-L out"
            )
        if not len(own):
            result.extend(int(ends[c] == ends[c + 1]) for c in range(first, last))
            continue
        masks = _masks(own, tokens[ends[first] : ends[last]])
        everything = (1 << len(own)) - 1
        for caption in range(first, last):
            free = everything
            for token in tokens[ends[caption] : ends[caption + 1]]:
                mask = masks.get(token)
                if mask is not None:
                    hit = free & mask
                    free = (free + hit) | (free - hit)
            result.append(len(own) - (free & everything).bit_count())
    return np.array(result, np.int64)


def _masks(own: NDArray[np.int32], others: list[int]) -> dict[int, int]:
    """For each token the bits of its places among `own`."""
    masks: dict[int, int] = {}
    if len(own) <= _LONG:
        for place, token in enumerate(own.tolist()):
            masks[token] = masks.get(token, 0) | (1 << place)
        return masks
    # Shifting a long integer for every token would be quadratic.
    for token in set(others):
        places = np.packbits(own == token, bitorder="little")
        if places.any():
            masks[token] = int.from_bytes(places.tobytes(), "little")
    return masks
