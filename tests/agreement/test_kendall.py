"""Kendall's tau equals scipy's, with ties of every kind, and so do the taus of resamples."""

from __future__ import annotations

import math
import time
import warnings
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from captune.agreement import kendall_taus, resampled_kendall_taus

stats = pytest.importorskip("scipy.stats", reason="needs scipy as the oracle")


def scipy_tau(x: NDArray[np.float64], y: NDArray[np.float64], variant: str) -> float:
    if len(x) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(stats.kendalltau(x, y, variant=variant).statistic)


def values(random: np.random.Generator, kind: str, n: int) -> NDArray[np.float64]:
    if kind == "constant":
        return np.full(n, 0.25)
    if kind == "two":
        return random.integers(0, 2, n).astype(np.float64)
    if kind == "grades":
        return random.integers(1, 6, n) / 3
    if kind == "mostly zero":
        return np.where(random.random(n) < 0.9, 0.0, random.random(n))
    if kind == "many grades":
        return random.integers(0, 200, n) / 7
    return random.normal(size=n)


KINDS = ("constant", "two", "grades", "mostly zero", "many grades", "different")


def equal(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= 1e-12


@pytest.mark.parametrize("n", [1, 2, 3, 5, 63, 64, 65, 700])
def test_taus_equal_scipy(n: int) -> None:
    random = np.random.default_rng(n)
    for first, second in product(KINDS, KINDS):
        x, y = values(random, first, n), values(random, second, n)
        taus = kendall_taus(x, y)
        assert equal(float(taus.b), scipy_tau(x, y, "b")), (first, second)
        assert equal(float(taus.c), scipy_tau(x, y, "c")), (first, second)


@pytest.mark.parametrize("n", [1, 2, 20, 300])
def test_resampled_taus_equal_those_of_the_repeated_items(n: int) -> None:
    random = np.random.default_rng(n + 1)
    for first, second in product(KINDS, KINDS):
        x, y = values(random, first, n), values(random, second, n)
        images = random.integers(0, max(1, n // 4), n)
        draws = random.multinomial(images.max() + 1, np.full(images.max() + 1, 1 / (images.max() + 1)), size=3)
        resampled = resampled_kendall_taus(x, y, images, draws)
        for draw, b, c in zip(draws, np.asarray(resampled.b), np.asarray(resampled.c), strict=True):
            repeated = np.repeat(x, draw[images]), np.repeat(y, draw[images])
            assert equal(b, scipy_tau(*repeated, "b")), (first, second)
            assert equal(c, scipy_tau(*repeated, "c")), (first, second)


def test_extremes() -> None:
    x = np.arange(500.0)
    assert kendall_taus(x, x) == pytest.approx((1, 1), abs=1e-15)
    assert kendall_taus(x, -x) == pytest.approx((-1, -1), abs=1e-15)
    huge = np.array([1e308, -1e308, np.inf, -np.inf, 5e-324, 0.0])
    assert equal(float(kendall_taus(huge, np.arange(6.0)).b), scipy_tau(huge, np.arange(6.0), "b"))
    for x, y in ((np.array([]), np.array([])), (np.array([1.0, np.nan]), np.array([1.0, 2.0]))):
        assert all(map(math.isnan, kendall_taus(x, y)))
    with pytest.raises(ValueError, match="2 values and y 1"):
        kendall_taus(np.zeros(2), np.zeros(1))


def test_47_000_pairs_with_a_bootstrap_take_seconds() -> None:
    random = np.random.default_rng(0)
    n, count = 47_000, 1000
    images = random.integers(0, count, n)
    people = random.integers(0, 12, n) / 3
    metric = np.maximum(0.0, people + random.normal(size=n))
    draws = random.multinomial(count, np.full(count, 1 / count), size=1000)
    started = time.process_time()
    value, resampled = kendall_taus(metric, people), resampled_kendall_taus(metric, people, images, draws)
    assert time.process_time() - started < 10
    assert np.quantile(resampled.b, 0.025) < float(value.b) < np.quantile(resampled.b, 0.975)
