"""What `captune rate --results` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from captune.common import one_line
from captune.common.tables import text_table

if TYPE_CHECKING:
    from captune.apps.rating.study_report import Results

__all__ = ["print_results"]

SHOWN = ("overall", "preference")
"""Judgements that metrics are printed beside."""


def print_results(found: Results) -> None:
    """Print every table of the results to stdout."""
    print(f"{found.counted:,} answers on {found.images:,} images; intervals are 95 %, over images.")
    if found.left_out:
        print(f"Left out for their attention checks: {', '.join(map(one_line, found.left_out))}.")
    _section(
        "Raters",
        ("rater", "answered", "attention", "same choice", "points apart", "ties", "first chosen", "seconds"),
        [
            (
                one_line(rater.name),
                f"{rater.answered}/{rater.screens}",
                f"{rater.attention_passed}/{rater.attention_checks}",
                f"{rater.same_choice}/{rater.repeated_pairs}",
                _number(rater.points_apart),
                _share(rater.ties),
                _share(rater.first_chosen),
                _number(rater.seconds, 1),
            )
            for rater in found.raters
        ],
    )
    _section(
        "Agreement (Krippendorff's alpha)",
        ("question", "alpha", "judged by two or more"),
        [(name, str(alpha), str(units)) for name, (alpha, units) in found.agreement.items()],
    )
    strengths = {ranked.system: (ranked.rank, ranked.strength) for ranked in found.ranking}
    ordered = sorted(found.win_rates, key=lambda name: strengths[name][0] if name in strengths else 0)
    _section(
        "Ranking",
        ("system", "preferred", "strength (Bradley-Terry)"),
        [
            (one_line(name), str(found.win_rates[name]), str(strengths[name][1]) if name in strengths else "–")
            for name in ordered
        ],
    )
    _section(
        "Pairs",
        ("first : second", "first better", "equal", "second better", "first preferred", "same text"),
        [
            (
                " : ".join(map(one_line, pair.systems)),
                str(pair.wins),
                str(pair.ties),
                str(pair.losses),
                str(pair.share),
                str(pair.equal),
            )
            for pair in found.pairs
        ],
    )
    criteria = list(next(iter(found.rubric.values()), {}))
    _section(
        "Points, 1 to 5",
        ("system", *criteria),
        [(one_line(name), *map(str, means.values())) for name, means in found.rubric.items()],
    )
    for level in ("caption", "system"):
        _section(
            f"Metrics beside people, {level} by {level}",
            ("metric", "people", "tau-c", "Pearson r", "n"),
            [
                (one_line(row.metric), row.target, str(row.kendall), str(row.pearson), str(row.pairs))
                for row in found.correlations
                if row.level == level and row.target in SHOWN
            ],
        )
    if found.correlations:
        print(
            "\nIntervals system by system tell of the people's judgements only: other systems may behave otherwise.\n"
            "Each criterion by itself is in --json."
        )


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        print(f"\n{title}\n{text_table(header, rows)}")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
