"""Decides what a command may write.

An output never replaces a file that the command reads, a picture, or a file that the same command did not write. Proof
of the last is a record: `.captune/` next to an output holds, for each output, the command and the SHA-256 of what it
wrote. A file that was changed since has another hash, so manual changes are not lost either.

    check_output("out.jsonl", command="caption", reads=["in.jsonl"])     # first thing, before any work
    with output_file("out.jsonl", command="caption") as stream:          # writes, and keeps the record
        ...

Standard output, pipes and devices can always be written, and so can an empty file, as `mktemp` leaves it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, overload

from captune.data.atomic import atomic_file, is_stream
from captune.errors import InputError
from captune.parsing import load_json

__all__ = [
    "RECORDS",
    "check_output",
    "check_output_folder",
    "file_hash",
    "has_record",
    "is_inside",
    "is_own_output",
    "output_file",
    "output_note",
]

RECORDS = ".captune"
"""Folder of the records, next to the outputs."""

AnyPath: TypeAlias = str | os.PathLike[str]
Note: TypeAlias = dict[str, Any]


def check_output(
    path: AnyPath,
    *,
    command: str,
    reads: Iterable[AnyPath] = (),
    overwrite: bool | None = None,
    option: str = "--out",
) -> None:
    """Check that a command may write a file.

    Args:
        path: the output.
        command: the command as users type it, without `captune` ("caption").
        reads: files and folders that the command reads; those that do not exist are ignored.
        overwrite: whether the user allows the file to be replaced; None where the command has no such option.
        option: the option that named the output, for messages.

    Raises:
        InputError: the output is a folder, is read by this command, is a picture that the command did not write, or
            exists, is not this command's own output, and may not be overwritten.
    """
    if os.path.isdir(path):
        raise InputError(f"'{path}' is a folder, and a file is to be written there; give the name of a file.")
    if is_stream(path) or not os.path.exists(path):
        return
    for read in reads:
        if _same(path, read):
            raise InputError(f"'{read}' is read here; give {option} another name.")
    if os.path.getsize(path) == 0 or is_own_output(path, command):
        return
    if overwrite:
        _refuse_picture(path, option)
        return
    hint = "" if overwrite is None else ", or pass --overwrite to replace it"
    raise InputError(
        f"'{path}' exists, and captune {command} did not write it as it is now; give {option} another name{hint}."
    )


def check_output_folder(path: AnyPath, *, reads: Iterable[AnyPath], option: str = "--out") -> None:
    """Check that a folder that a command fills or replaces is not, and does not contain, what the command reads.

    Args:
        path: the folder.
        reads: files and folders that the command reads; those that do not exist are ignored.
        option: the option that named the folder, for messages.

    Raises:
        InputError: it is or does.
    """
    if not os.path.isdir(path):
        return
    for read in reads:
        if not os.path.exists(read):
            continue
        if _same(path, read):
            raise InputError(f"'{read}' is read here; give {option} another name.")
        if is_inside(read, path):
            raise InputError(f"the folder '{path}' contains '{read}', which is read here; give {option} another name.")


def is_inside(path: AnyPath, folder: AnyPath) -> bool:
    """Whether a path, of a file that exists or not, is a folder or inside of it, by any spelling."""
    real = Path(os.path.realpath(path))
    return any(_same(parent, folder) for parent in (real, *real.parents))


def is_own_output(path: AnyPath, command: str) -> bool:
    """Whether a file is an output of a command, unchanged since the command wrote it."""
    return output_note(path, command) is not None


def has_record(path: AnyPath, command: str) -> bool:
    """Whether a command has written a file of this name, whatever it holds now."""
    return _read_record(Path(os.path.realpath(path)), command) is not None


def output_note(path: AnyPath, command: str) -> Note | None:
    """What a command noted of an output when it wrote it; None unless the file is the command's own and unchanged."""
    target = Path(os.path.realpath(path))
    record = _read_record(target, command)
    try:
        note = None if record is None else record.get(file_hash(target))
    except OSError:
        return None
    return note if isinstance(note, dict) else None


@overload
def output_file(
    path: AnyPath, mode: Literal["w"] = "w", *, command: str, note: Note | None = None, newline: str | None = "\n"
) -> contextlib.AbstractContextManager[IO[str]]: ...


@overload
def output_file(
    path: AnyPath, mode: Literal["wb"], *, command: str, note: Note | None = None, newline: str | None = "\n"
) -> contextlib.AbstractContextManager[IO[bytes]]: ...


@contextlib.contextmanager
def output_file(
    path: AnyPath,
    mode: Literal["w", "wb"] = "w",
    *,
    command: str,
    note: Note | None = None,
    newline: str | None = "\n",
) -> Iterator[IO[Any]]:
    """`atomic_file` of an output: the record is on the disk before the file has its final name.

    Args:
        path: the output, which `check_output` has passed.
        mode: "w" for text or "wb" for bytes.
        command: the command, as in `check_output`.
        note: what `output_note` returns later.
        newline: line end of text.

    Yields:
        the open stream.
    """
    try:
        with atomic_file(path, mode, newline=newline, before_rename=partial(_record, command, note)) as stream:
            yield stream
    except BaseException:
        target = Path(os.path.realpath(path))
        if not os.path.exists(target):
            with contextlib.suppress(OSError):
                _record_path(target).unlink(missing_ok=True)
                _record_path(target).parent.rmdir()
        raise


def file_hash(path: AnyPath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_picture(path: AnyPath, option: str) -> None:
    """Refuse to replace a picture: a command that can overwrite writes none, so its name is a slip."""
    from captune.data.image_formats import is_image_name

    if is_image_name(os.fspath(path)):
        raise InputError(
            f"'{path}' has the name of a picture, which --overwrite does not replace; give {option} another name."
        )


def _record(command: str, note: Note | None, written: Path, target: Path) -> None:
    """Write the record of `target`, whose bytes are those of `written`.

    The hash of what is there now stays in the record: until the rename it is the file that a kill leaves.
    """
    hashes = {file_hash(written): note or {}}
    before = output_note(target, command)
    if before is not None:
        hashes.setdefault(file_hash(target), before)
    record = {"file": target.name, "command": command, "sha256": hashes}
    with atomic_file(_record_path(target)) as stream:
        json.dump(record, stream, ensure_ascii=True)
        stream.write("\n")


def _read_record(target: Path, command: str) -> dict[str, Any] | None:
    """Notes by the hash of the file that they are of."""
    try:
        record = load_json(_record_path(target).read_text(encoding="utf-8"))
        hashes = record["sha256"] if record["file"] == target.name and record["command"] == command else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashes if isinstance(hashes, dict) else None


def _record_path(target: Path) -> Path:
    # A name of any length and any bytes has a record of a short name.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:24]
    return target.parent / RECORDS / f"{name}.json"


def _same(first: AnyPath, second: AnyPath) -> bool:
    """Whether two paths name one file or folder: by another spelling, a symbolic link or a hard link."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
