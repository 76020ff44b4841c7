"""What is in a drawn scene: typed frozen records, sampled from a seed.

A `Scene` contains what its captions may mention and what its drawing needs; drawing.py and captions.py only read it.
What no caption mentions (exact position, skin, hair) is in its `Layout`, so that `Scene.content` is equal for two
drawings of the same content.

One content in five is held out by a hash of the content itself: validation and test scenes are drawn from these,
training and pretraining scenes never, for any seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

__all__ = [
    "ACTIONS",
    "COLORS",
    "COMPANION_WEIGHTS",
    "FLYING",
    "PEOPLE",
    "PROP_COLORS",
    "SETTINGS",
    "SKIES",
    "Companion",
    "Layout",
    "Scene",
    "Setting",
    "Side",
    "Sky",
    "Subject",
    "sample_scene",
    "sample_scenes",
]

Setting = Literal["grass", "snow", "beach", "street", "lake"]
Sky = Literal["sunny", "cloudy", "night"]
Side = Literal["left", "right"]

SETTINGS: tuple[Setting, ...] = ("grass", "snow", "beach", "street", "lake")
SKIES: tuple[Sky, ...] = ("sunny", "cloudy", "night")
PEOPLE = ("man", "woman", "boy", "girl")
ANIMALS = ("dog", "cat", "horse", "sheep", "bird", "duck")
VEHICLES = ("car", "bus", "truck", "boat", "plane")
# Kinds that are drawn above the ground when their action is "fly".
FLYING = "fly"

CLOTHES_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
BALL_COLORS = ("red", "orange", "yellow", "blue", "purple", "white")
PAINT_COLORS = ("red", "orange", "yellow", "green", "blue", "white")
HORSE_COLORS = ("brown", "black", "white")

# kind -> the colours it comes in. A tree is always green, which captions do not mention.
COLORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PEOPLE, CLOTHES_COLORS),
    "dog": ("brown", "black", "white", "gray"),
    "cat": ("orange", "black", "white", "gray"),
    "horse": HORSE_COLORS,
    "sheep": ("white", "black"),
    "bird": ("red", "blue", "yellow", "black"),
    "duck": ("yellow", "white", "brown"),
    **dict.fromkeys(("car", "bus", "truck", "boat", "plane"), PAINT_COLORS),
    "ball": BALL_COLORS,
    "house": ("red", "yellow", "blue", "white", "brown"),
    "tree": ("",),
    "bench": ("",),
}

# kind -> the actions it can be drawn in.
PERSON_ACTIONS = ("stand", "run", "jump", "wave", "kick", "umbrella", "balloon", "bike", "ride")
ACTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PEOPLE, PERSON_ACTIONS),
    "dog": ("stand", "run", "jump", "sit"),
    "cat": ("stand", "sit", "sleep"),
    "horse": ("stand", "run"),
    "sheep": ("stand",),
    "bird": ("stand", FLYING),
    "duck": ("swim",),
    **dict.fromkeys(("car", "bus", "truck"), ("park", "drive")),
    "boat": ("sail",),
    "plane": (FLYING,),
    "ball": ("lie",),
    "house": ("stand",),
}

# action -> the colours of the thing that goes with it. Such scenes have one person.
PROP_COLORS: dict[str, tuple[str, ...]] = {
    "kick": BALL_COLORS,
    "umbrella": PAINT_COLORS,
    "balloon": PAINT_COLORS,
    "bike": PAINT_COLORS,
    "ride": HORSE_COLORS,
}

# action -> the thing that goes with it.
PROPS = {"kick": "ball", "umbrella": "umbrella", "balloon": "balloon", "bike": "bike", "ride": "horse"}

# How often each kind is the subject, people first, as in the photographs of Flickr30k.
SUBJECT_WEIGHTS: dict[str, int] = {
    "man": 15, "woman": 15, "boy": 12, "girl": 12,
    "dog": 10, "cat": 5, "horse": 4, "sheep": 2, "bird": 4, "duck": 3,
    "car": 5, "bus": 3, "truck": 3, "boat": 3, "plane": 3, "ball": 3, "house": 3,
}  # fmt: skip
COMPANION_WEIGHTS: dict[str, int] = {
    "tree": 22, "house": 22, "ball": 12, "dog": 12, "bench": 8, "car": 8, "man": 5, "woman": 5, "boy": 3, "girl": 3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """The one to three things that the scene is about, all alike."""

    kind: str
    count: int
    color: str
    action: str
    prop_color: str = ""


@dataclass(frozen=True, slots=True)
class Companion:
    """One more thing on the ground, to the left or to the right of the subject (or below it, when that flies)."""

    kind: str
    color: str
    side: Side
    size: Literal["small", "large", ""] = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is drawn and never mentioned: positions in hundredths of the picture's width, looks as indices."""

    shift_x: int
    shift_y: int
    horizon: int
    facing: Side
    skin: int
    hair: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The content and layout of one picture."""

    setting: Setting
    sky: Sky
    subject: Subject
    companion: Companion | None
    layout: Layout

    @property
    def content(self) -> tuple[Setting, Sky, Subject, Companion | None]:
        """What captions may mention; equal for two drawings of the same content."""
        return self.setting, self.sky, self.subject, self.companion

    @property
    def objects(self) -> frozenset[str]:
        """The kinds of all things that are drawn, with what a person kicks, holds or rides."""
        kinds = {self.subject.kind, PROPS.get(self.subject.action, "")}
        return frozenset(kinds | {self.companion.kind if self.companion is not None else ""}) - {""}

    @property
    def held_out(self) -> bool:
        """Whether the content belongs to validation and test (one content in five) for every seed."""
        digest = hashlib.sha256(repr(self.content).encode()).digest()
        return digest[0] % 5 == 0


def _weighted(random: Random, weights: dict[str, int]) -> str:
    return random.choices(tuple(weights), weights=tuple(weights.values()))[0]


def _sample_setting(random: Random, kind: str) -> Setting:
    if kind in ("duck", "boat"):
        return "lake"
    if kind in ("car", "bus", "truck"):
        return random.choices(("street", "snow", "beach", "grass"), weights=(6, 2, 1, 1))[0]
    if kind in ("sheep", "horse", "house"):
        return random.choice(("grass", "grass", "snow"))
    if kind == "plane":
        return random.choice(("grass", "snow", "beach", "street", "lake"))
    return random.choices(("grass", "snow", "beach", "street"), weights=(4, 2, 2, 2))[0]


def _sample_subject(random: Random) -> Subject:
    kind = _weighted(random, SUBJECT_WEIGHTS)
    action = random.choice(ACTIONS[kind])
    color = random.choice(COLORS[kind])
    if action in PROP_COLORS:
        return Subject(kind, 1, color, action, random.choice(PROP_COLORS[action]))
    alone = kind in ("house", "bus", "truck")
    count = 1 if alone else random.choices((1, 2, 3), weights=(5, 3, 2))[0]
    if kind in ("car", "plane"):
        count = min(count, 2)
    return Subject(kind, count, color, action)


def _sample_companion(random: Random, setting: Setting, subject: Subject) -> Companion | None:
    # Three abreast, or a subject as wide as a bus, leave no room that a reader could make sense of.
    crowded = subject.count == 3 or (subject.count == 2 and subject.kind in ("car", "horse"))
    side: Side = random.choice(("left", "right"))
    if setting == "lake" or crowded or random.random() < 0.25:
        return None
    taken = {subject.kind, "ball" if subject.action == "kick" else ""}
    if subject.action == FLYING or subject.kind in VEHICLES or subject.kind == "house":
        taken |= {"ball", "bench"}
    if subject.kind == "house":
        taken |= {"car"}
    weights = {kind: weight for kind, weight in COMPANION_WEIGHTS.items() if kind not in taken}
    kind = _weighted(random, weights)
    size: Literal["small", "large", ""] = random.choice(("small", "large")) if kind == "house" else ""
    return Companion(kind, random.choice(COLORS[kind]), side, size)


def sample_scene(random: Random) -> Scene:
    """Draw one scene.

    Args:
        random: the source of every choice.

    Returns:
        The scene; equal generators give equal scenes.
    """
    subject = _sample_subject(random)
    setting = _sample_setting(random, subject.kind)
    sky: Sky = random.choices(("sunny", "cloudy", "night"), weights=(5, 3, 2))[0]
    companion = _sample_companion(random, setting, subject)
    facing: Side = random.choice(("left", "right"))
    # A running or kicking subject faces its companion, so that "a dog chases a ball" is visible.
    if companion is not None and subject.action in ("run", "jump"):
        facing = companion.side
    layout = Layout(
        shift_x=random.randint(-5, 5),
        shift_y=random.randint(-3, 4),
        horizon=random.randint(48, 56),
        facing=facing,
        skin=random.randrange(3),
        hair=random.randrange(3),
    )
    return Scene(setting, sky, subject, companion, layout)


def sample_scenes(seed: int, *, held_out: bool) -> Iterator[Scene]:
    """An endless stream of scenes with distinct contents.

    Args:
        seed: equal seeds give equal streams.
        held_out: scenes of validation and test, or of training; no content is in both.

    Yields:
        Scenes, no two with the same content.
    """
    random = Random(f"captune-toy/{seed}/{held_out}")
    seen: set[object] = set()
    while True:
        scene = sample_scene(random)
        if scene.held_out == held_out and scene.content not in seen:
            seen.add(scene.content)
            yield scene
