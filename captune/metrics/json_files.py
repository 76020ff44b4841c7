"""Read text, JSON, JSON Lines, tables and lines from a file; each defect is one sentence with its position."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.data import BYTE_ORDER_MARKS, plain_cell
from captune.errors import MetricInputError
from captune.parsing import DuplicateKeyError, unique_keys_hook

__all__ = ["Document", "line_captions", "parse_json", "read_text", "table_rows"]

GZIP_MAGIC = b"\x1f\x8b"
_ALLOWED_BYTES, _MAX_RATIO = 256 << 20, 100
"""Decompressed size that is always allowed, in bytes, and the largest compression ratio of larger files."""


@dataclass(frozen=True)
class Document:
    """The parsed content of a file.

    Args:
        value: the value of a JSON file.
        lines: line number and value of each line of a JSON Lines file; empty for JSON.
    """

    value: Any = None
    lines: list[tuple[int, Any]] = field(default_factory=list)


def read_text(name: str) -> str:
    """The text of a file, decompressed where it is gzip, without a byte order mark.

    Args:
        name: path, or `-` for standard input.

    Raises:
        MetricInputError: it cannot be read, or is not UTF-8.
    """
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError:
        raise MetricInputError(f"There is no file '{name}'.") from None
    except IsADirectoryError:
        raise MetricInputError(f"'{name}' is a folder; expected a file with captions.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MetricInputError(f"'{name}' cannot be read ({reason}).") from None
    if raw.startswith(GZIP_MAGIC):
        try:
            raw = _decompress(raw, name)
        except (OSError, EOFError, zlib.error) as error:
            raise MetricInputError(f"{name} is an incomplete gzip file ({error}); copy it again.") from None
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    if marked is not None:
        try:
            return raw.decode(marked)
        except UnicodeDecodeError as error:
            raise MetricInputError(f"{name} is not valid {marked} text ({error.reason}); save it as UTF-8.") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise MetricInputError(
            f"{name}, line {line}: is not UTF-8 text (byte 0x{raw[error.start]:02X}); save the file as UTF-8."
        ) from None


def _decompress(raw: bytes, name: str) -> bytes:
    """Decompress gzip data, up to a size that captions never have."""
    limit = max(_ALLOWED_BYTES, _MAX_RATIO * len(raw))
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise MetricInputError(
            f"{name} has {len(raw):,} bytes and unpacks to more than {limit >> 20:,} MB, which no captions do; "
            "decompress it first if that is right."
        )
    return data


def parse_json(text: str, name: str) -> Document:
    """Parse a file that holds JSON or JSON Lines, whichever it is.

    Args:
        text: content of the file.
        name: of the file, in messages.

    Raises:
        MetricInputError: it is empty, cut off, or not JSON; an object repeats a key.
    """
    if not text.strip():
        raise MetricInputError(f"{name} is empty; expected captions as JSON or JSON Lines.")
    if Path(name).name.lower().removesuffix(".gz").endswith((".jsonl", ".jsonlines", ".ndjson")):
        return Document(lines=_lines(text, name))
    try:
        return Document(value=_loads(text))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return Document(lines=_lines(text, name))
        raise _json_error(error, text, name) from None
    except (RecursionError, ValueError) as error:
        raise _json_error(error, text, name) from None


def _lines(text: str, name: str) -> list[tuple[int, Any]]:
    """JSON Lines; blank lines are skipped, `\\r\\n` is a line end, U+2028 is not."""
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            lines.append((number, _loads(line)))
        except (RecursionError, ValueError) as error:
            raise _json_error(error, line, name, number) from None
    return lines


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=unique_keys_hook)


def _json_error(error: Exception, text: str, name: str, line: int | None = None) -> MetricInputError:
    """The error for text that is not JSON; `line` is its number if `text` is one line of a file."""
    if isinstance(error, DuplicateKeyError):
        key = error.key
        return MetricInputError(
            f"{name}, line {line or _line_of_second(key, text)}: an object has the key '{key}' twice; keep one."
        )
    if isinstance(error, RecursionError):
        return MetricInputError(f"{name} is nested too deeply to be captions.")
    if not isinstance(error, json.JSONDecodeError):  # a number of thousands of digits
        return MetricInputError(f"{name} holds something that is no caption ({error}).")
    location = f"line {line or error.lineno}, column {error.colno}"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return MetricInputError(f"{name} ends in the middle of an entry ({location}); it was cut off, write it again.")
    if error.msg.startswith("Invalid control character"):
        code = f"U+{ord(text[error.pos]):04X}"
        return MetricInputError(
            f"{name}, {location}: text contains a raw control character {code}; escape or remove it."
        )
    return MetricInputError(f"{name}, {location}: is not JSON ({error.msg}).")


def _line_of_second(key: str, text: str) -> int:
    pattern = re.compile(
        re.escape(json.dumps(key)) + r"\s*:|" + re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:"
    )
    places = [match.start() for match in pattern.finditer(text)]
    return text.count("\n", 0, places[1] if len(places) > 1 else 0) + 1


# Captions from text without JSON: tables with a header (CSV, TSV), and lines of text, one an image.

_DELIMITERS = (",", "\t", ";", "|")
_TABLES = (".csv", ".tsv", ".tab")
_JSON = (".json", ".jsonl", ".jsonlines", ".ndjson")
_LINES = (".txt", ".ref", ".hyp", ".out", ".en", ".zh")
_LONGEST_HEADER = 10_000
_WHOLE_FLOAT = re.compile(r"-?\d+\.0+")  # how pandas writes a whole number of a column in which a row has none


def table_rows(
    text: str, name: str, id_keys: Sequence[str], caption_keys: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]] | None:
    """The rows of a table.

    Args:
        text: content of the file.
        name: of the file, in messages.
        id_keys: names that the column of ids may have.
        caption_keys: names that the column of captions may have.

    Returns:
        The position of each row ("line 7") and its cells by column; None if the file is no table. Ids such as 391895.0
        lose their fraction.

    Raises:
        MetricInputError: it is named .csv or .tsv, and its header has no such columns.
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
        usual = next(key for key in caption_keys if key.startswith("caption"))
        raise MetricInputError(
            f'{name}, line 1: is not a header with a column of ids ("{id_keys[0]}") and one of captions '
            f'("{usual}"); found {header[:80]!r}.'
        )
    return None


def line_captions(text: str, name: str) -> list[str] | None:
    """The lines of a text file, each the caption of one image; None if the file is JSON or is named like it.

    Raises:
        MetricInputError: the lines have tabs, so they are not captions only.
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
        # `captune.data.CsvWriter` writes an apostrophe in front of what a spreadsheet would compute.
        cells = dict(zip(columns, map(plain_cell, row) if quotes else row, strict=True))
        if _WHOLE_FLOAT.fullmatch(cells[id_column]):
            cells[id_column] = cells[id_column].partition(".")[0]
        yield f"line {line}", cells


def _is_json(text: str, name: str) -> bool:
    return _ending(name) in _JSON or text.lstrip()[:1] in ("{", "[")


def _ending(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix
