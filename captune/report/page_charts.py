"""The page's line charts as inline SVG.

They are not drawn by matplotlib, as the pictures of `captune.report.chart` are: the style sheet colours them, so that
they follow light and dark, the page's script translates their words, and a plain install can draw them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from captune.common import one_line, shorten
from captune.metrics import NEGLIGIBLE
from captune.report.axis import checkpoint_axis, spread_labels
from captune.report.caption_statistics import CaptionStatistics
from captune.report.columns import CIDER_TOP, column, group_by_scale
from captune.report.comparison import Comparison
from captune.report.learning_curve import TrainingLog, drawn_rows, split_training_rows
from captune.report.scores_json import RunScores

__all__ = [
    "Series",
    "comparison_charts",
    "distribution_charts",
    "line_chart",
    "nice_ticks",
    "score_charts",
    "training_charts",
]

BINS = 20
WIDTH, HEIGHT = 480, 300
"""Units of a drawing, which the page scales."""

LEFT, TOP, BOTTOM = 52.0, 26.0, HEIGHT - 40.0
"""Edges of the area in which lines are drawn; the right one leaves space for their names."""

LONGEST_NAME, LONGEST_LABEL = 22, 50
"""Characters of a line's name, and of the names over the y axis."""

AXIS_INCHES = 3.5
"""Width of the axis for which labels of checkpoints are laid out."""

MAX_MARKERS = 40
"""Positions beyond which the values of a line are not marked."""

RUN_STYLES = (0, 5, 3, 2, 9, 1, 7, 4, 6, 8)
"""Styles of compared lines, in an order in which neighbours differ most."""

_MARKERS: Sequence[Sequence[tuple[float, float]]] = (
    (),  # a circle
    ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
    ((0, -4.5), (4, 3.5), (-4, 3.5)),
    ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0)),
    ((0, 4.5), (4, -3.5), (-4, -3.5)),
    (),
)
"""Corners of the shapes by which lines can be distinguished without colour."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: the label at its end.
        values: one for a position on the x axis; NaN leaves a gap.
        style: number of its class `s0` to `s9` in the style sheet, and of its marker.
        bands: (low, high) for a position, NaN where there is none; empty for no band.
        translate: key of the page's words, where the name is a word and not a metric.
        joined: how many values, from the first on, the line joins; None is all. The others are marks alone.
    """

    name: str
    values: Sequence[float]
    style: int
    bands: Sequence[tuple[float, float]] = ()
    translate: str = ""
    joined: int | None = None


def score_charts(run: RunScores, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Scores over training with their intervals, a chart for each scale: metrics from 0 to 1, CIDEr, and others.

    Args:
        run: the rows.
        words: the page's words in the language in which it opens.

    Returns:
        The key of its caption and the drawing, for every chart that has something to show.
    """
    drawn, joined = drawn_rows(run)
    charts = []
    for top, names in group_by_scale(drawn.metrics).items():
        key = "other_chart"
        if top is None:
            key, label, first_style = "metrics_chart", "score", 0
        elif top == CIDER_TOP and all(name.startswith("CIDEr") for name in names):
            key, label, first_style = "cider_chart", "cider", 5
        else:
            label, first_style = f"{shorten(', '.join(names), LONGEST_LABEL)} (0–{top:g})", 5
        series = []
        for index, metric in enumerate(names):
            values = [math.nan if value is None else value for value in drawn.values(metric)]
            if column(metric).direction >= 0 and _is_negligible(values):
                continue
            bands = [row.intervals.get(metric, (math.nan, math.nan)) for row in drawn.checkpoints]
            series.append(Series(metric, values, (first_style + index) % 10, bands, joined=joined))
        title = ", ".join([*(line.name for line in series), *(row.name for row in drawn.checkpoints[:40])])
        key = key if joined else f"{key}_of_models"
        charts.append((key, _over_checkpoints(run, series, title, label, words)))
    return sorted((chart for chart in charts if chart[1]), key=lambda chart: not chart[0].startswith("cider_chart"))


def _is_negligible(values: Iterable[float]) -> bool:
    """Whether scores are 0 apart from smoothing, of which a chart would magnify the noise."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    return bool(finite) and max(finite) < NEGLIGIBLE


def comparison_charts(comparison: Comparison, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """The scores of compared runs over their epochs in one chart a metric, those of the headline first.

    Args:
        comparison: the runs.
        words: the page's words in the language in which it opens.
    """
    courses = [split_training_rows(run).run.checkpoints for run in comparison.runs]
    epochs = sorted({-1 if row.epoch is None else row.epoch for course in courses for row in course})
    # The first row may be the pretrained model or the checkpoint that a run starts from.
    first_rows = {row.name for course in courses for row in course if row.epoch is None}
    first = first_rows.pop() if len(first_rows) == 1 else "start"
    charts = []
    for metric, key in (("CIDEr", "cider_chart"), ("BLEU-4", "bleu4_chart")):
        if metric not in comparison.table.metrics:
            continue
        series = []
        for index, (course, name) in enumerate(zip(courses, comparison.run_names, strict=True)):
            values = {-1 if each.epoch is None else each.epoch: each.corpus.get(metric, math.nan) for each in course}
            line = [values.get(epoch, math.nan) for epoch in epochs]
            series.append(Series(name, line, RUN_STYLES[index % len(RUN_STYLES)]))
        label = first.replace("pretrained", "pre-\ntrained")
        ticks = [(float(epoch), label if epoch < 0 else str(epoch)) for epoch in epochs]
        names = [first if epoch < 0 else f"epoch{epoch}" for epoch in epochs]
        shown = not _is_negligible(value for line in series for value in line.values)
        if shown and 1 < len(epochs) <= MAX_MARKERS:
            places = [float(epoch) for epoch in epochs]
            title = f"{metric}, {', '.join(comparison.run_names)}"
            drawing = line_chart(places, series, title, "epoch", metric, words, ticks=ticks, markers=True, names=names)
            charts.append((key, drawing))
    return [chart for chart in charts if chart[1]]


def training_charts(log: TrainingLog, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Loss and learning rate over the steps; see `score_charts`."""
    charts = []
    for key, values, style in (("loss", log.loss, 0), ("lr", log.lr, 3)):
        if log.steps and (drawing := line_chart(log.steps, [Series("", values, style)], key, "step", key, words)):
            charts.append((f"{key}_chart", drawing))
    return charts


def loss_charts(comparison: Comparison, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """The training loss of compared runs over their steps; see `score_charts`."""
    steps = sorted({step for log in comparison.logs for step in log.steps})
    series = []
    for index, (log, name) in enumerate(zip(comparison.logs, comparison.run_names, strict=False)):
        logged = [(step, loss) for step, loss in zip(log.steps, log.loss, strict=True) if math.isfinite(loss)]
        if logged:
            # Runs that log different steps share the axis: a line passes straight from one of its values to the next.
            known, losses = zip(*logged, strict=True)
            values = np.interp(steps, known, losses, left=math.nan, right=math.nan)
            series.append(Series(name, values.tolist(), RUN_STYLES[index % len(RUN_STYLES)]))
    title = ", ".join(["loss", *(line.name for line in series)])
    drawing = line_chart(steps, series, title, "step", "loss", words)
    return [("loss_chart", drawing)] if drawing else []


def distribution_charts(
    run: RunScores, rows: Sequence[CaptionStatistics], references: CaptionStatistics, words: Mapping[str, str]
) -> list[tuple[str, str]]:
    """CIDEr of single images, lengths and vocabulary; see `score_charts`.

    Args:
        run: the rows.
        rows: their captions, in the order in which charts draw them.
        references: the references.
        words: the page's words in the language in which it opens.
    """
    drawn, joined = drawn_rows(run)
    # The first and the last checkpoint of a training; systems that are no training, all of them.
    ends = (0, joined - 1) if joined else range(min(len(rows), len(RUN_STYLES)))
    cider, lengths = [], []
    for end, style in zip(dict.fromkeys(ends), RUN_STYLES, strict=False):
        row = drawn.checkpoints[end]
        scores = [image.get("CIDEr", math.nan) for image in row.per_image.values()]
        cider.append(Series(row.name, scores, style))
        lengths.append(Series(row.name, rows[end].lengths, style))
    if _is_negligible(score for line in cider for score in line.values):
        cider = []
    means = [Series("", [row.mean_length for row in rows], 0, joined=joined)]
    if references.lengths:
        lengths.append(Series("references", references.lengths, 7, translate="references"))
        means.append(Series("references", [references.mean_length] * len(rows), 7, translate="references"))
    sizes = [Series("", [float(len(row.words)) or math.nan for row in rows], 2, joined=joined)]
    charts = [
        ("cider_distribution", _histogram(cider, "per_image_cider", words)),
        ("length_distribution", _histogram(lengths, "words_per_caption", words, integers=True)),
        ("length_chart", _over_checkpoints(run, means, "mean length", "words_per_caption", words)),
        ("vocabulary_chart", _over_checkpoints(run, sizes, "vocabulary", "vocabulary", words)),
    ]
    return [chart for chart in charts if chart[1]]


def _over_checkpoints(
    run: RunScores, series: Sequence[Series], title: str, y_label: str, words: Mapping[str, str]
) -> str:
    """A chart with a position for every row of the run."""
    axis = checkpoint_axis(run, width=AXIS_INCHES)
    ticks = list(zip(*axis.ticks(AXIS_INCHES), strict=True))
    names = [row.name for row in drawn_rows(run)[0].checkpoints]
    return line_chart(axis.positions, series, title, axis.title, y_label, words, ticks=ticks, markers=True, names=names)


def _histogram(groups: Sequence[Series], x_label: str, words: Mapping[str, str], *, integers: bool = False) -> str:
    """Shares of values in equal bins, a line a group; integers are not split."""
    finite = [[value for value in group.values if math.isfinite(value)] for group in groups]
    ordered = sorted(value for values in finite for value in values)
    if not ordered:
        return ""
    # A single caption that runs on must not squeeze all others into the first bin.
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]
    width = (high - low) / BINS or 1.0
    if integers:
        width = max(1.0, math.ceil(width))
    count = max(1, math.ceil((high - low) / width + 1e-9)) + (1 if integers else 0)
    centres = [low + (index + (0 if integers else 0.5)) * width for index in range(count)]
    series = []
    for group, values in zip(groups, finite, strict=True):
        bins = [0] * count
        for value in values:
            bins[min(count - 1, int((value - low) / width))] += 1
        shares = [number / len(values) for number in bins] if values else [math.nan] * count
        series.append(Series(group.name, shares, group.style, translate=group.translate))
    return line_chart(centres, series, x_label, x_label, "share", words)


def line_chart(
    positions: Sequence[float],
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    words: Mapping[str, str],
    *,
    ticks: Sequence[tuple[float, str]] = (),
    markers: bool = False,
    names: Sequence[str] = (),
) -> str:
    """Draw lines over common positions.

    Args:
        positions: of the values on the x axis, ascending.
        series: the lines; those without a finite value are left out.
        title: the alternative text.
        x_label: key of the words under the x axis, or empty.
        y_label: key of the words over the y axis.
        words: the page's words in the language in which it opens.
        ticks: (position, label) on the x axis; by default round numbers.
        markers: whether values are marked, unless they are many.
        names: of the positions, for the texts that the page shows over marks.

    Returns:
        An `<svg>` element, or an empty text when there is nothing to draw.
    """
    drawn = [line for line in series if any(map(math.isfinite, line.values))]
    if not drawn:
        return ""
    drawing = _Drawing(positions, drawn, title, words)
    drawing.text(4, 14, y_label, key=y_label, kind="axis")
    drawing.grid(ticks)
    if x_label:
        drawing.text((LEFT + drawing.right) / 2, HEIGHT - 4, x_label, key=x_label, kind="axis", anchor="middle")
    for line in drawn:
        drawing.line(line, markers=markers and len(positions) <= MAX_MARKERS, names=names)
    drawing.end_labels(drawn)
    return ElementTree.tostring(drawing.svg, encoding="unicode")


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two bounds, at most `most` of them, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


class _Drawing:
    """An `<svg>` element that grows, and the scales from values to its units."""

    def __init__(
        self, positions: Sequence[float], series: Sequence[Series], title: str, words: Mapping[str, str]
    ) -> None:
        values = [value for line in series for value in line.values if math.isfinite(value)]
        values += [bound for line in series for band in line.bands for bound in band if math.isfinite(bound)]
        low, high = min(values), max(values)
        margin = max(0.06 * (high - low), 0.01 * max(abs(low), abs(high)), 1e-9)
        self.low = max(0.0, low - margin) if low >= 0 else low - margin
        self.high = high + margin
        self.right = WIDTH - 16.0 - 7.2 * max(len(shorten(line.name, LONGEST_NAME)) for line in series)
        self.positions, self.words = positions, words
        attributes = {
            "class": "chart",
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "role": "img",
            "aria-label": one_line(title),
        }
        self.svg = ElementTree.Element("svg", attributes)

    def x(self, position: float) -> float:
        start, end = self.positions[0], self.positions[-1]
        if end == start:
            return (LEFT + self.right) / 2
        return LEFT + 8 + (position - start) / (end - start) * (self.right - LEFT - 16)

    def y(self, value: float) -> float:
        return BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    def add(self, tag: str, kind: str, **attributes: float | str) -> ElementTree.Element:
        """A shape of a class of the style sheet; numbers are rounded to a tenth."""
        shown = {name: f"{v:.1f}" if isinstance(v, float) else str(v) for name, v in attributes.items()}
        return ElementTree.SubElement(self.svg, tag, {"class": kind, **shown} if kind else shown)

    def text(self, x: float, y: float, text: str, *, key: str = "", kind: str = "", anchor: str = "") -> None:
        """A text, or the word `key` in the page's language."""
        node = self.add("text", kind, x=x, y=y, **({"text-anchor": anchor} if anchor else {}))
        if key:
            node.set("data-t", key)
        node.text = one_line(self.words.get(key, text))

    def grid(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Grid lines with their numbers, and the labels of the x axis."""
        for value in nice_ticks(self.low, self.high):
            y = self.y(value)
            self.add("line", "grid", x1=LEFT, x2=self.right, y1=y, y2=y)
            self.text(LEFT - 6, y + 4, f"{value:.4g}", anchor="end")
        round_numbers = nice_ticks(self.positions[0], self.positions[-1])
        for position, label in ticks or [(number, f"{number:.4g}") for number in round_numbers]:
            keys = ("axis_pre", "axis_trained") if label == "pre-\ntrained" else ()
            for row, part in enumerate(label.split("\n")):
                key = keys[row] if keys else ""
                x, half = self.x(position), 3.0 * len(part)
                # A long name at an end of the axis stays inside the drawing.
                anchor = "end" if x + half > WIDTH else "start" if x < half else "middle"
                x = {"end": WIDTH - 2.0, "start": 2.0}.get(anchor, x)
                self.text(x, BOTTOM + 14 + 11 * row, part, key=key, anchor=anchor)

    def line(self, line: Series, *, markers: bool, names: Sequence[str]) -> None:
        """Band, line and markers of one series."""
        count = len(line.values)
        joined = count if line.joined is None else line.joined
        points = [(self.x(x), self.y(value)) for x, value in zip(self.positions, line.values, strict=True)]
        present = [math.isfinite(value) for value in line.values]
        for run in _runs([all(map(math.isfinite, band)) for band in line.bands[:joined]]):
            upper = [(points[i][0], self.y(line.bands[i][1])) for i in run]
            lower = [(points[i][0], self.y(line.bands[i][0])) for i in reversed(run)]
            self.add("polygon", f"band s{line.style}", points=_points(upper + lower))
        for run in _runs(present[:joined]):
            self.add("polyline", f"line s{line.style}", points=_points([points[i] for i in run]))
        for i in range(count):
            if present[i] and (markers or i >= joined):
                self.marker(*points[i], line.style)
                if i < len(names):
                    self.tip(line, i, *points[i], names[i])

    def tip(self, line: Series, index: int, x: float, y: float, name: str) -> None:
        """An invisible disc over a mark, with its text."""
        text = f"{shorten(name, LONGEST_LABEL)}: {line.values[index]:.4f}"
        if line.name:
            text = f"{shorten(line.name, LONGEST_LABEL)}, {text}"
        if index < len(line.bands) and all(map(math.isfinite, line.bands[index])):
            text += " [{:.4f}, {:.4f}]".format(*line.bands[index])
        self.add("circle", "hit", cx=x, cy=y, r=8.0).set("data-tip", one_line(text))

    def marker(self, x: float, y: float, style: int) -> None:
        """The small shape of a style."""
        if corners := _MARKERS[style % len(_MARKERS)]:
            self.add("polygon", f"mark s{style}", points=_points([(x + a, y + b) for a, b in corners]))
        else:
            self.add("circle", f"mark s{style}", cx=x, cy=y, r=3.5)

    def end_labels(self, series: Sequence[Series]) -> None:
        """Every line's name at its end, none over another."""
        named = [line for line in series if line.name]
        ends = [self.y(next(v for v in reversed(line.values) if math.isfinite(v))) for line in named]
        for line, end, y in zip(named, ends, spread_labels(ends, gap=14, low=TOP, high=BOTTOM), strict=True):
            self.add("line", "lead", x1=self.right - 6, y1=end, x2=self.right + 6, y2=y)
            self.text(
                self.right + 9, y + 4, shorten(line.name, LONGEST_NAME), key=line.translate, kind=f"name s{line.style}"
            )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _runs(present: Sequence[bool]) -> list[list[int]]:
    """Indices of values that follow each other without a gap."""
    runs: list[list[int]] = []
    for index, here in enumerate(present):
        if here and runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        elif here:
            runs.append([index])
    return runs
