"""What a study asks: which images, which comparisons, in which numbers.

A task is something that can be judged: two captions of an image in the part `pairwise`, one caption in the part
`rubric`. Systems that said the same of an image share the caption, so nobody judges it twice and a pair of equal
captions is not asked at all.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from captune.apps.rating.material import Material
from captune.errors import InputError

__all__ = ["CRITERIA", "PARTS", "Caption", "Design", "StudyOptions", "Task", "draw_design", "shown_caption"]

CRITERIA = ("precision", "recall", "fluency", "conciseness")
"""What the rubric asks, 1 to 5 each: precision and recall of THumB (Kasai et al., NAACL 2022), and two of form."""

PARTS = ("pairwise", "rubric")

STRATA = 3


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What decides a study.

    Attributes:
        design: "pairwise", "rubric", or "both", first all pairs and then the rubric.
        images: how many are sampled.
        raters: how many people the tasks are dealt out to.
        judgements: how many of them judge each task.
        pairs_per_image: comparisons of an image; None is every pair of systems.
        attention: attention checks as a share of a rater's tasks.
        repeats: repeated tasks as a share of a rater's tasks.
        as_written: show captions as they are, without making their form alike.
        seed: of all that is drawn.
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
        """Refuse what makes no study.

        Raises:
            InputError: a number is out of its range.
        """
        if self.images < 1 or self.raters < 1 or self.judgements < 1:
            raise InputError("images, raters and judgements must be 1 at least.")
        if self.judgements > self.raters:
            raise InputError(
                f"{self.judgements} judgements of each task were asked of {self.raters} raters; nobody judges a task "
                "twice, so give as many raters at least."
            )
        if not (0 <= self.attention <= 0.5 and 0 <= self.repeats <= 0.5):
            raise InputError("attention and repeats are shares of the tasks; give numbers from 0 to 0.5.")
        if self.pairs_per_image is not None and self.pairs_per_image < 1:
            raise InputError("pairs_per_image must be 1 at least.")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text that is shown below an image.

    Attributes:
        image: place of the image in the study.
        text: as shown.
        systems: who said it; empty for an attention check's caption, which nobody said of this image.
    """

    image: int
    text: str
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One caption of an image, or two, to be judged.

    Attributes:
        part: "pairwise" or "rubric".
        image: place of the image in the study.
        captions: places of the captions in the study, ascending.
    """

    part: str
    image: int
    captions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Design:
    """The drawn study.

    Attributes:
        options: what it was drawn with.
        images: ids, in the study's own shuffled order.
        strata: for each image 0 (worst automatic scores), 1 or 2.
        captions: all texts; those of attention checks stand at the end.
        tasks: part -> its tasks in the order in which they are dealt out.
        attention: image -> (true caption, false caption) for attention checks, where there can be one.
    """

    options: StudyOptions
    images: tuple[str, ...]
    strata: tuple[int, ...]
    captions: tuple[Caption, ...]
    tasks: Mapping[str, tuple[Task, ...]]
    attention: Mapping[int, tuple[int, int]]


def draw_design(material: Material, options: StudyOptions) -> Design:
    """Draw images and tasks.

    Args:
        material: two systems at least for pairs.
        options: what is asked for; more images than there are is all of them.

    Raises:
        InputError: no image has captions of all systems and a picture, there is nothing to compare, or attention
            checks are asked for without references.
    """
    options.check()
    if not material.images:
        raise InputError("No image has a picture and a caption of every chosen system; choose other systems.")
    if "pairwise" in options.parts and len(material.systems) < 2:
        raise InputError("Pairs need two systems at least; name more, keep the human control, or use --design rubric.")
    if options.attention and len(material.references) < 2:
        raise InputError("Attention checks are made of reference captions; give --references, or --attention 0.")
    images, strata = _sample_images(material, options)
    captions: list[Caption] = []
    places: list[dict[str, int]] = []
    for place, image in enumerate(images):
        said: dict[str, list[str]] = {}
        for system in material.systems:
            said.setdefault(as_shown(system.captions[image], options), []).append(system.name)
        places.append({})
        for text, names in said.items():
            places[-1] |= dict.fromkeys(names, len(captions))
            captions.append(Caption(place, text, tuple(names)))
    chance = random.Random(f"{options.seed}/tasks")
    tasks: dict[str, tuple[Task, ...]] = {}
    if "pairwise" in options.parts:
        tasks["pairwise"] = _pairs(places, [system.name for system in material.systems], options, chance)
        if not tasks["pairwise"]:
            raise InputError("All systems said the same of every sampled image, so there is nothing to compare.")
    if "rubric" in options.parts:
        rated = [Task("rubric", caption.image, (place,)) for place, caption in enumerate(captions)]
        chance.shuffle(rated)
        tasks["rubric"] = tuple(rated)
    attention = _attention_checks(material, images, captions, options) if options.attention else {}
    return Design(options, images, strata, tuple(captions), tasks, attention)


def shown_caption(text: str) -> str:
    """A caption in the form that all captions of a study are shown in, so that none is known by its form.

    White space and the spaces of tokenised text are tidied, the first letter is made upper case, the sentence is
    closed, and marks that control direction or the terminal are dropped.
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


def _sample_images(material: Material, options: StudyOptions) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Draw as many images from each third of the automatic scores, and shuffle them.

    The score is the mean over the systems of CIDEr, or of the first metric there is; without any it is the number of
    words, so that short and long captions are drawn alike.
    """
    candidates = list(material.images)
    random.Random(f"{options.seed}/order").shuffle(candidates)
    ranked = sorted(candidates, key=lambda image: _difficulty(material, image))
    bounds = [round(len(ranked) * part / STRATA) for part in range(STRATA + 1)]
    wanted = min(options.images, len(ranked))
    stratum_of: dict[str, int] = {}
    for stratum in range(STRATA):
        members = ranked[bounds[stratum] : bounds[stratum + 1]]
        # Shares of the wanted number, rounded so that they add up to it.
        count = wanted * bounds[stratum + 1] // len(ranked) - wanted * bounds[stratum] // len(ranked)
        chosen = random.Random(f"{options.seed}/stratum/{stratum}").sample(members, count)
        stratum_of |= dict.fromkeys(chosen, stratum)
    drawn = [image for image in candidates if image in stratum_of]
    return tuple(drawn), tuple(stratum_of[image] for image in drawn)


def _difficulty(material: Material, image: str) -> float:
    values = []
    for system in material.systems:
        scores = system.per_image.get(image, {})
        value = scores.get("CIDEr", next(iter(scores.values()), math.nan))
        if math.isfinite(value):
            values.append(value)
    if values:
        return sum(values) / len(values)
    return sum(len(system.captions[image].split()) for system in material.systems) / len(material.systems)


def _pairs(
    places: Sequence[Mapping[str, int]], names: Sequence[str], options: StudyOptions, chance: random.Random
) -> tuple[Task, ...]:
    """Comparisons of different captions, every pair of systems as often as any other where captions allow."""
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
    dealt = list(tasks)
    chance.shuffle(dealt)
    return tuple(dealt)


def _attention_checks(
    material: Material, images: Sequence[str], captions: list[Caption], options: StudyOptions
) -> dict[int, tuple[int, int]]:
    """For each image a caption that is true and one of another image that shares the fewest words with it."""
    told = [image for image in material.references if material.references[image]]
    words = {image: _words(material.references[image]) for image in told}
    checks: dict[int, tuple[int, int]] = {}
    for place, image in enumerate(images):
        if image not in words:
            continue
        chance = random.Random(f"{options.seed}/attention/{image}")
        others = chance.sample([other for other in told if other != image], k=min(len(told) - 1, 200))
        foreign = min(others, key=lambda other: len(words[other] & words[image]) / len(words[other] | words[image]))
        true, false = (as_shown(chance.choice(list(material.references[of])), options) for of in (image, foreign))
        checks[place] = (len(captions), len(captions) + 1)
        captions += [Caption(place, true, ()), Caption(place, false, ())]
    return checks


def _words(texts: Sequence[str]) -> frozenset[str]:
    return frozenset(word for text in texts for word in re.findall(r"\w{3,}|[\u4e00-\u9fff]", text.lower())) | {""}
