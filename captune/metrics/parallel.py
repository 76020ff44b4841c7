"""Functions in forked processes of a scorer, where there is enough work for several.

A process is a fork: it shares all captions with its parent and returns arrays. It runs only this package's functions,
writes its result to a pipe and exits without the interpreter's shutdown. A fork copies the locks of other threads in
their current state, so if the program has other threads, or the system is not Linux, one process does the work.

`concurrent.futures.ProcessPoolExecutor` with forks is as fast within the noise (1.05 times the time of this module,
median of 7 pairs, 40,000 images), but before Python 3.14 it cannot stop a process whose result is no longer needed.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, BinaryIO, NoReturn, TypeVar

from captune.errors import ExternalToolError

__all__ = ["can_fork", "run_in_fork", "split_ranges"]

Result = TypeVar("Result")


def can_fork() -> bool:
    """Whether this program may be forked: on Linux, and without other threads."""
    return sys.platform == "linux" and threading.active_count() == 1


@contextmanager
def run_in_fork(function: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """Run a function in another process meanwhile, or later in this one if a fork is not possible.

    Args:
        function: what it returns, or the error it raises, must be picklable.

    Yields:
        A function that waits for the result; to be called once. The process ends with the block.

    Raises:
        ExternalToolError: (by the call) the process ended without a result.
    """
    import signal

    pipes = os.pipe()
    # The collector would write into every object, and so copy the memory that both processes share.
    collecting = gc.isenabled()
    gc.disable()
    process = _fork(function, *pipes)
    with open(pipes[0], "rb") as pipe:
        try:
            yield function if process is None else lambda: _read(pipe)
        finally:
            if process is not None:
                # With its result written it has nothing left to do, and otherwise the result is unused.
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            if collecting:
                gc.enable()


def _fork(function: Callable[[], object], receiving: int, sending: int) -> int | None:
    """Start the other process; None if a fork is not possible."""
    import warnings

    process = None
    if can_fork():
        with warnings.catch_warnings(), suppress(OSError):
            # Python 3.12 warns of any thread; those of a linear algebra library handle forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
    if process == 0:
        os.close(receiving)
        _write_result(function, sending)
    os.close(sending)
    return process


def _write_result(function: Callable[[], object], sending: int) -> NoReturn:
    """Run the function in the other process; never returns."""
    import pickle

    try:
        answer: tuple[object, Exception | None]
        try:
            answer = (function(), None)
        except Exception as error:
            # It is raised again in the parent.
            answer = (None, error)
        with open(sending, "wb") as pipe:
            pickle.dump(answer, pipe, pickle.HIGHEST_PROTOCOL)
    finally:
        os._exit(0)


def _read(pipe: BinaryIO) -> Any:
    import pickle

    try:
        result, error = pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):
        raise ExternalToolError(
            "a process that scores ended without a result, perhaps for want of memory; use one job (jobs=1, --jobs 1)"
        ) from None
    if error is not None:
        raise error
    return result


def split_ranges(count: int, jobs: int) -> list[tuple[int, int]]:
    """Start and end of each job's range of `count` items; one range at least."""
    bounds = [count * job // max(1, jobs) for job in range(max(1, jobs) + 1)]
    return list(pairwise(bounds))
