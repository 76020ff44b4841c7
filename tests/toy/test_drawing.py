"""Pictures: the same scene gives the same pixels, and the picture shows what the record names."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from captune.toy.drawing import IMAGE_SIZE, draw_scene
from captune.toy.scenes import ACTIONS, COLORS, Companion, Layout, Scene, Subject, sample_scenes

LAYOUT = Layout(shift_x=0, shift_y=0, horizon=52, facing="right", skin=0, hair=0)


def pixels(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    return np.asarray(draw_scene(scene, size), dtype=int)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_size_mode_and_repetition(size: int) -> None:
    scene = next(sample_scenes(0, held_out=True))
    picture = draw_scene(scene, size)
    assert (picture.size, picture.mode) == ((size, size), "RGB")
    assert picture.tobytes() == draw_scene(scene, size).tobytes()


@pytest.mark.parametrize("kind", sorted(ACTIONS))
def test_actions_look_different(kind: str) -> None:
    drawn = {
        action: pixels(
            Scene("grass", "sunny", Subject(kind, 1, COLORS[kind][0], action, "red" if kind == "man" else "white"),
                  None, LAYOUT)
        )
        for action in ACTIONS[kind]
    }  # fmt: skip
    for one in drawn:
        for other in drawn:
            if one < other:
                changed = (np.abs(drawn[one] - drawn[other]).max(axis=2) > 40).sum()
                assert changed > 15, f"{kind}: {one} and {other} can hardly be distinguished"


@pytest.mark.parametrize("kind", sorted(ACTIONS))
def test_colors_and_counts_show(kind: str) -> None:
    action = ACTIONS[kind][0]
    one = Scene("grass", "cloudy", Subject(kind, 1, COLORS[kind][0], action), None, LAYOUT)
    drawn = [pixels(replace(one, subject=replace(one.subject, color=color))) for color in COLORS[kind]]
    for index, first in enumerate(drawn):
        for second in drawn[index + 1 :]:
            assert (np.abs(first - second).max(axis=2) > 30).sum() > 20
    two = pixels(replace(one, subject=replace(one.subject, count=2)))
    assert (np.abs(drawn[0] - two).max(axis=2) > 40).sum() > 50


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_companion_is_on_its_side(side: str) -> None:
    subject = Subject("man", 1, "blue", "stand")
    scene = Scene("snow", "cloudy", subject, Companion("ball", "red", side), LAYOUT)
    picture = pixels(scene)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    columns = np.nonzero(red)[1]
    assert len(columns) > 30
    assert (columns.mean() < IMAGE_SIZE / 2) == (side == "left")


def test_different_contents_give_different_pictures() -> None:
    drawn = [draw_scene(scene).tobytes() for scene in islice(sample_scenes(4, held_out=False), 400)]
    assert len(set(drawn)) == len(drawn)
