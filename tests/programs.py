"""Running captune's programs as a person would."""

from __future__ import annotations

import os
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
