"""Fingerprints of image files, kept between runs so that a million images are read once.

A file is known by its path and by what shows that it was changed. The store is a cache: where it cannot be written or
read, images are read again and nothing else changes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from captune.data.leaks.fingerprints import VIEWS, Fingerprint

__all__ = ["FingerprintStore", "default_store"]

_VERSION = 3  # counts up when the same file would give another fingerprint, or is known by something else
_BATCH = 2000


def default_store() -> Path:
    """Where fingerprints are kept: `$XDG_CACHE_HOME/captune`, by default `~/.cache/captune`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "captune" / f"fingerprints-{_VERSION}.sqlite"


class FingerprintStore:
    """Finds and keeps fingerprints; use it as a context manager, in one thread.

    Args:
        file: the database, made where it is absent; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._database: sqlite3.Connection | None = None
        self._fresh: list[tuple[str, str, bytes, bytes | None]] = []

    def __enter__(self) -> FingerprintStore:
        if self._file is None:
            return self
        with self._unless_broken():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._file, timeout=5)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS fingerprint "
                "(path TEXT PRIMARY KEY, state TEXT, digest BLOB, hashes BLOB) WITHOUT ROWID"
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        if self._database is not None:
            self._database.close()
            self._database = None

    def get(self, path: str, state: str) -> Fingerprint | None:
        """The fingerprint of a file in this state (`file_state`), or None."""
        row = None
        with self._unless_broken():
            if self._database is not None:
                query = "SELECT digest, hashes FROM fingerprint WHERE path = ? AND state = ?"
                row = self._database.execute(query, (path, state)).fetchone()
        if row is None:
            return None
        digest, hashes = row
        known = None if hashes is None else np.frombuffer(hashes, np.uint64)
        return None if known is not None and known.size != len(VIEWS) else Fingerprint(digest, known)

    def put(self, path: str, state: str, found: Fingerprint) -> None:
        """Keep the fingerprint of a file."""
        hashes = None if found.hashes is None else found.hashes.tobytes()
        self._fresh.append((path, state, found.digest, hashes))
        if len(self._fresh) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        with self._unless_broken():
            if self._database is not None and self._fresh:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO fingerprint VALUES (?, ?, ?, ?)", self._fresh)
        self._fresh.clear()

    @contextlib.contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """Go on without the store where it fails: a full or read-only disk, a lock, a file of another kind."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeEncodeError):
            if self._database is not None:
                self._database.close()
            self._database = None
