"""However large the files of an archive are, few of them are in memory at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from captune.bulk.shards import Entry, Item, Rejected
from captune.bulk.work import Payloads
from captune.data.prefetch import prefetch_map


@pytest.mark.parametrize("size", [40, 1000])
def test_bytes_that_wait_are_bounded_and_let_go_of(size: int) -> None:
    payloads, lock = Payloads(100), threading.Lock()
    held, most = 0, 0

    def entries() -> Iterator[Entry]:
        for number in range(30):
            yield Item(str(number), "a.tar", b"x" * size) if number % 3 else Rejected(str(number), "a.tar", "bad")

    def decode(entry: Entry) -> int:
        nonlocal held, most
        length = len(entry.payload) if isinstance(entry, Item) and isinstance(entry.payload, bytes) else 0
        with lock:
            held += length
            most = max(most, held)
        with lock:
            held -= length
        if length and int(entry.id) % 5 == 0:
            raise ValueError
        return length

    def guarded(entry: Entry) -> int | None:
        try:
            return decode(entry)
        except ValueError:
            return None

    done = list(prefetch_map(payloads.admitted(entries()), lambda item: payloads.decoded(item, guarded), 4, ahead=16))
    assert [item.entry.id for item, _ in done] == [str(number) for number in range(30)]
    assert most <= max(100, size)
    assert all(item.entry.payload == b"" for item, _ in done if isinstance(item.entry, Item))
    assert payloads._used == 0
