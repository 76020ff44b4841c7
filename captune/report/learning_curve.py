"""The rows of a table that are checkpoints of one training, their significant differences, and the training log."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from captune.parsing import load_json
from captune.report.columns import shows_zero
from captune.report.scores_json import CheckpointScores, RunScores

__all__ = [
    "SIGNIFICANT",
    "TrainingLog",
    "TrainingRows",
    "differ",
    "drawn_rows",
    "has_statistics",
    "read_log",
    "split_training_rows",
]

SIGNIFICANT = 0.05
"""A paired test below this probability is a difference."""

PRETRAINED = "pretrained"

_STEP_WORDS = "epochs?|ep|e|steps?|s|iterations?|iters?|it|checkpoints?|ckpt|cp|rounds?|r|stage"
_STEP_NAME = re.compile(rf"(?:(?:{_STEP_WORDS})[ _\-./=]*\d+k?[ _\-./]*)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows of a table that are checkpoints of one training, and the other rows.

    Attributes:
        run: the rows of the training in its order, with the tests between them. If no row is of a training, only
            the first row, with which the others are compared.
        others: the other rows, such as captioners that were evaluated on the same images.
        is_training: whether the rows of `run` are of a training.
    """

    run: RunScores
    others: tuple[CheckpointScores, ...]
    is_training: bool


def split_training_rows(run: RunScores) -> TrainingRows:
    """Separate the checkpoints of a training from other rows of its table.

    A row with an epoch is a checkpoint; training starts from the row named "pretrained", or from a first row without an
    epoch. If no row has an epoch, as in a table of another program or trainer, rows named like steps ("step-1000",
    "ckpt 2") are checkpoints. Rows that were not scored are left out.
    """
    run = run.scored
    rows = run.checkpoints
    if len(rows) == 1:
        return TrainingRows(run, (), True)
    steps = {index for index, row in enumerate(rows) if row.epoch is not None}
    if not steps and (run.images is None or rows[0].name.lower() == PRETRAINED):
        steps = {index for index, row in enumerate(rows) if _STEP_NAME.fullmatch(row.name.strip())}
    begins = next((index for index, row in enumerate(rows) if row.name.lower() == PRETRAINED), 0)
    if not steps and rows[begins].name.lower() != PRETRAINED:
        return TrainingRows(replace(run, checkpoints=rows[:1]), rows[1:], False)
    members = sorted(steps | {begins} if rows[begins].epoch is None else steps)
    checkpoints = [_with_tests_of(rows, members, position) for position in range(len(members))]
    others = tuple(row for index, row in enumerate(rows) if index not in members)
    return TrainingRows(replace(run, checkpoints=tuple(checkpoints)), others, True)


def drawn_rows(run: RunScores) -> tuple[RunScores, int]:
    """The table as charts draw it: the training's rows, then the others; and how many of them a line connects."""
    course = split_training_rows(run)
    rows = (*course.run.checkpoints, *course.others)
    return replace(run, checkpoints=rows), len(course.run.checkpoints) if course.is_training else 0


def _with_tests_of(rows: Sequence[CheckpointScores], members: Sequence[int], position: int) -> CheckpointScores:
    """A checkpoint with only those of its tests that compare it with the first and with the previous one."""
    index = members[position]
    kept = {PRETRAINED} if members[0] == 0 else set()
    if position and members[position - 1] == index - 1:
        kept.add("previous")
    row = rows[index]
    if len(kept) == 2:
        return row
    return replace(
        row,
        p_values={metric: _only(tests, kept) for metric, tests in row.p_values.items()},
        differences={metric: _only(bounds, kept) for metric, bounds in row.differences.items()},
    )


def _only(tests: Mapping[str, Any], kept: set[str]) -> dict[str, Any]:
    return {rival: value for rival, value in tests.items() if rival in kept}


def has_statistics(run: RunScores) -> bool:
    """Whether a table carries paired tests or intervals, which separate differences from chance."""
    return any(row.intervals or any(row.p_values.values()) for row in run.checkpoints)


def differ(run: RunScores, metric: str, before: int, after: int) -> bool | None:
    """Whether two rows of a table differ by more than chance in one metric.

    Args:
        run: the table.
        metric: a column of it.
        before, after: indices of the two rows, the earlier one first.

    Returns:
        The result of their paired test; without one, True if their confidence intervals do not overlap. None if no
        statistic decides. Scores that are both shown as 0 do not differ.
    """
    one, other = run.checkpoints[before], run.checkpoints[after]
    values = one.corpus.get(metric, math.nan), other.corpus.get(metric, math.nan)
    if not all(map(math.isfinite, values)):
        return None
    if all(map(shows_zero, values)) or shows_zero(values[1] - values[0]):
        return False
    tests = other.p_values.get(metric, {})
    p = tests.get("previous") if after == before + 1 else None
    if p is None and before == 0:
        p = tests.get(PRETRAINED)
    if p is not None:
        return p < SIGNIFICANT
    bounds = one.intervals.get(metric), other.intervals.get(metric)
    if bounds[0] is not None and bounds[1] is not None and (bounds[0][1] < bounds[1][0] or bounds[1][1] < bounds[0][0]):
        return True
    return None


# `log.jsonl` of a run: its loss and its cost.

MOST_POINTS = 400
"""Steps that a chart shows; more are averaged in groups."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The contents of a run's log.

    Attributes:
        steps: the logged steps, ascending.
        loss: their training losses; NaN where none was logged.
        lr: their learning rates; NaN where none was logged.
        facts: model, images, captions, steps, processes, device and all other fields of the line `run`.
        seconds: from the start of the run to the last line; None without a log.
        captions_per_s: mean rate of training; None when not logged.
        peak_memory: bytes at the peak; None when not logged.
        energy: joules, if the machine measures them; None when not logged.
        left_out: ids of the training images that were left out as unreadable; `facts` counts those that were used.
    """

    steps: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    captions_per_s: float | None = None
    peak_memory: float | None = None
    energy: float | None = None
    left_out: tuple[str, ...] = ()

    @property
    def left_out_names(self) -> str:
        """Up to three of the images that were left out."""
        return ", ".join([*self.left_out[:3], *(["..."] if len(self.left_out) > 3 else [])])

    @property
    def training_images(self) -> str:
        """How many training images were used and left out, in words; empty if none was left out."""
        used, count = self.facts.get("images"), len(self.left_out)
        if not count or not isinstance(used, int):
            return ""
        total = used + count
        return f"{used:,} of {total:,} training images; {count:,} left out as unreadable ({self.left_out_names})"


def read_log(path: str | Path) -> TrainingLog:
    """Read the lines `run`, `quarantined`, `step` and `cost` of a `log.jsonl`.

    Lines that are not JSON objects are skipped, since a run may have been stopped while writing one. A missing log
    counts as empty.

    Args:
        path: the file; each line is `{"time": seconds, "event": "step", "step": 10, "loss": 2.1,
            "learning_rate": 3e-5, "captions_per_s": 80.5, ...}`.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return TrainingLog()
    events = [event for event in map(_parse, lines) if event]
    by_step = {event["step"]: event for event in events if event.get("event") == "step" and _number(event, "step") >= 0}
    steps = sorted(by_step)
    rates = [rate for rate in (_number(by_step[step], "captions_per_s") for step in steps) if math.isfinite(rate)]
    loss = [_number(by_step[step], "loss") for step in steps]
    lr = [_number(by_step[step], "learning_rate") for step in steps]
    facts: dict[str, Any] = next((event for event in reversed(events) if event.get("event") == "run"), {})
    quarantined: dict[str, Any] = next((event for event in reversed(events) if event.get("event") == "quarantined"), {})
    times = [time for time in (_number(event, "time") for event in events) if math.isfinite(time)]
    return TrainingLog(
        steps=_thinned([float(step) for step in steps]),
        loss=_thinned(loss),
        lr=_thinned(lr),
        facts={name: value for name, value in facts.items() if name not in ("event", "time")},
        seconds=max(times, default=None),
        captions_per_s=math.fsum(rates) / len(rates) if rates else None,
        peak_memory=_largest(events, "peak_memory"),
        energy=_largest(events, "energy"),
        left_out=tuple(map(str, quarantined.get("images") or ())),
    )


def _parse(line: str) -> dict[str, Any]:
    try:
        event = load_json(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _number(event: Mapping[str, Any], name: str) -> float:
    """The field as a finite number, else NaN."""
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return math.nan
    return float(value)


def _largest(events: list[dict[str, Any]], name: str) -> float | None:
    costs = (_number(event, name) for event in events if event.get("event") == "cost")
    return max((cost for cost in costs if math.isfinite(cost)), default=None)


def _thinned(values: list[float]) -> tuple[float, ...]:
    """Means of neighbouring values, at most as many as a chart shows."""
    group = math.ceil(len(values) / MOST_POINTS) or 1
    chunks = [values[start : start + group] for start in range(0, len(values), group)]
    return tuple(math.fsum(chunk) / len(chunk) for chunk in chunks)
