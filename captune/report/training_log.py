"""`log.jsonl` of a run: how the loss went and what the run cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.parsing import load_json

__all__ = ["TrainingLog", "read_log"]

MOST_POINTS = 400
"""Steps that a chart shows; more are averaged in groups."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The contents of a run's log.

    Attributes:
        steps: the logged steps, ascending.
        loss: their training losses; NaN where none was logged.
        lr: their learning rates; NaN where none was logged.
        facts: model, images, captions, steps, processes, device and whatever else the line `run` holds.
        seconds: from the start of the run to the last line; None without a log.
        captions_per_s: mean rate of training; None when not logged.
        peak_memory: bytes at the peak; None when not logged.
        energy: joules, as far as the machine counts them; None when not logged.
    """

    steps: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    captions_per_s: float | None = None
    peak_memory: float | None = None
    energy: float | None = None


def read_log(path: Path) -> TrainingLog:
    """Read the lines `run`, `step` and `cost` of a `log.jsonl`.

    A line that is no JSON object is passed over, since a run may have been stopped while it wrote one, and a
    missing log is an empty one: scores can be reported without.

    Args:
        path: the file; each line is `{"time": seconds, "event": "step", "step": 10, "loss": 2.1,
            "learning_rate": 3e-5, "captions_per_s": 80.5, ...}`.
    """
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
    """Means of as many neighbouring values as bring them below the most that a chart shows."""
    group = math.ceil(len(values) / MOST_POINTS) or 1
    chunks = [values[start : start + group] for start in range(0, len(values), group)]
    return tuple(math.fsum(chunk) / len(chunk) for chunk in chunks)
