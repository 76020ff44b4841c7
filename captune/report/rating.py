"""`rating.json`: the results of a human rating of a run's captions, which `captune rate --results` writes.

The page shows agreement, ranking, points, and the correlation of each metric with the raters; other fields of the file
are not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import Strict

from captune.report.files import parse_versioned_json, read_text
from captune.report.scores_json import CheckpointScores, Integer, RunScores, Text

__all__ = ["FILE", "Rating", "caption_hashes", "rating_counts", "rating_of", "rating_tables", "read_rating"]

logger = logging.getLogger(__name__)

FILE = "rating.json"

FORMAT = 1

Number: TypeAlias = Annotated[float, Strict()]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its interval; None where it cannot be computed."""

    value: Number | None
    low: Number | None
    high: Number | None


@dataclass(frozen=True, slots=True)
class Agreement(Estimate):
    """Krippendorff's alpha, and how many units two or more raters judged."""

    units: Integer


@dataclass(frozen=True, slots=True)
class Ranked:
    """The Bradley-Terry strength of a system."""

    system: Text
    strength: Estimate


@dataclass(frozen=True, slots=True)
class Correlation:
    """Correlation of a metric with a judgement (`target`) over captions or systems (`level`)."""

    metric: Text
    target: Text
    level: Text
    kendall: Estimate | None
    pearson: Estimate | None


@dataclass(frozen=True, slots=True)
class Rating:
    """The results of a rating.

    Attributes:
        counted: number of answers.
        images: number of images that they are on.
        ranking: the systems, the strongest first.
        win_rates: system -> how often it was preferred.
        rubric: system -> criterion -> mean points.
        agreement: question -> agreement of the raters.
        correlations: of metrics with judgements.
        captions: row of the run -> hash of its captions; empty in files of older versions.
    """

    counted: Integer
    images: Integer
    ranking: tuple[Ranked, ...]
    win_rates: Mapping[str, Estimate]
    rubric: Mapping[str, Mapping[str, Estimate]]
    agreement: Mapping[str, Agreement]
    correlations: tuple[Correlation, ...]
    captions: Mapping[str, Text] = field(default_factory=dict)


Shown: TypeAlias = tuple[str, str]
"""A number and its interval as they are shown; the interval may be empty."""


class RatingTable(NamedTuple):
    """One table of the page.

    Attributes:
        key: of the page's words that are its heading.
        heads: keys of the words over its columns.
        rows: name -> cells.
        words: whether the names are keys of the page's words.
    """

    key: str
    heads: Sequence[str]
    rows: Mapping[str, Sequence[Shown]]
    words: bool = False


def read_rating(run_dir: Path) -> Rating | None:
    """The results of a run's human rating; None when it has none.

    Raises:
        InputError: the file is there and is not what `captune rate --results` writes.
    """
    file = run_dir / FILE
    if not file.is_file():
        return None
    remedy = "call `captune rate --results` again, or remove the file"
    text = read_text(file, missing=remedy, undecodable=remedy)
    return parse_versioned_json(text, Rating, str(file), version=FORMAT, remedy=remedy)


def rating_of(run_dir: Path, scores: RunScores) -> Rating | None:
    """The results of a run's human rating if they are of the captions in its scores; None otherwise.

    Raises:
        InputError: as `read_rating`.
    """
    rating = read_rating(run_dir)
    rated = {} if rating is None else rating.captions
    now = caption_hashes(scores.checkpoints)
    if any(now.get(name) != value for name, value in rated.items()):
        logger.warning("%s is of other captions than scores.json, and is left out of the report.", run_dir / FILE)
        return None
    return rating


def caption_hashes(rows: Iterable[CheckpointScores]) -> dict[str, str]:
    """Row name -> hash of all of its captions."""
    texts = {row.name: json.dumps(dict(row.captions), sort_keys=True) for row in rows}
    return {name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for name, text in texts.items()}


def rating_counts(rating: Rating) -> str:
    """Number of counted answers and of their images."""
    return f"{rating.counted:,} / {rating.images:,}"


def rating_tables(rating: Rating) -> list[RatingTable]:
    """The results as tables of the page; those without a row are left out."""
    strengths = {ranked.system: ranked.strength for ranked in rating.ranking}
    rates, rubric = rating.win_rates, rating.rubric
    criteria = list(next(iter(rubric.values()), {}))
    tables = [
        RatingTable(
            "rating_ranking",
            ("rating_preferred", "rating_strength"),
            {
                name: [_estimate(rates[name]), _estimate(strengths.get(name))]
                for name in [name for name in strengths if name in rates] or rates
            },
        ),
        RatingTable(
            "rating_points",
            [f"rating_{name}" for name in criteria],
            {name: [_estimate(means.get(key)) for key in criteria] for name, means in rubric.items()},
        ),
        RatingTable(
            "rating_agreement",
            ("rating_alpha", "rating_units"),
            {
                f"rating_{name}": [_estimate(alpha), (f"{alpha.units:,}", "")]
                for name, alpha in rating.agreement.items()
            },
            words=True,
        ),
        *(_correlations(rating.correlations, level) for level in ("caption", "system")),
    ]
    return [table for table in tables if table.rows]


def _correlations(rows: Sequence[Correlation], level: str) -> RatingTable:
    """One row a metric: its correlation with the overall points and with preferences."""
    by_metric = {(row.metric, row.target): row for row in rows if row.level == level}
    targets = [target for target in ("overall", "preference") if any(target == key for _, key in by_metric)]
    lines: dict[str, list[Shown]] = {}
    for metric, _ in by_metric:
        cells = [by_metric.get((metric, target)) for target in targets]
        pairs = [(None, None) if row is None else (row.kendall, row.pearson) for row in cells]
        lines[metric] = [_estimate(estimate) for pair in pairs for estimate in pair]
    heads = [f"rating_{kind}_{target}" for target in targets for kind in ("kendall", "pearson")]
    return RatingTable(f"rating_{level}_level", heads, lines)


def _estimate(estimate: Estimate | None) -> Shown:
    if estimate is None or estimate.value is None:
        return "–", ""
    interval = "" if estimate.low is None else f"[{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}", interval
