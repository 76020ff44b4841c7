"""Finding Java and talking to a program: answers, failures, silence, and no process that keeps running."""

from __future__ import annotations

import os
import stat
import sys
import textwrap
import time
from pathlib import Path

import pytest

from captune.errors import ExternalToolError, MissingExtraError
from captune.metrics.external import java
from captune.metrics.external.java import JavaProcess, find_java


def program(folder: Path, body: str) -> Path:
    """A stand-in for `java`: answers -version, then runs `body`."""
    path = folder / "java"
    preamble = f"""\
        #!{sys.executable}
        import os, sys, time
        if "-version" in sys.argv:
            print('openjdk version "17.0.9" 2023-10-17', file=sys.stderr)
            sys.exit(0)
        """
    path.write_text(textwrap.dedent(preamble) + textwrap.dedent(body))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize(
    ("text", "version"),
    [('version "1.8.0_412"', 8), ('version "11.0.2"', 11), ('version "25" 2025-09-16', 25)],
)
def test_version_is_read(tmp_path: Path, text: str, version: int) -> None:
    path = tmp_path / "java"
    path.write_text(f"#!/bin/sh\necho 'openjdk {text}' >&2\n")
    path.chmod(0o755)
    assert find_java(path).version == version


def test_new_java_gets_permission_flags_and_old_java_does_not(tmp_path: Path) -> None:
    assert "--add-opens" in java.Java(tmp_path, 17).flags("2G")
    assert "--add-opens" not in java.Java(tmp_path, 8).flags("2G")
    assert "-Xmx3G" in java.Java(tmp_path, 8).flags("3G")


def test_a_home_folder_with_a_space_is_accepted(tmp_path: Path) -> None:
    home = tmp_path / "my java"
    (home / "bin").mkdir(parents=True)
    expected = program(home / "bin", "")
    assert find_java(home).path == expected


def test_a_wrong_path_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExternalToolError, match="There is no Java at"):
        find_java(tmp_path / "nothing")


def test_no_java_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_candidates", lambda path: iter(()))
    with pytest.raises(MissingExtraError, match=r"captune\[java\]"):
        find_java()


def test_a_program_that_is_no_java_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "java"
    path.write_text("#!/bin/sh\necho 'No Java runtime present'; exit 1\n")
    path.chmod(0o755)
    with pytest.raises(ExternalToolError, match="does not run; it printed: No Java runtime present"):
        find_java(path)


def test_lookup_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "bin").mkdir(parents=True)
    (tmp_path / "path").mkdir()
    program(tmp_path / "home" / "bin", "")
    program(tmp_path / "path", "")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    assert find_java().path == tmp_path / "home" / "bin" / "java"
    monkeypatch.delenv("JAVA_HOME")
    assert find_java().path == tmp_path / "path" / "java"


def test_many_lines_in_both_directions_do_not_lock(tmp_path: Path) -> None:
    path = program(tmp_path, "for line in sys.stdin: sys.stdout.write(line.upper()); sys.stdout.flush()\n")
    lines = ["é" * 200] * 20_000
    with JavaProcess("Echo", [str(path)], timeout=20) as process:
        process.send(lines)
        assert [process.answer() for _ in lines] == ["É" * 200] * len(lines)
        process.finish()


def test_failure_shows_the_end_of_stderr(tmp_path: Path) -> None:
    path = program(tmp_path, "print('OutOfMemoryError: Java heap space', file=sys.stderr); sys.exit(3)\n")
    with JavaProcess("Echo", [str(path)], timeout=20) as process:
        process.send(["x"] * 100_000)
        with pytest.raises(ExternalToolError, match=r"(?s)exit code 3.*Java heap space"):
            process.answer()


def test_silence_is_stopped_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child.pid"
    path = program(
        tmp_path,
        f"""
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        open({str(note)!r}, "w").write(str(child.pid))
        print("ready", flush=True)
        time.sleep(60)
        """,
    )
    with JavaProcess("Echo", [str(path)], timeout=20) as process:
        assert process.answer() == "ready"
        process.timeout = 0.1
        started = time.monotonic()
        with pytest.raises(ExternalToolError, match=r"silent for 0\.1 seconds"):
            process.answer()
        assert time.monotonic() - started < 5
    assert gone(int(note.read_text()))


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    path = program(tmp_path, "print(os.getpid(), flush=True); time.sleep(60)\n")
    seen: list[int] = []

    def interrupted() -> None:
        with JavaProcess("Echo", [str(path)], timeout=20) as process:
            seen.append(int(process.answer()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(seen[0])


def test_finish_reports_a_late_failure(tmp_path: Path) -> None:
    path = program(tmp_path, "sys.stdin.read(); sys.exit(1)\n")
    with (
        JavaProcess("Echo", [str(path)], timeout=20) as process,
        pytest.raises(ExternalToolError, match="Its standard error is empty"),
    ):
        process.finish()


def test_something_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExternalToolError, match="could not be started"):
        JavaProcess("Echo", [str(tmp_path / "absent")], timeout=1)
