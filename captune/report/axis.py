"""The axis of charts over training: positions of checkpoints, their labels, and label placement."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from captune.common import one_line
from captune.report.learning_curve import drawn_rows
from captune.report.scores_json import RunScores

__all__ = ["Axis", "checkpoint_axis", "positions", "spread_labels"]

LONGEST = 16
"""Characters of a checkpoint's name that a chart shows."""

ROTATION = 35
"""Rotation in degrees of labels that do not fit next to each other."""

INCHES_PER_CHARACTER = 0.068
"""Width of an average character at 8 points."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The horizontal axis of a chart.

    Attributes:
        positions: of the rows.
        labels: the label of every row.
        title: what the numbers are; empty where the labels are names.
        rotation: angle of the labels in degrees.
        label_height: inches that the labels need below the axis beyond one line.
        overhang: inches that the first label reaches to the left of its row.
        joined: how many rows, from the first on, a line joins; those after them are other captioners.
    """

    positions: tuple[float, ...]
    labels: tuple[str, ...]
    title: str
    rotation: float
    label_height: float
    overhang: float
    joined: int

    def ticks(self, width: float) -> tuple[list[float], list[str]]:
        """The rows that get a label: the first, the last and as many between as fit next to each other.

        Args:
            width: of the axis, in inches.
        """
        span = self.positions[-1] - self.positions[0]
        if not span:
            return list(self.positions), list(self.labels)
        count = self.joined or len(self.positions)
        inch = width * 0.92 / span
        sizes = [0.2 if self.rotation else _inches(label) + 0.08 for label in self.labels[:count]]
        places = [position * inch for position in self.positions[:count]]
        span = self.positions[count - 1] - self.positions[0]
        kept = [0]
        last = len(places) - 1
        # Round numbers of epochs where every epoch has a row; where they have gaps, whatever fits.
        step = _step(places, sizes) if self.title and span == last else 1
        for index in range(1, last):
            if step > 1 and round(self.positions[index]) % step:
                continue
            if _do_not_overlap(places, sizes, kept[-1], index) and _do_not_overlap(places, sizes, index, last):
                kept.append(index)
        if last and _do_not_overlap(places, sizes, kept[-1], last):
            kept.append(last)
        kept += range(count, len(self.positions))
        return [self.positions[index] for index in kept], [self.labels[index] for index in kept]


def positions(run: RunScores) -> tuple[tuple[float, ...], bool]:
    """Positions of the rows: their epochs, or their order where epochs are not known.

    Returns:
        The positions, and whether they are epochs. The pretrained model, which has no epoch, is at -1,
        before the checkpoint of epoch 0.
    """
    epochs = [-1 if row.epoch is None and index == 0 else row.epoch for index, row in enumerate(run.checkpoints)]
    known = [float(epoch) for epoch in epochs if epoch is not None]
    ordered = all(before < after for before, after in pairwise(known))
    if len(known) == len(epochs) > 1 and ordered:
        return tuple(known), True
    return tuple(float(index) for index in range(len(epochs))), False


def checkpoint_axis(run: RunScores, width: float) -> Axis:
    """Lay out the axis for the rows of a run.

    Args:
        run: the rows.
        width: of the narrower panel that shares the axis, in inches.

    Returns:
        The axis for the rows as `drawn_rows` orders them.
    """
    run, joined = drawn_rows(run)
    if 0 < joined < len(run.checkpoints):
        return _with_others(run, joined, width)
    places, epochs = positions(run)
    names = [_shortened(one_line(row.name)) for row in run.checkpoints]
    if epochs:
        # On two lines it leaves space for the label of epoch 0 next to it.
        first = [names[0].replace("pretrained", "pre-\ntrained")] if run.checkpoints[0].epoch is None else []
        labels = (*first, *(str(row.epoch) for row in run.checkpoints[len(first) :]))
        height = 0.11 if "\n" in labels[0] else 0.0
        return Axis(places, labels, "epoch", 0, height, _inches(labels[0]) / 2, joined)
    widths = [_inches(name) for name in names]
    if sum(widths) + 0.12 * len(names) <= width or len(names) == 1:
        return Axis(places, tuple(names), "", 0, 0.0, widths[0] / 2, joined)
    angle = math.radians(ROTATION)
    height = max(widths) * math.sin(angle) - 0.1
    return Axis(places, tuple(names), "", ROTATION, height, widths[0] * math.cos(angle), joined)


def _with_others(run: RunScores, joined: int, width: float) -> Axis:
    """The axis of a training with other captioners to the right of it.

    Their names alternate between two lines, for charts that cannot turn labels.
    """
    others = [_shortened(one_line(row.name)) for row in run.checkpoints[joined:]]
    share = min(0.6, len(others) * max(map(_inches, others)) * 0.6 / width)
    axis = checkpoint_axis(replace(run, checkpoints=run.checkpoints[:joined]), width * (1 - share))
    span = axis.positions[-1] - axis.positions[0]
    apart = span * share / (1 - share) / len(others) if span else 1.0
    places = [axis.positions[-1] + apart * (number + 1) for number in range(len(others))]
    height = max(axis.label_height, max(map(_inches, others)) * math.sin(math.radians(ROTATION)) - 0.1)
    labels = tuple("\n" * (number % 2) + name for number, name in enumerate(others))
    return replace(
        axis, positions=(*axis.positions, *places), labels=(*axis.labels, *labels), label_height=height, joined=joined
    )


def spread_labels(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions for labels as near to their values as possible, at least `gap` apart and inside [low, high].

    Groups of labels that touch are merged and centred on the mean of their values, lowest first, until none touch.

    Args:
        values: the best positions of the labels.
        gap: the least distance between two of them.
        low: the lowest position.
        high: the highest position.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    groups: list[list[int]] = []
    starts: list[float] = []
    for index in order:
        group = [index]
        start = _start(values, group, gap, low, high)
        while groups and starts[-1] + len(groups[-1]) * gap > start:
            group = groups.pop() + group
            starts.pop()
            start = _start(values, group, gap, low, high)
        groups.append(group)
        starts.append(start)
    places = [0.0] * len(values)
    for group, start in zip(groups, starts, strict=True):
        for rank, index in enumerate(group):
            places[index] = start + rank * gap
    return places


def _start(values: Sequence[float], group: Sequence[int], gap: float, low: float, high: float) -> float:
    """Position of the lowest label of a group that is centred on its values, as far as the bounds allow."""
    centred = math.fsum(values[index] for index in group) / len(group) - (len(group) - 1) * gap / 2
    return max(low, min(centred, high - (len(group) - 1) * gap))


def _step(places: Sequence[float], sizes: Sequence[float]) -> int:
    """Every how many rows a label fits: 1, 2, 5, 10, 20, ..."""
    nearest = min(after - before for before, after in pairwise(places))
    typical = sorted(sizes)[len(sizes) // 2]
    for power in range(9):
        for digit in (1, 2, 5):
            step = int(digit * 10**power)
            if nearest * step >= typical:
                return step
    return 10**9


def _do_not_overlap(places: Sequence[float], sizes: Sequence[float], before: int, after: int) -> bool:
    """Whether the labels of two rows do not overlap."""
    return places[after] - places[before] >= (sizes[before] + sizes[after]) / 2


def _inches(label: str) -> float:
    """Estimated width of a label's widest line; characters of East Asia count twice."""
    return INCHES_PER_CHARACTER * max(
        sum(2 if unicodedata.east_asian_width(mark) in "WF" else 1 for mark in line) for line in label.split("\n")
    )


def _shortened(name: str) -> str:
    """The name, without its middle when it is long: names of one run often differ at their end."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"
