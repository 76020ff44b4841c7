"""Which images of one data set show the same picture, by the leak guard's own measure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from captune.data.leaks.guard import ImageFile, candidates, looks_same, read_fingerprints, read_picture, same_pictures
from captune.data.leaks.store import FingerprintStore, default_store

__all__ = ["same_picture_groups"]

_THUMBNAILS = 2048  # pictures kept for further pairs, 110 kB each
_BLOCK = 2000  # images whose candidates are held at once


def same_picture_groups(
    images: Sequence[ImageFile],
    *,
    store: Path | Literal["default"] | None = "default",
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> tuple[list[int], int]:
    """Put images together that have the same bytes or show the same picture.

    Args:
        images: N images.
        store: database that keeps fingerprints between calls; None for none.
        progress: called now and then with the number of files done and their total.
        workers: threads that read images, as many as processors by default, at most eight.

    Returns:
        for each image the index of the first one of its group, and how many images could not be read, each of which
        is a group.

    Raises:
        MissingExtraError: ImageHash is not installed.
    """
    with FingerprintStore(default_store() if store == "default" else store) as kept:
        digests, hashes, readable = read_fingerprints(images, kept, progress, workers)
    groups = list(range(len(images)))

    def first_of(place: int) -> int:
        while groups[place] != place:
            groups[place] = groups[groups[place]]
            place = groups[place]
        return place

    def join(one: int, other: int) -> None:
        low, high = sorted((first_of(one), first_of(other)))
        groups[high] = low

    known: dict[bytes, int] = {}
    for place, digest in enumerate(digests):
        if digest is not None:
            join(place, known.setdefault(digest, place))
    there = np.flatnonzero(readable)
    thumbnail = functools.lru_cache(_THUMBNAILS)(read_picture)
    for start in range(0, len(there), _BLOCK):
        block = there[start : start + _BLOCK]

        def is_same(query: int, place: int, view: int, of_other: bool, start: int = start) -> bool:
            one, other = int(there[start + query]), int(there[place])
            if first_of(one) == first_of(other):
                return False
            return looks_same(thumbnail(images[one].path), thumbnail(images[other].path), view, of_other)

        near = candidates(hashes[there], hashes[block])
        for query, place in same_pictures(near, is_same, first_only=False):
            join(int(block[query]), int(there[place]))
    return [first_of(place) for place in range(len(images))], int(len(images) - readable.sum())
