"""Which n-grams of a prediction stand in which references of its image.

The references are indexed once; any number of systems is then matched against the index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captune.metrics.ngrams import NgramCounts

__all__ = ["Matches", "OrderIndex"]


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of a prediction's n-gram and a reference of the same image that holds it, M in all.

    Pairs follow the predictions, the n-grams' first occurrences, and the references: the order in which the original
    adds floating-point numbers up.

    Attributes:
        predicted: (M,) int32, the prediction (which is also the image).
        reference: (M,) int32, the reference.
        gram: (M,) int32, the n-gram's number among the references' n-grams.
        prediction_count: (M,) int32, how often the n-gram stands in the prediction.
        reference_count: (M,) int32, how often it stands in the reference.
        group: where a prediction's next n-gram begins, ascending from 0.
    """

    predicted: NDArray[np.int32]
    reference: NDArray[np.int32]
    gram: NDArray[np.int32]
    prediction_count: NDArray[np.int32]
    reference_count: NDArray[np.int32]
    group: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OrderIndex:
    """The references' n-grams of one order, for looking up.

    Attributes:
        entries: (E,) int64 ascending, `n-gram * captions + caption`.
        counts: (E,) int32, how often the n-gram stands in the caption.
        captions: how many references there are, C.
    """

    entries: NDArray[np.int64]
    counts: NDArray[np.int32]
    captions: int

    @classmethod
    def of(cls, counts: NgramCounts, captions: int) -> OrderIndex:
        """Index the n-grams of C references."""
        return cls(counts.gram.astype(np.int64) * captions + counts.caption, counts.count, captions)

    def match(self, predicted: NgramCounts, located: NDArray[np.int32], image_offsets: NDArray[np.int64]) -> Matches:
        """Find the references of the same image that hold a prediction's n-grams.

        Args:
            predicted: the predictions' n-grams; caption i is the prediction of image i.
            located: (G,) int32, the references' number of each of the predictions' distinct n-grams, or -1.
            image_offsets: (N + 1,) int64, where each image's references begin.
        """
        gram = located[predicted.gram]
        known = np.flatnonzero(gram >= 0)
        start = gram[known].astype(np.int64) * self.captions
        image = predicted.caption[known]
        low = np.searchsorted(self.entries, start + image_offsets[image])
        end = start + image_offsets[image + 1]
        # Most n-grams are in none of the image's references: look for the end of the others only.
        inside = np.flatnonzero(np.append(self.entries, np.iinfo(np.int64).max)[low] < end)
        high = np.searchsorted(self.entries, end[inside])
        known, low = known[inside], low[inside]
        order = np.argsort(predicted.first[known])
        known, low, width = known[order], low[order], (high - low)[order]
        ends = np.cumsum(width)
        pair = np.repeat(known, width)
        group = ends - width
        entry = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(group - low, width)
        pair_gram = gram[pair]
        return Matches(
            predicted=predicted.caption[pair],
            reference=(self.entries[entry] - pair_gram.astype(np.int64) * self.captions).astype(np.int32),
            gram=pair_gram,
            prediction_count=predicted.count[pair],
            reference_count=self.counts[entry],
            group=group,
        )
