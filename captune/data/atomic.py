"""Atomic writes: files and folders get their final name when they are complete and on the disk.

A full disk, Ctrl-C or a kill in the middle leaves the previous file. Until the rename, data is in a hidden file or
folder that its writer locks:

    .<name>.<machine><random>.partial             next to the final name; `atomic_file` and `atomic_folder` rename it
    $TMPDIR/captune-<purpose>-<machine><random>   `temporary_folder`: for the time of one computation

The operating system releases the lock of a process that ends, however it ends. A file with such a name that belongs to
this user and machine and is not locked was left by a killed process; the next command that writes into the same folder
removes it. A folder that is replaced is renamed to .<name>.<machine><random>.old first, and a kill before the new one
has its name leaves no <name>: the next command gives the old folder its name back. On a file system without locks,
nothing is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

from captune.errors import InputError

__all__ = [
    "atomic_file",
    "atomic_folder",
    "atomic_link",
    "is_stream",
    "partial_file",
    "partial_folder",
    "remove_abandoned",
    "remove_folder",
    "temporary_folder",
]

if sys.platform != "win32":
    import fcntl


_NAME_LIMIT = 200  # bytes of a file name kept in the hidden one; file systems stop at 255
# Locks are checked on this machine only: another one may not see them on a shared disk.
_MACHINE = hashlib.sha256(socket.gethostname().encode("utf-8", "surrogatepass")).hexdigest()[:8]
_PARTIAL = re.compile(rf"\..*\.{_MACHINE}[0-9a-f]{{8}}\.partial", re.DOTALL)
_REPLACED = re.compile(rf"\.(.*)\.{_MACHINE}[0-9a-f]{{8}}\.old", re.DOTALL)
_TEMPORARY = re.compile(rf"captune-[a-z]+-{_MACHINE}\w{{8}}")
_searched: set[str] = set()


@contextlib.contextmanager
def partial_file(target: Path, mode: str, **options: Any) -> Iterator[tuple[IO[Any], Path]]:
    """A new hidden file next to `target`, open and locked, for the caller to rename. An exception removes it.

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
def partial_folder(target: str | Path) -> Iterator[Path]:
    """A new hidden folder next to `target`, locked, for the caller to rename. An exception removes it.

    Args:
        target: the final name; its parent is there.

    Yields:
        the folder; the lock is kept to the end of the block.
    """
    target = Path(target)
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
    """Remove the hidden files and folders of killed processes from a folder, and restore folders they moved.

    Args:
        folder: searched without its subfolders.
    """
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError), os.scandir(folder) as scan:
        entries = list(scan)
        for entry in entries:
            with contextlib.suppress(OSError):
                if _PARTIAL.fullmatch(entry.name) or _is_temporary(entry):
                    _remove_unless_locked(Path(entry.path))
                # A name at the limit may have been shortened, so that the folder cannot be renamed back; it is kept.
                elif (old := _REPLACED.fullmatch(entry.name)) and len(os.fsencode(old[1])) < _NAME_LIMIT:
                    _remove_unless_locked(Path(entry.path), restore=Path(entry.path).with_name(old[1]))


def _search_once(folder: Path) -> None:
    """Remove abandoned files when a process first writes into a folder."""
    key = os.path.abspath(folder)
    if key not in _searched:
        _searched.add(key)
        remove_abandoned(folder)


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    return _TEMPORARY.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def _remove_unless_locked(path: Path, restore: Path | None = None) -> None:
    """Remove a file or folder of this user that is not locked.

    Args:
        path: of the file or folder.
        restore: the name of a folder before it was moved; where nothing has it, the folder is renamed back.

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
        if restore is not None and not os.path.lexists(restore):
            path.rename(restore)
        elif is_folder:
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
        return True  # no locks here, so it is not removed either
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _hidden(target: Path, ending: str = "partial") -> Path:
    """A name next to `target` that nothing else uses and that a listing hides."""
    name = os.fsdecode(os.fsencode(target.name)[:_NAME_LIMIT])
    return target.with_name(f".{name}.{_MACHINE}{secrets.token_hex(4)}.{ending}")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


@overload
def atomic_file(
    path: str | os.PathLike[str],
    mode: Literal["w"] = "w",
    *,
    encoding: str = "utf-8",
    newline: str | None = "\n",
    before_rename: Callable[[Path, Path], None] | None = None,
) -> contextlib.AbstractContextManager[IO[str]]: ...


@overload
def atomic_file(
    path: str | os.PathLike[str],
    mode: Literal["wb"],
    *,
    encoding: str = "utf-8",
    newline: str | None = "\n",
    before_rename: Callable[[Path, Path], None] | None = None,
) -> contextlib.AbstractContextManager[IO[bytes]]: ...


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str],
    mode: str = "w",
    *,
    encoding: str = "utf-8",
    newline: str | None = "\n",
    before_rename: Callable[[Path, Path], None] | None = None,
) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` only when the block ends without an exception.

    Missing parent folders are made. A symbolic link is followed, so the file it points to is replaced and the
    link stays. A device or a pipe (`/dev/stdout`) cannot be renamed over and is written directly.

    Args:
        path: the final name.
        mode: "w" for text or "wb" for bytes.
        encoding: of text.
        newline: line end of text, as in `open`; `\\n` by default, so that bytes are the same everywhere.
        before_rename: called with the complete hidden file and the final name, just before the one becomes the other;
            not called for a device or a pipe.

    Yields:
        the open stream.

    Raises:
        InputError: `path` is a folder.
        OSError: from the file system, with `filename` set to the final name.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}")
    options: dict[str, Any] = {} if mode == "wb" else {"encoding": encoding, "newline": newline}
    if os.path.isdir(path):
        raise InputError(f"'{path}' is a folder, and a file is to be written there; give the name of a file.")
    if is_stream(path):
        with open(path, mode, **options) as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(target, mode.replace("w", "x"), **options) as (stream, partial):
            try:
                with stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                if before_rename is not None:
                    before_rename(partial, target)
                if target.exists():
                    shutil.copymode(target, partial)
                os.replace(partial, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
        _sync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Fill a folder that takes its final name only when the block ends without an exception.

    Args:
        path: the final name; missing parents are made.
        replace: whether an existing folder is replaced (it is removed after the rename).

    Yields:
        an empty hidden folder next to `path`, to be filled.

    Raises:
        InputError: `path` is a file, or a folder and `replace` is False.
        OSError: from the file system, with `filename` set to the final name where writing failed.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise InputError(f"'{path}' is a file, and a folder is to be written there; give another name.")
    if target.is_dir() and not replace:
        raise InputError(f"the folder '{path}' exists already; give another name or remove it.")
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as partial:
            try:
                yield partial
                _sync_tree(partial)
                if replace:
                    _move_folder(partial, target)
                else:
                    _move_to_new(partial, target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        _sync_folder(target.parent)


def atomic_link(path: str | Path, target: str) -> None:
    """Make a symbolic link, or point an existing one to another target; there is no moment without it.

    Args:
        path: of the link.
        target: what it points to, relative to its folder.

    Raises:
        OSError: the file system has no links, or `path` is a folder.
    """
    path = Path(path)
    with _named(path):
        partial = _hidden(path)
        try:
            os.symlink(target, partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def remove_folder(path: str | Path) -> None:
    """Remove a folder, renamed to a hidden name first, so that a kill leaves no part of it under its name.

    Args:
        path: of the folder; not a link.
    """
    path = Path(path)
    partial = _hidden(path)
    os.rename(path, partial)
    shutil.rmtree(partial, ignore_errors=True)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a terminal, pipe or device; renaming a file over one would break the machine."""
    if os.fspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/")):
        return True
    return os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)


def _move_to_new(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder that another process has filled since the check is not replaced."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise InputError(f"the folder '{target}' exists already; give another name or remove it.") from None


def _move_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; an existing folder is renamed before, and back if that fails."""
    if not target.exists():
        os.rename(source, target)
        return
    old = _hidden(target, "old")
    with _locked_folder(target):  # until it is removed, so that no other process takes it for abandoned
        os.rename(target, old)
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Give errors of writing the final name: a failed `write` names none, a failed `open` the hidden one."""
    try:
        yield
    except OSError as error:
        hidden = str(error.filename or "").endswith(".partial")
        if error.errno in _NO_ROOM and (error.filename is None or hidden):
            error.filename = str(target)
        raise


def _sync_tree(folder: Path) -> None:
    """Bring every file below `folder` to the disk, so that no rename overtakes the data."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError), open(Path(parent) / name, "rb") as stream:
                os.fsync(stream.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Bring the entries of a folder to the disk where the system can (Windows and some mounts cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
