"""`captune check` as a user meets it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from captune.cli import app, call, run
from captune.cli.check import histogram
from captune.data.manifest import Sample, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    Image.effect_noise((64, 48), 40).save(tmp_path / "a.jpg")
    write_manifest(tmp_path / "m.jsonl", [Sample("a", "a.jpg", ("A dog .", "It runs far ."), "train")])
    return tmp_path / "m.jsonl"


def check(*arguments: str | Path) -> int:
    return run(lambda: call(app, ["check", *map(str, arguments)]))


def test_a_good_manifest(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{manifest}: training can read it\n")
    assert "train 1" in output
    assert "3          1 ####" in output


def test_a_manifest_that_training_would_fail_on(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest.parent / "a.jpg").unlink()
    assert check(manifest, "--split", "train", "--split", "test") == 2
    output = capsys.readouterr().out
    assert "training would fail (2 problems)" in output
    assert f"{manifest}:1: the image '{manifest.parent / 'a.jpg'}' is not there." in output
    assert f"{manifest}: no image is of the split 'test'; there is train (1)." in output


def test_notes_fail_only_when_strict(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest, "--min-side", "50") == 0
    assert "1 small image" in capsys.readouterr().out
    assert check(manifest, "--min-side", "50", "--strict") == 2


def test_json_for_programs(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest, "--json", "--max-words", "3", "--problems", manifest.parent / "p.jsonl") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["fatal"] == 0
    assert answer["problems"] == {"long": 1}
    assert answer["words_per_caption"] == {"3": 1, "4": 1}
    assert len(answer["sha256"]) == 64
    assert json.loads((manifest.parent / "p.jsonl").read_text())["kind"] == "long"


def test_targets_that_training_would_cut(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'train'")
    write_manifest(manifest, [Sample("a", "a.jpg", ("A dog .", "dog " * 500, "A ### dog ."), "train")])
    assert check(manifest, "--model", "toy", "--max-words", "1000") == 0
    output = capsys.readouterr().out
    assert "1 truncated target" in output
    assert "1 caption with a stop symbol" in output
    assert check(manifest, "--model", "toy", "--strict") == 2


def test_captions_with_special_tokens_of_a_transformers_model(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'train'")
    write_manifest(manifest, [Sample("a", "a.jpg", ("A dog .", "dog " * 500, "A sign says <image>."), "train")])
    assert check(manifest, "--model", "toy-vlm", "--max-words", "1000") == 0
    output = capsys.readouterr().out
    assert "truncated" not in output
    assert "1 caption with a special token" in output


def test_several_training_splits(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash", reason="needs the extra 'data'")
    for name in ("b", "c"):
        Image.effect_noise((64, 48), 40).save(manifest.parent / f"{name}.jpg")
    splits = (("a", "train"), ("b", "restval"), ("c", "test"))
    write_manifest(manifest, [Sample(name, f"{name}.jpg", ("A dog .",), split) for name, split in splits])
    assert check(manifest, "--split", "train,restval", "--split", "test", "--against", manifest, "--json") == 0
    (leaks,) = json.loads(capsys.readouterr().out)["leaks"]
    assert (leaks["trained"], leaks["evaluated"]) == (2, 1)
    assert check(manifest, "--split", "train,restvall") == 2
    assert "no image is of the split 'restvall'" in capsys.readouterr().out


def test_no_manifest_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "none.jsonl") == 2
    assert "there is no file" in capsys.readouterr().err


def test_the_histogram_holds_every_caption() -> None:
    words = Counter({1: 5, 12: 100, 30: 1, 79: 3})
    lines = histogram(words)[1:]
    assert sum(int(line.split()[1]) for line in lines) == words.total()
    assert len(lines) <= 13
    assert max(line.count("#") for line in lines) == 40
    assert histogram(Counter()) == []


def test_leaks_between_manifests(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash", reason="needs the extra 'data'")
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    Image.effect_noise((64, 48), 90).save(tmp_path / "new.jpg")
    rows = [Sample("x", "new.jpg", ("A cat .",), "test"), Sample("y", "copy.jpg", ("A cat .",), "test")]
    write_manifest(tmp_path / "other.jsonl", rows)
    other = tmp_path / "other.jsonl"
    assert check(manifest, "--against", other) == 2
    output = capsys.readouterr().out
    assert output.startswith(f"{manifest}: training can read it\n")
    assert f"{other}:2: the image '{tmp_path / 'copy.jpg'}' of 'y' has the same bytes as" in output
    assert f"{other}: LEAK, 1 of 2 evaluated images was trained on (1 by file content; 'y' is one)" in output
    assert check(manifest, "--against", other, "--allow-leaks", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["leaks"][0]["by"] == {"bytes": 1}
    assert answer["problems"] == {"leak": 1}
    write_manifest(other, rows[:1])
    assert check(manifest, "--against", other) == 0
    assert f"{other}: none of 1 image was trained on" in capsys.readouterr().out
