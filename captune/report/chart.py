"""Pictures drawn by matplotlib: the line chart of a run and the heat-map of its matrix.

Both are readable without colour, and the same scores give the same bytes.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from captune.common import one_line, shorten
from captune.errors import InputError, MissingExtraError
from captune.report.axis import ROTATION, Axis, checkpoint_axis, spread_labels
from captune.report.columns import CIDER_TOP, group_by_scale
from captune.report.learning_curve import drawn_rows
from captune.report.robustness_matrix import Column, Matrix, strength_curves
from captune.report.scores_json import RunScores
from captune.report.table import leak_reasons, provenance, signatures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CHART_FORMATS", "draw_chart", "draw_heatmap", "plain_matplotlib"]

CHART_FORMATS = ("png", "svg", "pdf")

WIDTH, HEIGHT = 7.2, 3.4
"""Inches: the width of a text page set in one column."""

MARGIN, LEFT_WIDTH, RIGHT_WIDTH, FULL_WIDTH = 0.6, 2.75, 2.1, 5.5
"""Inches: left of the left panel, and the widths of two panels or of a single one."""

DOTS_PER_INCH = 200

_CELL_WIDTH, _CELL_HEIGHT = 0.5, 0.27
_HEAD, _FOOT, _LEGEND = 0.3, 0.3, 1.5
"""Inches of the heat-map: one of its cells, the lines above and below, and the legend of its curves."""

_LONGEST_METRIC = 12
"""Characters of a metric's name next to its line; a legend has space for twice as many."""

_LONGEST_NAME = 34
"""Characters of a row's or column's name in the heat-map."""


class Style(NamedTuple):
    """How one metric is drawn: its colour, its marker and its dashes each identify it."""

    colour: str
    marker: str
    dashes: Any


# Colours of Okabe and Ito (2008), which colour-blind readers can distinguish; yellow is too pale for a line on white.
_STYLES = {
    "BLEU-1": Style("#0072B2", "o", "-"),
    "BLEU-2": Style("#E69F00", "s", (0, (6, 1.5))),
    "BLEU-3": Style("#009E73", "^", (0, (4, 1.5, 1, 1.5))),
    "BLEU-4": Style("#D55E00", "D", (0, (1.5, 1.2))),
    "ROUGE-L": Style("#000000", "v", (0, (8, 2, 1, 2, 1, 2))),
    "CIDEr": Style("#AA4488", "o", "-"),
    "CIDEr-D": Style("#666666", "d", (0, (4, 2))),
    "METEOR": Style("#56B4E9", ">", (0, (3, 1))),
    "SPICE": Style("#7F7F7F", "p", (0, (5, 1, 1, 1))),
    "CLIPScore": Style("#8C564B", "8", (0, (2, 2))),
    "RefCLIPScore": Style("#5D3A9B", "<", (0, (7, 3))),
}


def _styles(metrics: Sequence[str]) -> dict[str, Style]:
    """A style for each metric; those of other packages get the ones that are free."""
    free = [style for name, style in _STYLES.items() if name not in metrics] or list(_STYLES.values())
    others = [metric for metric in metrics if metric not in _STYLES]
    return {**_STYLES, **{metric: free[index % len(free)] for index, metric in enumerate(others)}}


_LINE: dict[str, Any] = {"linewidth": 1.4, "markersize": 4.2, "markerfacecolor": "white", "markeredgewidth": 1.2}

_RC = {
    # Chinese names are drawn where such a font is installed; DejaVu comes with matplotlib and serves the rest.
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "text.parse_math": False,  # A name with two dollar signs is a name, not a formula.
    "svg.hashsalt": "captune",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}

_CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
)


def draw_chart(run: RunScores, formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Draw the scores over training: metrics from 0 to 1 on the left, CIDEr (0-10) on a separate panel.

    Intervals are bands. The title names the rows marked LEAK. Metrics of another scale are only in the table, and on
    the page if their scale is known.

    Args:
        run: the rows.
        formats: of "png", "svg" and "pdf".

    Returns:
        format -> the file's bytes, equal for equal scores and one version of matplotlib.

    Raises:
        InputError: an unknown format.
        MissingExtraError: matplotlib is not installed.
    """
    if unknown := next((name for name in formats if name not in CHART_FORMATS), None):
        raise InputError(f"No chart can be written as {unknown!r}; choose from {', '.join(CHART_FORMATS)}.")
    with plain_matplotlib():
        figure = _figure(run)
        return {name: _figure_bytes(figure, name) for name in formats}


@contextmanager
def plain_matplotlib() -> Iterator[None]:
    """matplotlib with the report's settings instead of the user's, and quiet about missing glyphs and weights."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError:
        raise MissingExtraError("the chart of a report", "train") from None
    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in _CJK_FONTS if name in installed)]
    # matplotlib logs a warning for each missing weight of a font, and some Chinese fonts have a single weight.
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | {"font.family": family})
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        try:
            yield
        finally:
            fonts.setLevel(level)


def _figure_bytes(figure: Figure, name: str) -> bytes:
    """The figure's bytes without the date and the version that would make two equal charts differ."""
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": "captune"},
        "pdf": {"CreationDate": None, "Creator": "captune", "Producer": None},
    }
    buffer = io.BytesIO()
    figure.savefig(buffer, format=name, dpi=DOTS_PER_INCH, metadata=metadata[name])
    return buffer.getvalue()


def _figure(run: RunScores) -> Figure:
    """The line chart; all positions are in inches, so that nothing depends on what a name's width happens to be."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run, _ = drawn_rows(run)
    groups = group_by_scale(name for name in run.metrics if run.finite(name))
    left, right = groups.get(None, []), groups.get(CIDER_TOP, [])
    styles = _styles([*left, *right])
    right_label = "CIDEr (0–10)" if all(name.startswith("CIDEr") for name in right) else "score (0–10)"
    axis = checkpoint_axis(run, width=RIGHT_WIDTH if left and right else FULL_WIDTH)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    FigureCanvasAgg(figure)
    top, bottom = _write_around(figure, run)
    bottom += 0.53 + axis.label_height
    height = HEIGHT - bottom - top
    start = max(MARGIN, axis.overhang - 0.05)
    panels = [
        (left, start, (LEFT_WIDTH if right else FULL_WIDTH) + MARGIN - start, "score (0–1)"),
        (right, WIDTH - 0.15 - RIGHT_WIDTH, RIGHT_WIDTH, right_label)
        if left
        else (right, start, WIDTH - start - 0.2, right_label),
    ]
    for metrics, edge, width, label in panels:
        if metrics:
            panel = figure.add_axes((edge / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
            drawn = {metric: styles[metric] for metric in metrics}
            _draw_panel(panel, run, drawn, axis, label=label, width=width)
            if len(metrics) > 1 and metrics is right:
                panel.legend(frameon=False, fontsize=7.5)
            elif len(metrics) > 1:
                _label_ends(panel, run, drawn, size=(width, height))
    if not left and not right:
        figure.text(0.5, 0.5, "There is no score to draw.", ha="center", va="center")
    return figure


def _draw_panel(
    panel: Axes, run: RunScores, styles: Mapping[str, Style], axis: Axis, *, label: str, width: float
) -> None:
    """Lines, bands and both axes of one panel; `width` in inches."""
    for metric, style in styles.items():
        _draw_metric(panel, run, metric, style, axis)
    low, high = _limits(run, list(styles))
    panel.set_ylim(low, high)
    margin = max(0.04 * (axis.positions[-1] - axis.positions[0]), 0.15 if len(axis.positions) > 1 else 0.5)
    panel.set_xlim(axis.positions[0] - margin, axis.positions[-1] + margin)
    ticks, names = axis.ticks(width)
    others = len(axis.positions) - axis.joined if axis.joined else 0
    names = [*names[: len(names) - others], *(name.strip() for name in names[len(names) - others :])]
    panel.set_xticks(ticks, names)
    for index, text in enumerate(panel.get_xticklabels()):
        if axis.rotation or index >= len(names) - others:
            text.set(rotation=axis.rotation or ROTATION, ha="right", rotation_mode="anchor")
    panel.set_xlabel(axis.title)
    panel.set_ylabel(label)
    panel.tick_params(width=0.8, color="#444444")
    panel.grid(axis="y", color="#D9D9D9", linewidth=0.6)
    panel.set_axisbelow(True)


def _draw_metric(panel: Axes, run: RunScores, metric: str, style: Style, axis: Axis) -> None:
    """One line with its markers, and its intervals as a band with thin bounds; other captioners are marks alone."""
    name, positions, joined = shorten(one_line(metric), 2 * _LONGEST_METRIC), axis.positions, axis.joined
    values = [math.nan if value is None else value for value in run.values(metric)]
    bounds = [row.intervals.get(metric, (math.nan, math.nan)) for row in run.checkpoints]
    low, high = [pair[0] for pair in bounds], [pair[1] for pair in bounds]
    if not all(map(math.isnan, low)):
        band = slice(0, joined)
        panel.fill_between(
            positions[band], low[band], high[band], color=style.colour, alpha=0.13, linewidth=0, zorder=1
        )
        # Bars as well while they fit: overlapping bands look alike in black and white.
        if len(positions) <= 12:
            panel.errorbar(
                positions,
                values,
                yerr=np.nan_to_num(np.maximum(0.0, [np.subtract(values, low), np.subtract(high, values)]), posinf=0.0),
                fmt="none",
                ecolor=style.colour,
                elinewidth=0.7,
                capsize=1.8,
                capthick=0.7,
                zorder=2,
            )
    panel.plot(
        positions[:joined],
        values[:joined],
        color=style.colour,
        marker=style.marker,
        linestyle=style.dashes,
        markevery=max(1, math.ceil(joined / 15)),
        zorder=3,
        label=name if joined else None,
        **_LINE,
    )
    if joined < len(positions):
        panel.plot(
            positions[joined:],
            values[joined:],
            color=style.colour,
            marker=style.marker,
            zorder=3,
            label=None if joined else name,
            **{**_LINE, "linestyle": "none"},
        )


def _limits(run: RunScores, metrics: Sequence[str]) -> tuple[float, float]:
    """Limits of the upright axis: all scores and intervals with some air, never a magnified rounding error."""
    values = [value for metric in metrics for value in run.finite(metric)]
    values += [bound for row in run.checkpoints for metric in metrics for bound in row.intervals.get(metric, ())]
    low, high = min(values), max(values)
    air = max(0.08 * (high - low), 0.01 * max(abs(low), abs(high)), 0.005)
    return (max(0.0, low - air) if low >= 0 else low - air), high + air


def _label_ends(panel: Axes, run: RunScores, styles: Mapping[str, Style], *, size: tuple[float, float]) -> None:
    """Write every metric's name at the end of its line, with its marker, none over another."""
    ends = {metric: run.finite(metric)[-1] for metric in styles}
    low, high = panel.get_ylim()
    heights = spread_labels(list(ends.values()), gap=0.155 / size[1] * (high - low), low=low, high=high)
    transform = panel.get_yaxis_transform()  # x in widths of the panel, y in data
    right = [1 + inches / size[0] for inches in (0.02, 0.12, 0.13, 0.245, 0.36, 0.42)]
    edges = panel.get_xlim()
    last = max(np.asarray(line.get_xdata(), dtype=float).max(initial=edges[0]) for line in panel.lines)
    end = (last - edges[0]) / (edges[1] - edges[0])
    for (metric, value), y in zip(ends.items(), heights, strict=True):
        style = styles[metric]
        outside: dict[str, Any] = {"transform": transform, "clip_on": False}
        panel.plot([end, *right[:2]], [value, value, y], color="#999999", linewidth=0.6, **outside)
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": style.dashes}
        panel.plot(right[2:5], [y] * 3, markevery=[1], **look, **_LINE, **outside)
        name = shorten(one_line(metric), _LONGEST_METRIC)
        panel.text(right[5], y, name, transform=transform, va="center", ha="left", fontsize=7.5)


def _write_around(figure: Figure, run: RunScores) -> tuple[float, float]:
    """Title with the mark LEAK, and the signature small at the foot; returns the inches both take."""
    left = 0.15 / WIDTH
    title = shorten(one_line(provenance(run)), 88)
    figure.text(left, 1 - 0.12 / HEIGHT, title, va="top", fontsize=9, fontweight="bold")
    top = 0.42
    if leaks := "; ".join(f"{mark}: {reason}" for reason, mark in leak_reasons(run).items()):
        text = shorten(one_line(leaks), 110)
        figure.text(left, 1 - 0.31 / HEIGHT, text, va="top", fontsize=7.5, color="#B00020", fontweight="bold")
        top += 0.2
    label, text = next(iter(signatures(run)), ("", ""))
    signature = _folded(one_line(f"{label}: {text}" if text else label), 165)
    figure.text(left, 0.07 / HEIGHT, signature, va="bottom", fontsize=5.5, color="#555555")
    return top, 0.1 * (1 + signature.count("\n")) if signature else 0.0


def _folded(text: str, width: int) -> str:
    """A signature on at most two lines, as much of it as they hold."""
    return text if len(text) <= width else f"{text[:width]}\n{shorten(text[width:], width)}"


def draw_heatmap(matrix: Matrix) -> bytes:
    """Draw the matrix: data sets and domains above, corrupted images below, on one colour scale.

    Args:
        matrix: what to draw.

    Returns:
        a PNG; the same bytes for the same matrix and one version of matplotlib.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    groups = [
        [column for column in matrix.columns if (column.kind == "corruption") == corrupted]
        for corrupted in (False, True)
    ]
    groups = [group for group in groups if group]
    with plain_matplotlib():
        from matplotlib.figure import Figure

        height = len(matrix.rows) * _CELL_HEIGHT
        left = 0.075 * min(_LONGEST_NAME, max(len(row.name) for row in matrix.rows)) + 0.25
        # Names of columns are written upward, above their cells.
        above = [0.06 * min(_LONGEST_NAME, max(len(_title(column)) for column in group)) + 0.35 for group in groups]
        curves = strength_curves(matrix)
        below = 1.9 if curves else 0.0
        width = left + max(6, *(len(group) for group in groups)) * _CELL_WIDTH + _LEGEND
        total = sum(above) + len(groups) * height + below + _HEAD + _FOOT
        figure = Figure(figsize=(width, total))
        head = f"{matrix.main_metric}; colour: share of the in-domain score that remains, blue all, red nothing"
        figure.text(0.1 / width, 1 - 0.22 / total, head, fontsize=8)
        # The other columns' signatures differ only in their data; they are in matrix.json.
        signature = matrix.cell(matrix.rows[-1].name, matrix.columns[0].name).signature
        figure.text(0.1 / width, 0.08 / total, f"Signature: {one_line(signature)}", fontsize=4.5, color="#555555")
        top = total - _HEAD
        for group, space in zip(groups, above, strict=True):
            top -= space + height
            box = (left / width, top / total, len(group) * _CELL_WIDTH / width, height / total)
            _draw_cells(figure.add_axes(box), matrix, group)
        if curves:
            axes = figure.add_axes((left / width, (_FOOT + 0.45) / total, 3.2 / width, (below - 0.65) / total))
            _draw_curves(axes, curves, matrix.main_metric)
        return _figure_bytes(figure, "png")


def _draw_cells(axes: Axes, matrix: Matrix, group: list[Column]) -> None:
    """One block of cells."""
    metric = matrix.main_metric
    cells = [[matrix.cell(row.name, column.name) for column in group] for row in matrix.rows]
    drops = [[cell.drops.get(metric) for cell in row] for row in cells]
    left = np.array([[1.0 if drop is None else 1 - drop.value for drop in row] for row in drops])
    # Blue is as good as in domain, red is lost: a scale that colour-blind readers can distinguish.
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
    axes.set_xlabel("strength of the corruption")
    axes.set_ylabel(f"{metric}, % of in-domain")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _title(column: Column) -> str:
    return f"{column.name} (in-domain)" if column.kind == "home" else column.name


def _name(text: str) -> str:
    return shorten(one_line(text), _LONGEST_NAME)
