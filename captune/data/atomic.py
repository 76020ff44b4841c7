"""Files and folders that appear under their final name whole, or not at all.

Whatever is written goes to a hidden sibling (`captune.data.partial`) first and is renamed when it is complete and on
the disk. A full disk, Ctrl-C or a kill in the middle leaves what stood under the final name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

from captune.data.partial import partial_file, partial_folder
from captune.errors import InputError

__all__ = ["atomic_file", "atomic_folder", "is_stream"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
_NAME_LIMIT = 100  # characters of a name kept in the hidden one


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
        replace: whether a folder that stands there already is replaced (it is removed after the rename).

    Yields:
        an empty hidden folder beside `path`, to be filled.

    Raises:
        InputError: a file stands under `path`, or a folder and `replace` is False.
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
    """Rename `source` to `target`; a folder that stands there is moved aside, and back if that fails."""
    if not target.exists():
        os.rename(source, target)
        return
    aside = target.with_name(f".{target.name[:_NAME_LIMIT]}.{secrets.token_hex(4)}.old")
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


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
