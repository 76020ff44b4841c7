"""Whether a file that was captioned is still the same file.

A file is known by its bytes. Size, times and inode only save reading it again: where all of them are equal, so are the
bytes; where one differs (another machine, a copy), the bytes are compared by their hash.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["FileState", "file_state", "is_changed"]

_WHOLE = 64 << 20
"""Bytes up to which a file is hashed completely; of a larger one (a tar) the size and samples."""
_SAMPLES, _SAMPLE = 16, 1 << 16

FileState: TypeAlias = list[Any]
"""Hash of the bytes, size, time of change, time of change of the inode, inode."""


def file_state(path: Path) -> FileState | None:
    """The state of a file, to be kept with its captions; None where it cannot be read."""
    try:
        return [_digest(path), *_key(path)]
    except OSError:
        return None


def is_changed(path: Path, state: FileState | None) -> bool:
    """Whether a file has other bytes than when its state was taken; one that is gone or had no state has not."""
    try:
        return state is not None and _key(path) != state[1:] and _digest(path) != state[0]
    except OSError:
        return False


def _key(path: Path) -> list[int]:
    entry = path.stat()
    return [entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino]


def _digest(path: Path) -> str:
    if not path.is_file():
        raise OSError(f"'{path}' is not a regular file")
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(f"{size}\n".encode())
        if size <= _WHOLE:
            while block := stream.read(1 << 20):
                digest.update(block)
        else:
            for number in range(_SAMPLES):
                stream.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()
