"""Comparison of two systems at equal length of their captions.

Longer captions win many metrics, and judges prefer them. Two estimators take the length out of a difference:

- "pairs" keeps the images for which both captions have about the same number of words, and tests the difference on
  them (matching within a caliper). CIDEr keeps the document frequencies of all images.
- "truncate" cuts the longer caption of each image at the sentence end that is closest to the length of the shorter
  one, and scores both again on all images.

"pairs" compares captions as they were written, on images that are no random sample; "truncate" uses all images, and
what a system says last is not scored. Both are paired, so that every metric has its interval and its tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from captune.errors import MetricInputError
from captune.metrics.scores import Scores
from captune.metrics.sentences import LENGTH_TOLERANCE, count_words, sentence_prefix
from captune.metrics.significance import Comparison, approximate_randomization, paired_bootstrap

__all__ = [
    "EqualLengthTests",
    "LengthMatching",
    "compare_at_equal_length",
    "cut_to_equal_length",
    "length_ratio",
]

LengthMatching: TypeAlias = Literal["pairs", "truncate"]
"""How captions of equal length are obtained."""

_FEWEST = 2


@dataclass(frozen=True)
class EqualLengthTests:
    """A system against a baseline at equal length.

    Attributes:
        method: "pairs" or "truncate".
        images: that were compared.
        total: of all images.
        ratio: words of the system over those of the baseline before matching, geometric mean over the images.
        matched_ratio: the same of the compared captions; nan without images.
        tests: score -> (paired bootstrap, approximate randomization); empty where fewer than two images are left.
    """

    method: LengthMatching
    images: int
    total: int
    ratio: float
    matched_ratio: float
    tests: Mapping[str, tuple[Comparison, Comparison]]


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
    if len(kept) >= _FEWEST:
        drawn = paired_bootstrap(system, baseline, confidence, resamples, seed)
        swapped = approximate_randomization(system, baseline, trials, seed)
        tests = {name: (drawn[name], swapped[name]) for name in drawn}
    return EqualLengthTests(method, len(kept), len(images), length_ratio(ours, others), length_ratio(*compared), tests)


def _is_match(one: str, other: str, tolerance: float) -> bool:
    shorter, longer = sorted((count_words(one), count_words(other)))
    return longer <= shorter * (1 + tolerance)


def _only(scores: Scores, images: Sequence[str]) -> Scores:
    """The scores of some images, with the document frequencies of all."""
    row_of = {str(image): row for row, image in enumerate(scores.ids)}
    rows = [row_of[image] for image in images]
    statistics = {key: values[rows] for key, values in scores.statistics.items()}
    return Scores(tuple(scores.ids[row] for row in rows), statistics, scores.details)
