"""BLEU-1 to BLEU-4 as coco-caption computes them.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation" (ACL 2002), with the reference
length closest to the prediction's, and a tiny number in place of zero matches, so that a single caption has a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from captune.metrics.metric import Column, Metric
from captune.metrics.ngram_matching import Matches, OrderMatches
from captune.metrics.ngrams import ORDERS
from captune.metrics.references import PredictionBatch, ReferenceIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Bleu", "clipped_counts", "closest_lengths"]

# Added to numerators and denominators, so that an image without a match has a score, and an empty one has 0.
_TINY = 1e-15
_SMALL = 1e-9


class Bleu(Metric):
    """BLEU-1 to BLEU-4.

    The statistics of an image are 10 integers: words of the prediction, words of the reference closest in length, and
    for each order the n-grams of the prediction and those that match a reference.
    """

    columns: ClassVar[tuple[Column, ...]] = tuple(
        Column(
            f"BLEU-{order}",
            description=f"Share of {'words' if order == 1 else f'sequences of up to {order} words'} that a reference "
            "has too, with a penalty for short captions.",
        )
        for order in range(1, ORDERS + 1)
    )
    forks: ClassVar[bool] = True

    def prepare(self, references: ReferenceIndex) -> None:
        """Require the n-grams of the references."""
        references.require_ngrams(self._count_clipped)

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.int64]:
        """Counts of each image, (N, 10)."""
        lengths = predictions.words.lengths
        closest = closest_lengths(lengths, predictions.reference_lengths, predictions.offsets)
        guesses = np.maximum(0, lengths[:, None] - np.arange(ORDERS))
        clipped = predictions.per_order(self._count_clipped)
        return np.column_stack((lengths, closest, guesses, *clipped))

    @staticmethod
    def _count_clipped(predictions: PredictionBatch) -> Callable[[OrderMatches], NDArray[np.int64]]:
        return lambda order: clipped_counts(order.matches, len(predictions))

    @classmethod
    def from_sums(cls, sums: NDArray[Any], images: int) -> NDArray[np.float64]:
        """BLEU of B corpora, from (B, 10) summed counts to (B, 4)."""
        return _bleu(sums)


def _bleu(statistics: NDArray[Any]) -> NDArray[np.float64]:
    """BLEU of every row of statistics, (N, 10) to (N, 4).

    Powers and exponentials go through `math`, whose last digit does not depend on the processor.
    """
    length, closest = statistics[:, 0], statistics[:, 1]
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = np.array([math.exp(1 - 1 / r) if r < 1 else 1.0 for r in ratio.tolist()])
    scores = np.empty((len(statistics), ORDERS))
    product = np.ones(len(statistics))
    for order in range(ORDERS):
        product = product * ((statistics[:, 6 + order] + _TINY) / (statistics[:, 2 + order] + _SMALL))
        exponent = 1.0 / (order + 1)
        scores[:, order] = np.fromiter(map(math.pow, product.tolist(), repeat(exponent)), np.float64, len(product))
    scores *= penalty[:, None]
    return scores


def clipped_counts(matches: Matches, images: int) -> NDArray[np.int64]:
    """How many n-grams of each prediction are in its references, each at most as often as in one of them.

    Returns:
        (N,) int64.
    """
    if not len(matches.predicted):
        return np.zeros(images, np.int64)
    most = np.maximum.reduceat(matches.reference_times, matches.group)
    clipped = np.minimum(most, matches.prediction_times[matches.group])
    return np.bincount(matches.predicted[matches.group], clipped, images).astype(np.int64)


def closest_lengths(
    lengths: NDArray[np.int64], reference_lengths: NDArray[np.int64], image_offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each prediction the reference length nearest to its own, the shorter of two equally near.

    Args:
        lengths: (N,) words of the predictions.
        reference_lengths: (C,) words of the references.
        image_offsets: (N + 1,) where each image's references begin.
    """
    predicted = np.repeat(lengths, np.diff(image_offsets))
    # The smallest (distance, length) pair in one number.
    rank = (np.abs(reference_lengths - predicted) << 32) | reference_lengths
    nearest: NDArray[np.int64] = np.minimum.reduceat(rank, image_offsets[:-1])
    return nearest & 0xFFFFFFFF
