"""`captune evaluate MODEL... --data M --out FOLDER`: models without a run are rows of one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from vision_families import save_family

from captune.captioner import TransformersBackend
from captune.cli import app, call, run
from captune.metrics import prompt_hash
from captune.report import read_scores


def evaluate(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


def test_models_are_rows_of_one_table(
    toy_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    blip = save_family("blip", tmp_path / "models" / "blip")
    florence = save_family("florence2", tmp_path / "models" / "florence2")
    out, manifest = tmp_path / "evaluation", toy_data / "manifest.jsonl"
    command = ["toy", blip, florence, "--data", manifest, "--out", out, "evaluate.max_new_tokens=6"]
    assert evaluate(*command) == 0
    printed = capfd.readouterr()
    assert "† differs from toy" in printed.out or "†" not in printed.out
    assert "It is not known which images" in caplog.text
    scores = read_scores(out)
    assert [row.name for row in scores.checkpoints] == ["toy", "models/blip", "models/florence2"]
    assert [row.leak for row in scores.checkpoints] == [None] * 3
    prompts = [f"prompt:{prompt_hash(text)}" for text in ("Describe this image in detail.", "<CAPTION>")]
    assert prompts[0] in scores.checkpoints[0].signature
    assert "prompt:" not in scores.checkpoints[1].signature, "it has no prompt"
    assert prompts[1] in scores.checkpoints[2].signature
    assert "Signatures differ in the prompt alone" in (out / "table.md").read_text()
    assert (out / "report.html").is_file()
    before = (out / "scores.json").read_bytes()
    assert evaluate(blip, "--data", manifest, "--out", out) == 2
    assert "holds an evaluation of toy, models/florence2" in capfd.readouterr().err
    command = ["toy", blip, florence, "--data", manifest, "--out", out, "--split", "val"]
    assert evaluate(*command) == 2
    assert "holds an evaluation on flickr30k, split test, 12 images" in capfd.readouterr().err
    assert (out / "scores.json").read_bytes() == before


def test_a_refused_image_has_an_empty_caption(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blip = save_family("blip", tmp_path / "models" / "blip")
    right, seen = TransformersBackend._batch, []

    def batch(self: TransformersBackend, images: list[Image.Image], *rest: object) -> object:
        seen.append(len(images))
        if images[0].size != (320, 240) and (len(images) > 1 or len(seen) == 3):
            raise ValueError("too thin")
        return right(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersBackend, "_batch", batch)
    out = tmp_path / "evaluation"
    assert evaluate(blip, "--data", toy_data / "manifest.jsonl", "--out", out, "evaluate.max_new_tokens=6") == 0
    assert "1 of 12 images cannot be captioned" in caplog.text
    (row,) = read_scores(out).checkpoints
    assert list(row.captions.values()).count("") >= 1
    assert row.unfinished


def test_what_a_model_without_a_run_needs(toy_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = toy_data / "manifest.jsonl"
    assert evaluate("toy", "--data", manifest) == 2
    assert "as --out FOLDER" in capfd.readouterr().err
    assert evaluate("toy", "--data", manifest, "--out", tmp_path / "a", "--corrupt", "blur") == 2
    assert "takes one --data" in capfd.readouterr().err
    assert evaluate("toy", "--data", manifest, "--out", tmp_path / "a", "--protocol", "slides") == 2
    assert "training images of a run" in capfd.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({}))
    assert evaluate("toy", "--data", manifest, "--out", tmp_path / "run") == 2
    assert "is the folder of a run" in capfd.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("of another tool")
    assert evaluate("toy", "--data", manifest, "--out", tmp_path / "mine") == 2
    assert "holds 'report.html'" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()
