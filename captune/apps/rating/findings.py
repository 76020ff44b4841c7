"""The records of what a study found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from captune.apps.rating.estimates import CONFIDENCE, Estimate
from captune.apps.rating.quality import RaterQuality

__all__ = ["OVERALL", "PREFERENCE", "Correlation", "PairResult", "Ranked", "Results"]

FORMAT = 1

OVERALL = "overall"
"""The mean of the four criteria."""

PREFERENCE = "preference"
"""How often a caption was preferred in its comparisons, ties as halves."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """Two systems compared.

    Attributes:
        systems: their names.
        wins: how often the first was preferred.
        losses: how often the second was.
        ties: how often neither.
        share: how often the first was preferred, ties as halves.
        equal: images of the study on which both showed the same text, which was not asked.
    """

    systems: tuple[str, str]
    wins: int
    losses: int
    ties: int
    share: Estimate
    equal: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """A system's place by Bradley and Terry; strength is on the log-odds scale with mean 0."""

    system: str
    rank: int
    strength: Estimate


@dataclass(frozen=True, slots=True)
class Correlation:
    """An automatic metric beside the judgement of people.

    Attributes:
        metric: its name.
        target: a criterion, "overall" or "preference".
        level: "caption", over captions, or "system", over systems.
        pairs: how many captions or systems.
        kendall: tau-c.
        pearson: r.
    """

    metric: str
    target: str
    level: str
    pairs: int
    kendall: Estimate
    pearson: Estimate


@dataclass(frozen=True, slots=True)
class Results:
    """All that a study found so far.

    Attributes:
        source: what the study was made from.
        options: what it was drawn with, as JSON values.
        systems: names.
        images: how many images the study has.
        counted: answers that the numbers are made of.
        left_out: names of raters who are not counted.
        agreement: "preference" or a criterion -> alpha and the number of things that two or more people judged.
        win_rates: system -> how often it was preferred, ties as halves.
        pairs: every pair of systems that was compared.
        ranking: best first; empty where there is nothing to rank or systems were never compared.
        rubric: system -> criterion or "overall" -> mean points.
        correlations: of every automatic metric.
        raters: records.
    """

    source: str
    options: dict[str, Any]
    systems: tuple[str, ...]
    images: int
    counted: int
    left_out: tuple[str, ...] = ()
    agreement: dict[str, tuple[Estimate, int]] = field(default_factory=dict)
    win_rates: dict[str, Estimate] = field(default_factory=dict)
    pairs: tuple[PairResult, ...] = ()
    ranking: tuple[Ranked, ...] = ()
    rubric: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    correlations: tuple[Correlation, ...] = ()
    raters: tuple[RaterQuality, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: what `rating.json` in a run holds."""
        return {"format": FORMAT, "confidence": CONFIDENCE, **asdict(self)} | {
            "agreement": {name: {**found.to_dict(), "units": units} for name, (found, units) in self.agreement.items()}
        }
