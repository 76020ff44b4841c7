"""Bootstrap over images: intervals, differences between metrics with their tests, and accuracy on pairs of captions.

G images, B resamples. Judgements of one image depend on each other, so a resample draws images with replacement, each
with all of its judgements; it is a row of G integers, how often each image was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.metrics import holm

__all__ = [
    "CONFIDENCE",
    "Difference",
    "Estimate",
    "differences",
    "estimate",
    "image_resamples",
    "ordered_pairs",
    "ratio",
]

CONFIDENCE = 0.95

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its percentile bootstrap interval.

    Attributes:
        value: of all judgements; None if it is not defined.
        low: lower end of the interval; None without one.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """As JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.3f}" if self.low is None else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def image_resamples(images: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """How often each of G images is drawn in each resample, (B, G) int64."""
    if images == 0:
        return np.zeros((0, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    """A value with the interval of its resamples.

    Args:
        value: of all judgements; NaN if it is not defined.
        resampled: (B,) the same of every resample. NaN (a resample without the needed images) is ignored; if more than
            half are NaN there is no interval.
    """
    if not math.isfinite(value):
        return Estimate(None)
    finite = resampled[np.isfinite(resampled)]
    if len(finite) == 0 or len(finite) * 2 < len(resampled):
        return Estimate(float(value))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def ratio(hits: NDArray[Any], counts: NDArray[Any], draws: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """A share over images, of all images and of resamples.

    Args:
        hits: (G,) of each image.
        counts: (G,) the number of cases of each image; 0 leaves the image out.
        draws: (B, G) resamples.

    Returns:
        The share and (B,) the resampled shares; NaN where there is no case.
    """
    total = counts.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(hits.sum() / total) if total else math.nan, (draws @ hits) / (draws @ counts)


def ordered_pairs(
    metric: NDArray[np.float64], people: NDArray[np.float64], images: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Pairs of captions of the same image that people order.

    Args:
        metric: (n,) scores of a metric.
        people: (n,) scores of people.
        images: (n,) the image of each caption.
        count: G, number of images.

    Returns:
        (G, 3): pairs that the metric orders alike, pairs that it ties, and all pairs that people order.
    """
    counts = np.zeros((count, 3), np.int64)
    order = np.argsort(images, kind="stable")
    for items in np.split(order, np.flatnonzero(np.diff(images[order])) + 1):
        for start in range(0, len(items), 1024):  # rows of the matrix of pairs that fit in memory
            first = items[start : start + 1024]
            by_people = np.sign(people[first, None] - people[items])
            by_metric = np.sign(metric[first, None] - metric[items])
            counts[images[items[0]]] += (
                np.count_nonzero(by_people * by_metric > 0),
                np.count_nonzero((by_people != 0) & (by_metric == 0)),
                np.count_nonzero(by_people),
            )
    return counts // 2  # every pair was counted from both sides


@dataclass(frozen=True, slots=True)
class Difference:
    """Two metrics compared on the same judgements.

    Attributes:
        metrics: their names; the first agrees better with people.
        difference: how much better.
        low: lower end of the interval of the difference.
        high: upper end.
        p_value: chance of a difference at least this large, in either direction, between metrics that agree equally
            well, by the paired bootstrap.
        holm: the p-value with Holm's correction for all pairs of metrics.
    """

    metrics: tuple[str, str]
    difference: float
    low: float
    high: float
    p_value: float
    holm: float


def differences(values: Mapping[str, float], resampled: Mapping[str, NDArray[np.float64]]) -> list[Difference]:
    """Compare all pairs of metrics by the paired bootstrap, in which all of them see the same resamples.

    Args:
        values: metric -> its agreement with people; NaN if it is not defined, which leaves the metric out.
        resampled: metric -> (B,) the same of each resample.
    """
    names = sorted((name for name, value in values.items() if math.isfinite(value)), key=lambda name: -values[name])
    tested = []
    for first, second in combinations(names, 2):
        drawn = resampled[first] - resampled[second]
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) < 2:
            continue
        observed = values[first] - values[second]
        # The resampled differences around their mean are what chance makes of equal metrics. Equal differences may
        # differ in their last digit.
        extreme = np.count_nonzero(np.abs(drawn - drawn.mean()) >= observed - 1e-12)
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        tested.append(((first, second), observed, low, high, (int(extreme) + 1) / (len(drawn) + 1)))
    adjusted = holm([row[-1] for row in tested])
    return [Difference(*row, p) for row, p in zip(tested, adjusted, strict=True)]
