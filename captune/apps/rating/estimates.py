"""Numbers with intervals: images are drawn again with replacement, as whole clusters of judgements.

B resamples, N images, S systems. A resample is a row of N whole numbers, how often each image was drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "Estimate", "estimate", "image_resamples", "weighted_mean"]

CONFIDENCE = 0.95

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its percentile bootstrap interval.

    Attributes:
        value: of all judgements; None where it cannot be computed.
        low: lower end of the interval; None where there is none.
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
    """How often each of N images is drawn in each resample, (B, N) int64."""
    if images == 0:
        return np.zeros((0, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    """A value with the interval of its resamples.

    Args:
        value: of all judgements; NaN where it cannot be computed.
        resampled: (B,) the same of every resample; NaN ones (a resample without the images it needs) are left out,
            and when they are more than half there is no interval.
    """
    if not math.isfinite(value):
        return Estimate(None)
    finite = resampled[np.isfinite(resampled)]
    if len(finite) == 0 or len(finite) * 2 < len(resampled):
        return Estimate(float(value))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def weighted_mean(values: NDArray[Any], weights: NDArray[Any], draws: NDArray[np.int64]) -> Estimate:
    """A mean over images.

    Args:
        values: (N,) an image's sum of values.
        weights: (N,) how many values are in it; 0 leaves the image out.
        draws: (B, N) resamples.
    """
    total = weights.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (draws @ values) / (draws @ weights)
        return estimate(float(values.sum() / total) if total else math.nan, resampled)
