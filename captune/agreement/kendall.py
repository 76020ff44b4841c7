"""Kendall's tau-b and tau-c with all ties, of a complete set and of resamples of its images.

n items, G images, B resamples. Tau is made of counts of pairs: items i and j are concordant if both scores order them
alike and discordant if they order them differently; a pair that is tied in a score is neither.

    tau-b = (concordant - discordant) / sqrt((pairs - pairs tied in x) (pairs - pairs tied in y))
    tau-c = (concordant - discordant) / (n^2 (m - 1) / (2 m)),  m the smaller number of distinct values

The complete set is counted in O(n log n), with integers. For resamples, which weigh each image by the number of times
it was drawn, counts are weighted: items are sorted by x and processed in blocks, and a block is compared with all
blocks before it by one matrix product over the levels of y. Scores with many levels of y are first compared by coarse
levels, and then within each coarse level in the same way. The results are those of the repeated items, exactly.

Sources: Kendall, "The treatment of ties in ranking problems" (Biometrika 33, 1945); Stuart, "The estimation and
comparison of strengths of association in contingency tables" (Biometrika 40, 1953); Knight, "A computer method for
calculating Kendall's tau with ungrouped data" (JASA 61, 1966).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Taus", "kendall_taus", "resampled_kendall_taus"]

_BLOCK, _LEVELS = 64, 64
_CELLS = 1 << 22


class Taus(NamedTuple):
    """Both variants; NaN where a score has one value only, which leaves no pair to order.

    Attributes:
        b: tau-b, -1 to 1: a float, or (B,) float64 for resamples.
        c: tau-c.
    """

    b: float | NDArray[np.float64]
    c: float | NDArray[np.float64]


def kendall_taus(x: NDArray[np.float64], y: NDArray[np.float64]) -> Taus:
    """Tau-b and tau-c of two scores of n items; equal to `scipy.stats.kendalltau`.

    Args:
        x: (n,) one score.
        y: (n,) the other.

    Raises:
        ValueError: the scores have different lengths.
    """
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} values and y {len(y)}")
    n = len(x)
    if n < 2 or np.isnan(x).any() or np.isnan(y).any():
        return Taus(math.nan, math.nan)
    x_level, x_counts = _levels(x)
    y_level, y_counts = _levels(y)
    if len(x_counts) < 2 or len(y_counts) < 2:
        return Taus(math.nan, math.nan)
    pair_level = x_level * len(y_counts) + y_level
    tied_x, tied_y = _pairs(x_counts), _pairs(y_counts)
    tied_in_both = _pairs(np.unique(pair_level, return_counts=True)[1])
    pairs = n * (n - 1) // 2
    discordant = _inversions(y_level[np.argsort(pair_level, kind="stable")])
    surplus = pairs - tied_x - tied_y + tied_in_both - 2 * discordant
    b = surplus / math.sqrt(pairs - tied_x) / math.sqrt(pairs - tied_y)
    distinct = min(len(x_counts), len(y_counts))
    c = 2 * surplus / (n**2 * (distinct - 1) / distinct)
    return Taus(min(1.0, max(-1.0, b)), min(1.0, max(-1.0, c)))


def _levels(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n,) rank of each value among the distinct ones, from 0, and how often each occurs."""
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    return level.astype(np.int64), counts


def _pairs(counts: NDArray[np.int64]) -> int:
    """Number of pairs within groups of these sizes."""
    sizes = counts.astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def _inversions(values: NDArray[np.int64]) -> int:
    """Number of pairs of which the earlier value is larger.

    Two values compare by the highest bit in which they differ: bit by bit, among values that share all higher bits,
    ones before zeros are counted.
    """
    total = 0
    prefix = np.zeros(len(values), np.int64)
    for bit in range(int(values.max()).bit_length() - 1, -1, -1):
        is_one = (values >> bit) & 1
        ones = np.cumsum(is_one)
        starts = np.flatnonzero(np.diff(prefix, prepend=-1))
        base = np.repeat((ones - is_one)[starts], np.diff(starts, append=len(values)))
        total += int((ones - base)[is_one == 0].sum())
        prefix = prefix * 2 + is_one
        order = np.argsort(prefix, kind="stable")
        values, prefix = values[order], prefix[order]
    return total


def resampled_kendall_taus(
    x: NDArray[np.float64], y: NDArray[np.float64], images: NDArray[np.int64], draws: NDArray[np.int64]
) -> Taus:
    """Tau-b and tau-c of B resamples of images.

    Args:
        x: (n,) one score.
        y: (n,) the other.
        images: (n,) the image of each item, a column of `draws`.
        draws: (B, G) how often each image is in each resample.

    Returns:
        (B,) each, equal to the taus of the items repeated as often as their image was drawn.
    """
    b, c = np.full(len(draws), math.nan), np.full(len(draws), math.nan)
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return Taus(b, c)
    x_level, y_level = _levels(x)[0], _levels(y)[0]
    if y_level.max() > x_level.max():
        x_level, y_level = y_level, x_level
    portion = max(1, _CELLS // max(draws.shape[1], 1))
    for start in range(0, len(draws), portion):
        part = slice(start, start + portion)
        weights = np.ascontiguousarray(draws[part].T, dtype=np.float64)
        surplus = _surplus(x_level, y_level, images, weights)
        total, tied_x, distinct_x = _tied(x_level, images, weights)
        _, tied_y, distinct_y = _tied(y_level, images, weights)
        pairs = total * (total - 1) / 2
        distinct = np.minimum(distinct_x, distinct_y).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            b[part] = surplus / np.sqrt(pairs - tied_x) / np.sqrt(pairs - tied_y)
            c[part] = 2 * surplus / (total**2 * (distinct - 1) / distinct)
        b[part][distinct < 2] = math.nan
        c[part][distinct < 2] = math.nan
    return Taus(b, c)


def _surplus(
    x: NDArray[np.int64], y: NDArray[np.int64], images: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Concordant less discordant pairs, (B,), of levels of x and y with the weights (G, B) of the images."""
    order = np.lexsort((y, x))
    x, y, images = x[order], y[order], images[order]
    distinct, level = np.unique(y, return_inverse=True)
    if len(distinct) <= _LEVELS:
        return _surplus_of_levels(x, level, len(distinct), images, weights)
    coarse = level * _LEVELS // len(distinct)
    surplus = _surplus_of_levels(x, coarse, _LEVELS, images, weights)
    for group in range(_LEVELS):
        inside = np.flatnonzero(coarse == group)
        if len(inside) > 1:
            surplus += _surplus(x[inside], y[inside], images[inside], weights)
    return surplus


def _surplus_of_levels(
    x: NDArray[np.int64], y: NDArray[np.int64], levels: int, images: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same for few levels of y and items sorted by x."""
    surplus = np.zeros(weights.shape[1])
    seen = np.zeros((levels, weights.shape[1]))  # weight of the earlier items at each level of y
    # Row k of `above @ seen` is the weight of lower levels less that of higher ones.
    above = np.sign(np.arange(levels)[:, None] - np.arange(levels)).astype(np.float64)
    for start, end, tied in _blocks(x):
        weight = weights[images[start:end]]
        one_hot = (y[start:end] == np.arange(levels)[:, None]).astype(np.float64)
        at_level = one_hot @ weight
        surplus += np.einsum("kb,kb->b", at_level, above @ seen)
        seen += at_level
        if not tied:
            order_x = x[start:end, None] > x[start:end]
            later = order_x * np.sign(y[start:end, None] - y[start:end]).astype(np.float64)
            surplus += np.einsum("ib,ib->b", weight, later @ weight)
    return surplus


def _blocks(x: NDArray[np.int64]) -> Iterator[tuple[int, int, bool]]:
    """Blocks (start, end, whether all items are tied in x) of sorted items; no tie crosses a block's border."""
    bounds = np.flatnonzero(np.diff(x, prepend=-1, append=-1)).tolist()
    start = 0
    for first, end in pairwise(bounds):
        if end - first >= _BLOCK:
            if first > start:
                yield start, first, False
            yield first, end, True
            start = end
        elif end - start >= _BLOCK:
            yield start, end, False
            start = end
    if start < len(x):
        yield start, len(x), False


def _tied(
    level: NDArray[np.int64], images: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Items, pairs of items of equal level, and number of levels of each resample, (B,) each."""
    total, tied = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    distinct = np.zeros(weights.shape[1], np.int64)
    order = np.argsort(level, kind="stable")
    bounds = np.flatnonzero(np.diff(level[order], prepend=-1, append=-1))
    rows = max(1, _CELLS // weights.shape[1])
    first = 0
    while first < len(bounds) - 1:
        # As many levels as fit in memory, at least one.
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + rows, side="right")) - 1)
        drawn = weights[images[order[bounds[first] : bounds[last]]]]
        counts = np.add.reduceat(drawn, bounds[first:last] - bounds[first], axis=0)
        total += counts.sum(axis=0)
        tied += (counts * (counts - 1) / 2).sum(axis=0)
        distinct += np.count_nonzero(counts, axis=0)
        first = last
    return total, tied, distinct
