"""Captions from text without JSON: tables with a header (CSV, TSV), and lines of text, one an image."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from captune.errors import MetricInputError

__all__ = ["line_captions", "table_rows"]

_DELIMITERS = (",", "\t", ";", "|")
_TABLES = (".csv", ".tsv", ".tab")
_JSON = (".json", ".jsonl", ".ndjson")
_LINES = (".txt", ".ref", ".hyp", ".out", ".en", ".zh")
_LONGEST_HEADER = 10_000
_WHOLE = re.compile(r"-?\d+\.0+")  # how pandas writes a whole number of a column in which a row has none


def table_rows(
    text: str, name: str, id_keys: Sequence[str], caption_keys: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]] | None:
    """The rows of a table.

    Args:
        text: the whole file.
        name: what to call the file in messages.
        id_keys: names that the column of ids may have.
        caption_keys: names that the column of captions may have.

    Returns:
        The place of each row ("line 7") and its cells by column; None where the file is no table. Ids such as 391895.0
        are without their fraction.

    Raises:
        MetricInputError: it is called .csv or .tsv, and its header has no such columns.
    """
    if _is_json(text, name):
        return None
    header = text.lstrip("\r\n").partition("\n")[0][:_LONGEST_HEADER]
    for delimiter in _DELIMITERS:
        try:
            columns = [column.strip() for column in next(csv.reader([header.rstrip("\r")], delimiter=delimiter), [])]
        except csv.Error:  # no header
            continue
        if any(key in columns for key in id_keys) and any(key in columns for key in caption_keys):
            return _rows(text, name, delimiter, columns, next(key for key in id_keys if key in columns))
    if _ending(name) in _TABLES:
        raise MetricInputError(
            f'{name}, line 1: is not a header with a column of ids ("{id_keys[0]}") and one of captions '
            f'("{caption_keys[0]}"); found {header[:80]!r}.'
        )
    return None


def line_captions(text: str, name: str) -> list[str] | None:
    """The lines of a text file, each the caption of one image; None where the file is JSON, or means to be.

    Raises:
        MetricInputError: the lines have tabs, so that they are no captions alone.
    """
    if _is_json(text, name) or _ending(name) not in _LINES:
        return None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if "\t" in lines[0]:
        raise MetricInputError(
            f'{name}, line 1: has a tab; expected one caption a line, or a table with a header ("image_id", "caption").'
        )
    return lines


def _rows(
    text: str, name: str, delimiter: str, columns: list[str], id_column: str
) -> Iterator[tuple[str, dict[str, str]]]:
    quotes = delimiter != "\t"  # between tabs a quotation mark is text
    lines = (line + "\n" for line in text.replace("\r\n", "\n").split("\n"))
    reader = csv.reader(
        lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    )
    is_header = True
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise MetricInputError(
                f"{name}, line {line}: breaks the format ({error}); is a quotation mark never closed?"
            ) from None
        if not row or is_header:
            is_header = is_header and not row
            continue
        if len(row) != len(columns):
            raise MetricInputError(f"{name}, line {line}: has {len(row)} columns where {len(columns)} are expected.")
        cells = dict(zip(columns, row, strict=True))
        if _WHOLE.fullmatch(cells[id_column]):
            cells[id_column] = cells[id_column].partition(".")[0]
        yield f"line {line}", cells


def _is_json(text: str, name: str) -> bool:
    return _ending(name) in _JSON or text.lstrip()[:1] in ("{", "[")


def _ending(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix
