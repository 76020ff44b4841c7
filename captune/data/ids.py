"""Ids of images: as text, from any number type of a file, and whether an id was seen before."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

__all__ = ["SeenIds", "id_text", "without_fraction"]

_LARGEST = 2**53  # larger whole numbers lose digits as floats, so that two ids can become one
_INTEGRAL_FLOAT = re.compile(r"-?\d+\.0+")


def id_text(value: object, what: str) -> str:
    """An id as text: 391895, 391895.0 and "391895" are one id.

    pandas makes floats of whole numbers as soon as one row of a column has none.

    Args:
        value: as it came out of a file.
        what: what the value is called in messages.

    Raises:
        TypeError: it is neither text nor a whole number that a float can hold.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        if not value == value or value in (float("inf"), float("-inf")) or value != int(value):
            raise TypeError(f"'{what}' must be text or a whole number, not {value}")
        if isinstance(value, float) and abs(value) >= _LARGEST:
            raise TypeError(f"'{what}' is {value:.0f} as a float, which can have lost digits; write it as text")
        return str(int(value))
    raise TypeError(f"'{what}' must be text or a whole number, not {_kind(value)}")


def without_fraction(text: str) -> str:
    """Text of a whole number without the ".0" that pandas writes into CSV; other text unchanged."""
    return text.partition(".")[0] if _INTEGRAL_FLOAT.fullmatch(text) else text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)


_RECENT = 1 << 18  # ids held as Python objects, at about 200 bytes each


class SeenIds:
    """Remembers the line of the first occurrence of each id.

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
            index = int(self._hashes.searchsorted(np.int64(key)))
            if index < self._hashes.size and self._hashes[index] == key:
                return int(self._lines[index])
        return None

    def add(self, name: str, line: int) -> None:
        """Remember an id that was not seen before."""
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
