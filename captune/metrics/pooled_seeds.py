"""Several seeds of one system as one system: mean, spread and interval, and tests of two such systems.

N images, S seeds of a system, B resamples. A resample draws images, the same for all systems and seeds, and for each
system S of its seeds with replacement, so that an interval covers other images and other training runs. The mean over
drawn seeds varies less than that over new ones by the factor (S - 1) / S, which is corrected. Few seeds show little:
with two or three an interval is too narrow rather than too wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.scores import Scores
from captune.metrics.significance import NEGLIGIBLE, Comparison, draw_images, kept_frequencies, resampled_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PooledScore", "compare_pooled", "pool_seeds"]

_SEED = 12345
_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class PooledScore:
    """A corpus score of several seeds of one system.

    Attributes:
        mean: of the seeds.
        spread: the standard deviation over the seeds (with S - 1), nan for one seed.
        low: lower end of the mean's confidence interval over images and seeds.
        high: its upper end.
        seeds: how many.
    """

    mean: float
    spread: float
    low: float
    high: float
    seeds: int


def pool_seeds(
    seeds: Sequence[Scores], confidence: float = 0.95, resamples: int = 1000, seed: int = _SEED
) -> dict[str, PooledScore]:
    """Mean, spread and confidence interval of every score over the seeds of a system.

    Args:
        seeds: the scores of each seed on the same images.
        confidence: the share of resamples inside the interval, between 0 and 1.
        resamples: how many times images and seeds are drawn.
        seed: of the random numbers.

    Raises:
        MetricInputError: the seeds were not scored alike, or an argument is out of range.
    """
    (drawn,) = _draw([seeds], confidence, resamples, seed)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    pooled = {}
    for name, values in drawn.items():
        low, high = np.quantile(values, tails).tolist()
        scores = [scored.corpus[name] for scored in seeds]
        spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
        pooled[name] = PooledScore(float(np.mean(scores)), spread, low, high, len(scores))
    return pooled


def compare_pooled(
    system: Sequence[Scores],
    baseline: Sequence[Scores],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = _SEED,
) -> dict[str, Comparison]:
    """Bootstrap of the difference of two systems' means, over images and over the seeds of either.

    Args:
        system: the scores of each seed of the system in question.
        baseline: those of the system that it is compared with; the same images, any number of seeds.
        confidence: the share of resamples inside the interval of the difference.
        resamples: how many times images and seeds are drawn.
        seed: of the random numbers.

    Raises:
        MetricInputError: the systems were not scored alike, or an argument is out of range.
    """
    ours, others = _draw([system, baseline], confidence, resamples, seed)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    reach = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    result = {}
    for name, values in ours.items():
        score, other = (float(np.mean([scored.corpus[name] for scored in group])) for group in (system, baseline))
        differences = values - others[name]
        extreme = int(np.count_nonzero(np.abs(differences - differences.mean()) >= abs(score - other)))
        tested = max(abs(score), abs(other)) >= NEGLIGIBLE
        low, high = np.quantile(differences, tails).tolist()
        result[name] = Comparison(
            score,
            other,
            (extreme + 1) / (resamples + 1) if tested else math.nan,
            low,
            high,
            smallest=reach * float(differences.std(ddof=1)),
            frequencies=kept_frequencies(system[0], name),
        )
    return result


def _draw(
    systems: Sequence[Sequence[Scores]], confidence: float, resamples: int, seed: int
) -> list[dict[str, NDArray[np.float64]]]:
    """The mean over drawn seeds on drawn images: for each system, score to (B,)."""
    if resamples < 2:
        raise MetricInputError(f"{resamples} resamples are too few; use 1,000")
    if not 0 < confidence < 1:
        raise MetricInputError(f"a confidence of {confidence} is not between 0 and 1; use 0.95")
    if not all(systems):
        raise MetricInputError("there are no seeds to pool; give the scores of one at least")
    first = systems[0][0]
    for scored in (scored for seeds in systems for scored in seeds):
        if scored.ids != first.ids or list(scored.statistics) != list(first.statistics):
            raise MetricInputError(
                "the seeds were not scored on the same images with the same metrics; score all alike"
            )
    images, names = len(first.ids), list(first.corpus)
    random, random_seeds = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    parts: list[dict[str, list[NDArray[np.float64]]]] = [{name: [] for name in names} for _ in systems]
    portion = max(1, _CELLS // images)
    for start in range(0, resamples, portion):
        weights = draw_images(random, min(portion, resamples - start), images)
        for seeds, part in zip(systems, parts, strict=True):
            of_seed = [resampled_scores(scored, weights) for scored in seeds]
            counts = draw_images(random_seeds, len(weights), len(seeds)).T
            correction = math.sqrt(len(seeds) / (len(seeds) - 1)) if len(seeds) > 1 else 0.0
            for name in names:
                values = np.array([scores[name] for scores in of_seed])
                mean = values.mean(axis=0)
                part[name].append(mean + correction * ((counts * values).sum(axis=0) / len(seeds) - mean))
    return [{name: np.concatenate(values) for name, values in part.items()} for part in parts]
