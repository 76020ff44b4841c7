"""How far raters agree: Krippendorff's alpha, by the library `krippendorff`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import krippendorff
import numpy as np
from numpy.typing import NDArray

from captune.apps.rating.estimates import Estimate, estimate

__all__ = ["alpha"]

RESAMPLES = 500


def alpha(
    ratings: Iterable[tuple[int, int, int]],
    values: int,
    level: Literal["nominal", "ordinal"],
    draws: NDArray[np.int64],
) -> tuple[Estimate, int]:
    """Krippendorff's alpha (Content Analysis, 4th ed. 2018, chapter 12) of things that several people judged.

    Args:
        ratings: of every judgement its image (a column of `draws`), a number of the thing that was judged, and the
            value, from 0.
        values: how many values there are.
        level: of measurement.
        draws: (B, N) resamples of images.

    Returns:
        Alpha (None where no thing was judged twice or only one value was ever given), and how many things were judged
        by two people or more.
    """
    counts: dict[int, NDArray[np.int64]] = {}
    image_of: dict[int, int] = {}
    for image, unit, value in ratings:
        counts.setdefault(unit, np.zeros(values, dtype=np.int64))[value] += 1
        image_of[unit] = image
    # A thing that one person judged tells nothing of agreement.
    units = [unit for unit, count in counts.items() if count.sum() > 1]
    if not units:
        return Estimate(None), 0
    table = np.stack([counts[unit] for unit in units])
    images = np.array([image_of[unit] for unit in units])
    resampled = [_alpha(np.repeat(table, draw[images], axis=0), level) for draw in draws[:RESAMPLES]]
    return estimate(_alpha(table, level), np.array(resampled, dtype=np.float64)), len(units)


def _alpha(table: NDArray[np.int64], level: str) -> float:
    """Alpha of a table of (units, values) counts; NaN where it is not defined."""
    if len(table) == 0 or np.count_nonzero(table.sum(axis=0)) < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=table, level_of_measurement=level))
