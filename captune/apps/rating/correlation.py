"""How well automatic metrics agree with people: Kendall's tau-c and Pearson's r, with intervals over images.

Tau-c (Stuart, Biometrika 40, 1953) is what Flickr8k-Expert and its successors report; it allows for ties in few human
grades. Values of the whole set are scipy's. For resamples the same formula is computed with weights, since a caption
whose image was drawn twice stands there twice.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

from captune.apps.rating.estimates import Estimate, estimate

__all__ = ["kendall_tau_c", "pearson", "row_kendall_tau_c", "row_pearson", "weighted_kendall_tau_c", "weighted_pearson"]

FEWEST = 3
"""Pairs of values below which no correlation is given."""

_MOST_RESAMPLES, _CELLS = 500, 1 << 24


def kendall_tau_c(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> Estimate:
    """Kendall's tau-c of two scores of N things.

    Args:
        x: (N,) one score.
        y: (N,) the other.
        weights: (B, N) how often each thing stands in each resample.
    """
    if len(x) < FEWEST:
        return Estimate(None)
    from scipy.stats import kendalltau

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant score has no tau, which is told by NaN
        value = float(kendalltau(x, y, variant="c").statistic)
    return estimate(value, weighted_kendall_tau_c(x, y, weights[:_MOST_RESAMPLES]))


def pearson(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> Estimate:
    """Pearson's r of two scores of N things; see `kendall_tau_c`."""
    if len(x) < FEWEST or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return Estimate(None)
    from scipy.stats import pearsonr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(pearsonr(x, y).statistic)
    return estimate(value, weighted_pearson(x, y, weights))


def weighted_kendall_tau_c(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tau-c of B resamples, (B,) float64; NaN where a resample has one value of a score only.

    The same as tau-c of the scores with every thing repeated as often as it was drawn.
    """
    drawn = weights.astype(np.float64)
    surplus = np.zeros(len(drawn))
    # Rows of the matrix of pairs, as many at a time as fit.
    rows = max(1, _CELLS // max(1, len(x)))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        sign = np.sign(x[part, None] - x[None, :]) * np.sign(y[part, None] - y[None, :])
        surplus += ((drawn @ sign.T) * drawn[:, part]).sum(axis=1)
    distinct = np.minimum(_distinct(x, weights), _distinct(y, weights)).astype(np.float64)
    size = drawn.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Every pair was counted from both sides.
        tau: NDArray[np.float64] = surplus / (size**2 * (distinct - 1) / distinct)
    tau[distinct < 2] = math.nan
    return tau


def weighted_pearson(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pearson's r of B resamples, (B,) float64; NaN where a resample has one value of a score only."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = weights / weights.sum(axis=1, keepdims=True)
        # Around the mean of all, so that sums of squares lose no digits.
        x, y = x - x.mean(), y - y.mean()
        mean_x, mean_y = share @ x, share @ y
        covariance = share @ (x * y) - mean_x * mean_y
        spread = np.sqrt((share @ x**2 - mean_x**2) * (share @ y**2 - mean_y**2))
        r: NDArray[np.float64] = covariance / spread
    r[(_distinct(x, weights) < 2) | (_distinct(y, weights) < 2)] = math.nan
    return r


def row_kendall_tau_c(x: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tau-c of one score of N things with each of B others, (B,); NaN where one of the two has one value only.

    Args:
        x: (N,) one score.
        rows: (B, N) the others.
    """
    mine = np.sign(x[:, None] - x[None, :])
    surplus = (mine * np.sign(rows[:, :, None] - rows[:, None, :])).sum(axis=(1, 2))
    other = 1 + np.count_nonzero(np.diff(np.sort(rows, axis=1), axis=1), axis=1)
    distinct = np.minimum(len(np.unique(x)), other).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: NDArray[np.float64] = surplus / (len(x) ** 2 * (distinct - 1) / distinct)
    tau[distinct < 2] = math.nan
    return tau


def row_pearson(x: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r of one score of N things with each of B others, (B,); see `row_kendall_tau_c`."""
    x, rows = x - x.mean(), rows - rows.mean(axis=1, keepdims=True)
    spread = np.sqrt((x**2).sum() * (rows**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: NDArray[np.float64] = np.where(spread > 0, rows @ x / spread, math.nan)
    return r


def _distinct(values: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many different values are in each resample, (B,)."""
    _, group = np.unique(values, return_inverse=True)
    groups = np.zeros((len(values), group.max() + 1))
    groups[np.arange(len(values)), group] = 1
    found: NDArray[np.int64] = np.count_nonzero((weights > 0).astype(np.float64) @ groups, axis=1)
    return found
