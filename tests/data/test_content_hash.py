"""A file that may have changed is read again, whatever its size and times say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from captune.data.content_hash import content_hash, file_state


def test_exchanged_content_of_equal_size_and_time_is_another_state(tmp_path: Path) -> None:
    file, other = tmp_path / "a.bmp", tmp_path / "b.bmp"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    for path in (file, other):
        os.utime(path, (0, 0))
    states = {file_state(file.stat())}
    assert states == {file_state(file.stat())}
    # Renamed over, as archives and rsync do.
    other.replace(file)
    states.add(file_state(file.stat()))
    # Written in place, and the time set back.
    file.write_bytes(b"six")
    os.utime(file, (0, 0))
    states.add(file_state(file.stat()))
    assert len(states) == 3


def test_a_hash_is_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    copy = Path(shutil.copy(file, tmp_path / "b"))
    assert content_hash(file) == content_hash(copy)
    copy.write_bytes(b"two")
    assert content_hash(file) != content_hash(copy)
    assert len(content_hash(file)) == 16
