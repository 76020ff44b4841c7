"""How carefully each rater worked: attention checks, self-consistency, speed and habits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from captune.apps.rating.judgements import points, preference
from captune.apps.rating.store import Store
from captune.apps.rating.tables import Answer, Rater
from captune.apps.rating.trials import Trial

__all__ = ["LOW_PRECISION", "RaterQuality", "attention_passed", "rater_quality"]

LOW_PRECISION = 2
"""A caption of another image is seen through when its precision is given so many points or fewer."""


@dataclass(frozen=True, slots=True)
class RaterQuality:
    """One rater's record.

    Attributes:
        rater: number.
        name: as the study's owner knows them.
        answered: screens answered.
        screens: screens in all.
        attention_passed: attention checks passed.
        attention_checks: attention checks answered.
        same_choice: repeated comparisons with the same outcome.
        repeated_pairs: repeated comparisons answered.
        points_apart: mean distance between two ratings of the same caption by the same criterion; None without.
        ties: share of ties among comparisons; None without.
        first_chosen: share of the caption shown first among choices, which habit moves away from a half.
        seconds: median time of an answer; None where it is not known.
    """

    rater: int
    name: str
    answered: int
    screens: int
    attention_passed: int
    attention_checks: int
    same_choice: int
    repeated_pairs: int
    points_apart: float | None
    ties: float | None
    first_chosen: float | None
    seconds: float | None

    @property
    def attention(self) -> float | None:
        """Share of attention checks passed; None before the first one."""
        return self.attention_passed / self.attention_checks if self.attention_checks else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def rater_quality(store: Store) -> list[RaterQuality]:
    """The records of all raters of a study."""
    answers: dict[int, list[Answer]] = {}
    for answer in store.answers():
        answers.setdefault(answer.rater, []).append(answer)
    return [_record(rater, store.trials(rater.number), answers.get(rater.number, [])) for rater in store.raters()]


def attention_passed(answer: Answer, trial: Trial) -> bool:
    """Whether an attention check was seen through: the true caption chosen, or the false one called imprecise."""
    if trial.expected is None:
        return points(answer)[0] <= LOW_PRECISION
    return answer.value != "tie" and trial.captions[("first", "second").index(answer.value)] == trial.expected


def _record(rater: Rater, trials: Sequence[Trial], answers: Sequence[Answer]) -> RaterQuality:
    given = {answer.position: answer for answer in answers}
    done = [(answer, trials[answer.position]) for answer in answers]
    checks = [attention_passed(answer, trial) for answer, trial in done if trial.kind == "attention"]
    repeats = [
        (given[trial.repeats], answer, trial)
        for answer, trial in done
        if trial.kind == "repeat" and trial.repeats in given
    ]
    same = [
        preference(before, trials[before.position]).outcome == preference(answer, trial).outcome
        for before, answer, trial in repeats
        if trial.part == "pairwise"
    ]
    apart = [
        abs(one - other)
        for before, answer, trial in repeats
        if trial.part == "rubric"
        for one, other in zip(points(before), points(answer), strict=True)
    ]
    choices = [answer.value for answer, trial in done if trial.part == "pairwise" and trial.kind == "task"]
    decided = [choice for choice in choices if choice != "tie"]
    times = [answer.seconds for answer in answers if answer.seconds is not None]
    return RaterQuality(
        rater=rater.number,
        name=rater.name,
        answered=len(answers),
        screens=len(trials),
        attention_passed=sum(checks),
        attention_checks=len(checks),
        same_choice=sum(same),
        repeated_pairs=len(same),
        points_apart=statistics.fmean(apart) if apart else None,
        ties=choices.count("tie") / len(choices) if choices else None,
        first_chosen=decided.count("first") / len(decided) if decided else None,
        seconds=statistics.median(times) if times else None,
    )
