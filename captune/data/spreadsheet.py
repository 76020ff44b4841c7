"""Cells of CSV files that a spreadsheet opens: text that it would take for a formula is written so that it does not."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Any, TextIO

__all__ = ["CsvWriter", "plain_cell", "safe_cell"]

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

    def __init__(self, stream: TextIO, lineterminator: str = "\n") -> None:
        self._writer = csv.writer(stream, lineterminator=lineterminator)

    def writerow(self, cells: Iterable[Any]) -> None:
        """Write one row; what is no text is written as it is."""
        self._writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in cells])
