"""Answers as judgements of captions, and the quality of each rater: attention checks, consistency, speed, habits."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from captune.apps.rating.store import Answer, Rater, Store
from captune.apps.rating.study_design import CRITERIA, Caption, Trial

__all__ = [
    "LOW_PRECISION",
    "Judgements",
    "Preference",
    "RaterQuality",
    "Rating",
    "attention_passed",
    "points",
    "preference",
    "rater_quality",
    "read_judgements",
    "rival_systems",
]


@dataclass(frozen=True, slots=True)
class Preference:
    """One answer to a comparison.

    Attributes:
        rater: number.
        image: index in the study.
        captions: indices of the two captions, ascending.
        outcome: 1 when the first of them was preferred, -1 when the second was, 0 for a tie.
    """

    rater: int
    image: int
    captions: tuple[int, int]
    outcome: int


@dataclass(frozen=True, slots=True)
class Rating:
    """One answer to the rubric.

    Attributes:
        rater: number.
        image: index in the study.
        caption: index of the caption.
        points: 1 to 5 in the order of `CRITERIA`.
    """

    rater: int
    image: int
    caption: int
    points: tuple[int, ...]


@dataclass
class Judgements:
    """The answers that count in the results: to tasks, without checks and repeats.

    Attributes:
        preferences: of the part `pairwise`.
        ratings: of the part `rubric`.
    """

    preferences: list[Preference] = field(default_factory=list)
    ratings: list[Rating] = field(default_factory=list)


def read_judgements(store: Store, left_out: Collection[int] = ()) -> Judgements:
    """The judgements of a study.

    Args:
        store: the open study.
        left_out: raters whose answers are ignored.
    """
    judgements = Judgements()
    trials = {rater.number: store.trials(rater.number) for rater in store.raters()}
    for answer in store.answers():
        trial = trials[answer.rater][answer.position]
        if trial.kind != "task" or answer.rater in left_out:
            continue
        if trial.part == "pairwise":
            judgements.preferences.append(preference(answer, trial))
        else:
            judgements.ratings.append(Rating(answer.rater, trial.image, trial.captions[0], points(answer)))
    return judgements


def preference(answer: Answer, trial: Trial) -> Preference:
    """An answer to a comparison, independent of which caption was shown first."""
    shown = {"first": 1, "second": -1, "tie": 0}[answer.value]
    first, second = trial.captions
    outcome = shown if first < second else -shown
    return Preference(answer.rater, trial.image, (min(first, second), max(first, second)), outcome)


def points(answer: Answer) -> tuple[int, ...]:
    """An answer to the rubric, 1 to 5 in the order of `CRITERIA`."""
    values = tuple(map(int, answer.value))
    assert len(values) == len(CRITERIA)
    return values


def rival_systems(captions: Sequence[Caption], pair: tuple[int, int]) -> list[tuple[str, str]]:
    """The pairs of systems that an answer about two captions compares."""
    return [(first, second) for first in captions[pair[0]].systems for second in captions[pair[1]].systems]


LOW_PRECISION = 2
"""An attention check is passed if the precision of the foreign caption gets so many points or fewer."""


FASTEST_SECONDS = 1.5
"""Median seconds of an answer below which an image and its captions can hardly have been read."""
FEWEST_ANSWERS = 5
"""Answers from which a median time counts."""
LOW_ATTENTION, FEWEST_CHECKS = 0.5, 2
"""Share of passed attention checks that is no better than chance, and the checks from which it counts."""


@dataclass(frozen=True, slots=True)
class RaterQuality:
    """One rater's record.

    Attributes:
        rater: number.
        name: known to the owner of the study only.
        answered: screens answered.
        screens: screens in all.
        attention_passed: attention checks passed.
        attention_checks: attention checks answered.
        same_choice: repeated comparisons with the same outcome.
        repeated_pairs: repeated comparisons answered.
        points_apart: mean difference between two ratings of the same caption by the same criterion; None without.
        ties: share of ties among comparisons; None without.
        first_chosen: share of choices for the caption shown first; a habit moves it away from a half.
        seconds: median time of an answer; None if it is unknown.
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

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons to look at a rater's answers: "too_fast" and "attention_failed"; they change no result."""
        doubts = []
        if self.seconds is not None and self.answered >= FEWEST_ANSWERS and self.seconds < FASTEST_SECONDS:
            doubts.append("too_fast")
        if self.attention is not None and self.attention_checks >= FEWEST_CHECKS and self.attention <= LOW_ATTENTION:
            doubts.append("attention_failed")
        return tuple(doubts)

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
    """Whether an attention check was passed: the true caption preferred, or the false one rated imprecise."""
    if trial.expected is None:
        return points(answer)[0] <= LOW_PRECISION
    return answer.value != "tie" and trial.captions[("first", "second").index(answer.value)] == trial.expected


def _record(rater: Rater, trials: Sequence[Trial], answers: Sequence[Answer]) -> RaterQuality:
    by_position = {answer.position: answer for answer in answers}
    done = [(answer, trials[answer.position]) for answer in answers]
    checks = [attention_passed(answer, trial) for answer, trial in done if trial.kind == "attention"]
    repeats = [
        (by_position[trial.repeats], answer, trial)
        for answer, trial in done
        if trial.kind == "repeat" and trial.repeats in by_position
    ]
    same = [
        preference(before, trials[before.position]).outcome == preference(answer, trial).outcome
        for before, answer, trial in repeats
        if trial.part == "pairwise"
    ]
    differences = [
        abs(first - second)
        for before, answer, trial in repeats
        if trial.part == "rubric"
        for first, second in zip(points(before), points(answer), strict=True)
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
        points_apart=statistics.fmean(differences) if differences else None,
        ties=choices.count("tie") / len(choices) if choices else None,
        first_chosen=decided.count("first") / len(decided) if decided else None,
        seconds=statistics.median(times) if times else None,
    )
