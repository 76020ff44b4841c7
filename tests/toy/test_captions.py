"""Captions say five different true things; scene_agreement finds what is false."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from captune.toy.captions import GARMENTS, PLURALS, terse_caption, write_captions
from captune.toy.scenes import Companion, Layout, Scene, Subject, sample_scenes
from tools.toy.scene_agreement import scene_agreement

LAYOUT = Layout(shift_x=0, shift_y=0, horizon=52, facing="right", skin=0, hair=0)
SAMPLE = list(islice(sample_scenes(11, held_out=False), 800))
COLOR_WORDS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown", "gray"}


def captions_of(scene: Scene, seed: int = 0) -> list[str]:
    return write_captions(scene, Random(seed))


def test_five_different_well_formed_sentences() -> None:
    lengths = []
    for scene in SAMPLE:
        captions = captions_of(scene)
        assert len(set(captions)) == len(captions) == 5
        for caption in captions:
            assert re.fullmatch(r"[A-Z][a-z]*(,? [a-z]+)+\.", caption), caption
            assert not re.search(r"\ban? an?\b|\ba [aeiou]|\ban [^aeiou]", caption), caption
            lengths.append(len(caption.split()))
    assert min(lengths) >= 6
    assert max(lengths) <= 24
    assert 9 <= sum(lengths) / len(lengths) <= 15


def test_same_words_for_the_same_seed_only() -> None:
    assert captions_of(SAMPLE[0], 3) == captions_of(SAMPLE[0], 3)
    assert captions_of(SAMPLE[0], 3) != captions_of(SAMPLE[0], 4)


def test_every_color_named_is_in_the_scene() -> None:
    # On the words alone, without tools.toy.scene_agreement.
    for scene in SAMPLE:
        there = {scene.subject.color, scene.subject.prop_color}
        if scene.companion is not None:
            there.add(scene.companion.color)
        for caption in captions_of(scene):
            assert COLOR_WORDS & set(re.findall("[a-z]+", caption.lower())) <= there, caption


def test_every_number_and_noun_named_is_in_the_scene() -> None:
    everything = {*PLURALS, *PLURALS.values(), "bus", "truck", "house", "tree", "bench", "bike", "umbrella", "balloon"}
    wider = {"man": {"person"}, "woman": {"person"}, "boy": {"child", "kid"}, "girl": {"child", "kid"}}
    props = {"kick": "ball", "ride": "horse", "bike": "bike", "umbrella": "umbrella", "balloon": "balloon"}
    for scene in SAMPLE:
        kinds = {scene.subject.kind} | ({scene.companion.kind} if scene.companion else set())
        allowed = kinds.union(*(wider.get(kind, set()) for kind in kinds))
        allowed |= {PLURALS.get(noun, noun) for noun in allowed} | {props.get(scene.subject.action, "")}
        for caption in captions_of(scene):
            words = set(re.findall("[a-z]+", caption.lower()))
            assert words & everything <= allowed, caption
            assert ("two" in words) == (scene.subject.count == 2), caption
            assert ("three" in words) == (scene.subject.count == 3), caption


def test_places_times_and_sides_are_true() -> None:
    words = {
        "snow": "snow",
        "beach": "beach|sand\\b",
        "street": "street|road",
        "lake": "lake|water",
        "grass": "grass|park\\b",
    }
    for scene in SAMPLE:
        for caption in captions_of(scene):
            text = caption.lower()
            for setting, pattern in words.items():
                assert setting == scene.setting or not re.search(rf"\b(?:{pattern})", text), caption
            assert scene.sky == "night" or not re.search("night|moon", text), caption
            assert scene.sky == "sunny" or not re.search("sunny|sunshine", text), caption
            side = re.search("to the (left|right) of", text)
            assert side is None or (scene.companion is not None and scene.companion.side != side[1]), caption


def test_scene_agreement_agrees_with_true_captions() -> None:
    for scene in SAMPLE:
        for caption in captions_of(scene):
            verdict = scene_agreement(caption, scene)
            assert verdict.subject, caption
            assert verdict.count, caption
            assert verdict.action, caption
            assert verdict.color is not False, caption
            assert verdict.companion is not False, caption
            assert not verdict.wrong, caption


SCENE = Scene(
    "snow", "night", Subject("man", 1, "red", "umbrella", "blue"), Companion("house", "white", "left", "small"), LAYOUT
)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("A man in a red shirt holds a blue umbrella.", ()),
        ("A man in a green shirt holds a blue umbrella.", ("a man in a green shirt",)),
        ("A man in green holds a blue umbrella.", ("a man in green",)),
        ("A man in a red shirt holds a red umbrella.", ("a red umbrella",)),
        ("Two men in red shirts hold a blue umbrella.", ("two men in red shirts",)),
        ("A man in a red shirt near a large white house.", ("a large white house",)),
        ("A man in a red dress near a white house.", ("a man in a red dress",)),
        ("A man in a red shirt next to a dog.", ("a dog",)),
    ],
)
def test_scene_agreement_finds_what_is_not_there(caption: str, wrong: tuple[str, ...]) -> None:
    assert scene_agreement(caption, SCENE).wrong == wrong


def test_scene_agreement_looks_at_the_subject_first() -> None:
    verdict = scene_agreement("A white house stands next to a man in a red shirt.", SCENE)
    assert not verdict.subject
    assert verdict.color is None
    assert not scene_agreement("A man in red stands in the snow.", SCENE).action
    assert not scene_agreement("", SCENE).subject


def test_notes() -> None:
    assert terse_caption(SCENE) == "one man, red shirt, holding blue umbrella, right of small white house, snow, night"
    for scene in SAMPLE:
        notes = terse_caption(scene)
        assert scene.subject.color in notes
        assert GARMENTS.get(scene.subject.kind, "") in notes
        assert scene.setting in notes
        assert scene.sky in notes
