"""What a file is known by: a hash of its bytes, and what tells without reading it that it cannot have changed.

Size and modification time alone do not tell: archives, `cp -p` and `rsync -t` set times, and uncompressed pictures of
one resolution have one size. The inode and the time of the last change of the directory entry, which no program can
set, do.
"""

from __future__ import annotations

import hashlib
import os

__all__ = ["HASH_BYTES", "content_hash", "file_state"]

HASH_BYTES = 16
"""Bytes of a content hash."""


def content_hash(path: str | os.PathLike[str]) -> bytes:
    """16 bytes of BLAKE2b over a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).digest()


def file_state(entry: os.stat_result) -> str:
    """Size, modification time, inode and change time of a file; another text means that it may have changed."""
    return f"{entry.st_size} {entry.st_mtime_ns} {entry.st_ino} {entry.st_ctime_ns}"
