"""Importer of tables with named columns: CSV, TSV, JSON Lines and parquet, one caption or one image a row.

A cell of the caption column is one caption, or a (JSON) list of them; there may be several such columns. Rows of the
same image, wherever they stand, are brought together. A cell of the image column is the name of a file; in parquet it
may be the file itself, as Hugging Face's data sets have it.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from captune.data.embedded import EmbeddedImages
from captune.data.gathering import CaptionRow, gathered
from captune.data.importing import Row
from captune.data.parquet import parquet_columns, parquet_rows
from captune.data.problems import Problem, plural
from captune.data.text import Reading, csv_rows, parse_json, text_lines
from captune.errors import DataError

__all__ = ["Columns", "Values", "caption_rows", "record_values", "require_columns", "table_rows"]

logger = logging.getLogger(__name__)

_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: name of the image file, relative to the image folder.
        caption: a caption, or a list of captions; several columns as a tuple.
        split: the split; None where the table has none.
        id: the unique name; None to take it from the name of the file.
    """

    image: str = "image"
    caption: str | tuple[str, ...] = "caption"
    split: str | None = None
    id: str | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """The columns of captions."""
        return (self.caption,) if isinstance(self.caption, str) else self.caption

    def names(self) -> list[str]:
        """The columns that the table must have."""
        return [name for name in (self.image, *self.captions, self.split, self.id) if name is not None]


def table_rows(
    reading: Reading, columns: Columns, *, split: str = "train", embedded: EmbeddedImages | None = None
) -> Iterator[Row | Problem]:
    """The images of a table.

    Args:
        reading: the open file; its ending says the format (`.tsv`, `.jsonl`, `.parquet`, anything else is CSV; `.gz`
            on top).
        columns: which column holds what.
        split: what images are given where the table has no column for it.
        embedded: where images that come inside the table are written to; None refuses them.

    Returns:
        an iterator over the images, and over what is wrong with a row.

    Raises:
        DataError: a column is not there; the message names those that are.
    """
    endings = [ending for ending in reading.path.suffixes if ending != ".gz"]
    ending = endings[-1].lower() if endings else ""
    if ending in _JSON_ENDINGS:
        records = _json_records(reading, columns)
    elif ending in (".parquet", ".pq"):
        records = _parquet_records(reading, columns)
    else:
        records = _delimited_records(reading, columns, "\t" if ending in (".tsv", ".tab") else ",")
    return gathered(caption_rows(records, reading.name, columns, split, embedded), reading.name)


Values: TypeAlias = tuple[Any, list[Any], Any, Any]
"""What a row holds: image, a value for each caption column, split, id; None where there is no such column."""


def caption_rows(
    records: Iterable[tuple[int, Values] | Problem],
    source: str,
    columns: Columns,
    split: str,
    embedded: EmbeddedImages | None,
) -> Iterator[CaptionRow | Problem]:
    """Captions of records of any format, checked for the types that they must have.

    Args:
        records: line and values, or what is wrong with a line.
        source: name of the file, for messages.
        columns: which column holds what.
        split: what images are given where there is no column for it.
        embedded: where images that come inside are written to; None refuses them.

    Yields:
        a row a caption, or what is wrong.
    """
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        line, (image, values, own_split, name) = record
        own_split = split if columns.split is None else own_split
        try:
            if type(own_split) is not str:
                raise ValueError(f"'{columns.split}' must be a string")
            if name is not None and type(name) not in (str, int):
                raise ValueError(f"'{columns.id}' must be a string or a number")
            pairs = zip(columns.captions, values, strict=True)
            captions = [text for column, value in pairs for text in _caption_list(value, column)]
            image = _image_name(image, columns.image, embedded)
        except (ValueError, DataError) as error:
            yield Problem(source, line, "malformed", f"{str(error).removesuffix('.')}.")
            continue
        for text in captions:
            yield CaptionRow(line, image, text, own_split, None if name is None else str(name))


def _image_name(cell: Any, column: str, embedded: EmbeddedImages | None) -> str:
    """The name of an image file; an image that comes inside is written first."""
    if isinstance(cell, str):
        return cell
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(data, bytes) and embedded is not None:
        return embedded.add(data, path if isinstance(path, str) else None)
    if data is None and isinstance(path, str):
        return path
    raise ValueError(f"'{column}' must be the name of a file, not {type(cell).__name__}")


def _delimited_records(reading: Reading, columns: Columns, delimiter: str) -> Iterator[tuple[int, Values] | Problem]:
    rows = csv_rows(text_lines(reading), delimiter=delimiter)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{reading.name} is empty; expected a line with the names of its columns first.")
    _, header = first
    if isinstance(header, DataError):
        raise DataError(f"{reading.name}:1: {header}")
    header = [name.strip() for name in header]
    require_columns(columns, header, f"{reading.name}:1")
    image, captions = header.index(columns.image), [header.index(name) for name in columns.captions]
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
            yield line, (cells[image], [cells[caption] for caption in captions], cells[split], cells[name])


def _parquet_records(reading: Reading, columns: Columns) -> Iterator[tuple[int, Values] | Problem]:
    try:
        require_columns(columns, parquet_columns(reading), reading.name)
    except DataError:
        reading.close()
        raise
    names = list(dict.fromkeys(columns.names()))
    for row in parquet_rows(reading, names):
        if isinstance(row, Problem):
            yield row
        else:
            yield row[0], record_values(dict(zip(names, row[1], strict=True)), columns)


def record_values(record: dict[str, Any], columns: Columns) -> Values:
    """What a record with every column holds."""
    split = None if columns.split is None else record[columns.split]
    name = None if columns.id is None else record[columns.id]
    return record[columns.image], [record[caption] for caption in columns.captions], split, name


def _json_records(reading: Reading, columns: Columns) -> Iterator[tuple[int, Values] | Problem]:
    needed = columns.names()
    for line, text in enumerate(text_lines(reading), 1):
        if not text.strip():
            continue
        try:
            record = parse_json(text)
            if not isinstance(record, dict):
                raise ValueError("a JSON object is expected")
            if line == 1:
                require_columns(columns, list(record), f"{reading.name}:1")
            absent = [column for column in needed if column not in record]
            if absent:
                raise ValueError(f"'{absent[0]}' is missing")
        except ValueError as error:
            yield Problem(reading.name, line, "malformed", f"{error}.")
            continue
        yield line, record_values(record, columns)


def require_columns(columns: Columns, there: Sequence[str], place: str) -> None:
    """Refuse a table without the columns, naming those that it has.

    Raises:
        DataError: a column is not there, or twice.
    """
    for name in columns.names():
        if there.count(name) != 1:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f" did you mean '{near[0]}'?" if near else ""
            listed = ", ".join(there[:20])
            raise DataError(
                f"{place}: there is not one column '{name}';{hint} the columns are: {listed}. "
                "Name them with --image-column, --caption-column, --split-column and --id-column."
            )
    if columns.split is None and "split" in there:
        logger.warning("%s: the column 'split' is not read; --split-column split takes an image's split from it", place)


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
