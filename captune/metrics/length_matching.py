"""Comparison of two systems at equal length of their captions.

Longer captions win many metrics, and judges prefer them. Two estimators take the length out of a difference:

- "pairs" keeps the images for which both captions have about the same number of words, and tests the difference on
  them (matching within a caliper). CIDEr keeps the document frequencies of all images.
- "truncate" cuts the longer caption of each image at the sentence end that is closest to the length of the shorter
  one, and scores both again on all images.

"pairs" compares captions as they were written, on images that are no random sample; "truncate" uses all images, and
what a system says last is not scored. Both are paired, so that every metric has its interval and its tests.

Pairs are few, and a percentile bootstrap of few images is too narrow: its variance lacks the factor n / (n - 1), and
its quantiles are those of a normal distribution where Student's t applies. The ends are taken at wider quantiles (the
"expanded percentile interval" of Hesterberg, The American Statistician 2015), p follows the same rule, and below
`FEWEST_IMAGES` there are differences only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, TypeAlias

from captune.errors import MetricInputError
from captune.metrics.scores import Scores
from captune.metrics.sentences import LENGTH_TOLERANCE, count_words, sentence_prefix
from captune.metrics.significance import Comparison, approximate_randomization, paired_bootstrap

__all__ = [
    "FEWEST_IMAGES",
    "EqualLengthTests",
    "LengthMatching",
    "compare_at_equal_length",
    "cut_to_equal_length",
    "length_ratio",
]

LengthMatching: TypeAlias = Literal["pairs", "truncate"]
"""How captions of equal length are obtained."""

FEWEST_IMAGES = 20
"""Images of equal length from which differences have intervals and tests; with fewer, the interval of captions that are
equally good misses 0 too often."""

_NORMAL = NormalDist()
_MANY = 2000  # degrees of freedom from which t is normal: quantiles differ by less than 0.1 %


@dataclass(frozen=True)
class EqualLengthTests:
    """A system against a baseline at equal length.

    Attributes:
        method: "pairs" or "truncate".
        images: that were compared.
        total: of all images.
        ratio: words of the system over those of the baseline before matching, geometric mean over the images.
        matched_ratio: the same of the compared captions; nan without images.
        tests: score -> (paired bootstrap, approximate randomization); their intervals and p are nan where fewer than
            `FEWEST_IMAGES` images are left. Empty without images.
    """

    method: LengthMatching
    images: int
    total: int
    ratio: float
    matched_ratio: float
    tests: Mapping[str, tuple[Comparison, Comparison]]

    @property
    def has_intervals(self) -> bool:
        """Whether there are images enough for intervals and tests."""
        return self.images >= FEWEST_IMAGES


def length_ratio(captions: Mapping[str, str], baseline: Mapping[str, str]) -> float:
    """Words of the captions over those of the baseline, geometric mean over the images where both have words."""
    logs = [
        math.log(ours / others)
        for image in captions
        if (ours := count_words(captions[image])) and (others := count_words(baseline[image]))
    ]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def cut_to_equal_length(
    captions: Mapping[str, str], baseline: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Cut the longer caption of each image at the sentence end that is closest to the length of the shorter one.

    Args:
        captions: image id to caption.
        baseline: of the same images.

    Returns:
        Both with one caption of each image as it was. A caption of one sentence is never cut.
    """
    ours, others = dict(captions), dict(baseline)
    for image in captions:
        words, other_words = count_words(captions[image]), count_words(baseline[image])
        if words > other_words:
            ours[image] = sentence_prefix(captions[image], other_words)
        elif other_words > words:
            others[image] = sentence_prefix(baseline[image], words)
    return ours, others


def compare_at_equal_length(
    system: Scores,
    baseline: Scores,
    captions: tuple[Mapping[str, str], Mapping[str, str]],
    method: LengthMatching = "pairs",
    *,
    tolerance: float = LENGTH_TOLERANCE,
    score: Callable[[Mapping[str, str]], Scores] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    trials: int = 10_000,
    seed: int = 12345,
) -> EqualLengthTests:
    """Compare two systems at equal length.

    Args:
        system: the scores in question.
        baseline: what they are compared with, of the same images.
        captions: of both, image id as text to caption.
        method: see above.
        tolerance: for "pairs", the share by which the longer of two captions may exceed the shorter one.
        score: for "truncate", scores captions as `system` was scored.
        confidence: of the intervals.
        resamples: of the paired bootstrap.
        trials: of approximate randomization.
        seed: of both tests.

    Raises:
        MetricInputError: the tolerance is out of range, or "truncate" has no scorer.
    """
    if not 0 <= tolerance < 1:
        raise MetricInputError(f"a length tolerance of {tolerance} is not between 0 and 1; use 0.1")
    ours, others = captions
    images = [str(image) for image in system.ids]
    if method == "truncate":
        if score is None:
            raise MetricInputError("truncated captions are scored again; give the scorer")
        compared = cut_to_equal_length(ours, others)
        kept = images
        system, baseline = (
            replace(scores, statistics={key: scores.statistics[key] for key in system.statistics})
            for scores in (score(compared[0]), score(compared[1]))
        )
    else:
        kept = [image for image in images if _is_match(ours[image], others[image], tolerance)]
        compared = {image: ours[image] for image in kept}, {image: others[image] for image in kept}
        system, baseline = _only(system, kept), _only(baseline, kept)
    tests = {}
    if len(kept) >= FEWEST_IMAGES:
        drawn = _bootstrap(system, baseline, confidence, resamples, seed)
        swapped = approximate_randomization(system, baseline, trials, seed)
        tests = {name: (drawn[name], swapped[name]) for name in drawn}
    elif kept:
        untested = {
            name: Comparison(score, baseline.corpus[name], math.nan)
            for name, score in system.corpus.items()
            if name in baseline.corpus
        }
        tests = {name: (comparison, comparison) for name, comparison in untested.items()}
    return EqualLengthTests(method, len(kept), len(images), length_ratio(ours, others), length_ratio(*compared), tests)


def _bootstrap(system: Scores, baseline: Scores, confidence: float, resamples: int, seed: int) -> dict[str, Comparison]:
    """The paired bootstrap with quantiles and p for n images instead of infinitely many."""
    if not 0 < confidence < 1:
        raise MetricInputError(f"a confidence of {confidence} is not between 0 and 1; use 0.95")
    images = len(system.ids)
    tail = _normal_tail((1 - confidence) / 2, images)
    reach = _t_quantile(0.975, images - 1) + _t_quantile(0.8, images - 1)
    wider = reach / (_NORMAL.inv_cdf(0.975) + _NORMAL.inv_cdf(0.8)) * math.sqrt(images / (images - 1))
    return {
        name: replace(
            drawn,
            p_value=drawn.p_value if math.isnan(drawn.p_value) else _t_p_value(drawn.p_value, images),
            smallest=drawn.smallest * wider,
        )
        for name, drawn in paired_bootstrap(system, baseline, 1 - 2 * tail, resamples, seed).items()
    }


def _normal_tail(tail: float, images: int) -> float:
    """The share of the bootstrap beyond each end of the interval that has `tail` beyond each end."""
    return _NORMAL.cdf(-math.sqrt(images / (images - 1)) * _t_quantile(1 - tail, images - 1))


def _t_p_value(p_value: float, images: int) -> float:
    """The p-value of n images from the share of the bootstrap that is as extreme; the inverse of `_normal_tail`."""
    if p_value >= 1:
        return 1.0
    deviations = -_NORMAL.inv_cdf(p_value / 2) * math.sqrt((images - 1) / images)
    return 2 * (1 - _t_probability(deviations, images - 1))


def _t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t, by bisection."""
    low, high = -1e6, 1e6
    while high - low > 1e-9 * max(1.0, abs(high)):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_probability(value: float, degrees: int) -> float:
    """The distribution function of Student's t for whole degrees of freedom (Abramowitz and Stegun, 26.7.3-4)."""
    if degrees > _MANY:
        return _NORMAL.cdf(value)
    angle = math.atan(value / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    term = total = math.sin(angle) * (math.cos(angle) if degrees % 2 else 1.0)
    for power in range(2 + degrees % 2, degrees - 1, 2):
        term *= square * (power - 1) / power
        total += term
    if degrees % 2 == 0:
        return (1 + total) / 2
    return 0.5 + (angle + (total if degrees > 1 else 0.0)) / math.pi


def _is_match(one: str, other: str, tolerance: float) -> bool:
    shorter, longer = sorted((count_words(one), count_words(other)))
    return longer <= shorter * (1 + tolerance)


def _only(scores: Scores, images: Sequence[str]) -> Scores:
    """The scores of some images, with the document frequencies of all."""
    row_of = {str(image): row for row, image in enumerate(scores.ids)}
    rows = [row_of[image] for image in images]
    statistics = {key: values[rows] for key, values in scores.statistics.items()}
    return Scores(tuple(scores.ids[row] for row in rows), statistics, scores.details)
