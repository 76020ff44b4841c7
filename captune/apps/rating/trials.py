"""The screens that one rater meets, in their order: a pure function of the design and the rater's number."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from captune.apps.rating.design import Caption, Design, Task

__all__ = ["Trial", "trials_of"]

APART = 2
"""Screens between two of the same image, where there are enough others."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One screen.

    Attributes:
        part: "pairwise" or "rubric".
        kind: "task", "attention" or "repeat"; only tasks are counted in the results.
        image: place of the image in the study.
        captions: places of the captions, in the order in which they are shown.
        expected: place of the true caption of an attention check of two captions.
        repeats: position of the screen that this one repeats.
    """

    part: str
    kind: str
    image: int
    captions: tuple[int, ...]
    expected: int | None = None
    repeats: int | None = None


def trials_of(design: Design, rater: int) -> list[Trial]:
    """All screens of a rater.

    Tasks are dealt like cards: rater r takes those from `r * T * J / R` to `(r + 1) * T * J / R`, counted round and
    round through the T tasks. R raters give each task exactly J judgements and nobody the same one twice; a rater
    who joins later takes the next ones.

    Args:
        design: the drawn study.
        rater: number, from 0.
    """
    trials: list[Trial] = []
    for part in design.options.parts:
        trials += _part(design, part, rater, start=len(trials))
    return trials


def _part(design: Design, part: str, rater: int, start: int) -> list[Trial]:
    options = design.options
    chance = random.Random(f"{options.seed}/rater/{rater}/{part}")
    tasks = _dealt(design.tasks[part], rater, options.raters, options.judgements)
    chance.shuffle(tasks)
    screens = _oriented(_apart(tasks), design.captions, chance)
    for check in _checks(design, part, round_up(options.attention * len(tasks)), chance):
        screens.insert(chance.randint(min(2, len(screens)), len(screens)), check)
    places = [place for place, screen in enumerate(screens) if screen.kind == "task"]
    # Repeats come from the first half and are asked in the last part, when the first answer is forgotten.
    early = places[: max(1, len(places) // 2)]
    repeated = chance.sample(early, min(len(early), round_up(options.repeats * len(tasks))))
    again = [
        replace(screens[place], kind="repeat", captions=screens[place].captions[::-1], repeats=start + place)
        for place in repeated
    ]
    # Behind all the screens that are repeated, so that their positions stay as they are.
    first_free = max(early, default=0) + 1
    for screen in again:
        screens.insert(chance.randint(max(first_free, len(screens) * 2 // 3), len(screens)), screen)
    return screens


def round_up(share: float) -> int:
    """A share of tasks as a number: one at least unless it is nothing."""
    return max(1, round(share)) if share > 0 else 0


def _dealt(tasks: Sequence[Task], rater: int, raters: int, judgements: int) -> list[Task]:
    total = len(tasks) * judgements
    first, last = rater * total // raters, (rater + 1) * total // raters
    return [tasks[place % len(tasks)] for place in range(first, last)]


def _apart(tasks: Sequence[Task]) -> list[Task]:
    """The same order as far as possible, with screens of other images between two of one image."""
    waiting, ordered = list(tasks), list[Task]()
    while waiting:
        recent = {task.image for task in ordered[-APART:]}
        place = next((place for place, task in enumerate(waiting) if task.image not in recent), 0)
        ordered.append(waiting.pop(place))
    return ordered


def _oriented(tasks: Sequence[Task], captions: Sequence[Caption], chance: random.Random) -> list[Trial]:
    """Choose which caption stands first, so that every system does as often as second."""
    lead: Counter[str] = Counter()
    screens = []
    for task in tasks:
        shown = task.captions
        if len(shown) == 2:
            # How much more often the systems of the first caption have led than those of the second.
            balance = sum(lead[name] for name in captions[shown[0]].systems)
            balance -= sum(lead[name] for name in captions[shown[1]].systems)
            if balance > 0 or (balance == 0 and chance.random() < 0.5):
                shown = shown[::-1]
            lead.update(captions[shown[0]].systems)
            lead.subtract(captions[shown[1]].systems)
        screens.append(Trial(task.part, "task", task.image, shown))
    return screens


def _checks(design: Design, part: str, count: int, chance: random.Random) -> list[Trial]:
    """Attention checks on images of the study, of one caption that is false or of a true and a false one."""
    images = chance.sample(list(design.attention), min(count, len(design.attention)))
    checks = []
    for image in images:
        true, false = design.attention[image]
        if part == "rubric":
            checks.append(Trial(part, "attention", image, (false,)))
        else:
            shown = (true, false) if chance.random() < 0.5 else (false, true)
            checks.append(Trial(part, "attention", image, shown, expected=true))
    return checks
