"""What a killed writer leaves is removed at the next start, and nothing else ever is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from captune.data import atomic
from captune.data.atomic import (
    atomic_file,
    atomic_folder,
    partial_file,
    partial_folder,
    remove_abandoned,
    temporary_folder,
)
from captune.data.tar_parquet import InlineImages
from captune.report.files import atomic_write

WRITERS = {
    "file": "with atomic_file(sys.argv[1] + '/a.json') as s:\n    s.write('half'); s.flush()\n    wait()\n",
    "folder": "with atomic_folder(sys.argv[1] + '/run') as f:\n    (f / 'a').write_text('half')\n    wait()\n",
    "temporary": "with temporary_folder('import') as f:\n    (f / 'a').write_text('half')\n    wait()\n",
}
HEAD = (
    "import sys\nfrom captune.data.atomic import atomic_file, atomic_folder\n"
    "from captune.data.atomic import temporary_folder\n"
    "def wait():\n    print('ready', flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a new process, with a temporary folder of its own."""
    monkeypatch.setattr(atomic, "_searched", set())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@contextmanager
def writing(kind: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + WRITERS[kind], str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path, kind: str) -> None:
    with writing(kind, tmp_path) as process:
        begun = listing(tmp_path)
        assert len(begun) == 1
        remove_abandoned(tmp_path)
        assert listing(tmp_path) == begun
        process.kill()
        process.wait()
    assert listing(tmp_path) == begun
    remove_abandoned(tmp_path)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("again", ["file", "folder", "report", "image", "temporary"])
def test_the_next_writer_into_the_folder_removes_it(tmp_path: Path, again: str) -> None:
    with writing("temporary" if again == "temporary" else "file", tmp_path) as process:
        process.kill()
        process.wait()
    assert len(listing(tmp_path)) == 1
    if again == "file":
        with atomic_file(tmp_path / "b") as stream:
            stream.write("b")
    elif again == "folder":
        with atomic_folder(tmp_path / "b"):
            pass
    elif again == "report":
        atomic_write(tmp_path / "b", "b")
    elif again == "image":
        InlineImages(tmp_path).add(b"\xff\xd8\xff", "b")
    else:
        with temporary_folder("import"):
            pass
    assert listing(tmp_path) == ([] if again == "temporary" else ["b"])


def test_files_of_others_stay(tmp_path: Path) -> None:
    mine = f"{atomic._MACHINE}01234567.partial"
    for name in (".a.1234abcd.partial", ".a.ffffffff01234567.partial", f"a.{mine}", "captune-import"):
        (tmp_path / name).write_text("somebody's")
    (tmp_path / f".link.{mine}").symlink_to(tmp_path / "captune-import")
    before = listing(tmp_path)
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "absent")
    assert listing(tmp_path) == before


def test_writers_of_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with partial_file(tmp_path / "a", "x") as (stream, path), partial_folder(tmp_path / "a") as folder:
        stream.close()
        remove_abandoned(tmp_path)
        assert path.is_file()
        assert folder.is_dir()


def test_a_file_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, lost = atomic._is_locked, []

    def is_locked(handle: int, path: Path) -> bool:
        if not lost:
            lost.append(path)
            remove_abandoned(tmp_path)
        return lock(handle, path)

    monkeypatch.setattr(atomic, "_is_locked", is_locked)
    with atomic_file(tmp_path / "a") as stream:
        stream.write("whole")
    assert listing(tmp_path) == ["a"]
    lost.clear()
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert listing(tmp_path / "b") == ["c"]
