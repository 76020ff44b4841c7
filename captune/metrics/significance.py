"""Confidence intervals of corpus scores, and paired tests of two systems.

N images, B resamples, K statistics. Every test works on the statistics of images and never on captions: a resampled
corpus is a row of N weights, its statistics are one matrix product, and the metric makes scores of their sums.

CIDEr of the images keeps the document frequencies of the complete set; they are not re-estimated for each resample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.registry import METRICS
from captune.metrics.scores import Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "NEGLIGIBLE",
    "Comparison",
    "Interval",
    "approximate_randomization",
    "confidence_intervals",
    "draw_images",
    "holm",
    "kept_frequencies",
    "paired_bootstrap",
    "resampled_scores",
    "significance_mark",
]

NEGLIGIBLE = 1e-6
"""A score below this is 0 but for the constants that smooth it (BLEU's 1e-9): it is not ranked, marked or tested."""

_KEPT = "kept from the complete set"
_SEED = 12345
_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A corpus score with its confidence interval.

    Attributes:
        score: of the complete set.
        low: the lower end.
        high: the upper end.
        deviation: the standard deviation over resamples.
        frequencies: for CIDEr what happened to its document frequencies in resampling, else None.
    """

    score: float
    low: float
    high: float
    deviation: float
    frequencies: str | None = None

    def __str__(self) -> str:
        return f"{self.score:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two systems differ in one score on the same images.

    Attributes:
        score: of the system in question.
        baseline: of the other.
        p_value: the chance of a difference at least this large, in either direction, between equal systems; nan where
            both scores are below `NEGLIGIBLE`, which is not tested.
        low: lower end of the difference's confidence interval (bootstrap only, else nan).
        high: its upper end.
        smallest: the smallest true difference that this test set shows four times out of five, at the level of 5 %
            (bootstrap only, else nan).
        frequencies: for CIDEr what happened to its document frequencies in resampling, else None.
    """

    score: float
    baseline: float
    p_value: float
    low: float = float("nan")
    high: float = float("nan")
    smallest: float = float("nan")
    frequencies: str | None = None

    @property
    def difference(self) -> float:
        """How much higher the score is than the baseline's."""
        return self.score - self.baseline

    def __str__(self) -> str:
        return f"{self.difference:+.4f} (p = {self.p_value:.4f})" if self.is_tested else "0.0000 (not tested)"

    @property
    def is_tested(self) -> bool:
        """Whether there is anything to test."""
        return not math.isnan(self.p_value)


def confidence_intervals(
    scores: Scores, confidence: float = 0.95, resamples: int = 1000, seed: int = _SEED
) -> dict[str, Interval]:
    """Percentile bootstrap of every corpus score (Efron 1979; Koehn, EMNLP 2004).

    Images are drawn with replacement. BLEU is computed again from the summed statistics of the drawn images; CIDEr
    keeps its document frequencies.

    Args:
        scores: of one system.
        confidence: the share of resamples inside the interval, between 0 and 1.
        resamples: how many corpora to draw.
        seed: of the random numbers; the same seed gives the same interval.

    Raises:
        MetricInputError: an argument is out of range.
    """
    _check(resamples, confidence)
    drawn = _concatenate(_resampled([scores], resamples, seed))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {}
    for name, (values,) in drawn.items():
        low, high = np.quantile(values, tails).tolist()
        intervals[name] = Interval(
            scores.corpus[name], low, high, float(values.std(ddof=1)), kept_frequencies(scores, name)
        )
    return intervals


def paired_bootstrap(
    system: Scores, baseline: Scores, confidence: float = 0.95, resamples: int = 1000, seed: int = _SEED
) -> dict[str, Comparison]:
    """Bootstrap of the difference of two systems on the same drawn images (Koehn, EMNLP 2004).

    The p-value shifts the differences to a mean of zero, the null hypothesis, and counts those at least as far from
    it as the difference observed.

    Args:
        system: the scores in question.
        baseline: what they are compared with; the same images and references.
        confidence: of the difference's interval.
        resamples: how many corpora to draw.
        seed: of the random numbers.

    Raises:
        MetricInputError: the scores are not of the same images or have no score in common.
    """
    _check(resamples, confidence)
    system, baseline = _paired(system, baseline)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    normal = NormalDist()
    reach = normal.inv_cdf(0.975) + normal.inv_cdf(0.8)
    result = {}
    for name, (ours, others) in _concatenate(_resampled([system, baseline], resamples, seed)).items():
        differences = ours - others
        observed = abs(system.corpus[name] - baseline.corpus[name])
        extreme = int(np.count_nonzero(np.abs(differences - differences.mean()) >= observed))
        low, high = np.quantile(differences, tails).tolist()
        result[name] = Comparison(
            system.corpus[name],
            baseline.corpus[name],
            _p_value(extreme, resamples, system, baseline, name),
            low,
            high,
            smallest=reach * float(differences.std(ddof=1)),
            frequencies=kept_frequencies(system, name),
        )
    return result


def approximate_randomization(
    system: Scores, baseline: Scores, trials: int = 10_000, seed: int = _SEED
) -> dict[str, Comparison]:
    """Swap the two systems' captions of every image with a chance of one half (Riezler & Maxwell 2005).

    The p-value is the share of trials whose difference is at least as large as the one observed.

    Args:
        system: the scores in question.
        baseline: what they are compared with; the same images and references.
        trials: how many times to swap.
        seed: of the random numbers.

    Raises:
        MetricInputError: the scores are not of the same images or have no score in common.
    """
    _check(trials, 0.95)
    system, baseline = _paired(system, baseline)
    images = len(system.ids)
    random = np.random.default_rng(seed)
    extreme = dict.fromkeys(system.corpus, 0)
    for size in _portions(trials, images):
        swap = random.integers(0, 2, (size, images), np.int8).astype(np.float64)
        for key in system.statistics:
            first, second = _as_floats(system, key), _as_floats(baseline, key)
            moved = swap @ (second - first)
            swapped_first = METRICS[key].from_sums(first.sum(axis=0) + moved, images)
            swapped_second = METRICS[key].from_sums(second.sum(axis=0) - moved, images)
            observed = np.array([abs(system.corpus[name] - baseline.corpus[name]) for name in METRICS[key].names()])
            # A trial that swaps nothing must count although its sum has another last digit.
            hits = np.count_nonzero(np.abs(swapped_first - swapped_second) >= observed * (1 - 1e-12), axis=0)
            for name, count in zip(METRICS[key].names(), hits.tolist(), strict=True):
                extreme[name] += count
    return {
        name: Comparison(
            system.corpus[name],
            baseline.corpus[name],
            _p_value(count, trials, system, baseline, name),
            frequencies=kept_frequencies(system, name),
        )
        for name, count in extreme.items()
    }


def _p_value(extreme: int, draws: int, system: Scores, baseline: Scores, name: str) -> float:
    if max(abs(system.corpus[name]), abs(baseline.corpus[name])) < NEGLIGIBLE:
        return math.nan
    return (extreme + 1) / (draws + 1)


def kept_frequencies(scores: Scores, name: str) -> str | None:
    """What happens to the document frequencies of a score in resampling."""
    kept = any(METRICS[key].uses_document_frequencies and name in METRICS[key].names() for key in scores.statistics)
    return _KEPT if kept else None


def _check(resamples: int, confidence: float) -> None:
    if resamples < 2:
        raise MetricInputError(f"{resamples} resamples are too few; use 1,000")
    if not 0 < confidence < 1:
        raise MetricInputError(f"a confidence of {confidence} is not between 0 and 1; use 0.95")


def _paired(system: Scores, baseline: Scores) -> tuple[Scores, Scores]:
    """The two systems with the metrics that both have, their images in the same order."""
    if system.ids != baseline.ids:
        row_of = {str(image): row for row, image in enumerate(baseline.ids)}
        if len(system.ids) != len(baseline.ids) or not all(str(image) in row_of for image in system.ids):
            raise MetricInputError(
                f"the two systems were not scored on the same images ({len(system.ids):,} and {len(baseline.ids):,}); "
                "score both on the same references"
            )
        rows = [row_of[str(image)] for image in system.ids]
        statistics = {key: values[rows] for key, values in baseline.statistics.items()}
        baseline = Scores(system.ids, statistics, baseline.details)
    common = [key for key in system.statistics if key in baseline.statistics]
    if not common:
        raise MetricInputError("the two systems have no score in common; score both with the same metrics")
    first, second = (Scores(s.ids, {key: s.statistics[key] for key in common}, s.details) for s in (system, baseline))
    return first, second


def _as_floats(scores: Scores, key: str) -> NDArray[np.float64]:
    return np.asarray(scores.statistics[key], np.float64)


def _portions(total: int, images: int) -> Iterator[int]:
    """Sizes that add up to `total`, each small enough for a (size, N) array to take little memory."""
    size = max(1, _CELLS // images)
    for start in range(0, total, size):
        yield min(size, total - start)


def draw_images(random: np.random.Generator, size: int, images: int) -> NDArray[np.float64]:
    """Draw `images` images with replacement, `size` times.

    Returns:
        (size, images) float64, how often each image is drawn in each resample.
    """
    drawn = random.integers(0, images, (size, images), np.int64)
    drawn += np.arange(size)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float64)


def resampled_scores(scores: Scores, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Corpus scores of resampled sets of images.

    Args:
        scores: of a system on N images.
        weights: (size, N) of `draw_images`.

    Returns:
        name of a score -> (size,) float64.
    """
    resampled: dict[str, NDArray[np.float64]] = {}
    for key in scores.statistics:
        columns = METRICS[key].from_sums(weights @ _as_floats(scores, key), len(scores.ids))
        resampled |= {name: columns[:, index] for index, name in enumerate(METRICS[key].names())}
    return resampled


def _resampled(systems: list[Scores], resamples: int, seed: int) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Corpus scores of resampled sets, portion by portion: from a score's name to (systems, size)."""
    images = len(systems[0].ids)
    random = np.random.default_rng(seed)
    for size in _portions(resamples, images):
        weights = draw_images(random, size, images)
        columns = [resampled_scores(scores, weights) for scores in systems]
        yield {name: np.array([values[name] for values in columns]) for name in columns[0]}


def _concatenate(portions: Iterator[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    parts = list(portions)
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979): the chance of any false rejection stays below the level.

    Args:
        p_values: of one family of tests; nan is not tested, and does not count.

    Returns:
        The corrected p-values in the same order, at most 1.
    """
    order = sorted((index for index, value in enumerate(p_values) if not math.isnan(value)), key=p_values.__getitem__)
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


_LEVELS = ((0.01, "**"), (0.05, "*"))


def significance_mark(bootstrap: Comparison, randomization: Comparison) -> str:
    """The stars of a difference.

    Args:
        bootstrap: from `paired_bootstrap`.
        randomization: from `approximate_randomization`, of the same score and systems.

    Returns:
        "**" below 0.01 and "*" below 0.05 in both tests, if 0 is outside the bootstrap's interval; otherwise "".
    """
    if bootstrap.low <= 0 <= bootstrap.high:
        return ""
    larger = max(bootstrap.p_value, randomization.p_value)
    return next((stars for level, stars in _LEVELS if larger < level), "")
