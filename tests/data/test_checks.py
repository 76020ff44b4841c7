"""What a check finds: what would stop training, and what is only worth knowing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from captune.data.checks import check_manifest
from captune.data.importing import ImageCheck
from captune.data.issues import Issue
from captune.data.manifest import Sample, write_manifest
from captune.errors import DataError


def sample(name: str, *captions: str, split: str = "train", image: str | None = None) -> Sample:
    return Sample(name, image or f"{name}.jpg", captions or ("A dog .",), split)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Every fault and every note once; the lines are those of `PROBLEMS`."""
    for name in ("good", "odd"):
        Image.effect_noise((64, 48), 40).save(tmp_path / f"{name}.jpg")
    Image.effect_noise((64, 31), 40).save(tmp_path / "small.jpg")
    complete = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(complete[: len(complete) // 2])
    write_manifest(
        tmp_path / "m.jsonl",
        [
            sample("good"),
            sample("cut"),
            sample("gone", split="val"),
            sample("small"),
            sample("twin", image="./good.jpg"),
            sample("odd", "A dog .", "A dog .", " ".join(["far"] * 101)),
            sample("good"),
        ],
    )
    with (tmp_path / "m.jsonl").open("ab") as stream:
        stream.write(b'{"id": "x"}\n\xff\n')
    return tmp_path / "m.jsonl"


PROBLEMS = [
    (2, "undecodable"),
    (3, "missing"),
    (4, "small"),
    (5, "shared"),
    (6, "repeated"),
    (6, "long"),
    (6, "truncated"),
    (7, "duplicate"),
    (8, "malformed"),
    (9, "encoding"),
    (0, "split"),
]
NEED_DECODING = {"undecodable", "small"}


def test_all_problems_are_listed_with_their_line_in_order(manifest: Path) -> None:
    seen: list[Issue] = []
    summary = check_manifest(
        manifest,
        needed_splits=["train", "test"],
        flaw=lambda caption: "truncated" if caption.startswith("far") else None,
        on_issue=seen.append,
    )
    assert [(problem.line, problem.kind) for problem in summary.problems.first] == PROBLEMS
    assert summary.problems.first == seen
    assert all(problem.file == str(manifest) for problem in seen)
    assert summary.problems.fatal == 6
    assert (summary.images, summary.captions) == (6, 8)
    assert summary.splits == {"train": 5, "val": 1}
    assert seen[-1].message == "no image is of the split 'test'; there is train (5), val (1)."


@pytest.mark.parametrize(("check", "left_out"), [("exist", NEED_DECODING), ("none", NEED_DECODING | {"missing"})])
def test_images_are_checked_as_far_as_requested(manifest: Path, check: ImageCheck, left_out: set[str]) -> None:
    summary = check_manifest(manifest, needed_splits=["test"], check=check)
    kinds = {kind for _, kind in PROBLEMS} - left_out - {"truncated"}
    assert set(summary.problems.counts) == kinds


def test_a_clean_manifest_has_no_problems(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "good.jpg")
    write_manifest(tmp_path / "m.jsonl", [sample("good")])
    summary = check_manifest(tmp_path / "m.jsonl")
    assert not summary.problems
    assert summary.words_per_caption == {3: 1}


def test_limits_are_the_callers(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "good.jpg")
    write_manifest(tmp_path / "m.jsonl", [sample("good")])
    summary = check_manifest(tmp_path / "m.jsonl", min_side=33, max_words=2)
    assert summary.problems.counts == {"small": 1, "long": 1}
    assert summary.problems.fatal == 0


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        check_manifest(tmp_path / "none.jsonl")


def test_an_empty_manifest_lacks_its_split(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").touch()
    (problem,) = check_manifest(tmp_path / "m.jsonl").problems.first
    assert problem.message == "no image is of the split 'train'; there is none."


def test_the_real_captions_pass(shared: Path, tmp_path: Path) -> None:
    from captune.data.importers.flickr import flickr30k_rows
    from captune.data.importing import prepare
    from captune.data.text_files import SourceFile

    file = shared / "captions" / "flickr30k" / "flickr_annotations_30k.csv"
    out = tmp_path / "m.jsonl"
    prepare(flickr30k_rows(SourceFile(file)), source=str(file), images=tmp_path, out=out, check="none")
    summary = check_manifest(out, needed_splits=["train", "val", "test"], check="none")
    assert summary.problems.fatal == 0
    assert set(summary.problems.counts) <= {"repeated"}
    assert json.loads(out.read_text().splitlines()[0])["id"] == "1000092795"
