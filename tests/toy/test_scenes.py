"""Scenes: one seed gives one stream, contents do not repeat, and held-out contents stay held out."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

from captune.toy.captions import terse_caption
from captune.toy.scenes import ACTIONS, COLORS, PROP_COLORS, sample_scene, sample_scenes


def test_equal_seeds_give_equal_streams_and_others_do_not() -> None:
    first, again, other = (list(islice(sample_scenes(seed, held_out=False), 200)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_no_content_comes_twice_and_none_is_on_both_sides() -> None:
    trained = [scene.content for scene in islice(sample_scenes(1, held_out=False), 3000)]
    held_out = [scene.content for seed in (1, 2, 3) for scene in islice(sample_scenes(seed, held_out=True), 1000)]
    assert len(set(trained)) == len(trained)
    assert not set(trained) & set(held_out)


def test_the_space_of_scenes_is_large() -> None:
    random = Random(0)
    seen = Counter(sample_scene(random).content for _ in range(20_000))
    times = Counter(seen.values())
    # Chao's lower bound for the number of kinds, from those seen once and those seen twice.
    assert len(seen) + times[1] ** 2 / (2 * times[2]) > 100_000
    assert seen.most_common(1)[0][1] < 20_000 / 200


def test_every_scene_is_drawable_and_tellable() -> None:
    for scene in islice(sample_scenes(0, held_out=False), 2000):
        subject = scene.subject
        assert subject.action in ACTIONS[subject.kind]
        assert subject.color in COLORS[subject.kind]
        assert 1 <= subject.count <= 3
        assert bool(subject.prop_color) == (subject.action in PROP_COLORS)
        assert not subject.prop_color or subject.count == 1


def test_notes_tell_contents_apart() -> None:
    seen: dict[str, object] = {}
    for scene in islice(sample_scenes(3, held_out=False), 3000):
        assert seen.setdefault(terse_caption(scene), scene.content) == scene.content
