"""CIDEr as coco-caption computes it, which is the variant that its paper calls CIDEr-D.

Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015): n-grams of order 1 to 4
weighted by term frequency and inverse document frequency, compared by cosine; the D variant clips a prediction's
weights to the reference's, and takes off for a difference in length.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.metrics.matching import Matches
from captune.metrics.ngrams import NgramCounts

__all__ = ["Cider", "CiderD", "inverse_document_frequencies", "norms", "overlaps", "scores_of_images"]

_SIGMA = 6.0
# From this difference on the length penalty is 0 in double precision.
_LONGEST_DIFFERENCE = 256
_PENALTY = np.array(
    [math.e ** (-(float(d) ** 2) / (2 * _SIGMA**2)) for d in range(_LONGEST_DIFFERENCE + 1)], np.float64
)


class Cider:
    """CIDEr from the score of each image; the statistics are these scores, (N, 1) float64."""

    key: ClassVar[str] = "cider"
    names: ClassVar[tuple[str, ...]] = ("CIDEr",)

    def per_image(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores as they are, (N, 1)."""
        return statistics

    def corpus(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over images, (1,)."""
        return np.array([np.mean(np.ascontiguousarray(statistics[:, 0]))])

    def from_sums(self, sums: NDArray[np.float64], images: int) -> NDArray[np.float64]:
        """The mean of resampled sets, from (B, 1) sums; every image keeps its document frequencies."""
        return sums / images


class CiderD(Cider):
    """The same number under the name that the paper gives the variant."""

    key: ClassVar[str] = "cider-d"
    names: ClassVar[tuple[str, ...]] = ("CIDEr-D",)


def inverse_document_frequencies(counts: NDArray[np.int32], images: int) -> NDArray[np.float64]:
    """ln(images) - ln(max(1, count)), (G,) float64."""
    logarithms = np.log(np.maximum(1.0, np.arange(counts.max(initial=0) + 1, dtype=np.float64)))
    table = np.log(float(images)) - logarithms
    return table[counts]


def _square(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squares by `pow`, as in the original; a product differs in the last digit once in a thousand."""
    distinct, place = np.unique(weights, return_inverse=True)
    return np.array([pow(weight, 2) for weight in distinct.tolist()], np.float64)[place]


def norms(counts: NgramCounts, weights: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """The length of each caption's vector of one order.

    Args:
        counts: the n-grams, G distinct ones, of C captions.
        weights: (G,) inverse document frequencies.
        offsets: (C + 1,) where each caption's words begin.

    Returns:
        (C,) float64.
    """
    squares = np.zeros(int(offsets[-1]))
    squares[counts.first] = _square(weights)[counts.gram]
    repeated = np.flatnonzero(counts.count > 1)
    squares[counts.first[repeated]] = _square(counts.count[repeated] * weights[counts.gram[repeated]])
    caption_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # bincount adds in the order of the words, and so does the original.
    return np.sqrt(np.bincount(caption_of, squares, len(offsets) - 1))


def overlaps(matches: Matches, weights: NDArray[np.float64], references: int) -> NDArray[np.float64]:
    """Clipped dot product of each reference's vector with its prediction's, (C,) float64.

    Args:
        matches: shared n-grams of one order.
        weights: (G,) inverse document frequencies of the references' n-grams.
        references: how many references there are, C.
    """
    weight = weights[matches.gram]
    own = matches.prediction_count * weight
    theirs = matches.reference_count * weight
    return np.bincount(matches.reference, np.minimum(own, theirs) * theirs, references)


def scores_of_images(
    overlap: NDArray[np.float64],
    prediction_norms: NDArray[np.float64],
    reference_norms: NDArray[np.float64],
    prediction_lengths: NDArray[np.int64],
    reference_lengths: NDArray[np.int64],
    image_offsets: NDArray[np.int64],
) -> NDArray[np.float64]:
    """CIDEr of each image, (N,) float64.

    Args:
        overlap: (4, C) clipped dot products.
        prediction_norms: (4, N).
        reference_norms: (4, C).
        prediction_lengths: (N,) in words.
        reference_lengths: (C,) in words.
        image_offsets: (N + 1,) where each image's references begin.
    """
    per_image = np.diff(image_offsets)
    image_of = np.repeat(np.arange(len(per_image)), per_image)
    # The original measures length in bigrams, so captions of no word and of one word are equally long.
    own = np.maximum(0, prediction_lengths - 1)[image_of]
    difference = np.abs(own - np.maximum(0, reference_lengths - 1))
    penalty = _PENALTY[np.minimum(difference, _LONGEST_DIFFERENCE)]
    total = np.zeros(len(per_image))
    for order in range(len(overlap)):
        norm = prediction_norms[order][image_of] * reference_norms[order]
        norm[norm == 0] = 1.0
        similarity = overlap[order] / norm * penalty
        total += np.bincount(image_of, similarity, len(per_image))
    return total / len(overlap) / per_image * 10.0
