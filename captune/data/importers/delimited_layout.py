"""The layout of delimited text: its encoding, the delimiter, and whether quotation marks are text.

UTF-8, text with a byte order mark, and Windows-1252 in a language that is written in it are recognized by
`captune.data.text_files` while they are read. Other encodings are guessed by charset-normalizer, among those in which
people write captions, or are Windows-1252 in an unknown language; a guess is shown to the user before it is used.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from captune.data.delimited import Quoting, delimited_rows, looks_quoted
from captune.data.text_files import SourceFile, checked_lines, raw_lines
from captune.data.windows_text import is_western, western_language
from captune.errors import DataError

__all__ = ["ENCODINGS", "delimited_sample", "guess_encoding", "open_delimited"]

ENCODINGS = {
    "gb18030": "Chinese",
    "big5": "Chinese",
    "cp932": "Japanese",
    "euc_jp": "Japanese",
    "cp949": "Korean",
    "cp1251": "Cyrillic",
    "koi8_r": "Cyrillic",
    "cp1250": "Central European",
    "cp1253": "Greek",
    "cp1252": "Western European; cp1254 is Turkish, cp1250 Hungarian or Romanian, cp1257 Baltic, cp1258 Vietnamese",
    "utf-16-le": "UTF-16 without a byte order mark",
    "utf-16-be": "UTF-16 without a byte order mark",
}
"""Encodings that are guessed, by Python's name, and what is written in them.

cp932 and cp949 are what Windows writes for Shift JIS and EUC-KR; both contain the standard."""

_LISTED = "gb18030 for Chinese, shift_jis for Japanese, euc-kr for Korean, cp1251 for Cyrillic, cp1250 for Polish"
_START = 1 << 16  # bytes that are searched for NUL, and bytes of lines beyond ASCII that decide the encoding
_CHANCE = 6  # bytes beyond ASCII that can be UTF-8 by chance in a line of another encoding
_SHARE_PRINTABLE = 0.99  # of the characters of UTF-16 text
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?')  # Excel's first line of a CSV that specifies what divides columns
_SAMPLE_LINES = 50  # that decide what divides unknown columns
_SAME_WIDTH = 0.9  # share of rows with as many cells as the header, for a character that divides columns


def guess_encoding(path: Path) -> str | None:
    """Guess the encoding of text that is neither UTF-8 nor Windows-1252 in a known language.

    Args:
        path: a file; `.gz` is unpacked.

    Returns:
        a key of `ENCODINGS`, in which the complete file can be decoded. None where nothing has to be guessed, or no
        encoding fits, as where parts of the file have different encodings.

    Raises:
        DataError: the file cannot be read.
    """
    reading = SourceFile(path)
    with closing(reading):
        if reading.encoding != "utf-8":  # by its byte order mark
            return None
        start = reading.stream.read(_START)
    if b"\0" in start:
        return _guess_utf16(start)
    sample: list[bytes] = []
    size = utf8_lines = other_lines = 0
    for line in raw_lines(SourceFile(path)):
        if isinstance(line, DataError) or line.isascii():
            continue
        if _is_utf8(line):
            if sum(byte > 127 for byte in line) > _CHANCE:
                return None
            utf8_lines += 1
        else:
            other_lines += 1
        if size < _START:
            sample.append(line)
            size += len(line)
    if utf8_lines >= other_lines:
        return None
    if western_language(raw_lines(SourceFile(path))) is not None:
        return None
    if is_western(raw_lines(SourceFile(path))):
        return "cp1252"
    from charset_normalizer import from_bytes

    candidates = [name for name in ENCODINGS if not name.startswith("utf") and name != "cp1252"]
    match = from_bytes(b"\n".join(sample), cp_isolation=candidates).best()
    if match is None or match.encoding not in ENCODINGS or not _is_decodable(path, match.encoding):
        return None
    return str(match.encoding)


def _guess_utf16(start: bytes) -> str | None:
    """UTF-16 without a mark: the byte order that gives lines of printable characters, most of them ASCII."""
    best, most = None, 0
    for name in ("utf-16-le", "utf-16-be"):
        try:
            text = start[: len(start) // 2 * 2].decode(name)
        except UnicodeDecodeError as error:
            if error.start < len(start) - 4:  # otherwise half of a pair at the end
                continue
            text = start[: error.start].decode(name)
        printable = sum(character.isprintable() or character in "\r\n\t" for character in text)
        ascii_count = sum(character.isascii() for character in text)
        if "\0" not in text and "\n" in text and printable >= _SHARE_PRINTABLE * len(text) and ascii_count > most:
            best, most = name, ascii_count
    return best


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_decodable(path: Path, encoding: str) -> bool:
    """Whether all lines of a file are text of an encoding."""
    for line in raw_lines(SourceFile(path)):
        if isinstance(line, DataError):
            continue
        try:
            line.decode(encoding)
        except UnicodeDecodeError:
            return False
    return True


def delimited_sample(
    reading: SourceFile, delimiter: str, count: int, *, beyond_ascii: bool = False
) -> tuple[list[str], list[list[str]], list[str]]:
    """The header and the first rows of delimited text whose columns are unknown.

    Args:
        reading: the open file; closed at the end.
        delimiter: the usual one, which wins where another fits as well.
        count: of rows.
        beyond_ascii: read on to the first row with characters beyond ASCII, if none of these rows has any.

    Returns:
        the names of the columns, the rows that have as many cells, and notes on how the text was understood.

    Raises:
        DataError: the file is empty, its header breaks the format, or all rows do.
    """
    rows, _ = open_delimited(reading, delimiter, None, None)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{reading.name} is empty; expected a line with the names of its columns first.")
    header = first[1]
    cells: list[list[str]] = []
    faults = [f"{reading.name}:{first[0]}: {header}"] if isinstance(header, DataError) else []
    for number, (line, row) in enumerate(rows):
        is_further = number >= count
        if is_further and not beyond_ascii:
            break
        if isinstance(row, DataError):
            if not is_further:
                faults.append(f"{reading.name}:{line}: {row}")
        elif not isinstance(header, DataError) and len(row) == len(header):
            is_ascii = all(cell.isascii() for cell in row)
            if not is_further or not is_ascii:
                cells.append(row)
            beyond_ascii = beyond_ascii and is_ascii
    reading.close()
    if isinstance(header, DataError) or (faults and not cells):
        hint = f" --encoding sets another one: {_LISTED}." if "is not UTF-8" in faults[0] else ""
        raise DataError(f"{faults[0]}{hint}")
    return [name.strip() for name in header], cells, list(reading.notes)


def open_delimited(
    reading: SourceFile, delimiter: str, columns: Sequence[str] | None, quoting: Quoting | None
) -> tuple[Iterator[tuple[int, list[str] | DataError]], Quoting]:
    """The rows of delimited text, the header first, and what quotation marks mean in it.

    Args:
        reading: the open file.
        delimiter: the usual one.
        columns: the columns that the header must have; None where they are unknown.
        quoting: as the user set it; None to detect it.
    """
    lines = checked_lines(reading, windows=True)
    start: list[str | DataError] = []  # up to the header, or a sample
    header_line = ""
    for text in lines:
        if isinstance(text, str) and (excel := _EXCEL_DELIMITER.fullmatch(text)) and not any(start):
            delimiter, text = excel[1], ""
        start.append(text)
        if text and not header_line:
            header_line = "" if isinstance(text, DataError) else text
            if columns is not None or not header_line:
                break
        if header_line and len(start) >= _SAMPLE_LINES:
            break
    if columns is not None:
        delimiter = _delimiter(header_line, delimiter, columns, reading)
    else:
        delimiter = _delimiter_of_sample(start, delimiter, reading)
    if quoting is None:
        quoting = "none" if _marks_are_text(header_line, delimiter, reading) else "csv"
    return delimited_rows(itertools.chain(start, lines), delimiter=delimiter, quoting=quoting), quoting


def _delimiter_of_sample(lines: Sequence[str | DataError], usual: str, reading: SourceFile) -> str:
    """What divides the columns: the character that gives the most columns in (nearly) every row."""
    widths: dict[str, int] = {}
    for delimiter in dict.fromkeys([usual, *_DELIMITERS]):
        rows = [row for _, row in delimited_rows(lines, delimiter=delimiter) if isinstance(row, list) and row]
        same = sum(len(row) == len(rows[0]) for row in rows)
        widths[delimiter] = len(rows[0]) if rows and same >= _SAME_WIDTH * len(rows) else 0
    # The first of several with as many columns is the usual one.
    best = max(widths, key=lambda delimiter: widths[delimiter])
    if widths[best] < 2 or best == usual:
        return usual
    reading.notes.append(f"columns are divided by {_DELIMITERS[best]}, as the first rows show")
    return best


def _delimiter(header: str, usual: str, columns: Sequence[str], reading: SourceFile) -> str:
    """What divides the columns: the usual character, or the one that makes the needed columns of the header."""

    def names(delimiter: str) -> list[str]:
        try:
            return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error:  # reported when the row is read
            return []

    needed = set(columns)
    if needed <= set(names(usual)):
        return usual
    fitting = [delimiter for delimiter in _DELIMITERS if needed <= set(names(delimiter))]
    most = max(_DELIMITERS, key=lambda delimiter: len(names(delimiter)))
    if not fitting and (len(names(usual)) > 1 or len(names(most)) == 1):
        return usual
    delimiter = (fitting or [most])[0]
    reading.notes.append(f"columns are divided by {_DELIMITERS[delimiter]}, as the header shows")
    return delimiter


def _marks_are_text(header: str, delimiter: str, reading: SourceFile) -> bool:
    """Whether quotation marks are text: where tabs divide columns, unless a program wrote it that quotes as CSV does.

    Excel's "Unicode text" is UTF-16 with tabs and quotes so; other programs quote the header as well.
    """
    if delimiter != "\t":
        return False
    why = "as Excel writes it" if reading.encoding.upper().startswith("UTF-16") else None
    if header and all(looks_quoted(name) for name in header.split(delimiter)):
        why = "as the header shows"
    if why is not None:
        reading.notes.append(f"quotation marks around cells are no text, {why}; --quoting none keeps them")
    return why is None
