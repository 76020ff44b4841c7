"""How well metrics agree with people: every judged caption is scored, and the scores are compared with the judgements.

For captions that people scored: Kendall's tau-b and tau-c over all captions, and the accuracy on pairs of captions of
one image that people order. For pairs of captions: the accuracy, in total and in each category. A metric that ties a
pair has not found the preferred caption: the tie counts as wrong, as in the evaluations of FOIL and Pascal-50S, or as a
half where that is requested.

Every item is scored as a separate image, which is how the published numbers were made: CIDEr's document frequencies
are over items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.agreement.judgements import Judgements, image_list
from captune.agreement.kendall import kendall_taus, resampled_kendall_taus
from captune.agreement.resampling import (
    Difference,
    Estimate,
    differences,
    estimate,
    image_resamples,
    ordered_pairs,
    ratio,
)
from captune.common import one_line
from captune.errors import MetricInputError
from captune.metrics import Scorer, ScoringOptions, find_column

__all__ = ["ACCURACY", "TAU_B", "TAU_C", "Agreement", "measure_agreement"]

TAU_B, TAU_C, ACCURACY = "tau-b", "tau-c", "accuracy"


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of metrics with people on one set of judgements.

    Attributes:
        title: name of the data.
        is_pairs: whether people compared captions.
        judgements: number of scored captions, or of pairs.
        images: number of images.
        measures: names of the measures, the main one first.
        metrics: metric -> measure -> estimate, between -1 and 1; in the order of the metrics.
        ties: metric -> share of pairs that it ties.
        tests: all pairs of metrics compared by the main measure.
        signature: of the metrics.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        ties_count: what a tie of a metric counts, 0 or 0.5.
        notes: sentences about the data.
    """

    title: str
    is_pairs: bool
    judgements: int
    images: int
    measures: tuple[str, ...]
    metrics: dict[str, dict[str, Estimate]]
    ties: dict[str, float | None]
    tests: tuple[Difference, ...]
    signature: str
    resamples: int
    seed: int
    ties_count: float
    notes: tuple[str, ...]

    @property
    def main(self) -> str:
        """The measure by which metrics are compared."""
        return self.measures[0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"main": self.main}


def measure_agreement(
    judgements: Judgements,
    options: ScoringOptions,
    *,
    main: str = TAU_C,
    resamples: int = 1000,
    seed: int = 12345,
    ties_count: float = 0.0,
    image_files: Mapping[str, Path] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Agreement:
    """Score the captions and compare the scores with the judgements.

    Args:
        judgements: of people.
        options: of the scorer, with the metrics.
        main: measure by which metrics are compared, for scored captions.
        resamples: of the bootstrap; 0 for no intervals and tests.
        seed: of the bootstrap.
        ties_count: what a tie of a metric counts in an accuracy, 0 or 0.5.
        image_files: image -> file, for metrics that need images.
        progress: called with what is computed next: the name of a metric, or "intervals of ...".

    Raises:
        MetricInputError: there are too few judgements, or a metric cannot score.
    """
    if judgements.count < 2:
        raise MetricInputError(f"{judgements.title} has {judgements.count} judgements; at least two are needed.")
    scores, signature = _score(judgements, options, image_files, progress)
    names, images = image_list(judgements.images)
    draws = image_resamples(len(names), seed, resamples) if resamples else np.zeros((0, len(names)), np.int64)
    metrics: dict[str, dict[str, Estimate]] = {}
    ties: dict[str, float | None] = {}
    main_values: dict[str, float] = {}
    main_resampled: dict[str, NDArray[np.float64]] = {}
    measures: tuple[str, ...] = ()
    for metric, values in scores.items():
        if progress is not None:
            progress(f"intervals of {metric}")
        if judgements.pairs is None:
            measured, ties[metric] = _of_scores(judgements, values, images, draws, ties_count)
            order = (main, *(name for name in (TAU_B, TAU_C, ACCURACY) if name != main))
            measured = {name: measured[name] for name in order}
        else:
            measured, ties[metric] = _of_pairs(judgements, values, images, draws, ties_count)
        measures = tuple(measured)
        metrics[metric] = {name: estimate(value, resampled) for name, (value, resampled) in measured.items()}
        main_values[metric], main_resampled[metric] = measured[measures[0]]
    return Agreement(
        judgements.title,
        judgements.pairs is not None,
        judgements.count,
        len(names),
        measures,
        metrics,
        ties,
        tuple(differences(main_values, main_resampled)),
        signature,
        resamples,
        seed,
        ties_count,
        tuple(judgements.notes),
    )


_Measured = dict[str, tuple[float, NDArray[np.float64]]]


def _score(
    judgements: Judgements,
    options: ScoringOptions,
    image_files: Mapping[str, Path] | None,
    progress: Callable[[str], None] | None,
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Scores of the n items by column, higher is better, and the signature."""
    items = [str(index) for index in range(len(judgements.captions))]
    references = dict(zip(items, judgements.references, strict=True))
    files: dict[str | int, Path] | None = None
    if image_files is not None:
        files = {item: image_files[image] for item, image in zip(items, judgements.images, strict=True)}
    data = one_line(judgements.title).replace("|", "/")
    scorer = Scorer(references, replace(options, data=data), image_files=files, on_metric=progress)
    scores = scorer.score(dict(zip(items, judgements.captions, strict=True)))
    columns = {}
    for name, values in scores.image_scores.items():
        column = find_column(name)
        columns[name] = values if column is None or column.higher_is_better else -values
    return columns, scores.signature


def _of_scores(
    judgements: Judgements,
    values: NDArray[np.float64],
    images: NDArray[np.int64],
    draws: NDArray[np.int64],
    ties_count: float,
) -> tuple[_Measured, float | None]:
    assert judgements.scores is not None
    taus = kendall_taus(values, judgements.scores)
    resampled = resampled_kendall_taus(values, judgements.scores, images, draws)
    counts = ordered_pairs(values, judgements.scores, images, draws.shape[1])
    if np.isnan(values).any():
        counts[:] = 0
    total, tied = int(counts[:, 2].sum()), int(counts[:, 1].sum())
    measured: _Measured = {
        TAU_B: (float(taus.b), np.asarray(resampled.b)),
        TAU_C: (float(taus.c), np.asarray(resampled.c)),
        ACCURACY: ratio(counts[:, 0] + ties_count * counts[:, 1], counts[:, 2], draws),
    }
    return measured, tied / total if total else None


def _of_pairs(
    judgements: Judgements,
    values: NDArray[np.float64],
    images: NDArray[np.int64],
    draws: NDArray[np.int64],
    ties_count: float,
) -> tuple[_Measured, float | None]:
    """Accuracy of each category and in total; with categories the main measure is the mean of the categories."""
    assert judgements.pairs is not None
    better, worse = values[judgements.pairs[:, 0]], values[judgements.pairs[:, 1]]
    hits = (better > worse) + ties_count * (better == worse)
    if np.isnan(values).any():
        hits = np.full(len(hits), math.nan)
    image = images[judgements.pairs[:, 0]]

    def share(members: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
        size = draws.shape[1]
        cases = np.bincount(image[members], minlength=size)
        return ratio(np.bincount(image[members], hits[members], size), cases, draws)

    names = list(dict.fromkeys(judgements.categories))
    if names:
        category = np.array(judgements.categories)
        shares = {name: share(category == name) for name in names}
        mean = float(np.mean([value for value, _ in shares.values()]))
        resampled = np.mean([drawn for _, drawn in shares.values()], axis=0)
        measured: _Measured = {"mean of categories": (mean, resampled), **shares}
    else:
        measured = {ACCURACY: share(np.ones(len(hits), np.bool_))}
    return measured, float(np.mean(better == worse))
