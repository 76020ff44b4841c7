"""Text files of any size, line by line in bounded memory, with a sentence for what is not UTF-8 text.

Files that end in `.gz` are unpacked on the way. A UTF-8 byte order mark and Windows line ends are accepted.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from captune.errors import DataError

__all__ = ["MAX_LINE", "Reading", "csv_rows", "decode_line", "parse_json", "raw_lines", "text_lines", "without_mark"]

MAX_LINE = 16 * 1024 * 1024
"""Longest line in bytes; a longer one is no caption but a broken file."""

_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class Reading:
    """An open annotation file and how far it is read; what a progress bar asks.

    Args:
        path: the file.

    Raises:
        DataError: it is not there, no regular file, or not readable.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = str(path)
        if not self.path.exists():
            raise DataError(f"there is no file '{path}'.")
        if not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "no regular file"
            raise DataError(f"'{path}' is {what}, and a file is expected.")
        self.size = self.path.stat().st_size
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115  (closed by `close`, which every reader calls)
        except OSError as error:
            raise DataError(f"cannot read '{path}': {(error.strerror or str(error)).lower()}.") from error
        self.stream: io.BufferedReader | gzip.GzipFile = self.file
        if self.path.suffix == ".gz":
            self.stream = gzip.GzipFile(fileobj=self.file)

    @property
    def share(self) -> float:
        """How much of the file is read, from 0 to 1, counted in bytes on the disk."""
        return self.file.tell() / self.size if self.size and not self.file.closed else 1.0

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
        self.file.close()


def raw_lines(reading: Reading) -> Iterator[bytes]:
    """The lines of a file as bytes, without a byte order mark and line ends.

    Args:
        reading: the open file; closed at the end.

    Yields:
        each line. Never more than `MAX_LINE` bytes are held.

    Raises:
        DataError: the file is UTF-16 or UTF-32, a line is too long, or the gzip data are broken.
    """
    number = 0
    try:
        while line := reading.stream.readline(MAX_LINE + 1):
            number += 1
            if number == 1:
                line = without_mark(line, reading.name)
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{reading.name}:{number}: the line is longer than {MAX_LINE // 2**20} MB; "
                    "is this a file of captions, and does every line end?"
                )
            yield line.rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{reading.name}' cannot be unpacked after line {number}: {error}.") from error
    finally:
        reading.close()


def text_lines(reading: Reading) -> Iterator[str]:
    """The lines of a UTF-8 file; see `raw_lines`.

    Raises:
        DataError: a line is not UTF-8 or holds a NUL; names file, line and column.
    """
    for number, line in enumerate(raw_lines(reading), 1):
        text = decode_line(line)
        if isinstance(text, DataError):
            raise DataError(
                f"{reading.name}:{number}: {text} Is the file in another encoding? Write it again as UTF-8, "
                f"for example with: iconv -f LATIN1 -t UTF-8 {reading.path.name}"
            )
        yield text


def decode_line(line: bytes) -> str | DataError:
    """A line as text, or the error that says why it is none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = line[error.start]
        return DataError(f"the line is not UTF-8 (byte 0x{wrong:02x} at column {error.start + 1}).")
    if "\0" in text:
        return DataError(f"the line holds a NUL character (column {text.index(chr(0)) + 1}).")
    return text


def csv_rows(lines: Iterable[str], *, delimiter: str = ",") -> Iterator[tuple[int, list[str] | DataError]]:
    """The rows of delimited text with the line on which each begins; blank lines are passed over.

    Args:
        lines: from `text_lines`, from the first line on.
        delimiter: one character.

    Yields:
        line number, counted from 1, and the fields, or the error for a row that breaks the format.
    """
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            many = rows.line_num > first
            where = f" (read up to line {rows.line_num}; is a quotation mark never closed?)" if many else ""
            yield first, DataError(f"the row breaks the format: {error}{where}.")
            continue
        if row:
            yield first, row


def parse_json(text: str) -> Any:
    """Parse JSON strictly: a key given twice, NaN, and nesting without end are errors too.

    Raises:
        ValueError: with a message fit for a sentence.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: it is nested too deeply") from error


def without_mark(data: bytes, name: str) -> bytes:
    """Drop a UTF-8 byte order mark; refuse the marks of other encodings."""
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise DataError(
                f"'{name}' is encoded in {encoding}, and UTF-8 is expected; "
                f"write it again, for example with: iconv -f {encoding} -t UTF-8 {Path(name).name}"
            )
    return data.removeprefix(_UTF8_MARK)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' is given twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"not valid JSON: {name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
