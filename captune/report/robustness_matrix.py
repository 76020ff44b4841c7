"""`matrix.json`: scores of every row (checkpoint and prompt) on every column (data set, domain or corruption).

    {"format": 1, "metrics": ["BLEU-1", ..., "CIDEr"],
     "rows":    [{"name": "epoch4", "checkpoint": "epoch4", "instruction": "Describe ..."}],
     "columns": [{"name": "flickr30k", "kind": "home", "images": 1000, "shift": {"unseen": 0.0, "divergence": 0.0}},
                 {"name": "nocaps/out-domain", "kind": "domain", ...}, {"name": "blur 3", "kind": "corruption", ...}],
     "cells":   [{"row": "epoch4", "column": "nocaps/out-domain", "scores": {...}, "intervals": {...},
                  "drops": {"CIDEr": {"value": 0.31, "low": 0.27, "high": 0.35, "paired": false}},
                  "gains": {...}, "words": 812, "divergence": 0.21, "unfinished": 3, "signature": "...", "leak": null}]}

A drop is the lost share of the in-domain score, which is that of the checkpoint's first prompt on the first column
(kind "home"); a gain is the difference to the first row in the same column. `shift` compares a column's references with
the in-domain ones; `divergence` of a cell compares its captions with its references.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Strict

from captune.common import escape_pipes, markdown_table, one_line, text_table
from captune.data import CsvWriter
from captune.errors import InputError
from captune.parsing import nan_to_null
from captune.report.columns import format_value, heading, order_metrics, scale_sentence
from captune.report.files import StrictRecord, parse_versioned_json, read_text
from captune.report.scores_json import Integer, RunScores, Score, Text

__all__ = [
    "MATRIX_FILE",
    "MATRIX_FILES",
    "Cell",
    "Column",
    "Difference",
    "Matrix",
    "Row",
    "matrix_csv",
    "matrix_from_json",
    "matrix_markdown",
    "matrix_of",
    "matrix_section",
    "matrix_terminal",
    "matrix_to_json",
    "read_matrix",
    "strength_curves",
]

logger = logging.getLogger(__name__)

MATRIX_FILE = "matrix.json"
MATRIX_FILES = (MATRIX_FILE, "matrix.csv", "matrix.md", "matrix.png")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Difference(StrictRecord):
    """A difference of two scores with its interval of 95 %.

    Attributes:
        value: the difference; what it is relative to depends on the field.
        low: lower end.
        high: upper end.
        paired: whether both scores are of the same images, resampled alike.
    """

    value: Score
    low: Score
    high: Score
    paired: Annotated[bool, Strict()]


@dataclass(frozen=True, slots=True)
class Row(StrictRecord):
    """A checkpoint with a prompt.

    Attributes:
        name: unique in the matrix.
        checkpoint: "pretrained", "epoch0", ...
        instruction: the prompt.
    """

    name: Text
    checkpoint: Text
    instruction: Text


@dataclass(frozen=True, slots=True)
class Column(StrictRecord):
    """A set of images that is evaluated.

    Attributes:
        name: unique in the matrix.
        kind: "home" (in-domain), "data", "domain" (a part of a data set) or "corruption" (corrupted in-domain images).
        images: number of images.
        shift: `unseen`, the share of its references' words that do not occur in the in-domain ones, and `divergence`,
            the Jensen-Shannon divergence of both in bits.
    """

    name: Text
    kind: Text
    images: Integer
    shift: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell(StrictRecord):
    """One row on one column.

    Attributes:
        row: its name.
        column: its name.
        scores: metric -> corpus score.
        intervals: metric -> (low, high) of the score.
        drops: metric -> share of the in-domain score that is lost here; empty in domain.
        gains: metric -> score minus the first row's here; empty in the first row.
        words: number of different words in the captions.
        divergence: between the words of captions and of references, in bits.
        unfinished: captions that ended at the length limit.
        signature: how the scores were computed.
        leak: why the cell is marked LEAK, or None.
    """

    row: Text
    column: Text
    scores: Mapping[str, Score]
    intervals: Mapping[str, tuple[Score, Score]]
    drops: Mapping[str, Difference]
    gains: Mapping[str, Difference]
    words: Integer
    divergence: Score
    unfinished: Integer
    signature: Text
    leak: Text | None = None


@dataclass(frozen=True, slots=True)
class Matrix(StrictRecord):
    """All cells, each row on each column; the first column is in-domain."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, those of the slides first."""
        return order_metrics(name for cell in self.cells for name in cell.scores)

    @property
    def main_metric(self) -> str:
        """CIDEr where it was computed, else the last metric of which higher is better, since drops are shown."""
        metrics = [name for name in self.metrics if heading(name) == name] or self.metrics
        return "CIDEr" if "CIDEr" in metrics else metrics[-1]

    def cell(self, row: str, column: str) -> Cell:
        """The cell of a row and a column, by their names."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

    def leaks(self) -> list[str]:
        """The reasons of the marks LEAK, each once, in the order of the cells."""
        return list(dict.fromkeys(cell.leak for cell in self.cells if cell.leak is not None))


def matrix_to_json(matrix: Matrix) -> str:
    """The matrix as the text of a `matrix.json`: strict JSON, the same text for the same matrix."""
    tree = {"format": FORMAT, "metrics": list(matrix.metrics), **asdict(matrix)}
    return json.dumps(nan_to_null(tree), ensure_ascii=False, allow_nan=False) + "\n"


def matrix_from_json(text: str, source: str = MATRIX_FILE) -> Matrix:
    """Parse the text of a `matrix.json`.

    Raises:
        InputError: the text is not JSON or not such a file.
    """
    matrix = parse_versioned_json(
        text, Matrix, source, version=FORMAT, remedy="evaluate again to write it", derived=("metrics",)
    )
    cells = {(cell.row, cell.column) for cell in matrix.cells}
    if not cells or cells != {(row.name, column.name) for row in matrix.rows for column in matrix.columns}:
        raise InputError(f"{source} does not have a cell for each row and column; evaluate again to write it.")
    return matrix


def read_matrix(run_dir: Path) -> Matrix | None:
    """The matrix of a run; None when it has none.

    Raises:
        InputError: the file exists and is not what `captune evaluate` writes.
    """
    file = run_dir / MATRIX_FILE
    if not file.is_file():
        return None
    remedy = "evaluate again to write it"
    return matrix_from_json(read_text(file, missing=remedy, undecodable=remedy), str(file))


def matrix_of(run_dir: Path, scores: RunScores) -> Matrix | None:
    """The matrix of a run if its in-domain scores are those of the run; None otherwise.

    Raises:
        InputError: as `read_matrix`.
    """
    matrix = read_matrix(run_dir)
    if matrix is None:
        return None
    now = {row.name: row.corpus for row in scores.checkpoints}
    # The first row of a checkpoint has the prompt of the run.
    first_rows = {row.checkpoint: row.name for row in reversed(matrix.rows)}
    in_domain = matrix.columns[0].name
    for checkpoint, row in first_rows.items():
        if checkpoint in now and not _equal_scores(matrix.cell(row, in_domain).scores, now[checkpoint]):
            logger.warning(
                "%s was computed from other captions than scores.json, and is ignored.", run_dir / MATRIX_FILE
            )
            return None
    return matrix


def _equal_scores(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether scores are equal; NaN equals NaN."""
    return nan_to_null(dict(one)) == nan_to_null(dict(other))  # type: ignore[no-any-return]


_HEADER = (
    "row", "checkpoint", "instruction", "column", "kind", "images", "metric", "score", "low", "high", "drop",
    "drop_low", "drop_high", "paired", "gain", "gain_low", "gain_high", "words", "divergence", "unseen",
    "column_divergence", "unfinished", "leak", "signature",
)  # fmt: skip


def matrix_csv(matrix: Matrix) -> str:
    """Every number of the matrix, a line for each row, column and metric, safe to open in a spreadsheet."""
    columns = {column.name: column for column in matrix.columns}
    rows = {row.name: row for row in matrix.rows}
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(_HEADER)
    for cell in matrix.cells:
        row, column = rows[cell.row], columns[cell.column]
        for metric, score in cell.scores.items():
            interval = cell.intervals.get(metric, (math.nan, math.nan))
            drop, gain = cell.drops.get(metric), cell.gains.get(metric)
            writer.writerow(
                [
                    *(row.name, row.checkpoint, row.instruction, column.name, column.kind, column.images, metric),
                    *map(_number, (score, *interval)),
                    *_ends(drop),
                    "" if drop is None else str(drop.paired).lower(),
                    *_ends(gain),
                    *(cell.words, _number(cell.divergence)),
                    *(_number(column.shift.get(name, math.nan)) for name in ("unseen", "divergence")),
                    *(cell.unfinished, cell.leak or "", cell.signature),
                ]
            )
    return text.getvalue()


def matrix_markdown(matrix: Matrix) -> str:
    """Scores of the main metric with drops, corruptions by kind, words and signatures."""
    metric = matrix.main_metric
    lines = [f"# Robustness: {metric}", ""]
    shown, titles = _table(matrix)
    lines += _markdown(titles, shown)
    curves = strength_curves(matrix)
    if curves:
        lines += ["", f"## Corrupted images: mean of {metric} over the rows, as a share of the in-domain score", ""]
        strengths = sorted({strength for values in curves.values() for strength in values})
        lines += _markdown(
            ["", *(f"strength {strength}" for strength in strengths)],
            [
                [kind, *(_percent(values.get(s, math.nan), signed=False) for s in strengths)]
                for kind, values in curves.items()
            ],
        )
    lines += ["", *(f"- {note}" for note in _notes(matrix)), ""]
    lines += [f"- {name}: `{signature}`" for name, signature in _signatures(matrix).items()]
    return "\n".join(lines) + "\n"


def matrix_terminal(matrix: Matrix) -> str:
    """The table of the main metric in plain text."""
    shown, titles = _table(matrix)
    return "\n".join([text_table(titles, shown, numbers=False), *_notes(matrix)])


def matrix_section(matrix: Matrix) -> dict[str, Any]:
    """What the page shows of the matrix: its table, notes, signatures, and a description of its picture."""
    shown, titles = _table(matrix)
    rows, columns = len(matrix.rows), len(matrix.columns)
    return {
        "titles": titles,
        "rows": shown,
        "leaks": matrix.leaks(),
        "notes": [note for note in _notes(matrix) if not note.startswith("LEAK")],
        "signatures": _signatures(matrix),
        "description": f"{matrix.main_metric} of {rows} rows on {columns} columns, as in the table",
    }


def strength_curves(matrix: Matrix) -> dict[str, dict[int, float]]:
    """How much of the main metric is left under each kind of corruption.

    Returns:
        kind -> strength -> mean over the rows of the score as a share of the row's in-domain score.
    """
    metric = matrix.main_metric
    curves: dict[str, dict[int, float]] = {}
    for column in matrix.columns:
        if column.kind != "corruption":
            continue
        kind, strength = column.name.rsplit(" ", 1)
        left = [1 - c.drops[metric].value for c in matrix.cells if c.column == column.name and metric in c.drops]
        if left:
            curves.setdefault(kind, {})[int(strength)] = sum(left) / len(left)
    return curves


def _table(matrix: Matrix) -> tuple[list[list[str]], list[str]]:
    """Score and drop of the main metric in every cell; the longer of rows and columns is vertical.

    Returns:
        lines of cells, the first of each its name; and the titles above.
    """
    metric = matrix.main_metric
    if len(matrix.rows) > len(matrix.columns):
        lines = [
            [one_line(row.name), *(_cell(matrix.cell(row.name, column.name), metric) for column in matrix.columns)]
            for row in matrix.rows
        ]
        return lines, [metric, *(one_line(_title(column)) for column in matrix.columns)]
    lines = []
    for column in matrix.columns:
        cells = (matrix.cell(row.name, column.name) for row in matrix.rows)
        shift = column.shift
        words = [_percent(shift["unseen"], signed=False), f"{shift['divergence']:.3f}"] if shift else ["", ""]
        lines.append([one_line(_title(column)), *(_cell(cell, metric) for cell in cells), *words])
    return lines, [metric, *(one_line(row.name) for row in matrix.rows), "unseen words", "divergence"]


def _title(column: Column) -> str:
    return f"{column.name} (in-domain)" if column.kind == "home" else column.name


def _cell(cell: Cell, metric: str) -> str:
    """ "0.8123" in domain; elsewhere "0.6210 -24 % [-29, -18]", with the change and its interval."""
    text = format_value(cell.scores.get(metric))
    drop = cell.drops.get(metric)
    if drop is not None:
        text += f" {_percent(-drop.value)} [{_share(-drop.high)}, {_share(-drop.low)}]"
    return text + (" LEAK" if cell.leak else "")


def _notes(matrix: Matrix) -> list[str]:
    """Notes on the table."""
    paired = any(d.paired for cell in matrix.cells for d in cell.drops.values())
    unpaired = any(not d.paired for cell in matrix.cells for d in cell.drops.values())
    metric = matrix.main_metric
    values = [score for cell in matrix.cells if (score := cell.scores.get(metric)) is not None and math.isfinite(score)]
    notes = [scale_sentence({metric: values})]
    if paired or unpaired:
        how = "on the same resampled images" if paired and not unpaired else "each side resampled separately"
        if paired and unpaired:
            how = "on the same resampled images for corrupted ones, each side resampled separately for other data"
        notes.append(f"In percent: change from the in-domain score, with its 95 % bootstrap interval, {how}.")
    prompts = list(dict.fromkeys(row.instruction for row in matrix.rows))
    if len(prompts) > 1:
        notes += [f"Prompt {number}: {one_line(prompt)}" for number, prompt in enumerate(prompts, 1)]
    if len(matrix.rows) <= len(matrix.columns):
        notes.append(
            "Unseen words: share of the references' words that occur in no in-domain reference. "
            "Divergence: Jensen-Shannon, in bits."
        )
    return [note for note in (*notes, *(f"LEAK: {reason}" for reason in matrix.leaks())) if note]


def _signatures(matrix: Matrix) -> dict[str, str]:
    """The signature of each column, or of each cell of it where they differ."""
    signatures: dict[str, str] = {}
    for column in matrix.columns:
        by_row = {cell.row: cell.signature for cell in matrix.cells if cell.column == column.name}
        if len(set(by_row.values())) == 1:
            signatures[column.name] = next(iter(by_row.values()))
        else:
            signatures |= {f"{column.name}, {row}": signature for row, signature in by_row.items()}
    return signatures


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = f"|{' --- |' * len(titles)}"
    return markdown_table(escape_pipes(titles), list(map(escape_pipes, rows)), rule)


def _percent(share: float, *, signed: bool = True) -> str:
    return f"{_share(share, signed=signed)} %"


def _share(share: float, *, signed: bool = True) -> str:
    """A share in percent, with the sign of a change."""
    if not math.isfinite(share):
        return "–"
    percent = round(100 * share)
    if not signed:
        return f"{percent}"
    return f"{percent:+d}".replace("-", "−") if percent else "±0"


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def _ends(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", "", ""]
    return [_number(value) for value in (difference.value, difference.low, difference.high)]
