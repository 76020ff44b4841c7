"""Counting n-grams of integer-coded captions by sorting, order by order.

C captions, P positions (words), V vocabulary, G distinct n-grams of one order, E distinct pairs (n-gram, caption).

An n-gram of order n is the number of its first n - 1 words, taken as an (n - 1)-gram, and its last word: one 64-bit
key. The keys are sorted together with their positions; equal n-grams are then neighbours, and among them the
positions ascend, so that counts, captions and document frequencies are differences between neighbours.

Apart from the sort everything is done in blocks that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from captune.metrics.encoding import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ORDERS", "NgramCounts", "count_ngrams", "find_sorted", "join"]

ORDERS = 4

_BLOCK = 1 << 15
_PACKED_BITS = 63
_RADIX_VOCABULARY = 1 << 16


class NgramCounts(NamedTuple):
    """Some n-grams of one order, with all captions that hold them.

    Attributes:
        keys: (G,) int64 ascending, `previous * vocabulary + last word`.
        starts: (G,) int64, the first entry of each n-gram.
        gram: (E,) int32 ascending, the n-gram of an entry: its place among all keys of its order.
        caption: (E,) int32, the caption of an entry, ascending within an n-gram.
        times: (E,) int32, how often the n-gram stands in the caption.
        first: (E,) int32, the position of its first occurrence there.
    """

    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    gram: NDArray[np.int32]
    caption: NDArray[np.int32]
    times: NDArray[np.int32]
    first: NDArray[np.int32]


def join(blocks: Iterable[NgramCounts]) -> NgramCounts:
    """All n-grams of an order in one record."""
    parts = list(blocks)
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.zeros(0, np.int32)
        return NgramCounts(none.astype(np.int64), none.astype(np.int64), none, none, none, none)
    entries_before = np.cumsum([0] + [len(part.gram) for part in parts[:-1]]).tolist()
    starts = [part.starts + before for part, before in zip(parts, entries_before, strict=True)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in NgramCounts._fields}
    return NgramCounts(**(joined | {"starts": np.concatenate(starts)}))


def count_ngrams(words: Rows, vocabulary: int, block: int = _BLOCK) -> Iterator[Iterator[NgramCounts]]:
    """Count the n-grams of order 1 to 4, one order after the other.

    Args:
        words: C captions, P words in all; word numbers are below `vocabulary`.
        vocabulary: the base of the keys, V.
        block: about how many n-grams a block holds; an n-gram is never in two blocks.

    Yields:
        For order 1, 2, 3 and 4 the blocks of its n-grams, which must be taken before the next order is asked for.
    """
    ends, lengths = words.offsets[1:], words.lengths
    caption_of = np.repeat(np.arange(len(words), dtype=np.int32), lengths)
    begins = np.ones(len(words.values), np.bool_)
    gram_at = words.values.copy()
    room = np.empty(len(words.values), np.int64)
    grams = vocabulary
    by_word = np.zeros(0, np.int64)
    for order in range(1, ORDERS + 1):
        if order > 1:
            # An n-gram begins where a shorter one does, except at the last place in a caption where that one can.
            begins[ends[lengths >= order - 1] - (order - 1)] = False
        if order <= 2 and vocabulary <= _RADIX_VOCABULARY:
            # Words of 16 bits are sorted by their digits, last word first: five times faster.
            position = by_word = _sorted_by_word(words.values, by_word, begins, order)
            runs = _runs(_keys(words.values, gram_at, position, order, vocabulary), position, block)
        else:
            runs = _sorted_runs(words.values, gram_at, begins, order, vocabulary, grams, room, block)
        blocks = _Blocks(runs, caption_of, gram_at, last=order == ORDERS)
        yield iter(blocks)
        grams = blocks.grams


class _Blocks:
    """The blocks of one order; while they are taken the positions learn the numbers of their n-grams."""

    def __init__(
        self,
        runs: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]],
        caption_of: NDArray[np.int32],
        gram_at: NDArray[np.int32],
        last: bool,
    ) -> None:
        self._runs, self._caption_of, self._gram_at, self._last = runs, caption_of, gram_at, last
        self.grams = 0

    def __iter__(self) -> Iterator[NgramCounts]:
        for keys, position in self._runs:
            caption = self._caption_of.take(position)
            new_gram = np.ones(len(keys), np.bool_)
            np.not_equal(keys[1:], keys[:-1], out=new_gram[1:])
            new_entry = np.ones(len(keys), np.bool_)
            np.not_equal(caption[1:], caption[:-1], out=new_entry[1:])
            new_entry |= new_gram
            entry = np.flatnonzero(new_entry)
            gram = np.cumsum(new_gram, dtype=np.int32)
            gram += np.int32(self.grams - 1)
            if not self._last:
                self._gram_at[position] = gram
            keys = keys[new_gram]
            self.grams += len(keys)
            yield NgramCounts(
                keys=keys,
                starts=np.flatnonzero(new_gram.take(entry)),
                gram=gram.take(entry),
                caption=caption.take(entry),
                times=np.diff(entry, append=len(new_gram)).astype(np.int32),
                first=position.take(entry).astype(np.int32),
            )


def _sorted_by_word(
    values: NDArray[np.int32], by_word: NDArray[np.int64], begins: NDArray[np.bool_], order: int
) -> NDArray[np.int64]:
    """Positions of an order's n-grams, 1 or 2, by their words, equal ones ascending; `by_word` are those of order 1."""
    position = np.arange(len(values)) if order == 1 else by_word - 1
    if order > 1:
        position = position[position >= 0]
        position = position[begins.take(position)]
    return position.take(np.argsort(values.take(position).astype(np.uint16), kind="stable"))


def _sorted_runs(
    values: NDArray[np.int32],
    gram_at: NDArray[np.int32],
    begins: NDArray[np.bool_],
    order: int,
    vocabulary: int,
    grams: int,
    room: NDArray[np.int64],
    block: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Keys and positions of an order's n-grams, sorted, in runs of whole n-grams.

    Args:
        values: (P,) the words.
        gram_at: (P,) the (n - 1)-gram of each position; read before the first run is given out.
        begins: (P,) where an n-gram begins.
        order: 1 to 4.
        vocabulary: the base of the keys.
        grams: what `gram_at` is below.
        room: (P,) memory to sort in.
        block: about how long a run is.
    """
    bits = len(values).bit_length()
    if ((grams * vocabulary) if order > 1 else vocabulary).bit_length() + bits > _PACKED_BITS:
        yield from _long_runs(values, gram_at, begins, order, vocabulary, block)
        return
    # Key and position in one number: sorting values is several times faster than sorting indices.
    filled = 0
    for start in range(0, len(values), _BLOCK):
        position = np.flatnonzero(begins[start : start + _BLOCK]) + start
        packed = _keys(values, gram_at, position, order, vocabulary)
        packed <<= bits
        packed |= position
        room[filled : filled + len(packed)] = packed
        filled += len(packed)
    ordered = room[:filled]
    ordered.sort()
    start = 0
    while start < filled:
        end = min(start + block, filled)
        if end < filled:
            end = int(np.searchsorted(ordered, ((ordered[end - 1] >> bits) + 1) << bits))
        run = ordered[start:end]
        yield run >> bits, run & ((1 << bits) - 1)
        start = end


def _long_runs(
    values: NDArray[np.int32],
    gram_at: NDArray[np.int32],
    begins: NDArray[np.bool_],
    order: int,
    vocabulary: int,
    block: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The same where key and position together are longer than 63 bits."""
    position = np.flatnonzero(begins)
    keys = _keys(values, gram_at, position, order, vocabulary)
    ascending = np.argsort(keys, kind="stable")
    keys, position = keys[ascending], position[ascending]
    yield from _runs(keys, position, block)


def _runs(
    keys: NDArray[np.int64], position: NDArray[np.int64], block: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut sorted keys and their positions into runs of whole n-grams."""
    start = 0
    while start < len(keys):
        end = min(start + block, len(keys))
        end = int(np.searchsorted(keys, keys[end - 1], side="right"))
        yield keys[start:end], position[start:end]
        start = end


def _keys(
    values: NDArray[np.int32], gram_at: NDArray[np.int32], position: NDArray[np.int64], order: int, vocabulary: int
) -> NDArray[np.int64]:
    keys = gram_at.take(position).astype(np.int64)
    if order > 1:
        keys *= vocabulary
        keys += values.take(position + (order - 1))
    return keys


def find_sorted(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where each wanted number stands among ascending keys, -1 if it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int32)
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    return np.where(keys[place] == wanted, place, -1).astype(np.int32)
