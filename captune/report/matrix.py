"""`matrix.json`: scores of every row (checkpoint and prompt) on every column (data set, domain or corruption).

    {"format": 1, "metrics": ["BLEU-1", ..., "CIDEr"],
     "rows":    [{"name": "epoch4", "checkpoint": "epoch4", "instruction": "Describe ..."}],
     "columns": [{"name": "flickr30k", "kind": "home", "images": 1000, "shift": {"unseen": 0.0, "divergence": 0.0}},
                 {"name": "nocaps/out-domain", "kind": "domain", ...}, {"name": "blur 3", "kind": "corruption", ...}],
     "cells":   [{"row": "epoch4", "column": "nocaps/out-domain", "scores": {...}, "intervals": {...},
                  "drops": {"CIDEr": {"value": 0.31, "low": 0.27, "high": 0.35, "paired": false}},
                  "gains": {...}, "words": 812, "divergence": 0.21, "unfinished": 3, "signature": "...", "leak": null}]}

A drop is the lost share of the score at home, which is the checkpoint's first prompt on the first column; a gain is the
difference to the first row in the same column. `shift` compares a column's references with those of home; `divergence`
of a cell compares its captions with its references.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import ConfigDict, Strict

from captune.errors import InputError
from captune.report.columns import order_metrics
from captune.report.files import parse_versioned_json, read_text
from captune.report.record import RunScores, Score, Text

__all__ = [
    "FILE",
    "MATRIX_FILES",
    "Cell",
    "Column",
    "Difference",
    "Matrix",
    "Row",
    "matrix_from_json",
    "matrix_of",
    "matrix_to_json",
    "read_matrix",
]

logger = logging.getLogger(__name__)

FILE = "matrix.json"
MATRIX_FILES = (FILE, "matrix.csv", "matrix.md", "matrix.png")
FORMAT = 1

_STRICT = ConfigDict(extra="forbid")
Integer: TypeAlias = Annotated[int, Strict()]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two scores with its interval of 95 %.

    Attributes:
        value: the difference; what it is relative to depends on the field.
        low: lower end.
        high: upper end.
        paired: whether both scores are of the same images, resampled alike.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    value: Score
    low: Score
    high: Score
    paired: Annotated[bool, Strict()]


@dataclass(frozen=True, slots=True)
class Row:
    """A checkpoint with a prompt.

    Attributes:
        name: unique in the matrix.
        checkpoint: "pretrained", "epoch0", ...
        instruction: the prompt.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Text
    checkpoint: Text
    instruction: Text


@dataclass(frozen=True, slots=True)
class Column:
    """A set of images that is evaluated.

    Attributes:
        name: unique in the matrix.
        kind: "home", "data", "domain" (a part of a data set) or "corruption" (corrupted images of home).
        images: number of images.
        shift: `unseen`, the share of its references' words that do not occur in home's, and `divergence`, the
            Jensen-Shannon divergence of both in bits.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Text
    kind: Text
    images: Integer
    shift: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """One row on one column.

    Attributes:
        row: its name.
        column: its name.
        scores: metric -> corpus score.
        intervals: metric -> (low, high) of the score.
        drops: metric -> share of the home score that is lost here; empty at home itself.
        gains: metric -> score minus the first row's here; empty in the first row.
        words: number of different words in the captions.
        divergence: between the words of captions and of references, in bits.
        unfinished: captions that ended at the length limit.
        signature: how the scores were computed.
        leak: why the cell is marked LEAK, or None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

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
class Matrix:
    """All cells, each row on each column; the first column is home."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, those of the slides first."""
        return order_metrics(name for cell in self.cells for name in cell.scores)

    @property
    def main_metric(self) -> str:
        """CIDEr where it was computed, else the last metric."""
        return "CIDEr" if "CIDEr" in self.metrics else self.metrics[-1]

    def cell(self, row: str, column: str) -> Cell:
        """The cell of a row and a column, by their names."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

    def leaks(self) -> list[str]:
        """The reasons of the marks LEAK, each once, in the order of the cells."""
        return list(dict.fromkeys(cell.leak for cell in self.cells if cell.leak is not None))


def matrix_to_json(matrix: Matrix) -> str:
    """The matrix as the text of a `matrix.json`: strict JSON, the same text for the same matrix."""
    tree = {"format": FORMAT, "metrics": list(matrix.metrics), **asdict(matrix)}
    return json.dumps(_finite(tree), ensure_ascii=False, allow_nan=False) + "\n"


def matrix_from_json(text: str, source: str = FILE) -> Matrix:
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
    file = run_dir / FILE
    if not file.is_file():
        return None
    remedy = "evaluate again to write it"
    return matrix_from_json(read_text(file, missing=remedy, undecodable=remedy), str(file))


def matrix_of(run_dir: Path, scores: RunScores) -> Matrix | None:
    """The matrix of a run where its scores at home are those of the run; None otherwise.

    Raises:
        InputError: as `read_matrix`.
    """
    matrix = read_matrix(run_dir)
    if matrix is None:
        return None
    now = {row.name: row.corpus for row in scores.checkpoints}
    # The first row of a checkpoint has the prompt of the run.
    first_rows = {row.checkpoint: row.name for row in reversed(matrix.rows)}
    home = matrix.columns[0].name
    for checkpoint, row in first_rows.items():
        if checkpoint in now and not _alike(matrix.cell(row, home).scores, now[checkpoint]):
            logger.warning("%s was made of other captions than scores.json, and is left out.", run_dir / FILE)
            return None
    return matrix


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether scores are the same numbers; what is not a number equals itself."""
    return _finite(dict(one)) == _finite(dict(other))  # type: ignore[no-any-return]


def _finite(tree: Any) -> Any:
    """The same with null for what is not a number, as JSON must have it."""
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
