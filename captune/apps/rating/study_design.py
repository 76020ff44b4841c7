"""The design of a study: its images, its tasks, and the screens of each rater.

A task is something to judge: two captions of an image in the part `pairwise`, one caption in the part `rubric`. Systems
with the same text for an image share the caption, so that it is judged once, and a pair of equal captions is no task.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from captune.apps.rating.study_items import StudyItems
from captune.errors import InputError

__all__ = [
    "CRITERIA",
    "PARTS",
    "Caption",
    "Design",
    "StudyOptions",
    "Task",
    "Trial",
    "draw_design",
    "shown_caption",
    "trials_of",
]

CRITERIA = ("precision", "recall", "fluency", "conciseness")
"""Criteria of the rubric, 1 to 5 points each: precision and recall of THumB (Kasai et al., NAACL 2022), two of form."""

PARTS = ("pairwise", "rubric")

STRATA = 3


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """Options of a study.

    Attributes:
        design: "pairwise", "rubric", or "both", first all pairs and then the rubric.
        images: number of sampled images.
        raters: number of people that share the tasks.
        judgements: number of raters that judge each task.
        pairs_per_image: comparisons of an image; None is every pair of systems.
        attention: attention checks as a share of a rater's tasks.
        repeats: repeated tasks as a share of a rater's tasks.
        as_written: show captions unchanged, without unifying their form.
        seed: of all random choices.
    """

    design: Literal["pairwise", "rubric", "both"] = "both"
    images: int = 40
    raters: int = 3
    judgements: int = 3
    pairs_per_image: int | None = None
    attention: float = 0.05
    repeats: float = 0.1
    as_written: bool = False
    seed: int = 42

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the study, in the order in which a rater meets them."""
        return PARTS if self.design == "both" else (self.design,)

    def check(self) -> None:
        """Check the options.

        Raises:
            InputError: a number is out of its range.
        """
        if self.images < 1 or self.raters < 1 or self.judgements < 1:
            raise InputError("images, raters and judgements must be 1 at least.")
        if self.judgements > self.raters:
            raise InputError(
                f"{self.judgements} judgements of each task need at least as many raters, not {self.raters}; "
                "no rater judges a task twice."
            )
        if not (0 <= self.attention <= 0.5 and 0 <= self.repeats <= 0.5):
            raise InputError("attention and repeats are shares of the tasks; give numbers from 0 to 0.5.")
        if self.pairs_per_image is not None and self.pairs_per_image < 1:
            raise InputError("pairs_per_image must be 1 at least.")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text that is shown below an image.

    Attributes:
        image: index of the image in the study.
        text: as shown.
        systems: those with this caption; empty for the caption of an attention check.
    """

    image: int
    text: str
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One or two captions of an image to judge.

    Attributes:
        part: "pairwise" or "rubric".
        image: index of the image in the study.
        captions: indices of the captions in the study, ascending.
    """

    part: str
    image: int
    captions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Design:
    """The drawn study.

    Attributes:
        options: of the study.
        images: ids in a shuffled order.
        strata: for each image 0 (worst automatic scores), 1 or 2.
        captions: all texts; those of attention checks are last.
        tasks: part -> its tasks in the order of their distribution.
        attention: image -> (true caption, false caption) for attention checks, if possible.
    """

    options: StudyOptions
    images: tuple[str, ...]
    strata: tuple[int, ...]
    captions: tuple[Caption, ...]
    tasks: Mapping[str, tuple[Task, ...]]
    attention: Mapping[int, tuple[int, int]]


def draw_design(items: StudyItems, options: StudyOptions) -> Design:
    """Draw images and tasks.

    Args:
        items: two systems at least for pairs.
        options: of the study; a larger number of images than there are takes all.

    Raises:
        InputError: no image has captions of all systems and a picture, there is nothing to compare, or attention
            checks are requested without references.
    """
    options.check()
    if not items.images:
        raise InputError("No image has a picture and a caption of every selected system; select other systems.")
    if "pairwise" in options.parts and len(items.systems) < 2:
        raise InputError("Pairs need two systems at least; name more, keep the human control, or use --design rubric.")
    if options.attention and len(items.references) < 2:
        raise InputError("Attention checks are made of reference captions; give --references, or --attention 0.")
    images, strata = _sample_images(items, options)
    captions: list[Caption] = []
    places: list[dict[str, int]] = []
    for number, image in enumerate(images):
        systems_of: dict[str, list[str]] = {}
        for system in items.systems:
            systems_of.setdefault(as_shown(system.captions[image], options), []).append(system.name)
        places.append({})
        for text, names in systems_of.items():
            places[-1] |= dict.fromkeys(names, len(captions))
            captions.append(Caption(number, text, tuple(names)))
    chance = random.Random(f"{options.seed}/tasks")
    tasks: dict[str, tuple[Task, ...]] = {}
    if "pairwise" in options.parts:
        tasks["pairwise"] = _pairs(places, [system.name for system in items.systems], options, chance)
        if not tasks["pairwise"]:
            raise InputError(
                "All systems have the same caption for every sampled image, so there is nothing to compare."
            )
    if "rubric" in options.parts:
        rated = [Task("rubric", caption.image, (number,)) for number, caption in enumerate(captions)]
        chance.shuffle(rated)
        tasks["rubric"] = tuple(rated)
    attention = _attention_checks(items, images, captions, options) if options.attention else {}
    return Design(options, images, strata, tuple(captions), tasks, attention)


def shown_caption(text: str) -> str:
    """A caption in the common form of a study, so that no system is recognized by its form.

    White space and the spaces of tokenized text are normalized, the first letter is upper case, the sentence ends with
    a full stop, and control and direction marks are removed.
    """
    line = _plain(text)
    line = re.sub(r"\s+([.,;:!?'’)\]])", r"\1", line)
    line = re.sub(r"\b(\w+) n't\b", r"\1n't", line)
    line = re.sub(r"([(\[])\s+", r"\1", line).strip(' "“”`')
    if not line:
        return ""
    line = line[0].upper() + line[1:]
    if line[-1] in ".!?。！？":
        return line
    return line.rstrip(",;:") + ("。" if re.search("[\u4e00-\u9fff]", line) else ".")


def _plain(text: str) -> str:
    """One line without control and direction marks."""
    kept = (mark if unicodedata.category(mark)[0] != "C" else " " if mark in "\n\r\t" else "" for mark in text)
    return " ".join("".join(kept).split())


def as_shown(text: str, options: StudyOptions) -> str:
    """A caption as the raters of a study see it."""
    return _plain(text) if options.as_written else shown_caption(text)


def _sample_images(items: StudyItems, options: StudyOptions) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sample equally many images from each third of the automatic scores, and shuffle them.

    The score is the mean over the systems of CIDEr, or of the first other metric; without scores it is the number of
    words, so that short and long captions are equally likely.
    """
    candidates = list(items.images)
    random.Random(f"{options.seed}/order").shuffle(candidates)
    ranked = sorted(candidates, key=lambda image: _difficulty(items, image))
    bounds = [round(len(ranked) * stratum / STRATA) for stratum in range(STRATA + 1)]
    total = min(options.images, len(ranked))
    stratum_of: dict[str, int] = {}
    for stratum in range(STRATA):
        members = ranked[bounds[stratum] : bounds[stratum + 1]]
        # Shares of the total, rounded so that they add up to it.
        count = total * bounds[stratum + 1] // len(ranked) - total * bounds[stratum] // len(ranked)
        sample = random.Random(f"{options.seed}/stratum/{stratum}").sample(members, count)
        stratum_of |= dict.fromkeys(sample, stratum)
    drawn = [image for image in candidates if image in stratum_of]
    return tuple(drawn), tuple(stratum_of[image] for image in drawn)


def _difficulty(items: StudyItems, image: str) -> float:
    values = []
    for system in items.systems:
        scores = system.per_image.get(image, {})
        value = scores.get("CIDEr", next(iter(scores.values()), math.nan))
        if math.isfinite(value):
            values.append(value)
    if values:
        return sum(values) / len(values)
    return sum(len(system.captions[image].split()) for system in items.systems) / len(items.systems)


def _pairs(
    places: Sequence[Mapping[str, int]], names: Sequence[str], options: StudyOptions, chance: random.Random
) -> tuple[Task, ...]:
    """Comparisons of different captions, all pairs of systems equally often as far as the captions allow."""
    used: Counter[tuple[str, str]] = Counter()
    tasks: dict[Task, None] = {}
    for image, captions in enumerate(places):
        pairs = [pair for pair in combinations(names, 2) if captions[pair[0]] != captions[pair[1]]]
        chance.shuffle(pairs)
        pairs.sort(key=lambda pair: used[pair])
        for pair in pairs[: options.pairs_per_image]:
            used[pair] += 1
            first, second = sorted((captions[pair[0]], captions[pair[1]]))
            tasks[Task("pairwise", image, (first, second))] = None
    shuffled = list(tasks)
    chance.shuffle(shuffled)
    return tuple(shuffled)


def _attention_checks(
    items: StudyItems, images: Sequence[str], captions: list[Caption], options: StudyOptions
) -> dict[int, tuple[int, int]]:
    """For each image a true caption, and one of another image that shares the fewest words with it."""
    referenced = [image for image in items.references if items.references[image]]
    words = {image: _words(items.references[image]) for image in referenced}
    checks: dict[int, tuple[int, int]] = {}
    for number, image in enumerate(images):
        if image not in words:
            continue
        chance = random.Random(f"{options.seed}/attention/{image}")
        others = chance.sample([other for other in referenced if other != image], k=min(len(referenced) - 1, 200))
        foreign = min(others, key=lambda other: len(words[other] & words[image]) / len(words[other] | words[image]))
        true, false = (as_shown(chance.choice(list(items.references[of])), options) for of in (image, foreign))
        checks[number] = (len(captions), len(captions) + 1)
        captions += [Caption(number, true, ()), Caption(number, false, ())]
    return checks


def _words(texts: Sequence[str]) -> frozenset[str]:
    return frozenset(word for text in texts for word in re.findall(r"\w{3,}|[\u4e00-\u9fff]", text.lower())) | {""}


SPACING = 2
"""Screens between two of the same image, if there are enough others."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One screen.

    Attributes:
        part: "pairwise" or "rubric".
        kind: "task", "attention" or "repeat"; only tasks are counted in the results.
        image: index of the image in the study.
        captions: indices of the captions, in the order in which they are shown.
        expected: index of the true caption of an attention check of two captions.
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

    Rater r takes the tasks from `r * T * J / R` to `(r + 1) * T * J / R`, counted cyclically through the T tasks. R
    raters give each task exactly J judgements, and no rater judges a task twice; a rater who joins later takes the next
    ones.

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
    tasks = _assigned(design.tasks[part], rater, options.raters, options.judgements)
    chance.shuffle(tasks)
    screens = _oriented(_spaced(tasks), design.captions, chance)
    for check in _checks(design, part, round_up(options.attention * len(tasks)), chance):
        screens.insert(chance.randint(min(2, len(screens)), len(screens)), check)
    positions = [position for position, screen in enumerate(screens) if screen.kind == "task"]
    # Repeats come from the first half and are shown in the last third, when the first answer is forgotten.
    early = positions[: max(1, len(positions) // 2)]
    repeated = chance.sample(early, min(len(early), round_up(options.repeats * len(tasks))))
    again = [
        replace(screens[n], kind="repeat", captions=screens[n].captions[::-1], repeats=start + n) for n in repeated
    ]
    # After all repeated screens, so that their positions do not change.
    first_free = max(early, default=0) + 1
    for screen in again:
        screens.insert(chance.randint(max(first_free, len(screens) * 2 // 3), len(screens)), screen)
    return screens


def round_up(share: float) -> int:
    """The number of a share of tasks: at least one unless the share is 0."""
    return max(1, round(share)) if share > 0 else 0


def _assigned(tasks: Sequence[Task], rater: int, raters: int, judgements: int) -> list[Task]:
    total = len(tasks) * judgements
    first, last = rater * total // raters, (rater + 1) * total // raters
    return [tasks[n % len(tasks)] for n in range(first, last)]


def _spaced(tasks: Sequence[Task]) -> list[Task]:
    """The tasks in nearly the same order, with screens of other images between two of one image."""
    waiting, ordered = list(tasks), list[Task]()
    while waiting:
        recent = {task.image for task in ordered[-SPACING:]}
        index = next((index for index, task in enumerate(waiting) if task.image not in recent), 0)
        ordered.append(waiting.pop(index))
    return ordered


def _oriented(tasks: Sequence[Task], captions: Sequence[Caption], chance: random.Random) -> list[Trial]:
    """Order the captions of each screen so that every system is first as often as second."""
    lead: Counter[str] = Counter()
    screens = []
    for task in tasks:
        shown = task.captions
        if len(shown) == 2:
            # How much more often the systems of the first caption were first than those of the second.
            balance = sum(lead[name] for name in captions[shown[0]].systems)
            balance -= sum(lead[name] for name in captions[shown[1]].systems)
            if balance > 0 or (balance == 0 and chance.random() < 0.5):
                shown = shown[::-1]
            lead.update(captions[shown[0]].systems)
            lead.subtract(captions[shown[1]].systems)
        screens.append(Trial(task.part, "task", task.image, shown))
    return screens


def _checks(design: Design, part: str, count: int, chance: random.Random) -> list[Trial]:
    """Attention checks on images of the study, with a false caption or with a true and a false one."""
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
