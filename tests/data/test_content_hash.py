"""A file that may have changed is read again, whatever its size and times say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from captune.data.content_hash import FileCache, cached_map, file_state, hash_file


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
    assert hash_file(file) == hash_file(copy)
    copy.write_bytes(b"two")
    assert hash_file(file) != hash_file(copy)
    assert len(hash_file(file)) == 16


def test_values_are_kept_for_a_path_and_a_state(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "kept.sqlite"
    columns = {"digest": 16, "hashes": 8}
    with FileCache(file, "fingerprint", columns) as cache:
        assert cache.get("a.jpg", "10 20") is None
        cache.put("a.jpg", "10 20", (b"d" * 16, b"h" * 8))
        cache.put("broken.jpg", "1 2", (b"e" * 16, None))
        cache.put("short.jpg", "1 2", (b"e", None))
        cache.put("caf\udce9.jpg", "1 2", (b"e" * 16, None))
    with FileCache(file, "fingerprint", columns) as cache:
        assert cache.get("a.jpg", "10 20") == (b"d" * 16, b"h" * 8)
        assert cache.get("broken.jpg", "1 2") == (b"e" * 16, None)
        assert cache.get("a.jpg", "11 20") is None
        assert cache.get("a.jpg", "10 21") is None
        assert cache.get("short.jpg", "1 2") is None
        assert cache.get("caf\udce9.jpg", "1 2") is None


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "none", "a\0b")]
    files[0].write_bytes(b"one")
    files[1].write_bytes(b"two")
    read: list[str] = []

    def compute(file: str) -> tuple[bytes]:
        read.append(Path(file).name)
        return (hash_file(file),)

    def run() -> dict[int, object]:
        read.clear()
        with FileCache(tmp_path / "kept.sqlite", "content_of", {"id": 16}) as cache:
            return dict(cached_map(files, cache, compute))

    results = run()
    assert sorted(read) == ["a", "b"]
    assert results[0] == (hash_file(files[0]),)
    assert isinstance(results[2], FileNotFoundError)
    assert isinstance(results[3], OSError)
    assert run()[1] == results[1]
    assert read == []
    files[1].write_bytes(b"three")
    assert run()[1] == (hash_file(files[1]),)
    assert read == ["b"]
