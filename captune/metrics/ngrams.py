"""Counting n-grams of integer-coded captions by sorting, order by order.

C captions, P positions (words), V vocabulary, G distinct n-grams of one order, E distinct pairs (n-gram, caption).

An n-gram of order n is the number of its first n - 1 words, taken as an (n - 1)-gram, and its last word: one 64-bit
key. The keys are sorted together with their positions; equal n-grams are then neighbours, and among them the
positions ascend, so that counts, captions and document frequencies are differences between neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captune.metrics.encoding import Rows

__all__ = ["ORDERS", "NgramCounts", "count_ngrams", "find_sorted"]

ORDERS = 4


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """The n-grams of one order in a set of captions.

    Attributes:
        keys: (G,) int64 ascending, `previous * vocabulary + last word`; an n-gram's number is its place in here.
        gram: (E,) int32 ascending, the n-gram of an entry.
        caption: (E,) int32, the caption of an entry, ascending within an n-gram.
        count: (E,) int32, how often the n-gram stands in the caption.
        first: (E,) int32, the position of its first occurrence there.
    """

    keys: NDArray[np.int64]
    gram: NDArray[np.int32]
    caption: NDArray[np.int32]
    count: NDArray[np.int32]
    first: NDArray[np.int32]


def count_ngrams(words: Rows, vocabulary: int) -> Iterator[NgramCounts]:
    """Count the n-grams of order 1 to 4, one order after the other.

    Args:
        words: C captions, P words in all; word numbers are below `vocabulary`.
        vocabulary: the base of the keys, V.

    Yields:
        The counts of order 1, 2, 3 and 4.
    """
    lengths = words.lengths
    caption_of = np.repeat(np.arange(len(words), dtype=np.int32), lengths)
    # How many words are left in the caption from this position on, this one included.
    left = np.repeat(words.offsets[1:], lengths) - np.arange(len(words.values))
    gram_at = words.values
    starts = np.arange(len(words.values), dtype=np.int32)
    for order in range(1, ORDERS + 1):
        if order == 1:
            keys = words.values.astype(np.int64)
        else:
            starts = np.flatnonzero(left >= order).astype(np.int32)
            keys = gram_at[starts].astype(np.int64) * vocabulary + words.values[starts + (order - 1)]
        keys, position = _sort_with_positions(keys, starts)
        yield (counts := _count_sorted(keys, position, caption_of))
        if order < ORDERS:
            gram_at = np.zeros(len(words.values), np.int32)
            gram_at[position] = np.repeat(counts.gram, counts.count)


def _sort_with_positions(
    keys: NDArray[np.int64], positions: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sort keys, and the ascending positions of equal keys stay ascending."""
    if not len(keys):
        return keys, positions
    bits = int(positions[-1]).bit_length()
    if int(keys.max()).bit_length() + bits < 64:
        # Key and position in one number: sorting values is several times faster than sorting indices.
        packed = (keys << bits) | positions
        packed.sort()
        return packed >> bits, (packed & ((1 << bits) - 1)).astype(np.int32)
    order = np.argsort(keys, kind="stable")
    return keys[order], positions[order]


def _count_sorted(keys: NDArray[np.int64], position: NDArray[np.int32], caption_of: NDArray[np.int32]) -> NgramCounts:
    caption = caption_of[position]
    new_gram = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new_gram[1:])
    new_entry = new_gram.copy()
    new_entry[1:] |= caption[1:] != caption[:-1]
    entry = np.flatnonzero(new_entry)
    count = np.diff(entry, append=len(keys)).astype(np.int32)
    gram = np.cumsum(new_gram[entry], dtype=np.int32) - np.int32(1)
    return NgramCounts(keys[new_gram], gram, caption[entry], count, position[entry])


def find_sorted(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where each wanted number stands among ascending keys, -1 if it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int32)
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    return np.where(keys[place] == wanted, place, -1).astype(np.int32)
