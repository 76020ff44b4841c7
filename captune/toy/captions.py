"""Five differently worded English captions of a scene, and one terse line for pretraining.

The captions follow the style of Flickr30k: present tense, 7 to 20 words, a full stop, some writers exact and some
not, and no mention of what is not in the picture. The terse line mentions all content in a fixed order and in another
style; a model pretrained on it recognizes the content, but does not write in the style of Flickr30k.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from captune.toy.scenes import COLORS, FLYING, PEOPLE, PROPS, Companion, Scene, Subject

__all__ = ["CAPTIONS_PER_IMAGE", "OBJECT_WORDS", "terse_caption", "write_captions"]

CAPTIONS_PER_IMAGE = 5
COUNT_WORDS = {1: "one", 2: "two", 3: "three"}
PLURALS = {
    "man": "men", "woman": "women", "boy": "boys", "girl": "girls", "dog": "dogs", "cat": "cats", "horse": "horses",
    "sheep": "sheep", "bird": "birds", "duck": "ducks", "car": "cars", "boat": "boats", "plane": "planes",
    "ball": "balls", "person": "people", "child": "children", "kid": "kids", "animal": "animals",
}  # fmt: skip
GARMENTS = {"man": "shirt", "boy": "shirt", "woman": "dress", "girl": "dress"}
GARMENT_PLURALS = {"shirt": "shirts", "dress": "dresses"}
# Nouns of less exact writers.
LOOSE_NOUNS = {"man": ("man", "person"), "woman": ("woman", "person"), "boy": ("boy", "child", "kid"),
               "girl": ("girl", "child", "kid")}  # fmt: skip

OBJECT_WORDS: dict[str, list[str]] = {kind: [] for kind in dict.fromkeys((*COLORS, *PROPS.values()))}
"""Every kind of drawn thing with other words for it; "person" and "child" are of two kinds each, and are left out."""
OBJECT_WORDS |= {"bike": ["bicycle"]}


@dataclass(frozen=True, slots=True)
class _Verb:
    """One action in the forms the sentences need; `{prop}` is the coloured thing that goes with it."""

    singular: str
    plural: str
    participle: str
    moving: bool = False


_VERBS: dict[str, tuple[_Verb, ...]] = {
    "stand": (_Verb("stands", "stand", "standing"),),
    "run": (_Verb("runs", "run", "running", moving=True),),
    "jump": (
        _Verb("jumps", "jump", "jumping"),
        _Verb("jumps", "jump", "jumping"),
        _Verb("jumps into the air", "jump into the air", "jumping into the air"),
    ),
    "wave": (
        _Verb("waves", "wave", "waving"),
        _Verb("waves", "wave", "waving"),
        _Verb("waves a hand", "wave their hands", "waving hello"),
    ),
    "kick": (
        _Verb("kicks {prop} ball", "", "kicking {prop} ball"),
        _Verb("kicks {prop} ball", "", "kicking {prop} ball"),
        _Verb("plays with {prop} ball", "", "playing with {prop} ball"),
    ),
    "umbrella": (_Verb("holds {prop} umbrella", "", "holding {prop} umbrella"),),
    "balloon": (_Verb("holds {prop} balloon", "", "holding {prop} balloon"),),
    "bike": (
        _Verb("rides {prop} bike", "", "riding {prop} bike", moving=True),
        _Verb("rides {prop} bike", "", "riding {prop} bike", moving=True),
        _Verb("rides {prop} bicycle", "", "riding {prop} bicycle", moving=True),
    ),
    "ride": (_Verb("rides {prop} horse", "", "riding {prop} horse", moving=True),),
    "sit": (_Verb("sits", "sit", "sitting"),),
    "sleep": (_Verb("sleeps", "sleep", "sleeping"),),
    "fly": (_Verb("flies", "fly", "flying"),),
    "swim": (_Verb("swims", "swim", "swimming", moving=True),),
    "sail": (_Verb("sails", "sail", "sailing", moving=True),),
    "drive": (_Verb("drives", "drive", "driving", moving=True),),
    "park": (_Verb("is parked", "are parked", "parked"),),
    "lie": (_Verb("lies", "lie", "lying"),),
}
_PLACES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on the grass", "in a grassy field", "in the park"),
    "snow": ("in the snow", "in the snow", "on the snowy ground"),
    "beach": ("on the beach", "on the beach", "on the sand"),
    "street": ("on the street", "on the street", "on the road"),
    "lake": ("on the water", "on the lake"),
}
_PATHS: dict[str, tuple[str, ...]] = {
    "grass": ("across the grass", "through a grassy field", "in the park"),
    "snow": ("through the snow", "through the snow", "in the snow"),
    "beach": ("along the beach", "along the beach", "across the sand"),
    "street": ("down the street", "down the street", "along the road"),
    "lake": ("across the water", "on the lake"),
}
_UNDER_WINGS = {
    "grass": "over a grassy field", "snow": "over the snow", "beach": "over the beach", "street": "over the street",
    "lake": "over the water",
}  # fmt: skip
_TIMES = {
    "sunny": ("on a sunny day", "on a sunny day", "in the sunshine"),
    "cloudy": ("on a cloudy day", "on a cloudy day", "under a cloudy sky"),
    "night": ("at night", "at night", "under the moon"),
}


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _counted(count: int, phrase: str) -> str:
    return _with_article(phrase) if count == 1 else f"{COUNT_WORDS[count]} {phrase}"


def _name_person(random: Random, kind: str, count: int, color: str) -> str:
    noun = kind if count == 1 else PLURALS[kind]
    if kind in ("boy", "girl"):
        noun = random.choice(("", "", "little ", "young ")) + noun
    garment = GARMENTS[kind] if count == 1 else GARMENT_PLURALS[GARMENTS[kind]]
    worn = _with_article(f"{color} {garment}") if count == 1 else f"{color} {garment}"
    how = random.choices((f"in {worn}", f"wearing {worn}", f"in {color}"), weights=(6, 2, 1))[0]
    return f"{_counted(count, noun)} {how}"


def _name_exactly(random: Random, subject: Subject) -> str:
    """The subject as a careful writer names it: with its colour and its number."""
    if subject.kind in PEOPLE:
        return _name_person(random, subject.kind, subject.count, subject.color)
    noun = subject.kind if subject.count == 1 else PLURALS[subject.kind]
    return _counted(subject.count, f"{subject.color} {noun}")


def _name_loosely(random: Random, subject: Subject) -> str:
    """The subject as a hasty writer names it: no colour, perhaps a wider word."""
    noun = random.choice(LOOSE_NOUNS.get(subject.kind, (subject.kind,)))
    return _counted(subject.count, noun if subject.count == 1 else PLURALS[noun])


def _name_companion(random: Random, companion: Companion) -> str:
    if companion.kind in PEOPLE:
        worn = random.choice((_with_article(f"{companion.color} {GARMENTS[companion.kind]}"), companion.color))
        return f"a {companion.kind} in {worn}"
    if companion.kind == "bench":
        return random.choice(("a bench", "a wooden bench"))
    if companion.kind == "tree":
        return "a tree"
    size = f"{companion.size} " if companion.size and random.random() < 0.6 else ""
    return _with_article(f"{size}{companion.color} {companion.kind}")


class _Writer:
    """The parts of sentences about one scene, drawn anew for every caption."""

    def __init__(self, scene: Scene, random: Random) -> None:
        self.scene = scene
        self.subject = scene.subject
        self.random = random

    def verb(self) -> _Verb:
        verb = self.random.choice(_VERBS[self.subject.action])
        prop = _with_article(self.subject.prop_color) if self.subject.prop_color else ""
        return _Verb(
            verb.singular.format(prop=prop), verb.plural, verb.participle.format(prop=prop), moving=verb.moving
        )

    def finite(self, verb: _Verb) -> str:
        return verb.singular if self.subject.count == 1 else verb.plural

    def location(self, verb: _Verb) -> str:
        setting = self.scene.setting
        if self.subject.action == FLYING:
            return self.random.choice((_UNDER_WINGS[setting], "in the sky"))
        return self.random.choice((_PATHS if verb.moving else _PLACES)[setting])

    def time(self) -> str:
        # "In the sky under a cloudy sky" is one sky too many.
        times = _TIMES[self.scene.sky][:2] if self.subject.action == FLYING else _TIMES[self.scene.sky]
        return self.random.choice(times)

    def relation(self, exact_side: bool = False) -> str:
        """Where the subject is with regard to its companion; empty without one."""
        companion = self.scene.companion
        if companion is None:
            return ""
        if self.subject.action == FLYING:
            preposition = self.random.choice(("over", "over", "above"))
        elif exact_side:
            preposition = "to the left of" if companion.side == "right" else "to the right of"
        elif self.subject.kind == "dog" and self.subject.action == "run" and companion.kind == "ball":
            preposition = "after"
        else:
            preposition = self.random.choice(("next to", "next to", "near", "beside"))
        return f"{preposition} {_name_companion(self.random, companion)}"

    def place_and_relation(self, verb: _Verb) -> str:
        relation = self.relation()
        # A thing in the air is over one thing at a time.
        if self.subject.action == FLYING:
            return relation or self.location(verb)
        return f"{self.location(verb)} {relation}" if relation else self.location(verb)

    def relation_or_place(self, verb: _Verb) -> str:
        return self.relation() or self.location(verb)


def _simple(w: _Writer) -> str:
    verb = w.verb()
    return f"{_name_exactly(w.random, w.subject)} {w.finite(verb)} {w.place_and_relation(verb)}"


def _progressive(w: _Writer) -> str:
    verb = w.verb()
    be = "is" if w.subject.count == 1 else "are"
    return f"{_name_exactly(w.random, w.subject)} {be} {verb.participle} {w.relation_or_place(verb)}"


def _fragment(w: _Writer) -> str:
    verb = w.verb()
    return f"{_name_exactly(w.random, w.subject)} {verb.participle} {w.place_and_relation(verb)}"


def _gist(w: _Writer) -> str:
    verb = w.verb()
    return f"{_name_loosely(w.random, w.subject)} {w.finite(verb)} {w.location(verb)} {w.time()}"


def _time_first(w: _Writer) -> str:
    verb = w.verb()
    return f"{w.time()}, {_name_exactly(w.random, w.subject)} {w.finite(verb)} {w.relation_or_place(verb)}"


def _existential(w: _Writer) -> str:
    verb = w.verb()
    be = "is" if w.subject.count == 1 else "are"
    return f"there {be} {_name_exactly(w.random, w.subject)} {verb.participle} {w.relation_or_place(verb)}"


def _exact_side(w: _Writer) -> str:
    verb = w.verb()
    where = w.relation(exact_side=True) or f"{w.location(verb)} {w.time()}"
    return f"{_name_exactly(w.random, w.subject)} {verb.participle} {where}"


# The first three forms are every scene's; two of the others join them.
_COMMON_FORMS = (_simple, _progressive, _fragment)
_RARER_FORMS = (_gist, _time_first, _existential, _exact_side)


def write_captions(scene: Scene, random: Random) -> list[str]:
    """Describe a scene as five people would.

    Args:
        scene: what there is to see.
        random: the source of every choice of words.

    Returns:
        Five different English sentences, each ending in a full stop, in random order.
    """
    writer = _Writer(scene, random)
    forms = [*_COMMON_FORMS, *random.sample(_RARER_FORMS, CAPTIONS_PER_IMAGE - len(_COMMON_FORMS))]
    random.shuffle(forms)
    captions: list[str] = []
    for form in forms:
        caption = form(writer)
        while caption in captions:
            caption = form(writer)
        captions.append(caption)
    return [f"{caption[0].upper()}{caption[1:]}." for caption in captions]


def terse_caption(scene: Scene) -> str:
    """Everything in a scene as a line of notes, always in the same order.

    Args:
        scene: what there is to see.

    Returns:
        Lower-case notes such as "one man, red shirt, running, left of small white house, snow, night".
    """
    subject, companion = scene.subject, scene.companion
    noun = subject.kind if subject.count == 1 else PLURALS[subject.kind]
    count = COUNT_WORDS[subject.count]
    if subject.kind in PEOPLE:
        notes = [f"{count} {noun}", f"{subject.color} {GARMENTS[subject.kind]}"]
    else:
        notes = [f"{count} {subject.color} {noun}"]
    notes.append(_VERBS[subject.action][0].participle.format(prop=subject.prop_color))
    if companion is not None:
        notes.append(f"{'left' if companion.side == 'right' else 'right'} of {_terse_companion(companion)}")
    return ", ".join([*notes, scene.setting, scene.sky])


def _terse_companion(companion: Companion) -> str:
    if companion.kind in PEOPLE:
        return f"{companion.kind} {companion.color} {GARMENTS[companion.kind]}"
    return " ".join(word for word in (companion.size, companion.color, companion.kind) if word)
