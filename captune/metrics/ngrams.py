"""Counting n-grams of integer-coded captions by sorting, order by order.

C captions, P positions (words), V vocabulary, G distinct n-grams of one order, S positions where one begins.

An n-gram of order n is the number of its first n - 1 words, taken as an (n - 1)-gram, and its last word: one 64-bit
key. The keys are sorted together with their positions; equal n-grams are then neighbours, and among them the
positions ascend, so that what stands twice in a caption, and in how many images, are differences between neighbours.

Apart from the sort everything is done in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from captune.metrics.encoding import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ORDERS", "Ngrams", "Repeats", "find_sorted", "sort_ngrams"]

ORDERS = 4

_BLOCK = 1 << 15
_PACKED_BITS = 63
# Below so many for each a second thread does not pay.
_FEWEST_SORTED = 50_000


class Repeats(NamedTuple):
    """N-grams of one order that stand more than once in a caption, R pairs (n-gram, caption).

    Attributes:
        first: (R,) int64, the position of the first occurrence.
        times: (R,) int64, how many there are, at least 2.
        later: int64, the positions of all others.
    """

    first: NDArray[np.int64]
    times: NDArray[np.int64]
    later: NDArray[np.int64]


class Ngrams(NamedTuple):
    """All n-grams of one order.

    Attributes:
        keys: (G,) int64 ascending, `previous * vocabulary + last word`; an n-gram's number is its place here.
        slots: (S,) int64 ascending, `(number << bits) + position`.
        bits: how many bits a position has.
        at: (P,) int32, the number of the n-gram that begins at a position, -1 where none does; the next order is
            written over it.
        images: (G,) int32, how many images have the n-gram.
        repeats: what stands in a caption more than once.
    """

    keys: NDArray[np.int64]
    slots: NDArray[np.int64]
    bits: int
    at: NDArray[np.int32]
    images: NDArray[np.int32]
    repeats: Repeats


def sort_ngrams(
    words: Rows,
    vocabulary: int,
    caption_at: NDArray[np.int64],
    image_offsets: NDArray[np.int64],
    threads: int = 1,
) -> Iterator[Ngrams]:
    """Count the n-grams of order 1 to 4, one order after the other.

    Args:
        words: C captions, P words in all; word numbers are below `vocabulary`.
        vocabulary: the base of the keys, V.
        caption_at: (P,) `words.owners`, which callers need as well.
        image_offsets: (N + 1,) where the captions of each image begin.
        threads: how many may sort.
    """
    ends, lengths = words.offsets[1:], words.lengths
    # As small as can be: it is read in the order of the n-grams, and so from all over.
    images = np.arange(len(image_offsets) - 1, dtype=np.min_scalar_type(len(image_offsets)))
    image_at = np.repeat(images, np.diff(words.offsets[image_offsets]))
    at = np.zeros(len(words.values), np.int32)
    bits = len(at).bit_length()
    grams = 1
    for order in range(1, ORDERS + 1):
        if order > 1:
            # An n-gram begins where a shorter one does, except at the last place in a caption where that one can.
            at[ends[lengths >= order - 1] - (order - 1)] = -1
        slots = np.empty(np.count_nonzero(at >= 0), np.int64)
        numbering = _Numbering(at, caption_at, image_at, slots, bits)
        if (grams * vocabulary).bit_length() + bits > _PACKED_BITS:
            numbering.of_long_keys(*_long_keys(words.values, at, order, vocabulary))
        else:
            _pack(words.values, at, order, vocabulary, bits, slots)
            _sort(slots, threads)
            numbering.of_packed()
        yield numbering.finish()
        grams = numbering.grams


def _keys(
    values: NDArray[np.int32], at: NDArray[np.int32], order: int, vocabulary: int, start: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and positions of n-grams that begin from `start` to before `end`; `at` knows those of the order before."""
    position = np.flatnonzero(at[start:end] >= 0)
    keys = at[start:end].astype(np.int64)
    keys *= vocabulary
    last = values[start + order - 1 : end + order - 1]
    keys[: len(last)] += last
    return keys.take(position), position + start


def _pack(
    values: NDArray[np.int32], at: NDArray[np.int32], order: int, vocabulary: int, bits: int, slots: NDArray[np.int64]
) -> None:
    """Key and position in one number: sorting values is several times faster than sorting indices."""
    filled = 0
    for start in range(0, len(values), _BLOCK):
        packed, position = _keys(values, at, order, vocabulary, start, start + _BLOCK)
        packed <<= bits
        packed += position
        slots[filled : filled + len(packed)] = packed
        filled += len(packed)


def _sort(slots: NDArray[np.int64], threads: int) -> None:
    """Sort in place; of several threads each sorts the numbers of one range."""
    threads = min(threads, len(slots) // _FEWEST_SORTED)
    if threads <= 1:
        slots.sort()
        return
    bounds = [len(slots) * thread // threads for thread in range(threads + 1)]
    slots.partition(bounds[1:-1])
    first, *others = (slots[start:end] for start, end in pairwise(bounds))
    sorting = [threading.Thread(target=numbers.sort) for numbers in others]
    for thread in sorting:
        thread.start()
    first.sort()
    for thread in sorting:
        thread.join()


def _long_keys(
    values: NDArray[np.int32], at: NDArray[np.int32], order: int, vocabulary: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted keys and their positions, where both together do not fit into 63 bits."""
    keys, position = _keys(values, at, order, vocabulary, 0, len(values))
    ascending = np.argsort(keys, kind="stable")
    return keys[ascending], position[ascending]


class _Numbering:
    """Gives the sorted n-grams of an order their numbers, and notes what is asked of them on the way.

    Args:
        at: (P,) receives the number of the n-gram at each position.
        caption_at: (P,) the caption of each position.
        image_at: (P,) the image of each position.
        slots: (S,) see `Ngrams`; `of_packed` finds key and position here.
        bits: how many bits a position has.
    """

    def __init__(
        self,
        at: NDArray[np.int32],
        caption_at: NDArray[np.int64],
        image_at: NDArray[np.unsignedinteger],
        slots: NDArray[np.int64],
        bits: int,
    ) -> None:
        self._at, self._caption_at, self._image_at, self._slots, self._bits = at, caption_at, image_at, slots, bits
        self.grams = 0
        self._keys, self._images = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        none = np.zeros(0, np.int64)
        self._repeats = [Repeats(none, none, none)]

    def of_packed(self) -> None:
        """Number n-grams whose keys and positions are in the slots, sorted."""
        start, bits = 0, self._bits
        while start < len(self._slots):
            end = min(start + _BLOCK, len(self._slots))
            if end < len(self._slots):
                # An n-gram is never in two blocks.
                end = int(np.searchsorted(self._slots, ((self._slots[end - 1] >> bits) + 1) << bits))
            block = self._slots[start:end]
            self._number(block >> bits, block & ((1 << bits) - 1), block)
            start = end

    def of_long_keys(self, keys: NDArray[np.int64], position: NDArray[np.int64]) -> None:
        """Number n-grams from sorted keys and their positions."""
        self._number(keys, position, self._slots)

    def _number(self, keys: NDArray[np.int64], position: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        new = np.ones(len(keys), np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=new[1:])
        gram = np.cumsum(new, dtype=np.int32)
        gram += np.int32(self.grams - 1)
        self._at[position] = gram
        np.left_shift(gram, self._bits, out=slots, dtype=np.int64)
        slots += position
        image = self._image_at.take(position)
        other_image = np.ones(len(keys), np.bool_)
        np.not_equal(image[1:], image[:-1], out=other_image[1:])
        other_image |= new
        begins = np.flatnonzero(new)
        pairs = np.cumsum(other_image, dtype=np.int32)
        self._images.append(np.diff(pairs.take(begins), append=pairs[-1:] + np.int32(1)))
        self._keys.append(keys.take(begins))
        self.grams += len(begins)
        # Only what follows its like in the same image can be in the same caption.
        near = np.flatnonzero(~other_image)
        behind = position.take(near)
        same = self._caption_at.take(behind) == self._caption_at.take(position.take(near - 1))
        if same.any():
            again = near[same]
            head = np.flatnonzero(np.diff(again, prepend=-1) != 1)
            times = np.diff(head, append=len(again)) + 1
            self._repeats.append(Repeats(position.take(again[head] - 1), times, behind[same]))

    def finish(self) -> Ngrams:
        """What was noted."""
        repeats = Repeats(*map(np.concatenate, zip(*self._repeats, strict=True)))
        keys, images = np.concatenate(self._keys), np.concatenate(self._images)
        return Ngrams(keys, self._slots, self._bits, self._at, images, repeats)


def find_sorted(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where each wanted number stands among ascending keys, -1 if it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int32)
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    return np.where(keys[place] == wanted, place, -1).astype(np.int32)
