"""Which n-grams of a prediction are in which references of its image.

The references are indexed once; any number of systems is then matched against the index. BLEU and CIDEr share both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from captune.metrics.encoding import Rows
from captune.metrics.ngrams import Ngrams, NgramTable, sort_ngrams

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Matches", "NgramIndex", "OrderMatches"]


class Matches(NamedTuple):
    """Pairs of a prediction's n-gram and a reference of the same image that holds it, M in all.

    Pairs are sorted by prediction, first occurrence of the n-gram, and reference: the order in which the original sums
    floating-point numbers.

    Attributes:
        predicted: (M,) int64, the prediction (which is also the image).
        reference: (M,) int64, the reference, numbered within the batch.
        gram: (M,) int32, the n-gram's number among the references' n-grams.
        prediction_times: (M,) int32, how often the n-gram occurs in the prediction.
        reference_times: (M,) int32, how often it occurs in the reference.
        group: where a prediction's next n-gram begins, ascending from 0.
    """

    predicted: NDArray[np.int64]
    reference: NDArray[np.int64]
    gram: NDArray[np.int32]
    prediction_times: NDArray[np.int32]
    reference_times: NDArray[np.int32]
    group: NDArray[np.int64]


class OrderMatches(NamedTuple):
    """What the predictions of a batch and their references have in common in one order.

    Attributes:
        order: 1 to 4.
        ngrams: the predictions' n-grams.
        located: (G,) int32, the number of each of them among the references' n-grams, -1 for others.
        matches: the pairs of a prediction's n-gram and a reference that holds it.
    """

    order: int
    ngrams: Ngrams
    located: NDArray[np.int32]
    matches: Matches


class NgramIndex:
    """The n-grams of all references, sorted once.

    Args:
        words: the references, C rows.
        vocabulary: how many words the encoder knows.
        image_offsets: (N + 1,) where each image's references begin.
        consumers: called with the n-grams of each order, which are not kept: they take memory.

    Attributes:
        vocabulary: the base of the n-grams' keys.
        references: how many references there are, C.
        caption_at: (P,) int64, the reference of each word.
    """

    def __init__(
        self,
        words: Rows,
        vocabulary: int,
        image_offsets: NDArray[np.int64],
        consumers: Sequence[Callable[[Ngrams, NgramIndex], None]] = (),
    ) -> None:
        self.vocabulary, self.references = vocabulary, len(words)
        self.caption_at = words.owners
        keys, slots = [], []
        for ngrams in sort_ngrams(words, vocabulary, self.caption_at, image_offsets):
            keys.append(ngrams.keys)
            slots.append((ngrams.slots, ngrams.bits))
            for consume in consumers:
                consume(ngrams, self)
        self._table = NgramTable(tuple(keys), vocabulary)
        self._slots = tuple(slots)
        self._image_offsets = image_offsets
        self._image_bounds = words.offsets[image_offsets]

    def match(
        self, words: Rows, vocabulary: int, prediction_at: NDArray[np.int64], first: int
    ) -> Iterator[OrderMatches]:
        """Match the predictions of n consecutive images with their references, one order after the other.

        Args:
            words: the predictions, n rows.
            vocabulary: how many words the encoder knows by now.
            prediction_at: (P,) int64, the prediction of each word.
            first: the first of the images.
        """
        count = len(words)
        bounds = self._image_bounds[first : first + count + 1]
        located = np.zeros(0, np.int32)
        possible = np.ones(len(words.values), np.bool_)
        all_ngrams = sort_ngrams(words, vocabulary, prediction_at, np.arange(count + 1))
        for order, ngrams in enumerate(all_ngrams, start=1):
            if order > 1:
                possible[:-1] &= possible[1:]
            located = self._table.locate(ngrams.keys, order, vocabulary, located)
            index = _OrderIndex(*self._slots[order - 1], self._image_offsets[first])
            matches = index.match(ngrams, located, prediction_at, self.caption_at, bounds, possible)
            yield OrderMatches(order, ngrams, located, matches)


class _OrderIndex(NamedTuple):
    """The references' n-grams of one order, for looking up.

    Attributes:
        slots: (S,) int64 ascending, `(n-gram << bits) + position`, as in `Ngrams`.
        bits: how many bits a position has.
        first: the first reference of the batch.
    """

    slots: NDArray[np.int64]
    bits: int
    first: np.int64

    def match(
        self,
        predicted: Ngrams,
        located: NDArray[np.int32],
        prediction_at: NDArray[np.int64],
        reference_at: NDArray[np.int64],
        image_bounds: NDArray[np.int64],
        possible: NDArray[np.bool_],
    ) -> Matches:
        """Find the references of the same image that hold a prediction's n-grams.

        Args:
            predicted: the predictions' n-grams; caption i is the prediction of image i.
            located: (G,) int32, the references' number of each of the predictions' distinct n-grams, or -1.
            prediction_at: (P,) int64, the prediction of each of the predictions' words.
            reference_at: int64, the reference of each of the references' words.
            image_bounds: (N + 1,) int64, where the words of each image's references begin.
            possible: (P,) whether the n-gram that begins at a word may occur in a reference of the image; set to False
                here where it does not, for the next order, since a longer n-gram holds two of these.
        """
        begin, runs, width = self._runs(predicted, located, prediction_at, image_bounds, possible)
        possible[:] = False
        possible[begin] = True
        # Later occurrences in a caption are counted at the first one.
        times = np.ones(len(possible), np.int32)
        times[predicted.repeats.first] = predicted.repeats.times
        times[predicted.repeats.later] = 0
        first = np.flatnonzero(times.take(begin))
        begin, runs, width = begin[first], runs[first], width[first]
        ends = np.cumsum(width)
        group = ends - width
        slot = np.arange(int(width.sum())) + np.repeat(runs - group, width)
        reference = reference_at.take(self.slots.take(slot) & ((1 << self.bits) - 1))
        # An n-gram that occurs several times in a reference has as many adjacent slots.
        new = np.ones(len(slot), np.bool_)
        np.not_equal(reference[1:], reference[:-1], out=new[1:])
        new[group] = True
        pair = np.flatnonzero(new)
        owner = np.repeat(begin, width).take(pair)
        return Matches(
            predicted=prediction_at.take(owner),
            reference=reference.take(pair) - self.first,
            gram=located.take(predicted.at.take(owner)),
            prediction_times=times.take(owner),
            reference_times=np.diff(pair, append=len(slot)).astype(np.int32),
            group=(np.cumsum(new) - 1).take(group),
        )

    def _runs(
        self,
        predicted: Ngrams,
        located: NDArray[np.int32],
        prediction_at: NDArray[np.int64],
        image_bounds: NDArray[np.int64],
        possible: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each prediction's n-gram in the image's references: its position, its first slot, and how many it has."""
        # In the order of the slots, so that neighbouring searches end at neighbouring positions.
        position = predicted.slots & ((1 << predicted.bits) - 1)
        position = position[possible.take(position)]
        gram = located.take(predicted.at.take(position))
        known = np.flatnonzero(gram >= 0)
        position = position.take(known)
        start = gram.take(known).astype(np.int64) << self.bits
        image = prediction_at.take(position)
        low = np.searchsorted(self.slots, start + image_bounds.take(image))
        end = start + image_bounds.take(image + 1)
        # Most n-grams are in none of the image's references: look for the end of the others only.
        inside = np.flatnonzero((self.slots.take(low, mode="clip") < end) & (low < len(self.slots)))
        position, low = position.take(inside), low.take(inside)
        slots, widths = np.empty(len(possible), np.int64), np.zeros(len(possible), np.int64)
        slots[position] = low
        widths[position] = np.searchsorted(self.slots, end.take(inside)) - low
        position = np.flatnonzero(widths)
        return position, slots.take(position), widths.take(position)
