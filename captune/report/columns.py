"""Columns of metrics in reports: their order, their scale and the direction of improvement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captune.metrics import METRICS, NEGLIGIBLE, find_column, iter_columns

__all__ = [
    "CIDER_TOP",
    "LOWER_IS_BETTER",
    "SLIDES_METRICS",
    "Column",
    "column",
    "describe",
    "format_value",
    "group_by_scale",
    "heading",
    "order_metrics",
    "scale_sentence",
    "shows_zero",
]

DECIMALS = 4
"""Decimals that tables show; two values that look equal count as a tie."""


UNIT_TOP, CIDER_TOP = 2.5, 10.0
"""Upper ends of scales: the largest (CLIPScore's) that a chart shows with metrics from 0 to 1, and CIDEr's."""

LOWER_IS_BETTER = "↓"
"""Mark of the columns in which the lowest score is the best."""

ENGLISH = {
    "note.scale": "Scale: {parts}.",
    "note.scale.outside": "Scale: unknown, because values are outside the usual range of {names}.",
    "note.scale.range": "{names} 0-{top:g}",
    "note.scale.others": "others 0-{top:g}",
    "note.scale.unbounded": "{names} unbounded",
    "note.scale.unknown": "{names} not known",
    "note.scale.separator": ", ",
}
"""Templates of `scale_sentence`."""


@dataclass(frozen=True, slots=True)
class Column:
    """One metric as the report sees it.

    Attributes:
        name: the metric's name, as in `Scores.corpus`.
        top: upper end of its scale (10 for CIDEr), or None when there is none or the metric is unknown.
        direction: +1 when higher is better, -1 when lower is better, 0 when the metric is unknown.
    """

    name: str
    top: float | None = None
    direction: int = 0


SLIDES_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L")
"""The columns that every table starts with, in the order of the slides."""


def column(name: str) -> Column:
    """The column of a metric; an unknown one has neither a scale nor a direction."""
    known = find_column(name)
    return Column(name) if known is None else Column(name, known.top, +1 if known.higher_is_better else -1)


def describe(name: str) -> str:
    """What a metric measures: the description of its column, else the first line of its class's docstring."""
    known = find_column(name)
    if known is None or known.description:
        return "" if known is None else known.description
    metric = next((metric for metric, column in iter_columns() if column.name == name), None)
    # `__doc__` of the class alone: a docstring of the base class would describe no metric.
    lines = ((metric and METRICS[metric].__doc__) or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def order_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Metric names without repetition: those of the slides first, then the others in order."""
    present = dict.fromkeys(names)
    first = [name for name in SLIDES_METRICS if name in present]
    return tuple(first + [name for name in present if name not in SLIDES_METRICS])


def shows_zero(value: float, decimals: int = DECIMALS) -> bool:
    """Whether a score or a difference is shown as 0, or is below `NEGLIGIBLE`."""
    return abs(value) < max(NEGLIGIBLE, 0.5 * 10.0**-decimals)


def format_value(value: float | None) -> str:
    """A score as a table cell: four decimals, `nan` for not a number, a dash where there is none."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "nan"
    if shows_zero(value):
        return f"{0:.{DECIMALS}f}"
    return f"{value:.{DECIMALS}f}" if abs(value) < 1e6 else f"{value:.{DECIMALS}g}"


def group_by_scale(names: Iterable[str]) -> dict[float | None, list[str]]:
    """The metrics that one chart can show, by the upper end of their scale; those without one are left out.

    Returns:
        None -> metrics from 0 to about 1 (up to `UNIT_TOP`), then the others by ascending upper end.
    """
    groups: dict[float, list[str]] = {}
    for name in names:
        if (top := column(name).top) is not None:
            groups.setdefault(0.0 if top <= UNIT_TOP else top, []).append(name)
    return {top or None: groups[top] for top in sorted(groups)}


def heading(name: str) -> str:
    """A metric's name as the heading of its column, with an arrow where lower is better."""
    return f"{name} {LOWER_IS_BETTER}" if column(name).direction < 0 else name


def scale_sentence(values: Mapping[str, list[float]], texts: Mapping[str, Any] = ENGLISH) -> str:
    """Describe the scale of the scores, or that some are outside their scale.

    Args:
        values: the finite scores of every metric.
        texts: the templates of `ENGLISH` in another language.

    Returns:
        One sentence without line breaks, such as "Scale: CIDEr 0-10, others 0-1."
    """
    tops: dict[float, list[str]] = {}
    outside: list[str] = []
    unbounded: list[str] = []
    unknown: list[str] = []

    def part(key: str, names: Sequence[str], top: float = 1.0) -> str:
        return str(texts[f"note.scale.{key}"]).format(names=", ".join(names), top=top)

    for name, scores in values.items():
        known = column(name)
        if known.top is None:
            (unbounded if known.direction else unknown).append(name)
            continue
        tops.setdefault(known.top, []).append(name)
        if any(not 0 <= score <= known.top for score in scores):
            outside.append(f"{name} (0-{known.top:g})")
    if outside:
        return part("outside", outside)
    unit = tops.pop(1.0, [])
    parts = [part("range", names, top) for top, names in sorted(tops.items(), reverse=True)]
    if unbounded:
        parts.append(part("unbounded", unbounded))
    if unit:
        # "others" would be false next to a metric whose scale is not known.
        parts.append(part("range" if unknown or not parts else "others", unit))
    if unknown:
        parts.append(part("unknown", unknown))
    return str(texts["note.scale"]).format(parts=str(texts["note.scale.separator"]).join(parts)) if parts else ""
