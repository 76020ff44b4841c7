from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.config import parse_config
from captune.data.manifest import Sample, write_manifest
from captune.errors import DataError
from captune.protocols import cut_reply, evaluation_set, split_references, training_images


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "manifest.jsonl"
    path.parent.mkdir()
    rows = [
        Sample(f"{i:03d}", f"{i}.jpg", (f"A dog at 7.{i} p.m.", "It runs ."), "train" if i < 60 else "test")
        for i in range(80)
    ]
    write_manifest(path, rows)
    return path


def test_karpathy_keeps_held_out_images_and_separate_captions(manifest: Path) -> None:
    chosen = evaluation_set(parse_config({}, [f"data.train={manifest}"]))
    assert (chosen.name, chosen.split, chosen.leak, len(chosen.images)) == ("photos", "test", None, 20)
    assert chosen.references["060"] == ["A dog at 7.60 p.m.", "It runs ."]
    assert chosen.reply("a ### Assistant: b") == "a ### Assistant: b"


def test_slides_takes_training_images_and_says_leak(manifest: Path) -> None:
    config = parse_config({}, [f"data.train={manifest}", "evaluate.protocol=slides"])
    chosen = evaluation_set(config)
    assert len(chosen.images) == 3  # 5 % of 60
    assert {image.id for image in chosen.images} <= {image.id for image in training_images(config)}
    assert chosen == evaluation_set(config)
    assert chosen.leak is not None
    assert chosen.references[chosen.images[0].id][1:] == [f"{chosen.images[0].image[:-4]} p.", "m.", "It runs."]
    assert chosen.reply("a ### Assistant: b") == "b"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("data.evaluate_split=vall", "vall"), ("data.train=absent.jsonl", "absent.jsonl")],
)
def test_an_unusable_split_is_one_sentence(manifest: Path, setting: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        evaluation_set(parse_config({}, [f"data.train={manifest}", setting]))


def test_original_functions(shared: Path) -> None:
    recorded = json.loads((shared / "goldens" / "student_functions.json").read_text(encoding="utf-8"))
    for case in recorded["post_handle"]:
        assert cut_reply(case["i"]) == case["o"]
    converted = recorded["convert_to_coco_format"]
    pieces = [piece for row in converted["i"] for piece in split_references(row["grounded_caption"])]
    assert pieces == [annotation["caption"] for annotation in converted["o"]["annotations"]]
