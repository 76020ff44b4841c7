"""Answers as judgements of captions: who preferred what, and who gave how many points."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from captune.apps.rating.design import CRITERIA, Caption
from captune.apps.rating.store import Store
from captune.apps.rating.tables import Answer
from captune.apps.rating.trials import Trial

__all__ = ["Judgements", "Preference", "Rating", "points", "preference", "read_judgements", "rival_systems"]


@dataclass(frozen=True, slots=True)
class Preference:
    """One answer to a comparison.

    Attributes:
        rater: number.
        image: place in the study.
        captions: places of the two captions, ascending.
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
        image: place in the study.
        caption: place of the caption.
        points: 1 to 5 in the order of `CRITERIA`.
    """

    rater: int
    image: int
    caption: int
    points: tuple[int, ...]


@dataclass
class Judgements:
    """What counts in the results: answers to tasks, without checks and repeats.

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
        left_out: raters whose answers do not count.
    """
    found = Judgements()
    trials = {rater.number: store.trials(rater.number) for rater in store.raters()}
    for answer in store.answers():
        trial = trials[answer.rater][answer.position]
        if trial.kind != "task" or answer.rater in left_out:
            continue
        if trial.part == "pairwise":
            found.preferences.append(preference(answer, trial))
        else:
            found.ratings.append(Rating(answer.rater, trial.image, trial.captions[0], points(answer)))
    return found


def preference(answer: Answer, trial: Trial) -> Preference:
    """An answer to a comparison, whichever caption was shown first."""
    shown = {"first": 1, "second": -1, "tie": 0}[answer.value]
    first, second = trial.captions
    outcome = shown if first < second else -shown
    return Preference(answer.rater, trial.image, (min(first, second), max(first, second)), outcome)


def points(answer: Answer) -> tuple[int, ...]:
    """An answer to the rubric, 1 to 5 in the order of `CRITERIA`."""
    given = tuple(map(int, answer.value))
    assert len(given) == len(CRITERIA)
    return given


def rival_systems(captions: Sequence[Caption], pair: tuple[int, int]) -> list[tuple[str, str]]:
    """The pairs of systems that an answer about two captions compares."""
    return [(one, other) for one in captions[pair[0]].systems for other in captions[pair[1]].systems]
