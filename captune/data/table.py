"""Importer of tables with named columns: CSV, TSV and JSON Lines, one caption or one image a row.

A cell of the caption column is one caption, or a JSON list of them. Rows of the same image, wherever they stand, are
brought together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from captune.data.gathering import CaptionRow, gathered
from captune.data.importing import Row
from captune.data.problems import Problem, plural
from captune.data.text import Reading, csv_rows, parse_json, text_lines
from captune.errors import DataError

__all__ = ["Columns", "table_rows"]

_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: name of the image file, relative to the image folder.
        caption: a caption, or a JSON list of captions.
        split: the split; None where the table has none.
        id: the unique name; None to take it from the name of the file.
    """

    image: str = "image"
    caption: str = "caption"
    split: str | None = None
    id: str | None = None

    def names(self) -> list[str]:
        """The columns that the table must have."""
        return [name for name in (self.image, self.caption, self.split, self.id) if name is not None]


def table_rows(reading: Reading, columns: Columns, *, split: str = "train") -> Iterator[Row | Problem]:
    """The images of a table.

    Args:
        reading: the open file; its ending says the format (`.tsv`, `.jsonl`, anything else is CSV; `.gz` on top).
        columns: which column holds what.
        split: what images are given where the table has no column for it.

    Returns:
        an iterator over the images, and over what is wrong with a row.

    Raises:
        DataError: a column is not there; the message names those that are.
    """
    endings = [ending for ending in reading.path.suffixes if ending != ".gz"]
    ending = endings[-1].lower() if endings else ""
    if ending in _JSON_ENDINGS:
        records = _json_records(reading, columns)
    else:
        records = _delimited_records(reading, columns, "\t" if ending in (".tsv", ".tab") else ",")
    return gathered(_captions(records, reading.name, columns, split), reading.name)


def _captions(
    records: Iterator[tuple[int, dict[str, Any]] | Problem], source: str, columns: Columns, split: str
) -> Iterator[CaptionRow | Problem]:
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        line, values = record
        try:
            image = _text(values[columns.image], columns.image)
            own_split = split if columns.split is None else _text(values[columns.split], columns.split)
            name = None if columns.id is None else _text(values[columns.id], columns.id, number=True)
            captions = _caption_list(values[columns.caption], columns.caption)
        except ValueError as error:
            yield Problem(source, line, "malformed", f"{error}.")
            continue
        for caption in captions:
            yield CaptionRow(line, image, caption, own_split, name)


def _delimited_records(
    reading: Reading, columns: Columns, delimiter: str
) -> Iterator[tuple[int, dict[str, Any]] | Problem]:
    rows = csv_rows(text_lines(reading), delimiter=delimiter)
    _, header = next(rows, (1, [""]))
    if isinstance(header, DataError):
        raise DataError(f"{reading.name}:1: {header}")
    header = [name.strip() for name in header]
    _require(columns, header, f"{reading.name}:1")
    places = [(name, header.index(name)) for name in columns.names()]
    for line, row in rows:
        if isinstance(row, DataError):
            yield Problem(reading.name, line, "malformed", str(row))
        elif len(row) != len(header):
            message = f"the row has {plural(len(row), 'column')}, and {len(header)} are expected."
            yield Problem(reading.name, line, "malformed", message)
        else:
            yield line, {name: row[place] for name, place in places}


def _json_records(reading: Reading, columns: Columns) -> Iterator[tuple[int, dict[str, Any]] | Problem]:
    for line, text in enumerate(text_lines(reading), 1):
        if not text.strip():
            continue
        try:
            record = parse_json(text)
            if not isinstance(record, dict):
                raise ValueError("a JSON object is expected")
            if line == 1:
                _require(columns, list(record), f"{reading.name}:1")
            absent = [name for name in columns.names() if name not in record]
            if absent:
                raise ValueError(f"'{absent[0]}' is missing")
        except ValueError as error:
            yield Problem(reading.name, line, "malformed", f"{error}.")
        else:
            yield line, record


def _require(columns: Columns, there: Sequence[str], place: str) -> None:
    """Refuse a table without the columns, naming those that it has."""
    for name in columns.names():
        if there.count(name) != 1:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f" did you mean '{near[0]}'?" if near else ""
            listed = ", ".join(there[:20])
            raise DataError(
                f"{place}: there is not one column '{name}';{hint} the columns are: {listed}. "
                "Name them with --image-column, --caption-column, --split-column and --id-column."
            )


def _text(value: Any, column: str, *, number: bool = False) -> str:
    if number and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"'{column}' must be a string")
    return value


def _caption_list(value: Any, column: str) -> list[str]:
    """One caption or several: a list, or its JSON in a cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            return [value]  # a caption may begin with a bracket
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(caption, str) for caption in value):
        return value
    raise ValueError(f"'{column}' must be a string or a list of strings")
