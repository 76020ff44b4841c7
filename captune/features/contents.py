"""What image files contain, as short hashes, remembered by path and by what shows that a file was changed.

A million files are read once; later only their directory entries are looked at. Where the memory cannot be kept, files
are read again and nothing else changes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from captune.data.content_hash import HASH_BYTES, content_hash, file_state
from captune.data.prefetch import prefetch_map

__all__ = ["cached_content_hashes", "content_ids"]

_REMEMBERED = "contents.sqlite"
_BATCH = 5_000
# The table `content` of older versions knew files by size and time alone, and is not read.
_TABLE = "CREATE TABLE IF NOT EXISTS content_of (path TEXT PRIMARY KEY, state TEXT, id BLOB) WITHOUT ROWID"


def content_ids(
    files: Sequence[Path], root: Path, on_progress: Callable[[int, int], None] | None = None
) -> list[bytes | OSError]:
    """Content ids of files.

    Args:
        files: N files.
        root: folder where they are remembered; made when it is absent.
        on_progress: called with (done, N) now and then while files are read.

    Returns:
        N ids, or why a file cannot be read, in the order of `files`.
    """
    found: list[bytes | OSError | None] = [None] * len(files)
    fresh: list[tuple[str, str, bytes]] = []
    with _memory(root / _REMEMBERED) as memory:
        unread: list[tuple[int, os.stat_result]] = []
        for place, path in enumerate(files):
            try:
                entry = path.stat()
                if not stat.S_ISREG(entry.st_mode):
                    raise OSError(f"'{path}' is not a regular file")
            except (OSError, ValueError) as error:
                found[place] = error if isinstance(error, OSError) else OSError(str(error))
                continue
            known = _recall(memory, path, entry)
            if known is None:
                unread.append((place, entry))
            found[place] = known
        for done, ((place, entry), digest) in enumerate(
            prefetch_map(unread, lambda item: _try(files[item[0]])), start=1
        ):
            found[place] = digest
            if isinstance(digest, bytes):
                fresh.append((str(files[place].absolute()), file_state(entry), digest))
            if on_progress is not None and (done % _BATCH == 0 or done == len(unread)):
                on_progress(len(files) - len(unread) + done, len(files))
            if len(fresh) >= _BATCH:
                _remember(memory, fresh)
        _remember(memory, fresh)
    return [item for item in found if item is not None]


def cached_content_hashes(file: Path, purpose: str, root: Path, compute: Callable[[], bytes]) -> bytes:
    """16 bytes that follow from a file, computed again only where the file has changed.

    Args:
        file: what they follow from.
        purpose: what they say of it.
        root: folder where they are remembered.
        compute: computes them.
    """
    entry = file.stat()
    named = Path(f"{file.absolute()}#{purpose}")
    with _memory(root / _REMEMBERED) as memory:
        known = _recall(memory, named, entry)
        if known is None:
            known = compute()
            _remember(memory, [(str(named), file_state(entry), known)])
    return known


def _try(path: Path) -> bytes | OSError:
    try:
        return content_hash(path)
    except OSError as error:
        return error


@contextlib.contextmanager
def _memory(file: Path) -> Iterator[sqlite3.Connection | None]:
    """The database, or None where there can be none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(file, timeout=30)
        database.execute(_TABLE)
    except (OSError, sqlite3.Error):
        yield None
        return
    try:
        yield database
    finally:
        database.close()


def _recall(memory: sqlite3.Connection | None, path: Path, entry: os.stat_result) -> bytes | None:
    if memory is None:
        return None
    query = "SELECT id FROM content_of WHERE path = ? AND state = ?"
    with contextlib.suppress(sqlite3.Error):
        row = memory.execute(query, (str(path.absolute()), file_state(entry))).fetchone()
        return None if row is None or len(row[0]) != HASH_BYTES else bytes(row[0])
    return None


def _remember(memory: sqlite3.Connection | None, fresh: list[tuple[str, str, bytes]]) -> None:
    if memory is not None and fresh:
        with contextlib.suppress(sqlite3.Error), memory:
            memory.executemany("INSERT OR REPLACE INTO content_of VALUES (?, ?, ?)", _utf8(fresh))
    fresh.clear()


def _utf8(rows: Iterable[tuple[str, str, bytes]]) -> Iterator[tuple[str, str, bytes]]:
    """Those whose names a database can hold; the others are read anew each time."""
    for row in rows:
        with contextlib.suppress(UnicodeEncodeError):
            row[0].encode()
            yield row
