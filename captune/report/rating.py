"""What people said of a run's captions, from the `rating.json` that `captune rate --results` leaves in it.

The file is made elsewhere and read here for what the page shows: agreement, ranking, points, and the correlation of
each metric with the people.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from captune.errors import InputError
from captune.parsing import load_json
from captune.report.record import CheckpointScores, RunScores

__all__ = ["FILE", "captions_hashes", "rating_counts", "rating_of", "rating_tables", "read_rating"]

logger = logging.getLogger(__name__)

FILE = "rating.json"

FORMAT = 1

Estimate: TypeAlias = tuple[str, str]
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
    rows: Mapping[str, Sequence[Estimate]]
    words: bool = False


def read_rating(run_dir: Path) -> Mapping[str, Any] | None:
    """The results of a run's human rating; None when it has none.

    Raises:
        InputError: the file is there and is not what `captune rate --results` writes.
    """
    file = run_dir / FILE
    if not file.is_file():
        return None
    try:
        tree = load_json(file.read_bytes())
        known = isinstance(tree, dict) and tree["format"] == FORMAT
        if known:
            # Whatever is missing or of another kind shows here and not in the middle of writing a page.
            rating_counts(tree)
            rating_tables(tree)
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise InputError(f"{file} is not what `captune rate --results` writes; call it again, or remove the file.")
    return tree  # type: ignore[no-any-return]


def rating_of(run_dir: Path, scores: RunScores) -> Mapping[str, Any] | None:
    """The results of a run's human rating where they are of the captions in its scores; None otherwise.

    Raises:
        InputError: as `read_rating`.
    """
    rating = read_rating(run_dir)
    # Results of older versions do not tell of which captions they are.
    rated = {} if rating is None else rating.get("captions", {})
    now = captions_hashes(scores.checkpoints)
    if any(now.get(name) != value for name, value in rated.items()):
        logger.warning("%s is of other captions than scores.json, and is left out of the report.", run_dir / FILE)
        return None
    return rating


def captions_hashes(rows: Iterable[CheckpointScores]) -> dict[str, str]:
    """Row name -> hash of all of its captions."""
    texts = {row.name: json.dumps(dict(row.captions), sort_keys=True) for row in rows}
    return {name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for name, text in texts.items()}


def rating_counts(rating: Mapping[str, Any]) -> str:
    """How many answers were counted, and of how many images."""
    return f"{rating['counted']:,} / {rating['images']:,}"


def rating_tables(rating: Mapping[str, Any]) -> list[RatingTable]:
    """The results as tables of the page; those without a row are left out.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: something is missing or of another kind.
    """
    strengths = {ranked["system"]: ranked["strength"] for ranked in rating["ranking"]}
    rates, rubric = rating["win_rates"], rating["rubric"]
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
            {name: [_estimate(means[key]) for key in criteria] for name, means in rubric.items()},
        ),
        RatingTable(
            "rating_agreement",
            ("rating_alpha", "rating_units"),
            {
                f"rating_{name}": [_estimate(alpha), (f"{alpha['units']:,}", "")]
                for name, alpha in rating["agreement"].items()
            },
            words=True,
        ),
        *(_correlations(rating["correlations"], level) for level in ("caption", "system")),
    ]
    return [table for table in tables if table.rows]


def _correlations(rows: Sequence[Mapping[str, Any]], level: str) -> RatingTable:
    """One row a metric: its correlation with the overall points and with preferences."""
    by_metric = {(row["metric"], row["target"]): row for row in rows if row["level"] == level}
    targets = [target for target in ("overall", "preference") if any(target == key for _, key in by_metric)]
    lines: dict[str, list[Estimate]] = {}
    for metric, _ in by_metric:
        cells = (by_metric.get((metric, target)) for target in targets)
        lines[metric] = [_estimate(row and row[kind]) for row in cells for kind in ("kendall", "pearson")]
    heads = [f"rating_{kind}_{target}" for target in targets for kind in ("kendall", "pearson")]
    return RatingTable(f"rating_{level}_level", heads, lines)


def _estimate(estimate: Mapping[str, Any] | None) -> Estimate:
    if estimate is None or estimate["value"] is None:
        return "–", ""
    interval = "" if estimate["low"] is None else f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
    return f"{estimate['value']:.3f}", interval
