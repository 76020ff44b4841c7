"""Image files that are in memory between reading and decoding, bounded in bytes and let go of once decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Condition
from typing import Any

from captune.bulk.shards import Entry, Item

__all__ = ["MOST_BYTES", "Held", "Payloads"]

MOST_BYTES = 512 << 20
"""Of all files that wait to be decoded; a larger one waits until it is the only one."""


@dataclass
class Held:
    """An entry on its way to the decoder.

    Attributes:
        entry: without the bytes of its file once it was decoded.
    """

    entry: Entry


class Payloads:
    """Lets entries in as far as the memory for their files goes.

    Args:
        most_bytes: of all files that wait.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._used = 0
        self._changed = Condition()

    def admitted(self, entries: Iterator[Entry]) -> Iterator[Held]:
        """The entries, each one when there is room for its file; they are decoded in other threads meanwhile."""
        for entry in entries:
            size = _size(entry)
            with self._changed:
                self._changed.wait_for(lambda size=size: not self._used or self._used + size <= self._most)  # type: ignore[misc]
                self._used += size
            yield Held(entry)

    def decoded(self, held: Held, decode: Callable[[Entry], Any]) -> Any:
        """What `decode` makes of an entry, whose file is let go of."""
        size = _size(held.entry)
        try:
            return decode(held.entry)
        finally:
            if isinstance(held.entry, Item) and size:
                held.entry = replace(held.entry, payload=b"")
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _size(entry: Entry) -> int:
    return len(entry.payload) if isinstance(entry, Item) and isinstance(entry.payload, bytes) else 0
