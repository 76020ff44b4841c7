"""Fingerprints of image files: their hashes, a store that keeps them between runs, and the search for close hashes.

A fingerprint is a digest of a file's bytes and perceptual hashes of views of its picture. The hash is pHash of
ImageHash (64 bits, from the lowest frequencies of a cosine transform): re-encoding and resizing change a few bits,
cutting a margin off changes many. So each image is hashed completely and as the views that are left when margins are
cut; a cut copy agrees with one of the views of the complete image.
Source: https://github.com/JohannesBuchner/imagehash

The search for all pairs of hashes that differ in few bits is vectorised and exact. Hashes that differ in at most 11
bits differ in at most two in one of their four quarters. The corpus is sorted by each quarter in turn, and of a query
only the buckets within two bits are compared (multi-index hashing, Norouzi and others, 2012). Where hashes crowd in few
buckets, as those of pictures that look alike do, all are compared instead.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captune.data.content_hash import HASH_BYTES, FileCache
from captune.data.images import reduced_image
from captune.errors import DataError, MissingExtraError

__all__ = [
    "FULL_IMAGE",
    "INDEXED_RADIUS",
    "VIEWS",
    "Box",
    "Fingerprint",
    "Hashes",
    "Pairs",
    "close_pairs",
    "default_store",
    "fingerprint",
    "fingerprint_cache",
    "view_hashes",
]

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
        pairs: list[Pairs] = []
        sizes = np.zeros(len(queries), np.int64)
        for quarter, (_, _, starts) in enumerate(self._sorted):
            buckets = _quarters(queries, quarter)[:, None] ^ _NEAR
            sizes += (starts[buckets + 1] - starts[buckets]).sum(axis=1)
        crowded = sizes * _WORTH > len(self._corpus)
        dense, rest = np.flatnonzero(crowded), np.flatnonzero(~crowded)
        rows, columns, bits = _all_compared(queries[dense], self._corpus, radius)
        pairs.append((dense[rows], columns, bits))
        # As many queries at once as fill the room for entries.
        parts = np.cumsum(sizes[rest]) // _EXPANDED
        for part in np.split(rest, np.flatnonzero(np.diff(parts)) + 1):
            for quarter in range(4):
                rows, columns, bits = self._in_buckets(queries[part], quarter, radius)
                pairs.append((part[rows], columns, bits))
        rows, columns, bits = _joined(pairs)
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
    pairs: list[Pairs] = []
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
                pairs.append((np.full(len(places), row), places + start, count[places]))
    return _joined(pairs)


def _joined(parts: Sequence[Pairs]) -> Pairs:
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
    rows, columns, bits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows.astype(np.int64), columns.astype(np.int64), bits


Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of width and height."""

FULL_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)
_SPANS = ((0.0, 1.0), (0.05, 0.95), (0.0, 0.9), (0.1, 1.0), (0.1, 0.9))
VIEWS: tuple[Box, ...] = tuple((left, top, right, bottom) for left, right in _SPANS for top, bottom in _SPANS)
"""The complete image, then what is left when up to a tenth is cut from each side; V = 25."""

_SIDE = 64  # pixels to which an image is reduced before its views are hashed


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is known of one image file.

    Attributes:
        digest: BLAKE2b of the file's bytes, 16 bytes.
        hashes: (V,) uint64, pHash of each of `VIEWS`; None where the file cannot be decoded.
    """

    digest: bytes
    hashes: Hashes | None


def fingerprint(path: str) -> Fingerprint:
    """Read a file once for its digest and hashes.

    Raises:
        OSError: the file cannot be read.
        MissingExtraError: ImageHash is not installed.
    """
    with open(path, "rb") as file:
        data = file.read()
    digest = hashlib.blake2b(data, digest_size=HASH_BYTES).digest()
    try:
        image = reduced_image(io.BytesIO(data), path, 2 * _SIDE)
    except DataError:
        return Fingerprint(digest, None)
    return Fingerprint(digest, view_hashes(image))


def view_hashes(image: Image.Image) -> Hashes:
    """The hashes of the views of an image.

    Returns:
        (V,) uint64 in the order of `VIEWS`.

    Raises:
        MissingExtraError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ModuleNotFoundError as error:
        raise MissingExtraError("the leak guard", "data") from error
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    hashes = np.empty(len(VIEWS), np.uint64)
    for index, box in enumerate(VIEWS):
        left, top, right, bottom = (share * _SIDE for share in box)
        view = small.resize((32, 32), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        bits = imagehash.phash(view).hash
        hashes[index] = np.packbits(bits.reshape(-1)).view(">u8")[0]
    return hashes


_VERSION = 3  # counts up when the same file would give another fingerprint, or is known by something else


def default_store() -> Path:
    """Where fingerprints are kept: `$XDG_CACHE_HOME/captune`, by default `~/.cache/captune`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "captune" / f"fingerprints-{_VERSION}.sqlite"


def fingerprint_cache(store: Path | Literal["default"] | None) -> FileCache:
    """The cache of fingerprints: a digest, and the hashes where the file can be decoded.

    Args:
        store: the database; by default in `$XDG_CACHE_HOME/captune` or `~/.cache/captune`; None keeps nothing.
    """
    file = default_store() if store == "default" else store
    return FileCache(file, "fingerprint", {"digest": HASH_BYTES, "hashes": 8 * len(VIEWS)})
