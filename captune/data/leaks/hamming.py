"""All pairs of 64-bit hashes that differ in few bits, vectorised and exact.

Hashes that differ in at most 11 bits differ in at most two in one of their four quarters. So the corpus is sorted by
each quarter in turn, and of a query only the buckets within two bits are compared (multi-index hashing, Norouzi and
others, 2012). Where hashes crowd in few buckets, as those of pictures that look alike do, all are compared instead.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["INDEXED_RADIUS", "Hashes", "Pairs", "close_pairs"]

Hashes: TypeAlias = NDArray[np.uint64]
Pairs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]
"""Index of the query, index in the corpus, number of differing bits; three arrays of one length."""

INDEXED_RADIUS = 11
"""Greatest radius at which the index is exact."""

_QUARTER = 16  # bits
_TILE = 1 << 14  # hashes compared at once; a tile and its buffers stay in a core's cache
_EXPANDED = 1 << 20  # entries of buckets compared at once
_WORTH = 8  # looking through buckets costs about so many times as much an entry as comparing all
_SMALL = 4096  # a corpus that is not worth sorting

# (137,) every way to differ in at most two of sixteen bits.
_NEAR = np.array(
    [0, *(1 << a for a in range(_QUARTER)), *(1 << a | 1 << b for a, b in itertools.combinations(range(_QUARTER), 2))],
    np.int64,
)


def close_pairs(queries: Hashes, corpus: Hashes, radius: int, *, workers: int | None = None) -> Pairs:
    """The pairs of a query and a hash of the corpus that differ in at most `radius` bits.

    Args:
        queries: (Q,) uint64.
        corpus: (N,) uint64.
        radius: greatest number of differing bits, 0-64.
        workers: threads; as many as processors by default.

    Returns:
        the pairs in the order of queries, then corpus.
    """
    queries, corpus = np.ascontiguousarray(queries), np.ascontiguousarray(corpus)
    compare: Callable[[Hashes], Pairs]
    if radius <= INDEXED_RADIUS and len(corpus) > _SMALL:
        compare = functools.partial(_Index(corpus).close, radius=radius)
    else:
        compare = functools.partial(_all_compared, corpus=corpus, radius=radius)
    threads = workers or os.cpu_count() or 1
    share = max(1, -(-len(queries) // (4 * threads)))
    starts = range(0, len(queries), share)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(compare, (queries[start : start + share] for start in starts)))
    rows, columns, bits = _joined([(part[0] + start, *part[1:]) for start, part in zip(starts, parts, strict=True)])
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], bits[order]


class _Index:
    """A corpus sorted by each of its quarters."""

    def __init__(self, corpus: Hashes) -> None:
        self._corpus = corpus
        self._sorted: list[tuple[NDArray[np.int64], Hashes, NDArray[np.int64]]] = []
        for quarter in range(4):
            keys = _quarters(corpus, quarter)
            order = np.argsort(keys.astype(np.uint16), kind="stable")
            starts = np.zeros((1 << _QUARTER) + 1, np.int64)
            np.cumsum(np.bincount(keys, minlength=1 << _QUARTER), out=starts[1:])
            self._sorted.append((order, corpus[order], starts))

    def close(self, queries: Hashes, radius: int) -> Pairs:
        """The pairs, each once."""
        found: list[Pairs] = []
        sizes = np.zeros(len(queries), np.int64)
        for quarter, (_, _, starts) in enumerate(self._sorted):
            buckets = _quarters(queries, quarter)[:, None] ^ _NEAR
            sizes += (starts[buckets + 1] - starts[buckets]).sum(axis=1)
        crowded = sizes * _WORTH > len(self._corpus)
        dense, rest = np.flatnonzero(crowded), np.flatnonzero(~crowded)
        rows, columns, bits = _all_compared(queries[dense], self._corpus, radius)
        found.append((dense[rows], columns, bits))
        # As many queries at once as fill the room for entries.
        parts = np.cumsum(sizes[rest]) // _EXPANDED
        for part in np.split(rest, np.flatnonzero(np.diff(parts)) + 1):
            for quarter in range(4):
                rows, columns, bits = self._in_buckets(queries[part], quarter, radius)
                found.append((part[rows], columns, bits))
        rows, columns, bits = _joined(found)
        # A pair is met once for each quarter that agrees.
        _, first = np.unique(rows * len(self._corpus) + columns, return_index=True)
        return rows[first], columns[first], bits[first]

    def _in_buckets(self, queries: Hashes, quarter: int, radius: int) -> Pairs:
        order, hashes, starts = self._sorted[quarter]
        buckets = (_quarters(queries, quarter)[:, None] ^ _NEAR).reshape(-1)
        first = starts[buckets]
        sizes = starts[buckets + 1] - first
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(first - ends + sizes, sizes)
        places += np.arange(total)
        of_query = sizes.reshape(len(queries), len(_NEAR)).sum(axis=1)
        different = hashes[places]
        different ^= np.repeat(queries, of_query)
        count = np.bitwise_count(different)
        near = np.flatnonzero(count <= radius)
        rows = np.searchsorted(np.cumsum(of_query), near, side="right")
        return rows, order[places[near]], count[near]


def _quarters(hashes: Hashes, quarter: int) -> NDArray[np.int64]:
    """Sixteen bits of each hash as a number."""
    return ((hashes >> np.uint64(_QUARTER * quarter)) & np.uint64(0xFFFF)).astype(np.int64)


def _all_compared(queries: Hashes, corpus: Hashes, radius: int) -> Pairs:
    """Every query with every hash, tile after tile."""
    found: list[Pairs] = []
    for start in range(0, len(corpus), _TILE):
        tile = corpus[start : start + _TILE]
        different, count = np.empty_like(tile), np.empty(len(tile), np.uint8)
        near = np.empty(len(tile), np.bool_)
        for row, query in enumerate(queries):
            np.bitwise_xor(tile, query, out=different)
            np.bitwise_count(different, out=count)
            np.less_equal(count, radius, out=near)
            if near.any():
                places = np.flatnonzero(near)
                found.append((np.full(len(places), row), places + start, count[places]))
    return _joined(found)


def _joined(parts: Sequence[Pairs]) -> Pairs:
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
    rows, columns, bits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows.astype(np.int64), columns.astype(np.int64), bits
