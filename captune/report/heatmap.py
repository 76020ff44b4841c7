"""The matrix of a run as a picture: scores in the cells, coloured by what is left of home."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from captune.common import shorten
from captune.report.chart import figure_bytes, plain_matplotlib
from captune.report.matrix import Cell, Column, Matrix
from captune.report.matrix_table import strength_curves
from captune.report.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_heatmap"]

_CELL_WIDTH, _CELL_HEIGHT = 0.5, 0.27  # inches
_HEAD, _FOOT, _LEGEND = 0.3, 0.3, 1.5  # inches
_LONGEST_NAME = 34  # characters


def draw_heatmap(matrix: Matrix) -> bytes:
    """Draw the matrix: data sets and domains above, damaged images below, a colour scale for both.

    Args:
        matrix: what to draw.

    Returns:
        a PNG; the same bytes for the same matrix and one version of matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    groups = [
        [column for column in matrix.columns if (column.kind == "corruption") == damaged] for damaged in (False, True)
    ]
    groups = [group for group in groups if group]
    with plain_matplotlib():
        from matplotlib.figure import Figure

        height = len(matrix.rows) * _CELL_HEIGHT
        left = 0.075 * min(_LONGEST_NAME, max(len(row.name) for row in matrix.rows)) + 0.25
        # Names of columns stand upright above their cells.
        above = [0.06 * min(_LONGEST_NAME, max(len(_title(column)) for column in group)) + 0.35 for group in groups]
        curves = strength_curves(matrix)
        below = 1.9 if curves else 0.0
        width = left + max(6, *(len(group) for group in groups)) * _CELL_WIDTH + _LEGEND
        total = sum(above) + len(groups) * height + below + _HEAD + _FOOT
        figure = Figure(figsize=(width, total))
        head = f"{matrix.main_metric}; coloured by what is left of home: blue all, red nothing"
        figure.text(0.1 / width, 1 - 0.22 / total, head, fontsize=8)
        # The signature of home, of which the other columns differ in their data alone; theirs are in matrix.json.
        signature = matrix.cell(matrix.rows[-1].name, matrix.columns[0].name).signature
        figure.text(0.1 / width, 0.08 / total, f"Signature: {one_line(signature)}", fontsize=4.5, color="#555555")
        top = total - _HEAD
        for group, room in zip(groups, above, strict=True):
            top -= room + height
            place = (left / width, top / total, len(group) * _CELL_WIDTH / width, height / total)
            _draw(figure.add_axes(place), matrix, group)
        if curves:
            axes = figure.add_axes((left / width, (_FOOT + 0.45) / total, 3.2 / width, (below - 0.65) / total))
            _draw_curves(axes, curves, matrix.main_metric)
        return figure_bytes(figure, "png")


def _draw(axes: Axes, matrix: Matrix, group: list[Column]) -> None:
    """One block of cells."""
    metric = matrix.main_metric
    cells = [[matrix.cell(row.name, column.name) for column in group] for row in matrix.rows]
    left = np.array([[_left(cell, metric) for cell in row] for row in cells])
    # Blue is as good as home, red is lost: a scale that colour-blind readers tell apart.
    axes.imshow(left, cmap="RdYlBu", vmin=0.0, vmax=1.25, aspect="auto")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            score = cell.scores.get(metric, math.nan)
            text = (f"{score:.3f}" if math.isfinite(score) else "–") + ("\nLEAK" if cell.leak else "")
            pale = 0.12 < left[y, x] < 1.15
            axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color="black" if pale else "white")
    axes.set_xticks(range(len(group)), [_name(_title(column)) for column in group])
    axes.set_yticks(range(len(cells)), [_name(row.name) for row in matrix.rows])
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for label in axes.get_xticklabels():
        label.set_rotation(90)
        label.set_fontsize(7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_curves(axes: Axes, curves: dict[str, dict[int, float]], metric: str) -> None:
    """How much is left at each strength, a line a kind."""
    dashes = ("-", "--", "-.", ":", (0, (1, 3)))
    for (kind, values), dash, marker in zip(curves.items(), dashes, "osD^v", strict=False):
        strengths = sorted(values)
        axes.plot(
            strengths, [100 * values[s] for s in strengths], linestyle=dash, marker=marker, markersize=3, linewidth=1.2,
            label=kind,
        )  # fmt: skip
    axes.axhline(100, color="#888888", linewidth=0.6)
    axes.set_xticks(sorted({strength for values in curves.values() for strength in values}))
    axes.set_xlabel("strength of the damage")
    axes.set_ylabel(f"{metric}, % of home")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _left(cell: Cell, metric: str) -> float:
    """What is left of the score at home; 1 at home itself."""
    drop = cell.drops.get(metric)
    return 1.0 if drop is None else 1 - drop.value


def _title(column: Column) -> str:
    return f"{column.name} (home)" if column.kind == "home" else column.name


def _name(text: str) -> str:
    return shorten(one_line(text), _LONGEST_NAME)
