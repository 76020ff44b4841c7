"""Columns of metrics in reports: their order, their scale and the direction of improvement."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from captune.metrics import NEGLIGIBLE, find_column

__all__ = ["SLIDES_METRICS", "Column", "column", "format_value", "order_metrics", "scale_sentence", "shows_zero"]

DECIMALS = 4
"""Decimals that tables show; two values that look equal count as a tie."""


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


def scale_sentence(values: dict[str, list[float]]) -> str:
    """Describe the scale of the scores, or that some are outside their scale.

    Args:
        values: the finite scores of every metric.

    Returns:
        One sentence without line breaks, such as "Scale: CIDEr 0-10, others 0-1."
    """
    tops: dict[float, list[str]] = {}
    outside = []
    for name, scores in values.items():
        top = column(name).top
        if top is None:
            continue
        tops.setdefault(top, []).append(name)
        if any(not 0 <= score <= top for score in scores):
            outside.append(f"{name} (0-{top:g})")
    if outside:
        return f"Scale: unknown, because values are outside the usual range of {', '.join(outside)}."
    unit = tops.pop(1.0, [])
    parts = [f"{', '.join(names)} 0-{top:g}" for top, names in sorted(tops.items(), reverse=True)]
    unknown = [name for name in values if column(name).top is None]
    if unit:
        # "others" would be false next to a metric whose scale is not known.
        parts.append(f"{', '.join(unit) if unknown or not parts else 'others'} 0-1")
    if unknown:
        parts.append(f"{', '.join(unknown)} not known")
    return f"Scale: {', '.join(parts)}." if parts else ""
