"""Whether a caption names the right things: parses a caption into mentions and compares them with the scene.

It reads only words and does not know how captions are written, so it also evaluates the captions of a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from captune.toy.scenes import COLORS, PEOPLE, Scene

__all__ = ["Agreement", "scene_agreement"]

# noun -> the kinds that it may mean.
_NOUNS: dict[str, tuple[str, ...]] = {
    "person": PEOPLE, "people": PEOPLE, "child": ("boy", "girl"), "children": ("boy", "girl"),
    "kid": ("boy", "girl"), "kids": ("boy", "girl"), "men": ("man",), "women": ("woman",),
    "shirt": ("man", "boy"), "shirts": ("man", "boy"), "dress": ("woman", "girl"), "dresses": ("woman", "girl"),
    "bicycle": ("bike",),
}  # fmt: skip
for _kind in (*COLORS, "bike", "umbrella", "balloon"):
    _NOUNS.setdefault(_kind, (_kind,))
    _NOUNS.setdefault(f"{_kind}es" if _kind in ("bus", "bench") else f"{_kind}s", (_kind,))
_GARMENTS = frozenset({"shirt", "shirts", "dress", "dresses"})
_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_COLOR_WORDS = frozenset(color for colors in COLORS.values() for color in colors if color)
_PROPS = {"kick": "ball", "umbrella": "umbrella", "balloon": "balloon", "bike": "bike", "ride": "horse"}
_ACTION_WORDS: dict[str, str] = {
    "stand": "stand", "run": "run|chas", "jump": "jump|leap", "wave": "wav", "kick": "kick|play",
    "umbrella": "umbrella", "balloon": "balloon", "bike": "bike|bicycle", "ride": "rid", "sit": "sit",
    "sleep": "sleep", "fly": "fl(?:y|ies)", "swim": "swim", "sail": "sail", "drive": "driv", "park": "parked",
    "lie": "lies?|lying",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a caption agrees with its scene.

    Attributes:
        subject: the first thing named is the scene's subject.
        count: it is named in the right number.
        color: it is given the right colour; `None` when it is given none.
        action: the subject's action is named.
        companion: the companion is named with the right colour; `None` when the scene has none or it goes unnamed.
        wrong: named things that are not in the scene, each in the words of the caption.
    """

    subject: bool
    count: bool
    color: bool | None
    action: bool
    companion: bool | None
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Mention:
    """A noun with its attributes, from word `start` up to but without word `end`."""

    start: int
    end: int
    kinds: tuple[str, ...]
    count: int | None
    color: str
    size: str


def _mentions(words: list[str]) -> list[_Mention]:
    """Nouns with the count, size and colour before them; the colour of clothes is that of the person before them."""
    mentions: list[_Mention] = []
    count, color, size, start = None, "", "", 0
    for index, word in enumerate(words):
        if word in _COUNTS:
            count, color, size, start = _COUNTS[word], "", "", index
        elif word in ("small", "large"):
            size = word
        elif word in _COLOR_WORDS:
            color = word
            followed = index + 1 < len(words) and words[index + 1] in _NOUNS
            if mentions and words[index - 1] == "in" and not followed:  # "a man in red"
                mentions[-1] = replace(mentions[-1], end=index + 1, color=word)
        elif word in _NOUNS:
            if word in _GARMENTS and mentions:
                wearer = tuple(kind for kind in mentions[-1].kinds if kind in _NOUNS[word])
                mentions[-1] = replace(mentions[-1], end=index + 1, kinds=wearer, color=color)
            else:
                mentions.append(_Mention(start, index + 1, _NOUNS[word], count, color, size))
            count, color, size, start = None, "", "", index + 1
    return mentions


def scene_agreement(caption: str, scene: Scene) -> Agreement:
    """Compare a caption with its scene.

    Args:
        caption: an English sentence, capitals and punctuation do not matter.
        scene: what the image shows.

    Returns:
        Which parts agree.
    """
    words = re.findall(r"[a-z]+", caption.lower())
    mentions = _mentions(words)
    subject, companion = scene.subject, scene.companion
    # Things in the scene: kind, count, colour, size.
    present = [(subject.kind, subject.count, subject.color, "")]
    if subject.action in _PROPS:
        present.append((_PROPS[subject.action], 1, subject.prop_color, ""))
    if companion is not None:
        present.append((companion.kind, 1, companion.color, companion.size))

    def fits(mention: _Mention, thing: tuple[str, int, str, str]) -> bool:
        kind, count, color, size = thing
        return (
            kind in mention.kinds
            and mention.count in (None, count)
            and mention.color in ("", color)
            and mention.size in ("", size)
        )

    wrong = tuple(" ".join(words[m.start : m.end]) for m in mentions if not any(fits(m, thing) for thing in present))
    first = mentions[0] if mentions else None
    is_subject = first is not None and subject.kind in first.kinds
    companion_mentions = [m for m in mentions[1:] if companion is not None and companion.kind in m.kinds]
    return Agreement(
        subject=is_subject,
        count=is_subject and first is not None and first.count == subject.count,
        color=None if not is_subject or first is None or not first.color else first.color == subject.color,
        action=re.search(rf"\b(?:{_ACTION_WORDS[subject.action]})", caption.lower()) is not None,
        companion=any(fits(m, present[-1]) for m in companion_mentions) if companion_mentions else None,
        wrong=wrong,
    )
