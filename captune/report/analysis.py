"""Analyse a table of scores: gains, jumps, plateaus and metrics that disagree.

The rules, so that every sentence of the report can be verified:

- It covers the rows of one training (`split_training_rows`); other captioners are compared with its last row.
- If the table has paired tests, a difference between two rows that does not pass its test is no gain, jump, drop or
  disagreement, and no reason for advice.
- A gain goes from the first row to the last; relative to the first row where that is not 0 as shown.
- A row is best for sure if it differs from every other row: by their paired test, otherwise by intervals that do not
  overlap.
- The pace of a metric is its range over all rows divided by the number of steps.
- The trend of the last three checkpoints is the slope of the least-squares line through them: rising or
  falling when it is at least a quarter of the pace and the last step changes the score as shown, else flat. A flat
  metric has collapsed if all of the last three are visibly worse than the first row, the last one by more than chance.
- A rise or fall over the last three counts as unclear when no paired test of a step supports it, or without tests when
  it is smaller than half the width of the last confidence interval: it may be noise.
- Over-fitting: from a metric's best row to the last, it falls by more than chance on the evaluated images while it
  rises visibly on the slice of training images.
- Swinging: the last three steps change sign twice, each is at least a quarter of the range, and each passes its test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from captune.parsing import nan_to_null
from captune.report.axis import positions
from captune.report.caption_statistics import RunCaptions, caption_statistics
from captune.report.columns import DECIMALS, SLIDES_METRICS, column, shows_zero
from captune.report.learning_curve import differ, has_statistics, split_training_rows
from captune.report.scores_json import CheckpointScores, RunScores

__all__ = ["TREND_WINDOW", "Advice", "Analysis", "Jump", "MetricAnalysis", "OtherRow", "Overfit", "Trend", "analyse"]

TREND_WINDOW = 3
"""How many of the last checkpoints a trend is fitted through."""

TREND_SHARE = 0.25
"""Which share of the average pace a slope must reach to count as rising or falling."""

VISIBLE = 0.5 * 10**-DECIMALS
"""Smaller scores are shown as 0.0000."""

Trend = Literal["rising", "flat", "collapsed", "falling", "unclear", "swinging"]
Advice = Literal["continue", "stop", "lower learning rate", "more images"]


@dataclass(frozen=True, slots=True)
class Jump:
    """A change between two neighbouring rows."""

    before: str
    after: str
    change: float


@dataclass(frozen=True, slots=True)
class MetricAnalysis:
    """The analysis of one column.

    Attributes:
        metric: its name.
        first, last: scores of the first and the last row; NaN where there is none.
        gain: last - first.
        relative_gain: gain / first; None where the first score is 0 as shown, or one of them is missing.
        relative_interval: bounds of the relative gain, or None where no statistics are given.
        paired: whether these bounds come from the paired difference; else they combine the intervals of both rows
            and are wider than necessary, since both rows are on the same images.
        p_value: of the paired test of the last row against the pretrained one, or None.
        differs: whether the last row differs from the first by more than chance; None if no statistic decides.
        best, best_value: the row with the best score and that score; None and NaN without any score above 0.
        best_is_sure: whether it differs from every other row by more than chance; True if no statistic decides.
        largest_jump: the step that improved the metric most, or None.
        drops: the steps on which it got worse by something visible.
        missing: rows without a finite score.
        trend: of the last three checkpoints; None when there are too few rows.
        slope: of the last three checkpoints, per epoch; NaN without a trend.
        pace: range over all rows per epoch; NaN without a trend.
    """

    metric: str
    first: float
    last: float
    gain: float
    relative_gain: float | None
    relative_interval: tuple[float, float] | None
    paired: bool
    p_value: float | None
    differs: bool | None
    best: str | None
    best_value: float
    best_is_sure: bool
    largest_jump: Jump | None
    drops: tuple[Jump, ...]
    missing: tuple[str, ...]
    trend: Trend | None
    slope: float
    pace: float


@dataclass(frozen=True, slots=True)
class Overfit:
    """A metric that continues to rise on training images only.

    Attributes:
        metric: its name.
        since: the row that was best on the evaluated images.
        evaluated: change from there to the last row on the evaluated images, below 0.
        trained: the same on the slice of training images, above 0.
    """

    metric: str
    since: str
    evaluated: float
    trained: float


@dataclass(frozen=True, slots=True)
class OtherRow:
    """A row that is no checkpoint of the training, such as another captioner.

    Attributes:
        name: of the row.
        reference: the row that it is compared with.
        higher: metrics on which it scores higher, by more than chance if the table has statistics.
        lower: metrics on which it scores lower.
        unclear: metrics on which no difference is shown.
    """

    name: str
    reference: str
    higher: tuple[str, ...]
    lower: tuple[str, ...]
    unclear: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The analysis of a table.

    Attributes:
        rows: names of the training's rows, in order; of the first row only if the table is of no training.
        is_training: whether they are checkpoints of a training.
        others: the other rows.
        metrics: one entry a column, in the order of the table.
        ranking: metrics with a relative gain, largest gain first.
        disagreements: (before, after, metrics that improved, metrics that got worse), for every step on which
            metrics disagree, then from the first row to the last if they disagree there.
        advice: recommended by the trends of most metrics; None with too few rows.
        advised_by: the metrics whose trend led to the advice.
        best: the row that is best on most metrics, ties to CIDEr's best; None with a single row.
        overfit: metrics that rise on training images and fall on the others; None where no row has a training slice.
        lengths: words per caption in every row, NaN for a row without captions.
        reference_length: words per reference; NaN without references.
    """

    rows: tuple[str, ...]
    is_training: bool
    others: tuple[OtherRow, ...]
    metrics: tuple[MetricAnalysis, ...]
    ranking: tuple[str, ...]
    disagreements: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]
    advice: Advice | None
    advised_by: tuple[str, ...]
    best: str | None
    overfit: tuple[Overfit, ...] | None
    lengths: tuple[float, ...]
    reference_length: float

    def __getitem__(self, metric: str) -> MetricAnalysis:
        return next(entry for entry in self.metrics if entry.metric == metric)

    def to_dict(self) -> dict[str, Any]:
        """The analysis as JSON values; null is not a number."""
        tree: dict[str, Any] = nan_to_null(asdict(self))
        return tree


def analyse(run: RunScores, captions: RunCaptions | None = None) -> Analysis:
    """Compute everything that the report states in words.

    Args:
        run: at least one row, from `scores.json` or a table without captions.
        captions: `caption_statistics` of the run, if they are already computed.
    """
    run = run.scored
    course = split_training_rows(run)
    others = tuple(_other(run, row, course.run.checkpoints[-1]) for row in course.others)
    run = course.run
    entries = tuple(_analyse_metric(run, metric) for metric in run.metrics)
    ranked = [
        entry
        for entry in entries
        if entry.relative_gain is not None
        and column(entry.metric).direction
        and (entry.differs is not False or shows_zero(entry.gain))
    ]
    ranked.sort(key=lambda entry: -_better(entry.metric, entry.relative_gain or 0.0))
    advice, advised_by = _advise(entries)
    captions = captions or caption_statistics(run)
    return Analysis(
        rows=tuple(row.name for row in run.checkpoints),
        is_training=course.is_training,
        others=others,
        metrics=entries,
        ranking=tuple(entry.metric for entry in ranked),
        disagreements=tuple(_disagreements(run)),
        advice=advice,
        advised_by=advised_by,
        best=_best_row(entries) if len(run.checkpoints) > 1 else None,
        overfit=_overfit(run, entries) if any(row.train_slice for row in run.checkpoints) else None,
        lengths=tuple(captions.rows[row.name].mean_length for row in run.checkpoints),
        reference_length=captions.references.mean_length,
    )


def _analyse_metric(run: RunScores, metric: str) -> MetricAnalysis:
    """Analyse one column."""
    names = [row.name for row in run.checkpoints]
    values = [math.nan if value is None else value for value in run.values(metric)]
    present = [index for index, value in enumerate(values) if math.isfinite(value)]
    ranked = [index for index in present if not shows_zero(values[index])]
    best = max(ranked, key=lambda index: _better(metric, values[index]), default=None)
    steps = [
        Jump(names[before], names[after], values[after] - values[before])
        for before, after in pairwise(present)
        if differ(run, metric, before, after) is not False
    ]
    top = max(steps, key=lambda step: _better(metric, step.change), default=None)
    first, last = values[0], values[-1]
    several = len(values) > 1
    zero = several and shows_zero(first) and shows_zero(last)
    defined = several and math.isfinite(first) and math.isfinite(last) and abs(first) >= VISIBLE
    trend, slope, pace = _trend(run, metric, values)
    return MetricAnalysis(
        metric=metric,
        first=first,
        last=last,
        gain=last - first if several else math.nan,
        relative_gain=(last - first) / abs(first) if defined else None,
        relative_interval=_relative_interval(run, metric) if defined else None,
        paired="pretrained" in run.checkpoints[-1].differences.get(metric, {}),
        p_value=None if zero else run.checkpoints[-1].p_values.get(metric, {}).get("pretrained"),
        differs=differ(run, metric, 0, len(values) - 1) if several else None,
        best=None if best is None else names[best],
        best_value=math.nan if best is None else values[best],
        best_is_sure=best is not None and all(_differs(run, metric, best, other) for other in present),
        largest_jump=top if top and _better(metric, top.change) >= VISIBLE else None,
        drops=tuple(step for step in steps if _better(metric, step.change) <= -VISIBLE),
        missing=tuple(name for name, value in zip(names, values, strict=True) if not math.isfinite(value)),
        trend=trend,
        slope=slope,
        pace=pace,
    )


def _differs(run: RunScores, metric: str, row: int, other: int) -> bool:
    """Whether a row differs from another one by more than chance, as far as the table has statistics."""
    if row == other:
        return True
    differs = differ(run, metric, min(row, other), max(row, other))
    return differs is True if has_statistics(run) else differs is not False


def _other(run: RunScores, row: CheckpointScores, reference: CheckpointScores) -> OtherRow:
    """A row of another captioner against a checkpoint."""
    names = [each.name for each in run.checkpoints]
    places = sorted((names.index(row.name), names.index(reference.name)))
    higher: list[str] = []
    lower: list[str] = []
    unclear: list[str] = []
    for metric in run.metrics:
        change = row.corpus.get(metric, math.nan) - reference.corpus.get(metric, math.nan)
        if not math.isfinite(change):
            continue
        differs = differ(run, metric, *places)
        if differs is False or (differs is None and has_statistics(run)):
            unclear.append(metric)
        else:
            (higher if change > 0 else lower).append(metric)
    return OtherRow(row.name, reference.name, tuple(higher), tuple(lower), tuple(unclear))


def _better(metric: str, change: float) -> float:
    """The change, turned so that larger is better (an unknown metric is taken as higher is better)."""
    return -change if column(metric).direction < 0 else change


def _relative_interval(run: RunScores, metric: str) -> tuple[float, float] | None:
    """Bounds of the relative gain, with the first row's score as the fixed measure.

    From the paired difference of the last row where it is given, else the widest that both rows' intervals allow.
    """
    start, end = run.checkpoints[0], run.checkpoints[-1]
    first = start.corpus[metric]
    if paired := end.differences.get(metric, {}).get("pretrained"):
        return paired[0] / abs(first), paired[1] / abs(first)
    before, after = start.intervals.get(metric), end.intervals.get(metric)
    if before is None or after is None:
        return None
    return (after[0] - before[1]) / abs(first), (after[1] - before[0]) / abs(first)


def _trend(run: RunScores, metric: str, values: Sequence[float]) -> tuple[Trend | None, float, float]:
    """Trend, slope and pace of the last three checkpoints by the rules at the top of this file."""
    if len(values) <= TREND_WINDOW or not all(map(math.isfinite, values)) or max(map(abs, values)) < VISIBLE:
        return None, math.nan, math.nan
    places, _ = positions(run)
    span = max(values) - min(values)
    pace = span / (places[-1] - places[0])
    slope = _slope(places[-TREND_WINDOW:], values[-TREND_WINDOW:])
    if span < VISIBLE:
        return "flat", 0.0, pace
    steps = [after - before for before, after in zip(values[-4:], values[-3:], strict=False)]
    signs = [math.copysign(1, step) for step in steps]
    last = len(values) - 1
    tests = [differ(run, metric, index - 1, index) for index in range(last - len(steps) + 1, last + 1)]
    swings = signs[0] != signs[1] != signs[2] and min(map(abs, steps)) >= TREND_SHARE * span
    if swings and False not in tests:
        return "swinging", slope, pace
    if abs(slope) < TREND_SHARE * pace or shows_zero(steps[-1]):
        drops = [_better(metric, value - values[0]) <= -VISIBLE for value in values[-TREND_WINDOW:]]
        collapsed = all(drops) and differ(run, metric, 0, last) is not False
        return ("collapsed" if collapsed else "flat"), slope, pace
    if _maybe_noise(run, metric, slope):
        return "unclear", slope, pace
    return ("rising" if _better(metric, slope) > 0 else "falling"), slope, pace


def _slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line."""
    x = math.fsum(places) / len(places)
    y = math.fsum(values) / len(values)
    spread = math.fsum((a - x) ** 2 for a in places)
    return math.fsum((a - x) * (b - y) for a, b in zip(places, values, strict=True)) / spread


def _maybe_noise(run: RunScores, metric: str, slope: float) -> bool:
    """Whether a slope over the last three rows may be noise according to their statistics."""
    places = range(len(run.checkpoints) - TREND_WINDOW + 1, len(run.checkpoints))
    values = [run.checkpoints[index].corpus[metric] for index in (places[0] - 1, *places)]
    if any("previous" in run.checkpoints[index].p_values.get(metric, {}) for index in places):
        along = [after - before for before, after in pairwise(values)]
        return not any(
            change * slope > 0 and differ(run, metric, index - 1, index)
            for index, change in zip(places, along, strict=True)
        )
    bounds = run.checkpoints[-1].intervals.get(metric)
    return bounds is not None and abs(values[-1] - values[0]) < (bounds[1] - bounds[0]) / 2


def _disagreements(run: RunScores) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """The steps, and from the first row to the last, on which some metrics improved visibly and others got worse."""
    rows = run.checkpoints
    pairs = list(pairwise(range(len(rows))))
    if len(rows) > 2:
        pairs.append((0, len(rows) - 1))
    disagreements = []
    for first, second in pairs:
        before, after = rows[first], rows[second]
        changes = {
            name: _better(name, after.corpus[name] - before.corpus[name])
            for name in run.metrics
            if name in before.corpus
            and name in after.corpus
            and column(name).direction
            and differ(run, name, first, second) is not False
        }
        up = tuple(name for name, change in changes.items() if change >= VISIBLE)
        down = tuple(name for name, change in changes.items() if change <= -VISIBLE)
        if up and down:
            disagreements.append((before.name, after.name, up, down))
    return disagreements


def _advise(entries: Sequence[MetricAnalysis]) -> tuple[Advice | None, tuple[str, ...]]:
    """Follow the trend of most metrics of the slides; where two trends are equally frequent, CIDEr's."""
    trends = {entry.metric: entry.trend for entry in entries if entry.metric in SLIDES_METRICS and entry.trend}
    if not trends:
        return None, ()
    counts = Counter(trends.values())
    winner = max(counts, key=lambda trend: (counts[trend], trends.get("CIDEr") == trend))
    advice: dict[Trend, Advice] = {
        "rising": "continue",
        "flat": "stop",
        "falling": "lower learning rate",
        "collapsed": "lower learning rate",
        "swinging": "lower learning rate",
        "unclear": "more images",
    }
    return advice[winner], tuple(metric for metric, trend in trends.items() if trend == winner)


def _best_row(entries: Sequence[MetricAnalysis]) -> str | None:
    """The row that is best on most metrics; ties go to CIDEr's best, then to the earlier metric's."""
    wins = Counter(entry.best for entry in entries if entry.best and column(entry.metric).direction)
    cider = next((entry.best for entry in entries if entry.metric == "CIDEr"), None)
    return max(wins, key=lambda name: (wins[name], name == cider), default=None)


def _overfit(run: RunScores, entries: Sequence[MetricAnalysis]) -> tuple[Overfit, ...]:
    """Metrics that rise on training images while they fall on the evaluated ones."""
    rows = {row.name: row for row in run.checkpoints}
    indices = {name: index for index, name in enumerate(rows)}
    last = run.checkpoints[-1]
    overfits = []
    for entry in entries:
        name, best = entry.metric, rows.get(entry.best or "")
        if best is None or name not in best.train_slice or name not in last.train_slice or name not in last.corpus:
            continue
        evaluated = last.corpus[name] - best.corpus[name]
        trained = last.train_slice[name] - best.train_slice[name]
        if best is last:
            continue
        differs = differ(run, name, indices[best.name], len(indices) - 1)
        falls = _falls(name, best, last) if differs is None else differs and _better(name, evaluated) < 0
        if falls and _better(name, trained) >= VISIBLE:
            overfits.append(Overfit(name, best.name, evaluated, trained))
    return tuple(overfits)


def _falls(metric: str, best: CheckpointScores, last: CheckpointScores) -> bool:
    """Whether a score has left the best row's interval; without intervals, whether the difference is seen."""
    change = last.corpus[metric] - best.corpus[metric]
    if metric not in best.intervals:
        return bool(_better(metric, change) <= -VISIBLE)
    low, high = best.intervals[metric]
    return bool(last.corpus[metric] < low if _better(metric, 1.0) > 0 else last.corpus[metric] > high)
