"""`log.jsonl` of a run: how the loss went and what the run cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["TrainingLog", "read_log"]

MOST_POINTS = 400
"""Steps that a chart shows; more are averaged in groups."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What the log of a run tells.

    Attributes:
        steps: the logged steps, ascending.
        loss: their training losses; NaN where none was logged.
        lr: their learning rates; NaN where none was logged.
        facts: model, images, samples, steps, processes, device and whatever else the line `run` holds.
        seconds: from the start of the run to the last line; None without a log.
        samples_per_s: mean rate of training; None when not logged.
    """

    steps: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    samples_per_s: float | None = None


def read_log(path: Path) -> TrainingLog:
    """Read the lines `run` and `step` of a `log.jsonl`.

    A line that is no JSON object is passed over, since a run may have been stopped while it wrote one, and a
    missing log is an empty one: scores can be reported without.

    Args:
        path: the file; each line is `{"time": seconds, "event": "step", "step": 10, "loss": 2.1, "lr": 3e-5, ...}`.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return TrainingLog()
    events = [event for event in map(_parse, lines) if event]
    by_step = {event["step"]: event for event in events if event.get("event") == "step" and _number(event, "step") >= 0}
    steps = sorted(by_step)
    rates = [rate for rate in (_number(by_step[step], "samples_per_s") for step in steps) if math.isfinite(rate)]
    loss = [_number(by_step[step], "loss") for step in steps]
    lr = [_number(by_step[step], "lr") for step in steps]
    facts: dict[str, Any] = next((event for event in reversed(events) if event.get("event") == "run"), {})
    times = [time for time in (_number(event, "time") for event in events) if math.isfinite(time)]
    return TrainingLog(
        steps=_thinned([float(step) for step in steps]),
        loss=_thinned(loss),
        lr=_thinned(lr),
        facts={name: value for name, value in facts.items() if name not in ("event", "time")},
        seconds=max(times, default=None),
        samples_per_s=math.fsum(rates) / len(rates) if rates else None,
    )


def _parse(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _number(event: Mapping[str, Any], name: str) -> float:
    """The field as a finite number, else NaN."""
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return math.nan
    return float(value)


def _thinned(values: list[float]) -> tuple[float, ...]:
    """Means of as many neighbouring values as bring them below the most that a chart shows."""
    group = math.ceil(len(values) / MOST_POINTS) or 1
    chunks = [values[start : start + group] for start in range(0, len(values), group)]
    return tuple(math.fsum(chunk) / len(chunk) for chunk in chunks)
