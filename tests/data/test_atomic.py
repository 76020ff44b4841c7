"""Files and folders are written completely or not at all; what a killed process left is removed."""

from __future__ import annotations

import errno
import os
import signal
import stat
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
from captune.errors import InputError
from captune.report.files import atomic_write

FULL = Path("/dev/full")  # a device of Linux on which every write fails with "no space left"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@contextmanager
def writing(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing; it is killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def write_half_and_raise(target: Path, fault: BaseException) -> None:
    with atomic_file(target) as stream:
        stream.write("half")
        raise fault


def fill_half_and_raise(target: Path, fault: BaseException) -> None:
    with atomic_folder(target) as folder:
        (folder / "a").write_text("half")
        raise fault


def test_a_file_appears_at_the_end_of_the_block_with_parents_made(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "a.txt"
    with atomic_file(target) as stream:
        stream.write("über\n")
        assert not target.exists()
    assert target.read_bytes() == "über\n".encode()
    assert names(target.parent) == ["a.txt"]


def test_bytes(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "b", "wb") as stream:
        stream.write(b"\r\n\0")
    assert (tmp_path / "b").read_bytes() == b"\r\n\0"


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OSError(errno.ENOSPC, "full")])
def test_a_fault_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, fault: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(fault)):
        write_half_and_raise(target, fault)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_final_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space") as caught, atomic_file(tmp_path / "a.txt") as stream:
        stream.write("x")
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert names(tmp_path) == []


def test_permissions_follow_the_umask_and_the_replaced_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a") as stream:
            stream.write("x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o600)
    with atomic_file(tmp_path / "a") as stream:
        stream.write("y")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    with atomic_file(tmp_path / "link") as stream:
        stream.write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "x"


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    script = (
        "from captune.data.atomic import atomic_file\n"
        "with atomic_file('/dev/stdout') as stream: stream.write('through')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "through"


@pytest.mark.skipif(not FULL.exists(), reason="needs the device /dev/full of Linux")
def test_a_device_is_written_and_not_replaced() -> None:
    with pytest.raises(OSError, match="No space"), atomic_file(FULL) as stream:
        stream.write("x")
    assert stat.S_ISCHR(FULL.stat().st_mode)


def test_a_folder_in_place_of_a_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"), atomic_file(tmp_path):
        pass


def test_a_very_long_name_fits(tmp_path: Path) -> None:
    with atomic_file(tmp_path / ("x" * 250)) as stream:
        stream.write("x")
    assert names(tmp_path) == ["x" * 250]


def test_a_wrong_mode_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode"), atomic_file(tmp_path / "a", "a"):  # type: ignore[call-overload]
        pass


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / content).write_text(content)
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run" / "sub") == ["second"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_fault_while_a_folder_is_filled_leaves_the_old_one(tmp_path: Path, fault: type[BaseException]) -> None:
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(fault):
        fill_half_and_raise(tmp_path / "run", fault())
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "a").read_text() == "old"


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="No space"), atomic_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("new")
    assert names(tmp_path) == ["run"]
    assert (tmp_path / "run" / "a").read_text() == "old"


@pytest.mark.parametrize("renames", [1, 2])
def test_the_next_process_restores_or_removes_the_folder_that_a_killed_one_was_replacing(
    tmp_path: Path, renames: int
) -> None:
    script = (
        "import os, sys\nfrom captune.data.atomic import atomic_folder\n"
        "real, left = os.rename, [int(sys.argv[2])]\n"
        "def rename(*paths):\n    real(*paths)\n    left[0] -= 1\n    if not left[0]: os.kill(os.getpid(), 9)\n"
        "os.rename = rename\n"
        "with atomic_folder(sys.argv[1]) as folder:\n    (folder / 'new').touch()\n"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / ".other.0123.old").mkdir()  # not written by captune
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run"), str(renames)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "run").exists() == (renames == 2)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [".other.0123.old", "other", "run"]
    assert names(tmp_path / "run") == ["old" if renames == 1 else "new"]


def test_a_folder_that_is_being_replaced_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        remove_abandoned(tmp_path)

    monkeypatch.setattr(os, "rename", rename)
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["new"]


def test_a_folder_replaces_no_file_and_with_replace_false_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path, replace=False):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_the_old_file(tmp_path: Path, number: int) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    script = (
        "import sys, time\nfrom captune.data.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1]) as s:\n    s.write('half'); s.flush(); print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with writing(script, target) as process:
        process.send_signal(number)
        process.wait(timeout=20)
    assert target.read_text() == "old"
    left = [name for name in names(tmp_path) if name != "a.txt"]
    assert left == [] if number == signal.SIGINT else all(name.startswith(".") for name in left)


def test_a_folder_that_another_process_filled_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_folder(tmp_path / "study", replace=False) as partial:
            (partial / "mine").touch()
            (tmp_path / "study").mkdir()
            (tmp_path / "study" / "theirs").touch()

    with pytest.raises(InputError, match="exists already"):
        fill()
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


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
    """As in a new process, with a separate temporary folder."""
    monkeypatch.setattr(atomic, "_searched", set())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path, kind: str) -> None:
    with writing(HEAD + WRITERS[kind], tmp_path) as process:
        begun = names(tmp_path)
        assert len(begun) == 1
        remove_abandoned(tmp_path)
        assert names(tmp_path) == begun
        process.kill()
        process.wait()
    assert names(tmp_path) == begun
    remove_abandoned(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("again", ["file", "folder", "report", "image", "temporary"])
def test_the_next_writer_into_the_folder_removes_it(tmp_path: Path, again: str) -> None:
    with writing(HEAD + WRITERS["temporary" if again == "temporary" else "file"], tmp_path) as process:
        process.kill()
        process.wait()
    assert len(names(tmp_path)) == 1
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
    assert names(tmp_path) == ([] if again == "temporary" else ["b"])


def test_files_of_others_stay(tmp_path: Path) -> None:
    mine = f"{atomic._MACHINE}01234567.partial"
    for name in (".a.1234abcd.partial", ".a.ffffffff01234567.partial", f"a.{mine}", "captune-import"):
        (tmp_path / name).write_text("somebody's")
    (tmp_path / f".link.{mine}").symlink_to(tmp_path / "captune-import")
    before = names(tmp_path)
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "absent")
    assert names(tmp_path) == before


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
    assert names(tmp_path) == ["a"]
    lost.clear()
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert names(tmp_path / "b") == ["c"]
