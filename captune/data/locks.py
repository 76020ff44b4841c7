"""One writer per folder: a lock that is released when its process ends.

    FOLDER/.captune.lock         locked by the operating system while a process writes here
    FOLDER/.captune.writer.json  who that is: for the message that the next process prints, and left by a kill

A bulk job that several workers share has one lock for each worker's part. The system releases the lock of a process
that was killed, so there is no stale lock to remove; the files may stay. A file system without locks is announced and
written to without one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from captune.errors import InputError
from captune.parsing import load_json

__all__ = ["folder_in_use", "folder_lock", "is_lock_file", "last_writer"]

logger = logging.getLogger(__name__)

_PREFIX = ".captune"
_FILE = re.compile(rf"{re.escape(_PREFIX)}(-[\w.-]+)?\.(lock|writer\.json)")
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_PATIENCE = 1.0
"""Seconds before a folder counts as taken: a process that checks for another one holds its lock for a moment."""
_POLL = 0.05


@contextlib.contextmanager
def folder_lock(
    folder: str | os.PathLike[str], what: str, *, part: str | None = None, wait: bool = False
) -> Iterator[None]:
    """Be the only process that writes into a folder, or into one part of it.

    Of torchrun's processes the first one takes the lock for all of them.

    Args:
        folder: made where it is absent.
        what: this process is doing there, as "captune train"; the next process prints it.
        part: name of a part that is written independently, as "part-1-of-4". Parts exclude themselves and a writer of
            the complete folder, not each other.
        wait: wait until the folder is free instead of refusing.

    Raises:
        InputError: another process writes into the folder.
        OSError: the folder cannot be made or written to.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    root = Path(folder)
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _taken(root, what, part, wait=wait):
            yield
            is_new = False
    finally:
        if is_new:
            _remove_if_empty(root)


def is_lock_file(name: str) -> bool:
    """Whether a file name is one of those that `folder_lock` leaves in a folder."""
    return _FILE.fullmatch(name) is not None


def last_writer(folder: str | os.PathLike[str]) -> str | None:
    """What the process does that writes into a folder, or did that was killed there; None if the last one ended."""
    try:
        what = load_json((Path(folder) / f"{_PREFIX}.writer.json").read_text(encoding="utf-8"))["what"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return what if isinstance(what, str) else None


def folder_in_use(folder: str | os.PathLike[str]) -> str | None:
    """What the process does that writes into a folder now, as "captune train"; None if there is none.

    Nothing is written, so that the folder may be read-only. Where the file system has no locks, no process is seen.
    """
    try:
        handle = os.open(Path(folder) / f"{_PREFIX}.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return last_writer(folder) or "another process of captune"
    except OSError:
        return None
    finally:
        os.close(handle)  # releases the lock
    return None


@contextlib.contextmanager
def _taken(root: Path, what: str, part: str | None, *, wait: bool) -> Iterator[None]:
    name = _PREFIX if part is None else f"{_PREFIX}-{part}"
    with _held(root, name, wait=wait):
        # The lock of this process first: of two processes that begin at the same time at least one sees the other.
        for other in [_PREFIX] if part is not None else _names_of_parts(root):
            with _held(root, other, wait=wait):
                pass
        writer = root / f"{name}.writer.json"
        with contextlib.suppress(OSError):
            writer.write_text(json.dumps(_this_process(what)) + "\n", encoding="utf-8")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                writer.unlink()


@contextlib.contextmanager
def _held(root: Path, name: str, *, wait: bool) -> Iterator[None]:
    """Hold one lock file; where the file system has no locks, hold none and log a warning."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / f"{name}.lock", thread_local=False)
    try:
        with warnings.catch_warnings():
            # The library's own substitute for missing locks is announced by its name only.
            warnings.simplefilter("ignore")
            try:
                lock.acquire(timeout=_PATIENCE, poll_interval=_POLL)
            except Timeout:
                if not wait:
                    raise
                logger.warning("%s", f"{_in_use(root, name)} Waiting until it ends.")
                lock.acquire(timeout=-1, poll_interval=1.0)
    except Timeout:
        raise InputError(
            f"{_in_use(root, name)} Wait until it ends, stop that process, or give another folder."
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        logger.warning("The file system of %s has no locks; do not start a second process that writes there.", root)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _remove_if_empty(root: Path) -> None:
    """Remove a folder that was made for a lock and then not used."""
    with contextlib.suppress(OSError):
        names = os.listdir(root)
        if all(map(is_lock_file, names)):
            for name in names:
                (root / name).unlink()
            root.rmdir()


def _names_of_parts(root: Path) -> list[str]:
    return sorted(path.name.removesuffix(".lock") for path in root.glob(f"{_PREFIX}-*.lock"))


def _this_process(what: str) -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "what": what,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _in_use(root: Path, name: str) -> str:
    """A sentence that names the process that writes into a folder."""
    try:
        writer = load_json((root / f"{name}.writer.json").read_text(encoding="utf-8"))
        process = f"process {writer['pid']} on {writer['host']} since {writer['since']}: {writer['command']}"
        who = f"{writer['what']} ({process})"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process of captune"
    return f"{root} is in use: {who} writes there."
