"""Running captune's programs as a person would."""

from __future__ import annotations

import contextlib
import os
import pty
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """Result of a program: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_program(*command: object, cwd: Path | None = None, timeout: float = 300, **environment: str) -> Finished:
    """Run a program as a person would, with one thread, and wait for it."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment}
    # The programs of this environment come first: `python`, `torchrun`, `captune`.
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=settings, capture_output=True, text=True, timeout=timeout, check=False, encoding="utf-8"
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def java_stand_in(folder: Path, body: str) -> Path:
    """A `java` that reports version 17 and otherwise runs `body`, a Python program."""
    path = folder / "java"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\n"
        "if '-version' in sys.argv:\n"
        "    print('openjdk version \"17\"', file=sys.stderr); sys.exit()\n" + body
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def run_in_terminal(
    *command: object, answers: str = "", cwd: Path | None = None, timeout: float = 120, **environment: str
) -> Finished:
    """Run a program with a terminal of 100 columns as standard input, output and stderr; all it prints is `out`."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm", **environment}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=settings,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        os.close(follower)
        os.write(leader, answers.encode())
        printed = b""
        # Linux reports the end of a terminal as an error.
        with contextlib.suppress(OSError):
            while piece := os.read(leader, 1 << 16):
                printed += piece
        code = process.wait(timeout)
    os.close(leader)
    return Finished(code, printed.decode().replace("\r\n", "\n"), "")
