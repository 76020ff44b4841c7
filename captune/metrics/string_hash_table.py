"""Look up the codes of all chunks of a batch at once: a vectorized hash table in front of a Python dictionary.

A chunk is a string between white space. In UTF-8 most have at most 8 bytes, which are one number of 64 bits, and
nearly all others at most 24, which are three; numbers are equal only if the chunks are, since no chunk holds a zero
byte. A longer or new chunk is looked up by its text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NEEDS_CONTEXT", "ChunkCodes", "ChunkTable"]

#: The code of a chunk whose tokens depend on the text around it.
NEEDS_CONTEXT = 0

_LONGEST_CACHED_CHUNK = 64

_UNKNOWN = -1
_SPACE = 32
_SHORT, _LONG = 8, 24
_FIRST_BITS = 12
# Odd numbers without a pattern: the high bits of a product depend on every bit of the other factor.
_MULTIPLIERS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)))
_FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
# The white space of ASCII, as str.split knows it, becomes a space.
_TO_SPACES = bytes(_SPACE if chr(byte).isspace() and byte < 128 else byte for byte in range(256))


class ChunkCodes(dict[str, int]):
    """From a white-space-delimited chunk to its code; an unknown chunk is tokenized, and cached if it is short.

    Chunks with the same tokens, such as "Dog" and "dog.", share a code.

    Args:
        chunk_tokens: the tokenizer's.
        new_code: makes a code for tokens.
    """

    __slots__ = ("_by_tokens", "_chunk_tokens", "_new_code")

    def __init__(
        self, chunk_tokens: Callable[[str], tuple[str, ...] | None], new_code: Callable[[Sequence[str]], int]
    ) -> None:
        self._chunk_tokens, self._new_code = chunk_tokens, new_code
        self._by_tokens: dict[tuple[str, ...], int] = {}

    def __missing__(self, chunk: str) -> int:
        if len(chunk) > _LONGEST_CACHED_CHUNK:
            return NEEDS_CONTEXT
        tokens = self._chunk_tokens(chunk)
        if tokens is None:
            code = NEEDS_CONTEXT
        else:
            code = self._by_tokens.get(tokens, NEEDS_CONTEXT)
            if not code:
                code = self._by_tokens[tokens] = self._new_code(tokens)
        self[chunk] = code
        return code

    def code_in_ascii(self, chunk: str) -> int:
        """The code of a chunk between ASCII's white space, which may still hold white space of other kinds."""
        if not chunk.isascii() and chunk.split() != [chunk]:
            self[chunk] = NEEDS_CONTEXT
        return self[chunk]


class ChunkTable:
    """Caches the codes of chunks.

    Args:
        code_of: computes the code of a chunk that is not cached, from 0 on; called again for long chunks.
    """

    def __init__(self, code_of: Callable[[str], int]) -> None:
        self._code_of = code_of
        self._short, self._long = _HashTable(1), _HashTable(3)

    def codes(self, captions: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]] | None:
        """Split captions at ASCII's white space and look the chunks up.

        Args:
            captions: B captions, at least one.

        Returns:
            The codes of all chunks on end, (K,), and the number of chunks in each caption, (B,); None where a caption
            holds the character 0, which is what separates captions here.
        """
        text = "\0".join(captions).encode("utf-8", "surrogatepass")
        # Padding after the text, so that three numbers can be read at any position.
        text = b"".join((b" ", text, b" " * _LONG))
        if text.count(b"\0") != len(captions) - 1:
            return None
        data = np.frombuffer(text, np.uint8)
        if np.count_nonzero(data < _SPACE) >= len(captions):
            text = text.translate(_TO_SPACES)
            data = np.frombuffer(text, np.uint8)
        solid = (data != _SPACE) & (data != 0)
        edges = np.flatnonzero(solid[1:] != solid[:-1]) + 1
        starts, ends = edges[::2], edges[1::2]
        bounds = np.searchsorted(starts, np.flatnonzero(data == 0))
        return self._look_up(text, starts, ends), np.diff(bounds, prepend=0, append=len(starts))

    def _look_up(self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int32]:
        # The 8 bytes from each position on, as one number.
        windows: NDArray[np.uint64] = np.ndarray(len(text) - 7, np.dtype("<u8"), text, strides=(1,))
        sizes = ends - starts

        def numbers(chunks: NDArray[np.int64], before: int) -> NDArray[np.uint64]:
            return windows[starts[chunks] + before] & _FIRST_BYTES.take(sizes[chunks] - before, mode="clip")

        def compute_codes(chunks: NDArray[np.int64]) -> list[int]:
            places = zip(starts[chunks].tolist(), ends[chunks].tolist(), strict=True)
            return [self._code_of(text[start:end].decode("utf-8", "surrogatepass")) for start, end in places]

        first = windows[starts] & _FIRST_BYTES.take(sizes, mode="clip")
        codes = self._short.find((first,))
        long = np.flatnonzero(sizes > _SHORT)
        codes[long] = self._long.find(tuple(numbers(long, before) for before in (0, 8, 16)))
        codes[sizes > _LONG] = _UNKNOWN
        unknown = np.flatnonzero(codes == _UNKNOWN)
        if len(unknown):
            short = unknown[sizes[unknown] <= _SHORT]
            first_at, which = _distinct(first[short])
            new_codes = np.array(compute_codes(short[first_at]), np.int32)
            codes[short] = new_codes[which]
            self._short.add((first[short[first_at]],), new_codes)
            long = unknown[sizes[unknown] > _SHORT]
            codes[long] = compute_codes(long)
            long = long[sizes[long] <= _LONG]
            self._long.add(tuple(numbers(long, before) for before in (0, 8, 16)), codes[long])
        return codes


class _HashTable:
    """A hash table with open addressing from numbers of 64 bits, `width` of them a key, to a code from 0 on."""

    def __init__(self, width: int) -> None:
        self._width, self._filled = width, 0
        self._make(_FIRST_BITS)

    def _make(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._keys = [np.zeros(1 << bits, np.uint64) for _ in range(self._width)]
        self._codes = np.full(1 << bits, _UNKNOWN, np.int32)

    def _first_slots(self, keys: tuple[NDArray[np.uint64], ...]) -> NDArray[np.int64]:
        """The slot where the search for each key begins."""
        mixed = keys[0] * _MULTIPLIERS[0]
        for key, multiplier in zip(keys[1:], _MULTIPLIERS[1:], strict=False):
            mixed += key * multiplier
        mixed >>= self._shift
        return mixed.view(np.int64)

    def _next(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return (slots + 1) & (len(self._codes) - 1)

    def _differ(self, slots: NDArray[np.int64], keys: tuple[NDArray[np.uint64], ...]) -> NDArray[np.bool_]:
        differ: NDArray[np.bool_] = self._keys[0].take(slots) != keys[0]
        for column, key in zip(self._keys[1:], keys[1:], strict=True):
            differ |= column.take(slots) != key
        return differ

    def find(self, keys: tuple[NDArray[np.uint64], ...]) -> NDArray[np.int32]:
        """The code of each key, -1 of an unknown one."""
        slots = self._first_slots(keys)
        codes = self._codes.take(slots)
        # In an empty slot the search ends; its code is -1 already.
        left = np.flatnonzero(self._differ(slots, keys) & (codes != _UNKNOWN))
        slots = slots[left]
        while len(left):
            slots = self._next(slots)
            probed = self._codes.take(slots)
            codes[left] = probed
            on = self._differ(slots, tuple(key[left] for key in keys)) & (probed != _UNKNOWN)
            left, slots = left[on], slots[on]
        return codes

    def add(self, keys: tuple[NDArray[np.uint64], ...], codes: NDArray[np.int32]) -> None:
        """Store codes of unknown keys; a key may occur twice."""
        # At most a quarter is filled, so that a search is short.
        if (self._filled + len(codes)) * 4 > len(self._codes):
            filled = np.flatnonzero(self._codes != _UNKNOWN)
            old = tuple(column[filled] for column in self._keys), self._codes[filled]
            self._make(max((8 * (len(filled) + len(codes))).bit_length(), _FIRST_BITS))
            self._filled = 0
            self.add(*old)
        slots = self._first_slots(keys)
        while len(codes):
            empty = np.flatnonzero(self._codes.take(slots) == _UNKNOWN)
            # Where several keys hash to one slot, the last of them takes it.
            self._codes[slots[empty]] = codes[empty]
            for column, key in zip(self._keys, keys, strict=True):
                column[slots[empty]] = key[empty]
            on = np.flatnonzero(self._differ(slots, keys))
            self._filled += len(codes) - len(on)
            keys, codes, slots = tuple(key[on] for key in keys), codes[on], self._next(slots[on])


def _distinct(numbers: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The index where each distinct number occurs first, ascending, and for every number which of these it equals.

    (`np.unique` imports the masked arrays when it is first called, which takes as long as scoring a small set.)
    """
    order = np.argsort(numbers, kind="stable")
    ascending = numbers[order]
    new = np.ones(len(numbers), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    first = order[new]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    which = np.empty(len(numbers), np.int64)
    which[order] = rank[np.cumsum(new) - 1]
    return np.sort(first), which
