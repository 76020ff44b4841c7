"""What importers yield: one row an image, or one a caption, which are grouped in bounded memory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from captune.data.atomic import temporary_folder
from captune.data.issues import Issue
from captune.data.manifest import invalid_text_reason

__all__ = ["CaptionRow", "Row", "group_by_image"]

_BATCH = 5000  # runs inserted at once


@dataclass(frozen=True, slots=True)
class Row:
    """One image of an annotation file, before anything is checked.

    Attributes:
        line: where it begins in the file, counted from 1; 0 where the format has no lines.
        image: name of the file, relative to the image folder.
        captions: as in the file.
        split: as in the file.
        id: unique name; the image's name without folder and ending where the format has none.
        domain: the part of the split that it belongs to, where the format knows such parts.
        any_ending: whether the format names images without their ending, so that `image` ends in a guess.
    """

    line: int
    image: str
    captions: tuple[str, ...]
    split: str
    id: str | None = None
    domain: str | None = None
    any_ending: bool = False


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One caption of a file.

    Attributes:
        line: its line, counted from 1.
        image: name of the image file, relative to the image folder.
        caption: as in the file.
        split: as in the file.
        id: unique name of the image, or None to take it from the name of the file.
    """

    line: int
    image: str
    caption: str
    split: str
    id: str | None = None


def group_by_image(captions: Iterable[CaptionRow | Issue], source: str) -> Iterator[Row | Issue]:
    """Group the captions by image.

    Neighbouring captions of an image are joined on the way; the runs go through a temporary database on the disk,
    so that a shuffled file of any size needs no more memory than a sorted one.

    Args:
        captions: in the order of the file; problems are passed on at once.
        source: name of the file, for messages.

    Yields:
        a row an image, in the order of first appearance, with its captions in the order of the file.

    Raises:
        OSError: no room for the temporary database.
    """
    with (
        temporary_folder("import") as folder,
        contextlib.closing(sqlite3.connect(os.path.join(folder, "runs.sqlite"))) as database,
        _disk_errors(str(folder)),
    ):
        database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; "
            "CREATE TABLE run (image BLOB, id BLOB, line INTEGER, split BLOB, captions TEXT);"
        )
        batch = []
        for row in _runs(captions, source):
            if isinstance(row, Issue):
                yield row
                continue
            name = None if row.id is None else _packed(row.id)
            batch.append((_packed(row.image), name, row.line, _packed(row.split), json.dumps(row.captions)))
            if len(batch) == _BATCH:
                database.executemany("INSERT INTO run VALUES (?, ?, ?, ?, ?)", batch)
                batch.clear()
        database.executemany("INSERT INTO run VALUES (?, ?, ?, ?, ?)", batch)
        yield from _joined(database, source)


def _runs(captions: Iterable[CaptionRow | Issue], source: str) -> Iterator[Row | Issue]:
    """Neighbouring captions of one image, split and id as one row; problems in between do not part them."""
    first: CaptionRow | None = None
    texts: list[str] = []
    for row in captions:
        if isinstance(row, Issue):
            yield row
        elif fault := invalid_text_reason(row.caption):
            kind = "malformed" if row.caption.strip() else "empty"
            yield Issue(source, row.line, kind, f"the caption of '{row.image}' {fault}.")
        elif first is not None and (row.image, row.split, row.id) == (first.image, first.split, first.id):
            texts.append(row.caption)
        else:
            if first is not None:
                yield Row(first.line, first.image, tuple(texts), first.split, first.id)
            first, texts = row, [row.caption]
    if first is not None:
        yield Row(first.line, first.image, tuple(texts), first.split, first.id)


def _joined(database: sqlite3.Connection, source: str) -> Iterator[Row | Issue]:
    """The runs of each image as one row; a run with another split or id than the first is a problem."""
    database.execute("CREATE INDEX by_image ON run (image)")
    runs = database.execute(
        "SELECT image, id, line, split, captions FROM run "
        "JOIN (SELECT image AS name, MIN(rowid) AS first FROM run GROUP BY image) ON image = name "
        "ORDER BY first, run.rowid"
    )
    row: Row | None = None
    for image, name, line, split, captions in runs:
        texts = tuple(json.loads(captions))
        if row is None or _packed(row.image) != image:
            if row is not None:
                yield row
            row = Row(line, _text(image), texts, _text(split), None if name is None else _text(name))
        elif _text(split) != row.split:
            message = f"'{row.image}' is of the split '{_text(split)}' here, of '{row.split}' on line {row.line}."
            yield Issue(source, line, "conflict", message, len(texts))
        elif (row_id := None if name is None else _text(name)) != row.id:
            message = f"'{row.image}' has the id '{row_id}' here, and '{row.id}' on line {row.line}."
            yield Issue(source, line, "conflict", message, len(texts))
        else:
            row = replace(row, captions=row.captions + texts)
    if row is not None:
        yield row


def _packed(text: str) -> bytes:
    """Text as bytes; halves of surrogate pairs, which are refused later on, get through."""
    return text.encode("utf-8", "surrogatepass")


def _text(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _disk_errors(folder: str) -> Iterator[None]:
    """Give SQLite's full disk the type that every other full disk has."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
