"""Hidden files and folders that are being written, locked by their writers: what a killed one left can be told.

    .<name>.<machine><random>.partial             a sibling of the final name; `captune.data.atomic` renames it
    $TMPDIR/captune-<purpose>-<machine><random>   a folder for the time of one computation

The operating system releases the lock of a process that ends, however it ends. What has such a name, belongs to this
user and machine, and is locked by nobody was left by a killed process; the next command that writes into the same
folder removes it. Where a file system has no locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

__all__ = ["partial_file", "partial_folder", "remove_abandoned", "temporary_folder"]

_NAME_LIMIT = 200  # bytes of a file name kept in the hidden one; file systems stop at 255
# Locks are looked at on this machine only: another one may not see them on a shared disk.
_MACHINE = hashlib.sha256(socket.gethostname().encode("utf-8", "surrogatepass")).hexdigest()[:8]
_PARTIAL = re.compile(rf"\..*\.{_MACHINE}[0-9a-f]{{8}}\.partial", re.DOTALL)
_TEMPORARY = re.compile(rf"captune-[a-z]+-{_MACHINE}\w{{8}}")
_searched: set[str] = set()


@contextlib.contextmanager
def partial_file(target: Path, mode: str, **options: Any) -> Iterator[tuple[IO[Any], Path]]:
    """A new hidden file beside `target`, open and locked; whoever opened it renames it. An exception removes it.

    Args:
        target: the final name; its folder is there.
        mode: "x" or "xb".
        options: of `open`.

    Yields:
        the stream, which may be closed, and the hidden name; the lock is kept to the end of the block.
    """
    _search_once(target.parent)
    while True:
        path = _hidden(target)
        try:
            # Ctrl-C may come at any point from here on.
            with open(path, mode, **options) as stream, _duplicate(stream.fileno()) as lock:
                if _is_locked(lock, path):
                    yield stream, path
                    return
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A new hidden folder beside `target`, locked; whoever asked for it renames it. An exception removes it.

    Args:
        target: the final name; its parent is there.

    Yields:
        the folder; the lock is kept to the end of the block.
    """
    _search_once(target.parent)
    while True:
        path = _hidden(target)
        try:
            path.mkdir()
            with _locked_folder(path) as is_ours:
                if is_ours:
                    yield path
                    return
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder for the time of the block; those of killed processes are removed.

    Args:
        purpose: a word in lower case.

    Yields:
        an empty folder.
    """
    root = Path(tempfile.gettempdir())
    _search_once(root)
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"captune-{purpose}-{_MACHINE}"))
        with _locked_folder(path) as is_ours:
            if is_ours:
                try:
                    yield path
                finally:
                    shutil.rmtree(path, ignore_errors=True)
                return


def remove_abandoned(folder: Path) -> None:
    """Remove the hidden files and folders of killed processes from a folder.

    Args:
        folder: looked at without its subfolders.
    """
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _PARTIAL.fullmatch(entry.name) or _is_temporary(entry)]
        for path in found:
            with contextlib.suppress(OSError):
                _remove_unless_locked(path)


def _search_once(folder: Path) -> None:
    """Look for abandoned files when a process first writes into a folder."""
    key = os.path.abspath(folder)
    if key not in _searched:
        _searched.add(key)
        remove_abandoned(folder)


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    return _TEMPORARY.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _remove_unless_locked(path: Path) -> None:
    """Remove a file or folder of this user that nobody has locked.

    Raises:
        OSError: it is locked, belongs to somebody else, or cannot be removed.
    """
    state = path.lstat()
    is_folder = stat.S_ISDIR(state.st_mode)
    if state.st_uid != os.getuid() or not (is_folder or stat.S_ISREG(state.st_mode)):
        return
    # Some file systems lock only what is open for writing.
    handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


@contextlib.contextmanager
def _duplicate(handle: int) -> Iterator[int]:
    """A second handle of an open file, which keeps its lock when the first one is closed."""
    second = os.dup(handle)
    try:
        yield second
    finally:
        os.close(second)


@contextlib.contextmanager
def _locked_folder(path: Path) -> Iterator[bool]:
    """Hold the lock of a folder that was just made; False where another process took it for abandoned."""
    if sys.platform == "win32":
        yield True
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _is_locked(handle, path)
    finally:
        os.close(handle)


def _is_locked(handle: int, path: Path) -> bool:
    """Lock an open file or folder; False where another process took it for abandoned before."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here, so nobody removes it either
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _hidden(target: Path) -> Path:
    """A name beside `target` that nothing else uses and that a listing hides."""
    name = os.fsdecode(os.fsencode(target.name)[:_NAME_LIMIT])
    return target.with_name(f".{name}.{_MACHINE}{secrets.token_hex(4)}.partial")
