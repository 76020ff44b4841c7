"""Importer of tables with named columns: CSV, TSV and JSON Lines, one caption or one image a row.

A cell of the caption column is one caption, or a JSON list of them. Rows of the same image, wherever they stand, are
brought together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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


# What a row holds, in the order of `Columns`; None where there is no such column.
_Values: TypeAlias = tuple[Any, Any, Any, Any]


def _captions(
    records: Iterator[tuple[int, _Values] | Problem], source: str, columns: Columns, split: str
) -> Iterator[CaptionRow | Problem]:
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        line, (image, caption, own_split, name) = record
        own_split = split if columns.split is None else own_split
        try:
            if type(image) is not str:
                raise ValueError(f"'{columns.image}' must be a string")
            if type(own_split) is not str:
                raise ValueError(f"'{columns.split}' must be a string")
            if name is not None and type(name) not in (str, int):
                raise ValueError(f"'{columns.id}' must be a string or a number")
            captions = _caption_list(caption, columns.caption)
        except ValueError as error:
            yield Problem(source, line, "malformed", f"{error}.")
            continue
        for text in captions:
            yield CaptionRow(line, image, text, own_split, None if name is None else str(name))


def _delimited_records(reading: Reading, columns: Columns, delimiter: str) -> Iterator[tuple[int, _Values] | Problem]:
    rows = csv_rows(text_lines(reading), delimiter=delimiter)
    _, header = next(rows, (1, [""]))
    if isinstance(header, DataError):
        raise DataError(f"{reading.name}:1: {header}")
    header = [name.strip() for name in header]
    _require(columns, header, f"{reading.name}:1")
    image, caption = header.index(columns.image), header.index(columns.caption)
    # A column that is not asked for reads the None put behind the last cell.
    split = -1 if columns.split is None else header.index(columns.split)
    name = -1 if columns.id is None else header.index(columns.id)
    for line, row in rows:
        if isinstance(row, DataError):
            yield Problem(reading.name, line, "malformed", str(row))
        elif len(row) != len(header):
            message = f"the row has {plural(len(row), 'column')}, and {len(header)} are expected."
            yield Problem(reading.name, line, "malformed", message)
        else:
            cells = [*row, None]
            yield line, (cells[image], cells[caption], cells[split], cells[name])


def _json_records(reading: Reading, columns: Columns) -> Iterator[tuple[int, _Values] | Problem]:
    image, caption, split, name = columns.image, columns.caption, columns.split, columns.id
    needed = columns.names()
    for line, text in enumerate(text_lines(reading), 1):
        if not text.strip():
            continue
        try:
            record = parse_json(text)
            if not isinstance(record, dict):
                raise ValueError("a JSON object is expected")
            if line == 1:
                _require(columns, list(record), f"{reading.name}:1")
            absent = [column for column in needed if column not in record]
            if absent:
                raise ValueError(f"'{absent[0]}' is missing")
        except ValueError as error:
            yield Problem(reading.name, line, "malformed", f"{error}.")
            continue
        yield (
            line,
            (
                record[image],
                record[caption],
                None if split is None else record[split],
                None if name is None else record[name],
            ),
        )


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
