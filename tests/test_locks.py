"""One writer a folder, whoever dies."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from captune.data.locks import folder_lock, is_lock_file
from captune.errors import InputError

HOLD = """
import sys
from captune.data.locks import folder_lock
with folder_lock(sys.argv[1], "captune train", part=sys.argv[2] or None):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, part: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), part], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_second_writer_is_refused_and_a_killed_one_leaves_no_stale_lock(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(InputError, match=rf"captune train \(process {process.pid} on .* since 20") as refused:
            folder_lock(tmp_path / "run", "captune evaluate").__enter__()
        assert "Wait until it ends" in str(refused.value)
    finally:
        end(process)
    with folder_lock(tmp_path / "run", "captune evaluate"):
        pass
    assert all(is_lock_file(path.name) for path in (tmp_path / "run").iterdir())


def test_parts_exclude_themselves_and_the_complete_folder(tmp_path: Path) -> None:
    process = holder(tmp_path, "part-0-of-2")
    try:
        with folder_lock(tmp_path, "captune caption", part="part-1-of-2"):
            pass
        for part in ("part-0-of-2", None):
            with pytest.raises(InputError, match="is in use"):
                folder_lock(tmp_path, "captune caption", part=part).__enter__()
    finally:
        end(process)
    with folder_lock(tmp_path, "captune caption"), pytest.raises(InputError, match="is in use"):
        folder_lock(tmp_path, "captune caption", part="part-0-of-2").__enter__()


def test_lock_can_be_taken_again_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), folder_lock(tmp_path, "captune train"):
            _ = 1 / 0


def test_waiting_begins_when_the_folder_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = holder(tmp_path)
    assert process.stdin is not None
    waiting = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from captune.data.locks import folder_lock\n"
            f"with folder_lock({str(tmp_path)!r}, 'captune features', wait=True): print('after')",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    assert "Waiting until it ends" in waiting.stderr.readline()
    end(process)
    assert waiting.communicate()[0] == "after\n"


def test_other_processes_of_torchrun_leave_the_lock_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder_lock(tmp_path, "captune train"):
        monkeypatch.setenv("RANK", "1")
        with folder_lock(tmp_path, "captune train"):
            pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_file_system_without_locks_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with folder_lock(tmp_path, "captune train"):
        pass
    assert "has no locks" in caplog.text


def test_read_only_folder_is_refused_as_any_other_file_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".captune.lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(OSError, match="Read-only"):
        folder_lock(tmp_path, "captune train").__enter__()
