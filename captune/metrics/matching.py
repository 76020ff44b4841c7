"""Which n-grams of a prediction stand in which references of its image.

The references are indexed once; any number of systems is then matched against the index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from captune.metrics.ngrams import NgramCounts

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IndexBuilder", "Matches", "OrderIndex"]


class Matches(NamedTuple):
    """Pairs of a prediction's n-gram and a reference of the same image that holds it, M in all.

    Pairs follow the predictions, the n-grams' first occurrences, and the references: the order in which the original
    adds floating-point numbers up.

    Attributes:
        predicted: (M,) int32, the prediction (which is also the image).
        reference: (M,) int32, the reference.
        gram: (M,) int32, the n-gram's number among the references' n-grams.
        prediction_times: (M,) int32, how often the n-gram stands in the prediction.
        reference_times: (M,), how often it stands in the reference.
        group: where a prediction's next n-gram begins, ascending from 0.
    """

    predicted: NDArray[np.int32]
    reference: NDArray[np.int32]
    gram: NDArray[np.int32]
    prediction_times: NDArray[np.int32]
    reference_times: NDArray[np.signedinteger]
    group: NDArray[np.int64]


class OrderIndex(NamedTuple):
    """The references' n-grams of one order, for looking up.

    Attributes:
        entries: (E,) int64 ascending, `n-gram * captions + caption`.
        times: (E,), how often the n-gram stands in the caption.
        captions: how many references there are, C.
    """

    entries: NDArray[np.int64]
    times: NDArray[np.signedinteger]
    captions: int

    def match(
        self,
        predicted: NgramCounts,
        located: NDArray[np.int32],
        image_offsets: NDArray[np.int64],
        possible: NDArray[np.bool_],
    ) -> Matches:
        """Find the references of the same image that hold a prediction's n-grams.

        Args:
            predicted: the predictions' n-grams; caption i is the prediction of image i.
            located: (G,) int32, the references' number of each of the predictions' distinct n-grams, or -1.
            image_offsets: (N + 1,) int64, where each image's references begin.
            possible: (P,) whether the n-gram that begins at a word may stand in a reference of the image; set to False
                here where it does not, for the next order, since a longer n-gram holds two of these.
        """
        gram = located[predicted.gram]
        wanted = (gram >= 0) & possible[predicted.first]
        known = np.flatnonzero(wanted)
        start = gram[known].astype(np.int64) * self.captions
        image = predicted.caption[known]
        low = np.searchsorted(self.entries, start + image_offsets[image])
        end = start + image_offsets[image + 1]
        # Most n-grams are in none of the image's references: look for the end of the others only.
        inside = np.flatnonzero((self.entries.take(low, mode="clip") < end) & (low < len(self.entries)))
        high = np.searchsorted(self.entries, end[inside])
        known, low = known[inside], low[inside]
        wanted[:] = False
        wanted[known] = True
        possible[predicted.first[~wanted]] = False
        order = np.argsort(predicted.first[known])
        known, low, width = known[order], low[order], (high - low)[order]
        ends = np.cumsum(width)
        pair = np.repeat(known, width)
        group = ends - width
        entry = np.arange(len(pair)) - np.repeat(group - low, width)
        pair_gram = gram[pair]
        return Matches(
            predicted=predicted.caption[pair],
            reference=(self.entries[entry] - pair_gram.astype(np.int64) * self.captions).astype(np.int32),
            gram=pair_gram,
            prediction_times=predicted.times[pair],
            reference_times=self.times[entry],
            group=group,
        )


class IndexBuilder:
    """Takes the blocks of one order and makes an index of them.

    Args:
        positions: how many words the captions have together, which bounds the entries.
        captions: how many captions there are.
        longest: the words of the longest caption, which bounds the counts.
    """

    def __init__(self, positions: int, captions: int, longest: int) -> None:
        self._captions = captions
        # Memory that is never written is never taken.
        self._entries = np.empty(positions, np.int64)
        self._times: NDArray[np.signedinteger] = np.empty(positions, np.int16 if longest < 1 << 15 else np.int32)
        self._filled = 0

    def add(self, counts: NgramCounts) -> None:
        """Append the entries of a block."""
        end = self._filled + len(counts.gram)
        entries = self._entries[self._filled : end]
        np.multiply(counts.gram, self._captions, out=entries, dtype=np.int64)
        entries += counts.caption
        self._times[self._filled : end] = counts.times
        self._filled = end

    def finish(self) -> OrderIndex:
        """The index of everything that was added."""
        return OrderIndex(self._entries[: self._filled], self._times[: self._filled], self._captions)
