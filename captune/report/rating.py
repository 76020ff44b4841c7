"""What people said of a run's captions, from the `rating.json` that `captune rate --results` leaves in it.

The file is made elsewhere and read here for what the page shows: agreement, ranking, points, and the correlation of
each metric with the people.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from captune.common import one_line
from captune.errors import InputError
from captune.parsing import load_json
from captune.report.record import CheckpointScores, RunScores

__all__ = ["FILE", "captions_hashes", "rating_of", "rating_part", "read_rating"]

logger = logging.getLogger(__name__)

FILE = "rating.json"

FORMAT = 1


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
            rating_part(tree)
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


def rating_part(rating: Mapping[str, Any]) -> str:
    """The section of the page that shows the results."""
    counts = f"{rating['counted']:,} / {rating['images']:,}"
    parts = [f'<p class="notes"><span data-t="rating_counts"></span> {counts}</p>']
    strengths = {ranked["system"]: ranked["strength"] for ranked in rating["ranking"]}
    rates = rating["win_rates"]
    ordered = [name for name in strengths if name in rates] or list(rates)
    parts.append(
        _table(
            "rating_ranking",
            ("rating_preferred", "rating_strength"),
            [(_system(name), [_estimate(rates[name]), _estimate(strengths.get(name))]) for name in ordered],
        )
    )
    rubric = rating["rubric"]
    criteria = list(next(iter(rubric.values()), {}))
    parts.append(
        _table(
            "rating_points",
            [f"rating_{name}" for name in criteria],
            [(_system(name), [_estimate(means[key]) for key in criteria]) for name, means in rubric.items()],
        )
    )
    parts.append(
        _table(
            "rating_agreement",
            ("rating_alpha", "rating_units"),
            [
                (f'<span data-t="rating_{_safe(name)}"></span>', [_estimate(found), f"{found['units']:,}"])
                for name, found in rating["agreement"].items()
            ],
        )
    )
    parts += [_correlations(rating["correlations"], level) for level in ("caption", "system")]
    return (
        '<section id="people" aria-labelledby="people-title"><h2 id="people-title" data-t="people"></h2>'
        f"{''.join(parts)}</section>"
    )


def _correlations(rows: Sequence[Mapping[str, Any]], level: str) -> str:
    """One row a metric: its correlation with the overall points and with preferences."""
    found = {(row["metric"], row["target"]): row for row in rows if row["level"] == level}
    targets = [target for target in ("overall", "preference") if any(target == key for _, key in found)]
    lines = []
    for metric in dict.fromkeys(metric for metric, _ in found):
        cells = []
        for target in targets:
            row = found.get((metric, target))
            cells += [_estimate(row and row["kendall"]), _estimate(row and row["pearson"])]
        lines.append((_safe(metric), cells))
    heads = [f"rating_{kind}_{target}" for target in targets for kind in ("kendall", "pearson")]
    return _table(f"rating_{level}_level", heads, lines)


def _table(key: str, heads: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table under a heading, or nothing; first cells are HTML already."""
    if not lines:
        return ""
    head = "".join(f'<th scope="col" data-t="{_safe(name)}"></th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in lines
    )
    return (
        f'<h3 id="{key}" data-t="{key}"></h3>'
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{key}"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    shown = f"{found['value']:.3f}"
    if found["low"] is None:
        return shown
    return f'{shown}<span class="interval">[{found["low"]:.3f}, {found["high"]:.3f}]</span>'


def _system(name: str) -> str:
    return f"<bdi>{_safe(name)}</bdi>"


def _safe(text: str) -> str:
    return escape(one_line(text), quote=True)
