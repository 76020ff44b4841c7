"""Caption texts next to images, and a history from which every replaced text can be recovered.

    photos/a.jpg
    photos/a.txt                   its caption
    photos/.captune/texts.jsonl    one line a change: file, text before and after, what made it, when, status, job

A change is in the history, on the disk, before the text file is replaced, and the text file is replaced atomically: a
kill at any moment leaves the text before or the text after, never half of one, and a history that contains both. The
last line of a history whose writer was killed may be incomplete and is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from captune.data.atomic import atomic_file
from captune.data.outputs import RECORDS
from captune.errors import ChangedTextError, DataError
from captune.parsing import load_json

if sys.platform != "win32":
    import fcntl

__all__ = ["HISTORY", "TextChange", "apply_changes", "history_path", "read_history", "read_text_file", "text_path"]

HISTORY = "texts.jsonl"
"""Name of a history, in the folder of records."""


@dataclass(frozen=True, slots=True)
class TextChange:
    """One change of a text file, or of its status.

    Attributes:
        file: name of the text file, without its folder; for a file of many captions a name of one of them in it.
        before: its bytes as text, as `read_text_file` returns them; None where there was no file.
        after: its text from now on; None removes the file.
        by: the command, "caption" or "review".
        status: of the text in a review, "accepted", "edited" or "" (open).
        job: identifies a job of `captune caption`.
        time: of the change, ISO 8601 in UTC; `apply_changes` sets it.
    """

    file: str
    before: str | None
    after: str | None
    by: str
    status: str = ""
    job: str = ""
    time: str = ""


def text_path(image: str | os.PathLike[str]) -> Path:
    """Where the caption of an image is stored as a text file: next to it, under its name with the ending .txt."""
    return Path(image).with_suffix(".txt")


def history_path(folder: str | Path) -> Path:
    """The history of the text files in a folder."""
    folder = Path(folder)
    return folder / RECORDS / HISTORY


def read_text_file(path: str | Path) -> str | None:
    """The content of a text file; None without one.

    Bytes that are not UTF-8 become lone surrogates, so that writing the text restores them.

    Raises:
        DataError: it is no regular file.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise DataError(f"'{path}' is a folder, and the text of an image is expected there; rename it.") from None


def read_history(folder: str | Path) -> dict[str, list[TextChange]]:
    """The changes of each text file of a folder, oldest first; lines that are incomplete or foreign are ignored."""
    folder = Path(folder)
    changes: dict[str, list[TextChange]] = {}
    try:
        lines = history_path(folder).read_bytes().split(b"\n")
    except FileNotFoundError:
        return changes
    for line in lines:
        try:
            change = TextChange(**load_json(line))
        except (ValueError, TypeError):
            continue
        changes.setdefault(change.file, []).append(change)
    return changes


def apply_changes(
    folder: str | Path,
    changes: Sequence[TextChange],
    *,
    read: Callable[[TextChange], str | None] | None = None,
    write: Callable[[Sequence[TextChange]], None] | None = None,
) -> None:
    """Record changes in the history of a folder, then write them.

    Args:
        folder: of the text files.
        changes: at most one of each file.
        read: the current text of a change; by default that of the text file in the folder.
        write: writes all changes; by default each into its text file.

    Raises:
        ChangedTextError: a text is not the one before its change; nothing was written.
        OSError: from the file system.
    """
    folder = Path(folder)
    with _open_history(folder) as stream:
        for change in changes:
            if (read_text_file(folder / change.file) if read is None else read(change)) != change.before:
                raise ChangedTextError(
                    f"'{folder / change.file}' was changed by another program meanwhile; reload it to see its text."
                )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        # ASCII, so that the lone surrogates of bytes that are not UTF-8 can be written.
        rows = [json.dumps({**asdict(change), "time": now}, ensure_ascii=True) + "\n" for change in changes]
        stream.write("".join(rows).encode("ascii"))
        stream.flush()
        os.fsync(stream.fileno())
        if write is not None:
            write(changes)
            return
        for change in changes:
            path = folder / change.file
            if change.after is None:
                path.unlink(missing_ok=True)
            elif change.after != change.before:
                with atomic_file(path, "wb") as text:
                    text.write(change.after.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def _open_history(folder: Path) -> Iterator[IO[Any]]:
    """The history, open for appending and locked against other processes; it ends with a complete line or is empty."""
    path = history_path(folder)
    path.parent.mkdir(exist_ok=True)
    with open(path, "ab+") as stream:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        yield stream
