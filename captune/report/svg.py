"""Line charts as inline SVG: coloured by the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from captune.report.axis import spread_labels
from captune.report.text import one_line

__all__ = ["Series", "line_chart", "nice_ticks"]

_MARKERS = ("circle", "square", "triangle", "diamond", "down", "ring")


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: written beside its end.
        values: one for a place on the x axis; NaN leaves a gap.
        style: which of the style sheet's classes `s0` to `s9` it wears, and which marker.
        bands: (low, high) for a place, NaN where there is none; empty for no band.
        translate: key of the page's dictionary, where the name is a word and not a metric.
        joined: how many values, from the first on, the line joins; None is all. The others are marks by themselves.
    """

    name: str
    values: Sequence[float]
    style: int
    bands: Sequence[tuple[float, float]] = ()
    translate: str = ""
    joined: int | None = None


def line_chart(
    places: Sequence[float],
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    ticks: Sequence[tuple[float, str]] = (),
    size: tuple[int, int] = (480, 300),
    markers: bool = True,
) -> str:
    """Draw lines over common places.

    Args:
        places: where the values stand, ascending.
        series: the lines; those without a finite value are left out.
        title: the alternative text.
        x_label: key of the page's dictionary for the words under the x axis, or empty.
        y_label: key of the page's dictionary for the words over the y axis, or the words themselves.
        ticks: (place, label) on the x axis; by default round numbers.
        size: width and height of the drawing; the page scales it.
        markers: whether values are marked.

    Returns:
        An `<svg>` element, or an empty text when there is nothing to draw.
    """
    drawn = [line for line in series if any(map(math.isfinite, line.values))]
    if not drawn:
        return ""
    frame = _Frame(places, drawn, size)
    parts = [
        f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{_safe(title)}">',
        f'<text class="axis" x="4" y="14" data-t="{_safe(y_label)}">{_safe(y_label)}</text>',
        *frame.grid(ticks),
    ]
    if x_label:
        middle = (frame.left + frame.right) / 2
        parts.append(
            f'<text class="axis" x="{middle:.1f}" y="{size[1] - 4}" text-anchor="middle" data-t="{_safe(x_label)}">'
            f"{_safe(x_label)}</text>"
        )
    for line in drawn:
        parts += _line(frame, places, line, markers=markers and len(places) <= 40)
    return "".join([*parts, *_end_labels(frame, drawn), "</svg>"])


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


class _Frame:
    """The drawing's area and the way from numbers to places in it."""

    def __init__(self, places: Sequence[float], series: Sequence[Series], size: tuple[int, int]) -> None:
        values = [v for line in series for v in line.values if math.isfinite(v)]
        values += [bound for line in series for band in line.bands for bound in band if math.isfinite(bound)]
        low, high = min(values), max(values)
        air = max(0.06 * (high - low), 0.01 * max(abs(low), abs(high)), 1e-9)
        self.low = max(0.0, low - air) if low >= 0 else low - air
        self.high = high + air
        names = [line.name for line in series]
        self.left, self.right = 52.0, size[0] - 16.0 - 7.2 * max(map(len, names))
        self.top, self.bottom = 26.0, size[1] - 40.0
        self.start, self.end = places[0], places[-1]

    def x(self, place: float) -> float:
        if self.end == self.start:
            return (self.left + self.right) / 2
        share = (place - self.start) / (self.end - self.start)
        return self.left + 8 + share * (self.right - self.left - 16)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)

    def grid(self, ticks: Sequence[tuple[float, str]]) -> list[str]:
        """Grid lines with their numbers, and the labels of the x axis."""
        parts = []
        for value in nice_ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        shown = ticks or [(place, f"{place:.4g}") for place in nice_ticks(self.start, self.end)]
        for place, label in shown:
            for row, words in enumerate(label.split("\n")):
                parts.append(
                    f'<text x="{self.x(place):.1f}" y="{self.bottom + 14 + 11 * row:.1f}" text-anchor="middle">'
                    f"{_safe(words)}</text>"
                )
        return parts


def _line(frame: _Frame, places: Sequence[float], line: Series, *, markers: bool) -> list[str]:
    """Band, line and markers of one series."""
    parts = []
    joined = len(line.values) if line.joined is None else line.joined
    for run in _runs([all(map(math.isfinite, band)) for band in line.bands[:joined]]):
        upper = [f"{frame.x(places[i]):.1f},{frame.y(line.bands[i][1]):.1f}" for i in run]
        lower = [f"{frame.x(places[i]):.1f},{frame.y(line.bands[i][0]):.1f}" for i in reversed(run)]
        parts.append(f'<polygon class="band s{line.style}" points="{" ".join(upper + lower)}"/>')
    for i in range(joined, len(line.values)):
        if math.isfinite(line.values[i]):
            parts.append(_marker(frame.x(places[i]), frame.y(line.values[i]), line.style))
    for run in _runs([math.isfinite(value) for value in line.values[:joined]]):
        points = " ".join(f"{frame.x(places[i]):.1f},{frame.y(line.values[i]):.1f}" for i in run)
        parts.append(f'<polyline class="line s{line.style}" points="{points}"/>')
        if markers:
            parts += [_marker(frame.x(places[i]), frame.y(line.values[i]), line.style) for i in run]
    return parts


def _runs(present: Sequence[bool]) -> list[list[int]]:
    """Places that follow each other without a gap."""
    runs: list[list[int]] = []
    for index, here in enumerate(present):
        if here and runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        elif here:
            runs.append([index])
    return runs


def _marker(x: float, y: float, style: int) -> str:
    """A small shape, so that lines are told apart without colour."""
    r = 3.5
    shapes = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -r - 1), (r + 0.5, r), (-r - 0.5, r)],
        "diamond": [(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)],
        "down": [(0, r + 1), (r + 0.5, -r), (-r - 0.5, -r)],
    }
    kind = _MARKERS[style % len(_MARKERS)]
    if kind not in shapes:
        return f'<circle class="mark s{style}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in shapes[kind])
    return f'<polygon class="mark s{style}" points="{points}"/>'


def _end_labels(frame: _Frame, series: Sequence[Series]) -> list[str]:
    """Every line's name beside its end, none over another."""
    series = [line for line in series if line.name]
    ends = [frame.y(next(v for v in reversed(line.values) if math.isfinite(v))) for line in series]
    places = spread_labels(ends, gap=14, low=frame.top, high=frame.bottom)
    parts = []
    for line, end, place in zip(series, ends, places, strict=True):
        x = frame.right
        parts.append(f'<line class="lead" x1="{x - 6:.1f}" y1="{end:.1f}" x2="{x + 6:.1f}" y2="{place:.1f}"/>')
        word = f' data-t="{_safe(line.translate)}"' if line.translate else ""
        parts.append(
            f'<text class="name s{line.style}" x="{x + 9:.1f}" y="{place + 4:.1f}"{word}>{_safe(line.name)}</text>'
        )
    return parts


def _safe(text: str) -> str:
    return escape(one_line(text), quote=True)
