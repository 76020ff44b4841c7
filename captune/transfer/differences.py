"""What a corpus score loses away from home, with a bootstrap interval.

N images at home, M away, B resamples. Where both are the same images (a corruption of home), each resample draws the
same images on both sides; otherwise the two sides are drawn independently.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from captune.metrics import Scores
from captune.metrics.scores import METRICS
from captune.metrics.significance import NEGLIGIBLE
from captune.report.matrix import Difference

__all__ = ["relative_drops"]

_SEED = 12345
_PORTION = 100  # resamples whose weights are held at once


def relative_drops(
    home: Scores, away: Scores, *, resamples: int = 1000, confidence: float = 0.95
) -> dict[str, Difference]:
    """The share of every corpus score that is lost away from home (Koehn's bootstrap, EMNLP 2004, on the ratio).

    Args:
        home: scores of a system at home.
        away: those of the same system elsewhere; paired where the images are the same in the same order.
        resamples: how many corpora to draw.
        confidence: of the interval.

    Returns:
        metric -> 1 - away / home: 0 is no loss, 1 a total one, below 0 a gain. A score of 0 at home, or of no more than
        the constants that smooth it, has no ratio and is left out.
    """
    paired = home.ids == away.ids
    random = np.random.default_rng(_SEED)
    at_home: dict[str, list[NDArray[np.float64]]] = {}
    elsewhere: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, resamples, _PORTION):
        size = min(_PORTION, resamples - start)
        weights = _weights(random, size, len(home.ids))
        others = weights if paired else _weights(random, size, len(away.ids))
        for found, scores, drawn in ((at_home, home, weights), (elsewhere, away, others)):
            for name, values in _resampled(scores, drawn).items():
                found.setdefault(name, []).append(values)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    drops = {}
    for name in home.corpus:
        if name not in away.corpus or not home.corpus[name] >= NEGLIGIBLE:
            continue
        own, other = np.concatenate(at_home[name]), np.concatenate(elsewhere[name])
        ratios = 1 - other[own > 0] / own[own > 0]
        low, high = np.quantile(ratios, tails).tolist()
        drops[name] = Difference(1 - away.corpus[name] / home.corpus[name], low, high, paired)
    return drops


def _weights(random: np.random.Generator, size: int, images: int) -> NDArray[np.float64]:
    """(size, images) how often each image is drawn."""
    drawn = random.integers(0, images, (size, images)) + np.arange(size)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float64)


def _resampled(scores: Scores, weights: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    """Corpus scores of each drawn corpus, (size,) a metric."""
    found: dict[str, NDArray[np.float64]] = {}
    for key, statistics in scores.statistics.items():
        metric = METRICS[key]
        columns = metric.from_sums(weights @ np.asarray(statistics, np.float64), len(scores.ids))
        found |= {name: columns[:, place] for place, name in enumerate(metric.names)}
    return found
