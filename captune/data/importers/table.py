"""Importer of tables with named columns: CSV, TSV, JSON and parquet, one caption or one image a row.

A cell of the caption column is one caption, or a (JSON) list of them; there may be several such columns. Rows of the
same image, wherever they are, are grouped. A cell of the image column is the name of a file; in parquet it
may be the file itself, as Hugging Face's data sets have it. In a TSV quotation marks are text; in a CSV they quote.
Objects that hold a conversation instead of a caption are read as `captune.data.importers.json_table` describes.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from captune.common import did_you_mean
from captune.data.delimited import Quoting, looks_quoted
from captune.data.ids import id_text, without_fraction
from captune.data.importers.coco import coco_rows
from captune.data.importers.delimited_layout import open_delimited
from captune.data.importers.json_table import Conversations, Entry, Turns, is_conversation, json_entries, json_layout
from captune.data.issues import Issue, plural
from captune.data.json_stream import parse_list
from captune.data.rows import CaptionRow, Row, group_by_image
from captune.data.tar_parquet import InlineImages, parquet_columns, parquet_rows
from captune.data.text_files import SourceFile
from captune.errors import DataError

__all__ = ["Columns", "Values", "caption_rows", "record_values", "require_columns", "table_rows"]

logger = logging.getLogger(__name__)

_JSON_ENDINGS = (".jsonl", ".jsonlines", ".ndjson", ".json")
_TRIED = 1000  # objects without the columns before a JSON file counts as one of another layout


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

    def options(self) -> list[str]:
        """The options of `captune prepare table` that name the columns of image, caption and split."""
        captions = [word for name in self.captions for word in ("--caption-column", name)]
        split = [] if self.split is None else ["--split-column", self.split]
        return ["--image-column", self.image, *captions, *split]


def table_rows(
    reading: SourceFile,
    columns: Columns,
    *,
    split: str = "train",
    inline_images: InlineImages | None = None,
    quoting: Quoting | None = None,
    turns: Turns = "first",
) -> Iterator[Row | Issue]:
    """The images of a table.

    Args:
        reading: the open file; its ending gives the format (`.tsv`, `.jsonl`, `.json`, `.parquet`, anything else is
            CSV; `.gz` on top). How it was understood is noted there.
        columns: which column holds what.
        split: what images are given where the table has no column for it.
        inline_images: where images that come inside the table are written to; None refuses them.
        quoting: whether quotation marks around cells are text; by default they are where tabs divide columns.
        turns: which answers of conversations are captions.

    Returns:
        an iterator over the images, and over what is wrong with a row.

    Raises:
        DataError: a column is not there; the message names those that are.
    """
    endings = [ending for ending in reading.path.suffixes if ending != ".gz"]
    ending = endings[-1].lower() if endings else ""
    if ending in _JSON_ENDINGS:
        layout = json_layout(reading, columns.image)
        passed = Counter[str]()
        entries = json_entries(reading, layout, columns.image, columns.captions, passed)
        first = next(entries, None)
        if first is None and "annotations" in passed:
            reading.reopen()
            return coco_rows(reading, split=split)
        entries = itertools.chain([] if first is None else [first], entries)
        records = _json_records(entries, reading, columns, passed, turns)
    elif ending in (".parquet", ".pq"):
        records = _parquet_records(reading, columns)
    else:
        records = _delimited_records(reading, columns, "\t" if ending in (".tsv", ".tab") else ",", quoting)
    return group_by_image(caption_rows(records, reading.name, columns, split, inline_images), reading.name)


@dataclass(frozen=True, slots=True)
class Values:
    """What a row holds.

    Attributes:
        image: the cell of the image.
        captions: a cell for each column of captions.
        split: None where there is no such column.
        id: None where there is no such column.
        location: what messages begin with where rows have no line.
    """

    image: Any
    captions: list[Any]
    split: Any
    id: Any
    location: str = ""


def caption_rows(
    records: Iterable[tuple[int, Values] | Issue],
    source: str,
    columns: Columns,
    split: str,
    inline_images: InlineImages | None,
) -> Iterator[CaptionRow | Issue]:
    """Captions of records of any format, checked for the types that they must have.

    Args:
        records: line and values, or what is wrong with a line.
        source: name of the file, for messages.
        columns: which column holds what.
        split: what images are given where there is no column for it.
        inline_images: where images that come inside are written to; None refuses them.

    Yields:
        a row a caption, or what is wrong.
    """
    for record in records:
        if isinstance(record, Issue):
            yield record
            continue
        line, values = record
        row_split = split if columns.split is None and values.split is None else values.split
        captions: list[str] = []
        try:
            if type(row_split) is not str:
                raise ValueError(f"'{columns.split}' must be a string")
            name = None if columns.id is None else id_text(values.id, columns.id)
            for column, value in zip(columns.captions, values.captions, strict=True):
                captions += _caption_list(value, column)
            if not captions:
                raise ValueError(f"there is no caption in '{columns.captions[0]}'")
            image = _image_name(values.image, columns.image, inline_images)
        except (TypeError, ValueError, DataError) as error:
            message = f"{values.location}{str(error).removesuffix('.')}."
            yield Issue(source, line, "malformed", message, max(1, len(captions)))
            continue
        for text in captions:
            yield CaptionRow(line, image, text, row_split, name)


def _image_name(cell: Any, column: str, inline_images: InlineImages | None) -> str:
    """The name of an image file; an image that comes inside is written first."""
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, str):
        return cell
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(data, bytes) and inline_images is not None:
        return inline_images.add(data, path if isinstance(path, str) else None)
    if data is None and isinstance(path, str):
        return path
    raise ValueError(f"'{column}' must be the name of a file, not {type(cell).__name__}")


def _delimited_records(
    reading: SourceFile, columns: Columns, delimiter: str, quoting: Quoting | None
) -> Iterator[tuple[int, Values] | Issue]:
    rows, quoting = open_delimited(reading, delimiter, columns.names(), quoting)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{reading.name} is empty; expected a line with the names of its columns first.")
    number, header = first
    if isinstance(header, DataError):
        raise DataError(f"{reading.name}:{number}: {header}")
    header = [name.strip() for name in header]
    require_columns(columns, header, f"{reading.name}:{number}")
    image, captions = header.index(columns.image), [header.index(name) for name in columns.captions]
    # A column that was not requested reads the None after the last cell.
    split = -1 if columns.split is None else header.index(columns.split)
    name = -1 if columns.id is None else header.index(columns.id)
    has_fractions = False
    for line, row in rows:
        if isinstance(row, DataError):
            hint = " --quoting none takes quotation marks as text." if "quotation mark" in str(row) else ""
            hint = " --encoding names another encoding." if "is not UTF-8" in str(row) else hint
            yield Issue(reading.name, line, "malformed", f"{row}{hint}")
            continue
        if len(row) != len(header):
            message = f"the row has {plural(len(row), 'column')}, and {len(header)} are expected."
            yield Issue(reading.name, line, "malformed", message)
            continue
        if quoting == "none" and any(looks_quoted(row[caption]) for caption in captions):
            message = "the caption is quoted as in CSV, and its marks are taken as text; --quoting csv takes them off."
            yield Issue(reading.name, line, "quoted", message)
        cells: list[str | None] = [*row, None]
        row_id = cells[name]
        if row_id is not None and (shortened := without_fraction(row_id)) != row_id:
            if not has_fractions:
                reading.notes.append(f"ids that pandas wrote as '{row_id}' are read as '{shortened}'")
            row_id, has_fractions = shortened, True
        yield line, Values(cells[image], [cells[caption] for caption in captions], cells[split], row_id)


def _parquet_records(reading: SourceFile, columns: Columns) -> Iterator[tuple[int, Values] | Issue]:
    try:
        require_columns(columns, parquet_columns(reading), reading.name)
    except DataError:
        reading.close()
        raise
    names = list(dict.fromkeys(columns.names()))
    for row in parquet_rows(reading, names):
        if isinstance(row, Issue):
            yield row
        else:
            yield row[0], record_values(dict(zip(names, row[1], strict=True)), columns)


def record_values(
    record: dict[str, Any], columns: Columns, location: str = "", list_split: str | None = None
) -> Values:
    """The values of a record that has every column.

    Args:
        record: name of a column to its value.
        columns: which column holds what.
        location: what messages begin with where rows have no line.
        list_split: where there is no column of splits.
    """
    split = list_split if columns.split is None else record[columns.split]
    name = None if columns.id is None else record[columns.id]
    return Values(record[columns.image], [record[caption] for caption in columns.captions], split, name, location)


def _json_records(
    entries: Iterable[Entry | Issue], reading: SourceFile, columns: Columns, passed: Counter[str], turns: Turns
) -> Iterator[tuple[int, Values] | Issue]:
    """The rows of JSON; keys that are absent from all of the first rows end the import, from some are bad rows."""
    conversations = Conversations(turns)
    good, bad, first = 0, 0, None
    for entry in entries:
        if isinstance(entry, Issue):
            yield entry
            continue
        record = entry.record
        first = entry if first is None else first
        try:
            if is_conversation(record) and not any(name in record for name in columns.captions):
                image, captions, further = conversations.parts(record, columns.image)
                others = {columns.split: record.get(columns.split or ""), columns.id: record.get(columns.id or "")}
                values = _with_captions(image, captions, others, columns, entry)
                if further:
                    message = f"{entry.location}{plural(further, 'further answer')} of the conversation left out."
                    yield Issue(reading.name, entry.line, "unused", message)
            else:
                absent = [name for name in columns.names() if name not in record]
                if absent:
                    raise ValueError(f"'{absent[0]}' is missing")
                values = record_values(record, columns, entry.location, entry.split)
        except ValueError as error:
            bad += 1
            if not good and bad == _TRIED:
                break
            yield Issue(reading.name, entry.line, "malformed", f"{entry.location}{error}.")
            continue
        if not good:
            _point_out_split(columns, list(record), reading.name)
        good += 1
        yield entry.line, values
    if first is not None and not good and not is_conversation(first.record):
        require_columns(columns, list(first.record), f"{reading.name}{f':{first.line}' if first.line else ''}")
    if first is None and passed:
        lists = ", ".join(f"'{key}'" for key in passed)
        raise DataError(f"'{reading.name}' has no list of objects with '{columns.image}'; its lists are {lists}.")
    for key, count in passed.items():
        reading.notes.append(f"the list '{key}' of {count:,} is not read, since it has no '{columns.image}'")
    reading.notes += conversations.notes()


def _with_captions(
    image: Any, captions: list[str], others: dict[str | None, Any], columns: Columns, entry: Entry
) -> Values:
    """A conversation as a row; its captions are those of the first column."""
    rest: list[list[str]] = [[] for _ in columns.captions[1:]]
    split = entry.split if columns.split is None else others[columns.split]
    return Values(image, [captions, *rest], split, None if columns.id is None else others[columns.id], entry.location)


def require_columns(columns: Columns, there: Sequence[str], location: str) -> None:
    """Refuse a table without the columns, naming those that it has.

    Raises:
        DataError: a column is not there, or twice.
    """
    for name in columns.names():
        if there.count(name) != 1:
            count = there.count(name)
            problem = f"there are {count} columns '{name}'" if count else f"there is no column '{name}'"
            hint = did_you_mean(name, there)
            listed = ", ".join(there[:20])
            raise DataError(
                f"{location}: {problem}; {f'{hint} ' if hint else ''}the columns are: {listed}. "
                "Name them with --image-column, --caption-column, --split-column and --id-column."
            )
    _point_out_split(columns, there, location)


def _point_out_split(columns: Columns, there: Sequence[str], location: str) -> None:
    if columns.split is None and "split" in there:
        hint = "--split-column split takes an image's split from it"
        logger.warning("%s: the column 'split' is not read; %s", location, hint)


def _caption_list(value: Any, column: str) -> list[str]:
    """One caption or several: a list, or its JSON in a cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_list(value)
        except ValueError:
            return [value]  # a caption may begin with a bracket
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(caption, str) for caption in value):
        return value
    raise ValueError(f"'{column}' must be a string or a list of strings")
