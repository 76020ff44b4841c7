"""The captions that are reviewed: text files next to images, or the rows of one JSON Lines or CSV file.

Both read the current text from the disk on each access, compare it before a change, write atomically, and keep each
replaced text in the history of the folder (`captune.data.text_history`).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from captune.data import (
    TextChange,
    apply_changes,
    atomic_file,
    plain_cell,
    read_history,
    read_text_file,
    resolve_image,
    safe_cell,
    text_path,
)
from captune.errors import ChangedTextError, DataError
from captune.parsing import load_json

__all__ = ["CaptionTexts", "Change", "FileTexts", "SidecarTexts"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a caption.

    Attributes:
        number: of the caption.
        before: stored text; None without one.
        after: stored text from now on.
        status: from now on, "open", "edited" or "accepted".
    """

    number: int
    before: str | None
    after: str | None
    status: str


class CaptionTexts(Protocol):
    """Captions with their images, in order.

    Attributes:
        names: of the captions.
        images: their image files.
    """

    names: list[str]
    images: list[Path]

    def read(self, number: int) -> str | None:
        """The stored text of a caption; None without one."""

    def last(self, number: int) -> TextChange | None:
        """The last recorded change of a caption."""

    def original(self, number: int) -> str | None:
        """The first text that a recorded change replaced; None without one."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Record and write changes.

        Raises:
            ChangedTextError: a stored text is not the one before its change; nothing was written.
        """

    def stored(self, text: str) -> str:
        """A text as it is stored."""


class _Histories:
    """The histories of folders, read once; only this process adds to them while it runs, or they no longer fit."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[TextChange]]] = {}

    def of(self, folder: Path, file: str) -> list[TextChange]:
        """The changes of a text."""
        if folder not in self._folders:
            self._folders[folder] = read_history(folder)
        return self._folders[folder].setdefault(file, [])


def _first_text(changes: list[TextChange]) -> str | None:
    """The first text that a change replaced; None without one."""
    return next((change.before for change in changes if change.before), None)


class SidecarTexts:
    """A text file next to each image.

    Args:
        paths: name to path of each image file.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.names = list(paths)
        self.images = [Path(path) for path in paths.values()]
        self._texts = [text_path(path) for path in self.images]
        self._histories = _Histories()
        self._cache: dict[int, tuple[tuple[int, int, int], str | None]] = {}

    def read(self, number: int) -> str | None:
        """The content of a text file; None without one."""
        path = self._texts[number]
        try:
            state = path.stat()
        except FileNotFoundError:
            return None
        key = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self._cache.get(number, (None, None))[0] != key:
            self._cache[number] = (key, read_text_file(path))
        return self._cache[number][1]

    def last(self, number: int) -> TextChange | None:
        """The last recorded change of a text file."""
        changes = self._changes(number)
        return changes[-1] if changes else None

    def original(self, number: int) -> str | None:
        """The first text that a recorded change replaced; None without one."""
        return _first_text(self._changes(number))

    def apply(self, changes: Sequence[Change]) -> None:
        """Record and write changes, folder by folder.

        Raises:
            ChangedTextError: a text file was changed meanwhile.
        """
        folders: dict[Path, list[tuple[int, TextChange]]] = {}
        for change in changes:
            path = self._texts[change.number]
            entry = TextChange(path.name, change.before, change.after, by="review", status=change.status)
            folders.setdefault(path.parent, []).append((change.number, entry))
        for folder, entries in folders.items():
            apply_changes(folder, [entry for _, entry in entries])
            for number, entry in entries:
                self._cache.pop(number, None)
                self._histories.of(folder, entry.file).append(entry)

    def stored(self, text: str) -> str:
        """A text with the line end that `captune caption --txt` writes."""
        return f"{text}\n" if text else ""

    def _changes(self, number: int) -> list[TextChange]:
        path = self._texts[number]
        return self._histories.of(path.parent, path.name)


class _JsonLines:
    """Records of JSON Lines: one object a line."""

    def records(self, data: bytes) -> list[bytes]:
        """The records of a file, which joined by line feeds are its bytes; blank ones are passed over."""
        return data.split(b"\n")

    def row(self, record: bytes) -> dict[str, Any]:
        """The row of a record.

        Raises:
            ValueError: it is not JSON.
        """
        row: Any = load_json(record)
        return row if isinstance(row, dict) else {}

    def with_caption(self, record: bytes, position: int | None, text: str) -> bytes:
        """A record with another caption.

        Args:
            record: as it is.
            position: number of the caption in "captions"; None is "caption".
            text: the other caption.
        """
        row = self.row(record)
        if position is None:
            row["caption"] = text
        else:
            row["captions"][position] = text
        return json.dumps(row, ensure_ascii=False).encode() + (b"\r" if record.endswith(b"\r") else b"")


class _Csv:
    """Records of CSV with a header that has an id or image, and a caption; cells as `captune.data.CsvWriter` writes."""

    _NAMES: ClassVar[dict[str, tuple[str, ...]]] = {
        "id": ("id", "image_id", "image", "file_name", "filename"),
        "image": ("image", "file_name", "filename", "path"),
        "caption": ("caption", "text"),
    }

    def __init__(self) -> None:
        self._delimiter = ","
        self._columns: dict[str, int] = {}

    def records(self, data: bytes) -> list[bytes]:
        """The records of a file, which joined by line feeds are its bytes; a quoted cell may span lines."""
        lines = data.split(b"\n")
        header = lines[0].decode("utf-8-sig", "replace").rstrip("\r")
        for self._delimiter in (",", ";", "\t"):
            names = [name.strip() for name in next(csv.reader([header], delimiter=self._delimiter), [])]
            self._columns = {
                key: names.index(name)
                for key, known in self._NAMES.items()
                if (name := next((each for each in known if each in names), None)) is not None
            }
            if len(self._columns) == len(self._NAMES):
                break
        reader = csv.reader(
            (line.decode("utf-8", "surrogateescape") + "\n" for line in lines), delimiter=self._delimiter
        )
        records, start = [lines[0]], 1
        next(reader, None)
        for _ in reader:
            records.append(b"\n".join(lines[start : reader.line_num]))
            start = reader.line_num
        return records

    def row(self, record: bytes) -> dict[str, Any]:
        """The row of a record.

        Raises:
            ValueError: the file has no such columns, or the row has too few cells.
        """
        if len(self._columns) < len(self._NAMES):
            raise ValueError("the header needs columns such as id, image and caption")
        cells = self._cells(record)
        if len(cells) <= max(self._columns.values()):
            raise ValueError(f"it has {len(cells)} columns")
        return {key: plain_cell(cells[column]) for key, column in self._columns.items()}

    def with_caption(self, record: bytes, position: int | None, text: str) -> bytes:
        """A record with another caption."""
        cells = self._cells(record)
        cells[self._columns["caption"]] = safe_cell(text)
        stream = io.StringIO()
        csv.writer(stream, delimiter=self._delimiter, lineterminator="").writerow(cells)
        end = b"\r" if record.endswith(b"\r") else b""
        return stream.getvalue().encode("utf-8", "surrogateescape") + end

    def _cells(self, record: bytes) -> list[str]:
        text = record.decode("utf-8", "surrogateescape").removesuffix("\r")
        return next(csv.reader([text], delimiter=self._delimiter), [])


@dataclass(frozen=True, slots=True)
class _Entry:
    """A caption of a file: its record, and its number in "captions" (None is "caption")."""

    record: int
    position: int | None


class FileTexts:
    """The captions of a JSON Lines file (`{"id", "image", "caption"}`, or a manifest with `"captions"`) or a CSV file.

    Only the rows of changed captions are written anew; all other bytes of the file stay as they are.

    Args:
        path: of the file.

    Raises:
        DataError: a line is no such row, or two rows have the same id.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._format = _Csv() if path.suffix.lower() == ".csv" else _JsonLines()
        self._histories = _Histories()
        self._state: tuple[int, int, int] | None = None
        self.names: list[str] = []
        self.images: list[Path] = []
        self._keys: list[str] = []
        self._load()

    def read(self, number: int) -> str | None:
        """The current text of a caption."""
        self._load()
        entry = self._entries[number]
        row = self._rows[entry.record]
        text: str = row["caption"] if entry.position is None else row["captions"][entry.position]
        return text

    def last(self, number: int) -> TextChange | None:
        """The last recorded change of a caption."""
        changes = self._histories.of(self._path.parent, self._keys[number])
        return changes[-1] if changes else None

    def original(self, number: int) -> str | None:
        """The first text that a recorded change replaced; None without one."""
        return _first_text(self._histories.of(self._path.parent, self._keys[number]))

    def apply(self, changes: Sequence[Change]) -> None:
        """Record changes and write the file anew.

        Raises:
            ChangedTextError: a caption was changed meanwhile.
        """
        numbers = {self._keys[change.number]: change.number for change in changes}
        entries = [
            TextChange(self._keys[change.number], change.before, change.after, by="review", status=change.status)
            for change in changes
        ]
        apply_changes(
            self._path.parent,
            entries,
            read=lambda entry: self.read(numbers[entry.file]),
            write=lambda written: self._write({numbers[entry.file]: entry.after or "" for entry in written}),
        )
        for entry in entries:
            self._histories.of(self._path.parent, entry.file).append(entry)

    def stored(self, text: str) -> str:
        """The text itself."""
        return text

    def _write(self, texts: dict[int, str]) -> None:
        if all(self.read(number) == text for number, text in texts.items()):
            return
        records = list(self._records)
        for number, text in texts.items():
            entry = self._entries[number]
            records[entry.record] = self._format.with_caption(records[entry.record], entry.position, text)
        with atomic_file(self._path, "wb") as stream:
            stream.write(b"\n".join(records))

    def _load(self) -> None:
        """Read the file again if it changed.

        Raises:
            ChangedTextError: it has other rows than when the review began.
        """
        try:
            state = self._path.stat()
            key = (state.st_mtime_ns, state.st_size, state.st_ino)
            if key == self._state:
                return
            records = self._format.records(self._path.read_bytes())
        except OSError as error:
            raise DataError(f"'{self._path}' cannot be read: {(error.strerror or str(error)).lower()}.") from error
        first = 1 if isinstance(self._format, _Csv) else 0
        rows = {
            number: self._row(record, number)
            for number, record in enumerate(records)
            if number >= first and record.strip()
        }
        entries, names, keys, images = [], [], [], []
        for number, row in rows.items():
            several = isinstance(row.get("captions"), list)
            for position in range(len(row["captions"])) if several else (None,):
                entries.append(_Entry(number, position))
                suffix = "" if position is None or len(row["captions"]) == 1 else f" ({position + 1})"
                names.append(f"{row['id']}{suffix}")
                keys.append(f"{self._path.name}#{row['id']}" + ("" if position is None else f"#{position}"))
                images.append(self._image(str(row["image"])))
        if len(set(keys)) < len(keys):
            repeated = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise DataError(f"'{self._path}' has the id '{repeated.partition('#')[2]}' twice; give each row its id.")
        if self._keys and keys != self._keys:
            raise ChangedTextError(f"'{self._path}' has other rows than before; start captune review again.")
        self._records, self._rows, self._entries, self._state = records, rows, entries, key
        self.names, self.images, self._keys = names, images, keys

    def _row(self, record: bytes, number: int) -> dict[str, Any]:
        where = f"'{self._path}', row {number + 1},"
        try:
            row = self._format.row(record.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, csv.Error) as error:
            raise DataError(f"{where} cannot be read: {error}.") from error
        captions = row.get("captions", [row.get("caption")])
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions) or "id" not in row:
            raise DataError(
                f'{where} is no caption of an image; expected {{"id": ..., "image": ..., "caption": "..."}} or one of '
                "a manifest."
            )
        if not isinstance(row.get("image"), str):
            raise DataError(f'{where} has no path in "image"; captions need their images.')
        return row

    def _image(self, image: str) -> Path:
        """The file of an image: relative to the file of captions, else to the working directory."""
        below = resolve_image(self._path, image)
        return Path(image) if not below.exists() and os.path.exists(image) else below
