"""Hashes of file contents, and a cache of what follows from a file, so that a million files are read once.

The state of a file shows without reading it that it cannot have changed. Size and modification time alone do not:
archives, `cp -p` and `rsync -t` set times, and uncompressed pictures of one resolution have one size. The inode and the
time of the last change of the directory entry, which no program can set, do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from captune.data.image_files import is_unicode
from captune.data.prefetch import prefetch_map

__all__ = ["HASH_BYTES", "FileCache", "cached_digest", "cached_map", "content_ids", "file_state", "hash_file"]

HASH_BYTES = 16
"""Bytes of a content hash."""

Values: TypeAlias = tuple[bytes | None, ...]
"""What is cached of a file: a value for each column."""

AnyPath: TypeAlias = str | os.PathLike[str]

_BATCH = 2000  # rows inserted at once
_CONTENTS = "contents.sqlite"


def hash_file(path: AnyPath) -> bytes:
    """16 bytes of BLAKE2b over a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).digest()


def file_state(entry: os.stat_result) -> str:
    """Size, modification time, inode and change time of a file; another text means that it may have changed."""
    return f"{entry.st_size} {entry.st_mtime_ns} {entry.st_ino} {entry.st_ctime_ns}"


class FileCache:
    """Values that follow from files, kept in an SQLite table by path and file state.

    Use it as a context manager, in one thread. Where the database cannot be opened, read or written (a full or
    read-only disk, a lock, a file of another kind), `get` returns None, `put` keeps nothing, and nothing else changes.

    Args:
        file: the database, created where it is absent; None keeps nothing.
        table: name of its table.
        columns: names of the values and their sizes in bytes.
    """

    def __init__(self, file: Path | None, table: str, columns: Mapping[str, int]) -> None:
        self._file = file
        self._table = table
        self._columns = columns
        self._sizes = tuple(columns.values())
        self._query = f"SELECT {', '.join(columns)} FROM {table} WHERE path = ? AND state = ?"
        self._database: sqlite3.Connection | None = None
        self._new: list[tuple[str | bytes | None, ...]] = []

    def __enter__(self) -> FileCache:
        if self._file is not None:
            columns = ", ".join(f"{name} BLOB" for name in self._columns)
            table = f"{self._table} (path TEXT PRIMARY KEY, state TEXT, {columns}) WITHOUT ROWID"
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(self._file, timeout=30)
                self._database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            except (sqlite3.Error, OSError):
                self._disable()
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._disable()

    def get(self, path: str, state: str) -> Values | None:
        """The values of a file in this state (`file_state`), or None."""
        if self._database is None:
            return None
        try:
            row: Values | None = self._database.execute(self._query, (path, state)).fetchone()
        except UnicodeEncodeError:  # a name that a database cannot hold
            return None
        except sqlite3.Error:
            self._disable()
            return None
        if row is not None:
            for value, size in zip(row, self._sizes, strict=True):
                if value is not None and (not isinstance(value, bytes) or len(value) != size):
                    return None
        return row

    def put(self, path: str, state: str, values: Values) -> None:
        """Keep the values of a file; those of a name that a database cannot hold are computed each time."""
        if self._database is not None and is_unicode(path):
            self._new.append((path, state, *values))
            if len(self._new) >= _BATCH:
                self._flush()

    def _flush(self) -> None:
        if self._database is not None and self._new:
            marks = ", ".join("?" * (2 + len(self._columns)))
            try:
                with self._database:
                    self._database.executemany(f"INSERT OR REPLACE INTO {self._table} VALUES ({marks})", self._new)
            except sqlite3.Error:
                self._disable()
        self._new.clear()

    def _disable(self) -> None:
        """Continue without the database."""
        if self._database is not None:
            self._database.close()
        self._database = None


def cached_map(
    files: Sequence[AnyPath],
    cache: FileCache,
    compute: Callable[[str], Values],
    workers: int | None = None,
    *,
    key: Callable[[str], str] = os.path.abspath,
) -> Iterator[tuple[int, Values | OSError]]:
    """The values of files, of which only those are read that the cache does not have.

    Args:
        files: N files.
        cache: where values are kept.
        compute: computes the values of a file; called in threads. Its `OSError` becomes the result.
        workers: threads that read files; as many as processors by default, at most eight.
        key: the path under which a file is kept.

    Yields:
        index and values of each file, or why it cannot be read; cached ones first.
    """
    unread: list[tuple[int, str, str]] = []
    for index, path in enumerate(files):
        file = os.fspath(path)
        try:
            state = _regular_state(file)
        except OSError as error:
            yield index, error
            continue
        name = key(file)
        values = cache.get(name, state)
        if values is None:
            # The state from before the file is read: a change during the reading must not pass unseen.
            unread.append((index, name, state))
        else:
            yield index, values

    def read(item: tuple[int, str, str]) -> Values | OSError:
        try:
            return compute(os.fspath(files[item[0]]))
        except OSError as error:
            return error

    with contextlib.closing(prefetch_map(unread, read, workers)) as results:
        for (index, name, state), result in results:
            if not isinstance(result, OSError):
                cache.put(name, state, result)
            yield index, result


def content_ids(files: Sequence[str | Path], root: str | Path) -> list[bytes | OSError]:
    """Content hashes of files, cached.

    Args:
        files: N files.
        root: folder of the cache; created when it is absent.

    Returns:
        N hashes, or why a file cannot be read, in the order of `files`.
    """
    root = Path(root)
    ids: list[bytes | OSError] = [b""] * len(files)
    with _contents(root) as cache:
        for index, values in cached_map(
            [Path(file) for file in files], cache, lambda file: (hash_file(file),), key=_absolute
        ):
            ids[index] = values if isinstance(values, OSError) else values[0] or b""
    return ids


def cached_digest(file: str | Path, purpose: str, root: str | Path, compute: Callable[[], bytes]) -> bytes:
    """16 bytes that follow from a file, computed again only where the file has changed.

    Args:
        file: what they follow from.
        purpose: what they are for; another purpose has another entry in the cache.
        root: folder of the cache.
        compute: computes them.
    """
    file = Path(file)
    root = Path(root)
    state, name = file_state(file.stat()), f"{file.absolute()}#{purpose}"
    with _contents(root) as cache:
        values = cache.get(name, state)
        if values is not None and values[0] is not None:
            return values[0]
        digest = compute()
        cache.put(name, state, (digest,))
    return digest


def _contents(root: Path) -> FileCache:
    # The table `content` of older versions knew files by size and time alone, and is not read.
    return FileCache(root / _CONTENTS, "content_of", {"id": HASH_BYTES})


def _regular_state(file: str) -> str:
    """The state of a regular file; a pipe in its place would block for ever."""
    try:
        entry = os.stat(file)
    except ValueError as error:  # a NUL in the name
        raise OSError(str(error)) from error
    if not stat.S_ISREG(entry.st_mode):
        raise OSError(f"'{file}' is not a regular file")
    return file_state(entry)


def _absolute(file: str) -> str:
    return file if os.path.isabs(file) else os.path.join(os.getcwd(), file)
