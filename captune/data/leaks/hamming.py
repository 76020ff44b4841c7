"""All pairs of 64-bit hashes that differ in few bits, by vectorised brute force.

A hundred million pairs take about a tenth of a second on one core, whatever the hashes are; an index would be faster
on hashes without structure and slower on many pictures that look alike, which is where a leak guard is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hashes", "close_pairs"]

Hashes: TypeAlias = NDArray[np.uint64]

_TILE = 1 << 14  # hashes of the corpus compared at once; a tile and its buffers stay in a core's cache


def close_pairs(
    queries: Hashes, corpus: Hashes, radius: int, *, workers: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """The pairs of a query and a hash of the corpus that differ in at most `radius` bits.

    Args:
        queries: (Q,) uint64.
        corpus: (N,) uint64.
        radius: greatest number of differing bits, 0-64.
        workers: threads; as many as processors by default.

    Returns:
        three arrays of one length, in the order of queries, then corpus: index of the query, index in the corpus,
        number of differing bits.
    """
    queries, corpus = np.ascontiguousarray(queries), np.ascontiguousarray(corpus)
    threads = workers or os.cpu_count() or 1
    share = max(1, -(-len(queries) // (4 * threads)))
    starts = range(0, len(queries), share)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda start: _close(queries[start : start + share], corpus, radius, start), starts))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
    rows, columns, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((columns, rows))
    return rows[order], columns[order], bits[order]


def _close(
    queries: Hashes, corpus: Hashes, radius: int, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """One thread's share: tile after tile of the corpus against each query."""
    rows, columns, bits = [], [], []
    for start in range(0, len(corpus), _TILE):
        for row, places, distances in _in_tile(queries, corpus[start : start + _TILE], radius):
            rows.append(np.full(len(places), first + row))
            columns.append(places + start)
            bits.append(distances)
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
    return np.concatenate(rows).astype(np.int64), np.concatenate(columns).astype(np.int64), np.concatenate(bits)


def _in_tile(queries: Hashes, tile: Hashes, radius: int) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.uint8]]]:
    different, count = np.empty_like(tile), np.empty(len(tile), np.uint8)
    near = np.empty(len(tile), np.bool_)
    for row, query in enumerate(queries):
        np.bitwise_xor(tile, query, out=different)
        np.bitwise_count(different, out=count)
        np.less_equal(count, radius, out=near)
        if near.any():
            places = np.flatnonzero(near)
            yield row, places, count[places]
