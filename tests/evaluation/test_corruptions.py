"""Damage is seeded, grows with its strength, and keeps the picture's size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captune.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from captune.toy.drawing import draw_scene
from captune.toy.scenes import sample_scenes


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [draw_scene(scene, 96) for scene, _ in zip(sample_scenes(5, held_out=True), range(12), strict=False)]


def damage(pictures: list[Image.Image], kind: str, strength: int) -> float:
    changed = [corrupt(picture, kind, strength, image_id=str(n)) for n, picture in enumerate(pictures)]
    assert all(one.size == other.size and one.mode == "RGB" for one, other in zip(changed, pictures, strict=True))
    pairs = zip(changed, pictures, strict=True)
    return float(np.mean([np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() for one, other in pairs]))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_damage_grows_with_its_strength(pictures: list[Image.Image], kind: str) -> None:
    amounts = [damage(pictures, kind, strength) for strength in STRENGTHS]
    assert amounts == sorted(set(amounts))
    assert amounts[0] > 0.5


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_damage_is_a_function_of_image_and_seed(pictures: list[Image.Image], kind: str) -> None:
    one = corrupt(pictures[0], kind, 3, image_id="a", seed=1).tobytes()
    assert corrupt(pictures[0], kind, 3, image_id="a", seed=1).tobytes() == one
    others = {corrupt(pictures[0], kind, 3, image_id=name, seed=1).tobytes() for name in "abcdefgh"}
    assert (len(others) > 1) == (kind in ("noise", "brightness", "occlusion"))


def test_a_wide_picture_keeps_its_proportions() -> None:
    wide = Image.new("RGB", (300, 20), "red")
    covered = np.asarray(corrupt(wide, "occlusion", 3, image_id="a"))[..., 0] == 128
    assert covered.mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("kind", "strength"), [("rain", 1), ("blur", 0), ("blur", 6)])
def test_what_there_is_not(kind: str, strength: int) -> None:
    with pytest.raises(ValueError, match="there is no corruption"):
        corrupt(Image.new("RGB", (8, 8)), kind, strength, image_id="a")
