"""Rows of delimited text (CSV, TSV): reading that survives stray quotation marks, and writing for spreadsheets."""

from __future__ import annotations

import csv
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, Any, Literal, TypeAlias

from captune.errors import DataError

__all__ = ["CsvWriter", "Quoting", "delimited_rows", "looks_quoted", "plain_cell", "safe_cell"]

Quoting: TypeAlias = Literal["csv", "none"]
"""Whether quotation marks around a cell belong to the format ("csv") or to the text ("none")."""

_MOST_LINES = 500  # of one row; a quotation mark that is open for longer is never closed

_Line: TypeAlias = tuple[int, str | DataError]


def delimited_rows(
    lines: Iterable[str | DataError], *, delimiter: str = ",", quoting: Quoting = "csv"
) -> Iterator[tuple[int, list[str] | DataError]]:
    """The rows of delimited text with the line on which each begins; blank lines are passed over.

    A quoted cell may span lines. Where its quotation mark is never closed, or one of its lines is a row in itself, the
    row is an error, and reading resumes on the next line, so that no row becomes a part of another one's caption.

    Args:
        lines: from `captune.data.text_files.checked_lines`, from the first line on.
        delimiter: one character.
        quoting: what quotation marks mean; with "none" a row is always one line.

    Yields:
        line number, counted from 1, and the fields, or the error for a row that breaks the format.
    """
    source = _Lines(lines)
    while (line := source.take()) is not None:
        number, text = line
        if isinstance(text, DataError):
            yield number, text
        elif quoting == "none" or ('"' not in text and "\r" not in text):
            if text:
                yield number, text.split(delimiter)
        else:
            row, following = _quoted_row(text, source, delimiter)
            source.put_back(following)
            yield number, row


def looks_quoted(cell: str) -> bool:
    """Whether a cell is written as CSV quotes it: marks around it, and those in it doubled."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


class _Lines:
    """Lines with their numbers, which can be put back."""

    def __init__(self, lines: Iterable[str | DataError]) -> None:
        self._lines = enumerate(lines, 1)
        self._back: deque[_Line] = deque()

    def take(self) -> _Line | None:
        return self._back.popleft() if self._back else next(self._lines, None)

    def put_back(self, lines: list[_Line]) -> None:
        self._back.extendleft(reversed(lines))


def _quoted_row(text: str, source: _Lines, delimiter: str) -> tuple[list[str] | DataError, list[_Line]]:
    """A row that begins with `text`, and the lines after it that are to be read again."""
    taken: list[_Line] = []

    def feed() -> Iterator[str]:
        yield text + "\n"
        while len(taken) < _MOST_LINES and (line := source.take()) is not None:
            taken.append(line)
            if isinstance(line[1], DataError):
                return
            yield line[1] + "\n"

    try:
        row = next(csv.reader(feed(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        is_open = taken or "unexpected end" in str(error)
        hint = " (is a quotation mark never closed?)" if is_open else ""
        return DataError(f"the row breaks the format: {error}{hint}."), taken
    except StopIteration:  # a line of nothing but a carriage return
        return [], taken
    for number, line in taken:
        if isinstance(line, str) and _is_row(line.split(delimiter), row):
            message = f"the row continues to line {taken[-1][0]}, and line {number} is a row in itself"
            return DataError(f"{message} (is a quotation mark never closed?)."), taken
    return row, []


def _is_row(fields: list[str], row: list[str]) -> bool:
    """Whether the fields of one line are a row like this one: as many, and the same kinds of names in them."""
    if len(fields) != len(row) or len(row) < 2:
        return False
    kinds = [(_kind(mine), _kind(other)) for mine, other in zip(row, fields, strict=True)]
    names = [(mine, other) for mine, other in kinds if mine is not None]
    return any(mine == other for mine, other in names) if names else True


def _kind(cell: str) -> tuple[str, bool] | None:
    """What distinguishes a name from text: a file's ending, or that it is a number; None for text."""
    if not cell or any(c.isspace() for c in cell):
        return None
    stem, ending = posixpath.splitext(cell)
    return (ending.lower(), stem.isdecimal()) if len(ending) > 1 or cell.isdecimal() else None


_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def safe_cell(text: str) -> str:
    """A text as a cell: with an apostrophe in front where a spreadsheet would compute it; numbers stay as they are."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(cell: str) -> str:
    """The text of a cell that `safe_cell` made."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class CsvWriter:
    """Writes rows of CSV whose texts are safe to open in a spreadsheet.

    Args:
        stream: where to.
        lineterminator: between lines.
    """

    def __init__(self, stream: IO[str], lineterminator: str = "\n") -> None:
        self._writer = csv.writer(stream, lineterminator=lineterminator)

    def writerow(self, cells: Iterable[Any]) -> None:
        """Write one row; what is no text is written as it is."""
        self._writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in cells])
