"""Small files in the layout of each public set of judgements, with captions whose quality is known."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

WORDS = "dog cat man woman horse bench street grass red blue small big runs sits ball tree car boat".split()  # noqa: SIM905
IMAGES = [f"{1000 + index}_{index:010x}.jpg" for index in range(20)]


def caption(chance: random.Random, words: list[str], kept: int) -> str:
    """A sentence with so many words of the image, the others by chance."""
    return " ".join([*words[:kept], *chance.choices(WORDS, k=8 - kept)])


@pytest.fixture(scope="session")
def scenes() -> dict[str, list[str]]:
    """Image -> five captions, which share most words."""
    chance = random.Random(3)
    scenes = {}
    for image in IMAGES:
        words = chance.choices(WORDS, k=8)
        scenes[image] = [caption(chance, words, 6) for _ in range(5)]
    return scenes


@pytest.fixture
def flickr8k(tmp_path: Path, scenes: dict[str, list[str]]) -> Path:
    """A folder like Flickr8k_text: each image is judged with its captions and those of four other images."""
    chance = random.Random(4)
    tokens = [f"{image}#{n}\t{text}" for image, texts in scenes.items() for n, text in enumerate(texts)]
    tokens[3] = tokens[3].replace("\t", " ")
    expert, crowd = [], []
    for index, image in enumerate(IMAGES):
        for shift in range(5):
            other = IMAGES[(index + shift) % len(IMAGES)]
            grade = 4 if shift == 0 else 2 if shift == 1 else 1
            expert.append(f"{image}\t{other}#2\t{grade}\t{max(1, grade - 1)}\t{grade}")
            yes = 3 - min(3, shift) if chance.random() < 0.9 else 1
            crowd.append(f"{image}\t{other}#2\t{yes / 3:.15g}\t{yes}\t{3 - yes}")
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    (tmp_path / "ExpertAnnotations.txt").write_text("\n".join(expert) + "\n")
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text("\n".join(crowd) + "\n")
    return tmp_path


@pytest.fixture
def rated_rows(scenes: dict[str, list[str]]) -> list[dict[str, object]]:
    """Rows of Polaris: three captions of each image, the more words are right the higher the score."""
    chance = random.Random(5)
    return [
        {
            "imgid": image,
            "mt": caption(chance, texts[0].split(), kept),
            "refs": texts,
            "score": kept / 8 + chance.choice((0, 0.125)),
            "split": "test" if index % 2 else "val",
        }
        for index, (image, texts) in enumerate(scenes.items())
        for kept in (1, 4, 8)
    ]


@pytest.fixture
def foil(tmp_path: Path, scenes: dict[str, list[str]]) -> tuple[Path, Path]:
    """FOIL's annotations and COCO's captions."""
    annotations, captions = [], []
    for number, texts in enumerate(scenes.values(), 1):
        captions += [{"image_id": number, "id": 10 * number + n, "caption": text} for n, text in enumerate(texts)]
        wrong = " ".join(["zebra", *texts[0].split()[1:]])
        for foiled, text in ((False, texts[0]), (True, wrong)):
            annotations.append({"image_id": number, "id": 10 * number, "caption": text, "foil": foiled})
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in range(1, len(scenes) + 1)]
    (tmp_path / "foil.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path / "foil.json", tmp_path / "captions_val2014.json"
