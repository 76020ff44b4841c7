"""Count n-grams of integer-encoded captions by sorting, order by order.

C captions, P positions (words), V vocabulary, G distinct n-grams of one order, S positions where one begins.

An n-gram of order n is a word followed by an (n - 1)-gram. If the (n - 1)-grams are sorted, a stable sort by the
preceding word sorts the n-grams. Equal n-grams are then adjacent with ascending positions, so repetitions in a caption
and the number of images are differences between neighbours.

The sorted n-grams are numbered in blocks that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from captune.metrics.encoding import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ORDERS", "NgramTable", "Ngrams", "Repeats", "sort_ngrams"]

ORDERS = 4

_BLOCK = 1 << 15
_NARROW = 1 << 16


class Repeats(NamedTuple):
    """N-grams of one order that occur more than once in a caption, R pairs (n-gram, caption).

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
        keys: (G,) int64 ascending, `previous * vocabulary + last word`; an n-gram's number is its index here.
        slots: (S,) int64 ascending, `(number << bits) + position`.
        bits: how many bits a position has.
        at: (P,) int32, the number of the n-gram that begins at a position, -1 where none does.
        images: (G,) int32, how many images have the n-gram.
        repeats: n-grams that occur more than once in a caption.
    """

    keys: NDArray[np.int64]
    slots: NDArray[np.int64]
    bits: int
    at: NDArray[np.int32]
    images: NDArray[np.int32]
    repeats: Repeats


def sort_ngrams(
    words: Rows, vocabulary: int, caption_at: NDArray[np.int64], image_offsets: NDArray[np.int64]
) -> Iterator[Ngrams]:
    """Count the n-grams of order 1 to 4, one order after the other.

    Args:
        words: C captions, P words in all; word numbers are below `vocabulary`.
        vocabulary: the base of the keys, V.
        caption_at: (P,) `words.owners`, which callers need as well.
        image_offsets: (N + 1,) where the captions of each image begin.
    """
    # The smallest type: these are read in the order of the n-grams, at random positions.
    images = np.arange(len(image_offsets) - 1, dtype=np.min_scalar_type(len(image_offsets)))
    image_at = np.repeat(images, np.diff(words.offsets[image_offsets]))
    values = words.values.astype(np.uint16) if vocabulary <= _NARROW else words.values
    inside = np.ones(len(values), np.bool_)
    inside[words.offsets[:-1][words.lengths > 0]] = False
    bits = len(values).bit_length()
    ngrams: Ngrams | None = None
    for order in range(1, ORDERS + 1):
        position, new = _single(values) if ngrams is None else _extended(ngrams, values, inside)
        begins = np.flatnonzero(new)
        heads = position.take(begins)
        keys = words.values.take(heads + (order - 1)).astype(np.int64)
        if ngrams is not None:
            keys += ngrams.at.take(heads) * np.int64(vocabulary)
        numbering = _Numbering(caption_at, image_at, bits, len(position))
        numbering.fill(position, new, begins)
        ngrams = numbering.finish(keys)
        yield ngrams


def _single(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The positions of all words in ascending order, and where a word differs from the one before it there."""
    position = _ascending(values)
    values = values.take(position)
    new = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return position, new


def _extended(
    shorter: Ngrams, values: NDArray[Any], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The same for n-grams of the next order.

    Args:
        shorter: n-grams of one order.
        values: (P,) the words.
        inside: (P,) whether a word precedes this one in its caption.
    """
    position = shorter.slots & ((1 << shorter.bits) - 1)
    kept = np.flatnonzero(inside.take(position))
    position = position.take(kept)
    position -= 1
    first, rest = values.take(position), (shorter.slots.take(kept) >> shorter.bits).astype(np.int32)
    ascending = _ascending(first)
    position, first, rest = position.take(ascending), first.take(ascending), rest.take(ascending)
    new = np.ones(len(position), np.bool_)
    np.not_equal(first[1:], first[:-1], out=new[1:])
    new[1:] |= rest[1:] != rest[:-1]
    return position, new


def _ascending(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """The indices that sort the numbers in ascending order, stably.

    Digit by digit in base 65,536: numbers of 16 bits numpy sorts in linear time, and equally fast on every processor,
    while its sort of 64 bits takes several times as long on some as on others.
    """
    low = numbers.astype(np.uint16).argsort(kind="stable")
    if numbers.dtype == np.uint16:
        return low
    high = (numbers >> 16).astype(np.uint16).take(low)
    return low.take(high.argsort(kind="stable"))


class _Numbering:
    """Numbers the sorted n-grams of an order, and collects their statistics in the same pass.

    Args:
        caption_at: (P,) the caption of each position.
        image_at: (P,) the image of each position.
        bits: how many bits a position has.
        size: how many positions there are where one begins, S.
    """

    def __init__(
        self, caption_at: NDArray[np.int64], image_at: NDArray[np.unsignedinteger], bits: int, size: int
    ) -> None:
        self._caption_at, self._image_at, self._bits = caption_at, image_at, bits
        self._at = np.full(len(caption_at), -1, np.int32)
        self._slots = np.empty(size, np.int64)
        self._images = [np.zeros(0, np.int32)]
        none = np.zeros(0, np.int64)
        self._repeats = [Repeats(none, none, none)]

    def fill(self, position: NDArray[np.int64], new: NDArray[np.bool_], begins: NDArray[np.int64]) -> None:
        """Number all n-grams.

        Args:
            position: (S,) their positions, in the order of the n-grams.
            new: (S,) whether one differs from that before it.
            begins: (G,) where one does.
        """
        start = gram = 0
        while start < len(position):
            # An n-gram is never in two blocks.
            last = int(begins.searchsorted(start + _BLOCK))
            end = int(begins[last]) if last < len(begins) else len(position)
            self._number(start, position[start:end], new[start:end], gram, begins[gram:last] - start)
            start, gram = end, last

    def _number(
        self,
        start: int,
        position: NDArray[np.int64],
        new: NDArray[np.bool_],
        grams: int,
        begins: NDArray[np.int64],
    ) -> None:
        gram = np.cumsum(new, dtype=np.int32)
        gram += np.int32(grams - 1)
        self._at[position] = gram
        slots = self._slots[start : start + len(position)]
        np.left_shift(gram, self._bits, out=slots, dtype=np.int64)
        slots += position
        image = self._image_at.take(position)
        other_image = np.ones(len(position), np.bool_)
        np.not_equal(image[1:], image[:-1], out=other_image[1:])
        other_image |= new
        pairs = np.cumsum(other_image, dtype=np.int32)
        self._images.append(np.diff(pairs.take(begins), append=pairs[-1:] + np.int32(1)))
        # Only an n-gram that follows an equal one in the same image can be in the same caption.
        near = np.flatnonzero(~other_image)
        later = position.take(near)
        same = self._caption_at.take(later) == self._caption_at.take(position.take(near - 1))
        if same.any():
            again = near[same]
            head = np.flatnonzero(np.diff(again, prepend=-1) != 1)
            times = np.diff(head, append=len(again)) + 1
            self._repeats.append(Repeats(position.take(again[head] - 1), times, later[same]))

    def finish(self, keys: NDArray[np.int64]) -> Ngrams:
        """The collected statistics, with the n-grams' keys (G,)."""
        repeats = Repeats(*map(np.concatenate, zip(*self._repeats, strict=True)))
        return Ngrams(keys, self._slots, self._bits, self._at, np.concatenate(self._images), repeats)


class NgramTable(NamedTuple):
    """The distinct n-grams of a corpus, numbered per order.

    Attributes:
        keys: for each order the keys of `Ngrams`, (G,) int64 ascending.
        vocabulary: the base of the keys; words at or above it are unknown.
    """

    keys: tuple[NDArray[np.int64], ...]
    vocabulary: int

    def locate(
        self,
        keys: NDArray[np.int64],
        order: int,
        base: int,
        previous: NDArray[np.int32],
        words: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int32]:
        """Number another corpus's n-grams by this table.

        Args:
            keys: (G,) int64, the other corpus's n-grams of this order, as in `Ngrams`.
            order: 1 to 4.
            base: the base of these keys.
            previous: what this method returned for the order before; ignored for order 1.
            words: (base,) int32, from the other corpus's words to this table's, -1 for unknown ones; None where
                both have the same encoder.

        Returns:
            (G,) int32, the number of each n-gram here, -1 if it is unknown.
        """
        last = keys % base
        if words is not None:
            last = words[last].astype(np.int64)
        known = (last >= 0) & (last < self.vocabulary)
        sought = last
        if order > 1:
            start = previous[keys // base].astype(np.int64)
            known &= start >= 0
            sought = start * self.vocabulary + last
        numbers = np.full(len(sought), -1, np.int32)
        numbers[known] = find_sorted(self.keys[order - 1], sought[known])
        return numbers


def find_sorted(keys: NDArray[np.int64], sought: NDArray[np.int64]) -> NDArray[np.int32]:
    """The index of each number among ascending keys, -1 if it is not one of them."""
    if not len(keys):
        return np.full(len(sought), -1, np.int32)
    index = np.searchsorted(keys, sought)
    index[index == len(keys)] = 0
    return np.where(keys[index] == sought, index, -1).astype(np.int32)
