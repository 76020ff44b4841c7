"""Statistics of a study with bootstrap intervals over images: means, correlations, agreement and ranking.

B resamples, N images, S systems. A resample draws images with replacement, each with all of its judgements; it is a row
of N integers, how often each image was drawn.

Kendall's tau-c (Stuart, Biometrika 40, 1953) is what Flickr8k-Expert and its successors report; it allows for ties in
few human grades. It is computed by `captune.agreement`, and Krippendorff's alpha by the library `krippendorff`.

The ranking is the model of Bradley and Terry (Biometrika 39, 1952): system i is preferred to system j with the
probability `1 / (1 + exp(s_j - s_i))`; a tie is half a win for each. Every compared pair gets one more tie, so that a
system which won or lost everything has a finite strength in every resample.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import krippendorff
import numpy as np
from numpy.typing import NDArray

from captune.agreement import (
    CONFIDENCE,
    Estimate,
    estimate,
    image_resamples,
    kendall_taus,
    resampled_kendall_taus,
)

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "alpha",
    "bradley_terry",
    "estimate",
    "image_resamples",
    "is_connected",
    "kendall_tau_c",
    "log_strengths",
    "pearson",
    "row_kendall_tau_c",
    "row_pearson",
    "weighted_kendall_tau_c",
    "weighted_mean",
    "weighted_pearson",
]


def weighted_mean(values: NDArray[Any], weights: NDArray[Any], draws: NDArray[np.int64]) -> Estimate:
    """A mean over images.

    Args:
        values: (N,) an image's sum of values.
        weights: (N,) number of its values; 0 excludes the image.
        draws: (B, N) resamples.
    """
    total = weights.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (draws @ values) / (draws @ weights)
        return estimate(float(values.sum() / total) if total else math.nan, resampled)


FEWEST = 3
"""Pairs of values below which no correlation is computed."""

_SLOW_RESAMPLES = 500


def kendall_tau_c(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> Estimate:
    """Kendall's tau-c of two scores of N items.

    Args:
        x: (N,) one score.
        y: (N,) the other.
        weights: (B, N) how often each item is in each resample.
    """
    if len(x) < FEWEST:
        return Estimate(None)
    return estimate(float(kendall_taus(x, y).c), weighted_kendall_tau_c(x, y, weights[:_SLOW_RESAMPLES]))


def pearson(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> Estimate:
    """Pearson's r of two scores of N items; see `kendall_tau_c`."""
    if len(x) < FEWEST or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return Estimate(None)
    from scipy.stats import pearsonr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nearly equal values
        value = float(pearsonr(x, y).statistic)
    return estimate(value, weighted_pearson(x, y, weights))


def weighted_kendall_tau_c(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tau-c of B resamples, (B,) float64; NaN for a resample with one value of a score only.

    Equals tau-c of the scores with every item repeated as often as it was drawn.
    """
    items = np.arange(len(x), dtype=np.int64)
    return np.asarray(resampled_kendall_taus(x, y, items, weights).c)


def weighted_pearson(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pearson's r of B resamples, (B,) float64; NaN for a resample with one value of a score only."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = weights / weights.sum(axis=1, keepdims=True)
        # Centred, so that sums of squares lose no digits.
        x, y = x - x.mean(), y - y.mean()
        mean_x, mean_y = share @ x, share @ y
        covariance = share @ (x * y) - mean_x * mean_y
        spread = np.sqrt((share @ x**2 - mean_x**2) * (share @ y**2 - mean_y**2))
        r: NDArray[np.float64] = covariance / spread
    r[(_distinct(x, weights) < 2) | (_distinct(y, weights) < 2)] = math.nan
    return r


def row_kendall_tau_c(x: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tau-c of one score of N items with each of B others, (B,); NaN if one of the two has one value only.

    Args:
        x: (N,) one score.
        rows: (B, N) the others.
    """
    signs = np.sign(x[:, None] - x[None, :])
    surplus = (signs * np.sign(rows[:, :, None] - rows[:, None, :])).sum(axis=(1, 2))
    row_distinct = 1 + np.count_nonzero(np.diff(np.sort(rows, axis=1), axis=1), axis=1)
    distinct = np.minimum(len(np.unique(x)), row_distinct).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: NDArray[np.float64] = surplus / (len(x) ** 2 * (distinct - 1) / distinct)
    tau[distinct < 2] = math.nan
    return tau


def row_pearson(x: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r of one score of N items with each of B others, (B,); see `row_kendall_tau_c`."""
    # Deviations of equal values need not be 0: their mean is rounded.
    varied = (np.ptp(x) > 0) & (np.ptp(rows, axis=1) > 0)
    x, rows = x - x.mean(), rows - rows.mean(axis=1, keepdims=True)
    spread = np.sqrt((x**2).sum() * (rows**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: NDArray[np.float64] = np.where(varied & (spread > 0), rows @ x / spread, math.nan)
    return r


def _distinct(values: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of distinct values in each resample, (B,)."""
    _, group = np.unique(values, return_inverse=True)
    groups = np.zeros((len(values), group.max() + 1))
    groups[np.arange(len(values)), group] = 1
    distinct: NDArray[np.int64] = np.count_nonzero((weights > 0).astype(np.float64) @ groups, axis=1)
    return distinct


def alpha(
    ratings: Iterable[tuple[int, int, int]],
    values: int,
    level: Literal["nominal", "ordinal"],
    draws: NDArray[np.int64],
) -> tuple[Estimate, int]:
    """Krippendorff's alpha (Content Analysis, 4th ed. 2018, chapter 12) of items that several people judged.

    Args:
        ratings: image (a column of `draws`), number of the judged item, and value from 0 of every judgement.
        values: number of possible values.
        level: of measurement.
        draws: (B, N) resamples of images.

    Returns:
        Alpha (None if no item was judged twice or all values are equal), and the number of items that were judged by
        two people or more.
    """
    counts: dict[int, NDArray[np.int64]] = {}
    image_of: dict[int, int] = {}
    for image, unit, value in ratings:
        counts.setdefault(unit, np.zeros(values, dtype=np.int64))[value] += 1
        image_of[unit] = image
    # An item that one person judged does not count for agreement.
    units = [unit for unit, count in counts.items() if count.sum() > 1]
    if not units:
        return Estimate(None), 0
    table = np.stack([counts[unit] for unit in units])
    images = np.array([image_of[unit] for unit in units])
    resampled = [_alpha(np.repeat(table, draw[images], axis=0), level) for draw in draws[:_SLOW_RESAMPLES]]
    return estimate(_alpha(table, level), np.array(resampled, dtype=np.float64)), len(units)


def _alpha(table: NDArray[np.int64], level: str) -> float:
    """Alpha of a table of (units, values) counts; NaN if it is not defined."""
    if len(table) == 0 or np.count_nonzero(table.sum(axis=0)) < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=table, level_of_measurement=level))


VIRTUAL_TIES = 1.0

_STEPS, _LONGEST_STEP, _TOLERANCE = 200, 2.0, 1e-10


def bradley_terry(wins: NDArray[np.float64], compared: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Strengths of systems, with the virtual ties.

    Args:
        wins: (..., S, S) how often the row's system was preferred to the column's; a tie counts as a half.
        compared: (S, S) which pairs were compared; the same for every resample.

    Returns:
        (..., S) strengths on the log-odds scale with mean 0.
    """
    return log_strengths(wins + compared * (VIRTUAL_TIES / 2))


def is_connected(compared: NDArray[np.bool_]) -> bool:
    """Whether all systems are compared directly or through others; otherwise there is no common ranking."""
    reached = np.eye(len(compared), dtype=bool) | compared | compared.T
    for _ in range(len(compared)):
        reached = reached | (reached.astype(int) @ reached.astype(int) > 0)
    return bool(reached.all())


def log_strengths(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximum-likelihood strengths by Newton's method.

    Args:
        wins: (..., S, S) every pair connected by wins in both directions.

    Returns:
        (..., S) strengths on the log-odds scale with mean 0.
    """
    systems = wins.shape[-1]
    played = wins + np.swapaxes(wins, -1, -2)
    strengths = np.zeros(wins.shape[:-1])
    diagonal = np.eye(systems, dtype=bool)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (wins - played * chance).sum(axis=-1)
        weights = np.where(diagonal, 0.0, played * chance * (1 - chance))
        laplacian = np.where(diagonal, weights.sum(axis=-1, keepdims=True), -weights)
        # Strengths are defined up to a constant; the added constant fixes it without changing their differences.
        step = np.linalg.solve(laplacian + 1 / systems, gradient[..., None])[..., 0]
        strengths = strengths + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    centred: NDArray[np.float64] = strengths - strengths.mean(axis=-1, keepdims=True)
    return centred
