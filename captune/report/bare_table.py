"""Tables of scores as CSV: written beside the report, and read back or taken from elsewhere."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from captune.data.delimited import CsvWriter, plain_cell
from captune.errors import InputError
from captune.parsing import first_repeated
from captune.report.record import MAX_SCORE, CheckpointScores, RunScores

__all__ = ["csv_table", "read_csv"]

NAME_COLUMN = "checkpoint"
LEAK_COLUMN = "leak"


def csv_table(run: RunScores) -> str:
    """The table as CSV in full precision: `checkpoint,BLEU-1,...`, safe to open in a spreadsheet.

    A last column `leak` stands there only when a row is marked. An absent score is an empty cell and one that
    is not a number reads `nan`.
    """
    leaked = any(row.leak for row in run.checkpoints)
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow([NAME_COLUMN, *run.metrics, *([LEAK_COLUMN] if leaked else [])])
    for row in run.checkpoints:
        scores = [repr(float(row.corpus[name])) if name in row.corpus else "" for name in run.metrics]
        writer.writerow([row.name, *scores, *([row.leak or ""] if leaked else [])])
    return text.getvalue()


def read_csv(path: Path) -> RunScores:
    """Read a table of corpus scores: a header `checkpoint,BLEU-1,...`, then one row a checkpoint.

    Comma, semicolon and tab are understood as separators. Epochs are read off names such as "epoch3".

    Args:
        path: the file.

    Returns:
        A run without captions, intervals or scores per image; its data is called as the file is.

    Raises:
        InputError: the file cannot be read, or a line of it is not as described.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a run directory or a CSV table of scores.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save the table as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    rows = _rows(text, path)
    if not rows:
        raise InputError(f"{path} is empty; expected a header '{NAME_COLUMN},BLEU-1,...' and one row a checkpoint.")
    (_, header), *body = rows
    header = [plain_cell(cell.strip()) for cell in header]
    metrics = [name for name in header[1:] if name != LEAK_COLUMN]
    if header[0].lower() != NAME_COLUMN or not all(metrics) or not metrics:
        raise InputError(f"{path}: the header is {','.join(header)[:80]!r}, expected '{NAME_COLUMN},BLEU-1,...'.")
    if len(set(header)) != len(header):
        raise InputError(f"{path}: a column stands twice in the header; names must be unique.")
    checkpoints = [_checkpoint(cells, header, f"{path}, line {line}") for line, cells in body]
    if not checkpoints:
        raise InputError(f"{path} has a header but no row; expected one row a checkpoint.")
    if (repeated := first_repeated(row.name for row in checkpoints)) is not None:
        raise InputError(f"{path} holds two rows called {repeated!r}; names must be unique.")
    return RunScores(data=path.stem, checkpoints=tuple(checkpoints))


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """All rows that are not blank, with the line each one ends on."""
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected CSV.") from None


def _checkpoint(cells: list[str], header: list[str], place: str) -> CheckpointScores:
    """One row of the table; `place` names it in messages."""
    if len(cells) != len(header):
        raise InputError(f"{place} has {len(cells)} cells, but the header has {len(header)}.")
    name = plain_cell(cells[0].strip())
    if not name:
        raise InputError(f"{place} has no name in its first cell.")
    corpus = {}
    leak = None
    for metric, cell in zip(header[1:], cells[1:], strict=True):
        if metric == LEAK_COLUMN:
            leak = plain_cell(cell.strip()) or None
        elif cell.strip():
            corpus[metric] = _score(cell.strip(), f"{place}: {metric}")
    if not corpus:
        raise InputError(f"{place} holds no score; expected at least one number.")
    epoch = re.fullmatch(r"epoch[ _-]?(\d{1,9})", name, re.IGNORECASE | re.ASCII)
    return CheckpointScores(name=name, corpus=corpus, epoch=int(epoch[1]) if epoch else None, leak=leak)


def _score(cell: str, place: str) -> float:
    """The number in a cell."""
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if abs(value) > MAX_SCORE:
        raise InputError(f"{place} is {cell[:40]!r}, expected a number such as 0.3175.")
    return value
