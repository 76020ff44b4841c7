"""Whether an id was met before, and where, for tens of millions of ids in a few hundred megabytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FirstSeen"]

_RECENT = 1 << 18  # ids held as Python objects, at about 200 bytes each


class FirstSeen:
    """Remembers the line on which each id stood first.

    The latest quarter of a million ids are kept as they are; of older ones only 64 bits of hash and the line, 16 bytes
    an id. Two of ten million different ids have the same hash with a probability of 3 in a million.

    Args:
        recent: how many ids are kept as they are.
    """

    def __init__(self, recent: int = _RECENT) -> None:
        self._recent: dict[str, int] = {}
        self._limit = recent
        self._hashes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._lines: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def line_of(self, name: str) -> int | None:
        """The line of an id that was added before, or None."""
        if name in self._recent:
            return self._recent[name]
        if self._hashes.size:
            key = hash(name)
            place = int(self._hashes.searchsorted(np.int64(key)))
            if place < self._hashes.size and self._hashes[place] == key:
                return int(self._lines[place])
        return None

    def add(self, name: str, line: int) -> None:
        """Remember an id that was not met before."""
        self._recent[name] = line
        if len(self._recent) >= self._limit:
            self._pack()

    def _pack(self) -> None:
        """Insert the recent ids into the sorted hashes; no more than both is held at any time."""
        count = len(self._recent)
        hashes = np.fromiter(map(hash, self._recent), dtype=np.int64, count=count)
        lines = np.fromiter(self._recent.values(), dtype=np.int64, count=count)
        self._recent.clear()
        order = np.argsort(hashes, kind="stable")
        places = self._hashes.searchsorted(hashes[order])
        self._hashes = np.insert(self._hashes, places, hashes[order])
        self._lines = np.insert(self._lines, places, lines[order])
