"""`captune evaluate` on runs of transformers models: the base model is loaded once, and checkpoints are swapped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from captioner_models import save
from safetensors.torch import load_file, save_file
from tuned_models import perturb, record_of

from captune.apps.serving import load_served
from captune.captioner import Captioner
from captune.cli import app, call, run
from captune.config import load_run_config, parse_config
from captune.decoding import DecodingOptions
from captune.evaluation import Evaluation, evaluate_checkpoints, evaluation_set
from captune.evaluation.run_models import load_run_model
from captune.hub import resolve_model
from captune.model import default_device
from captune.report import read_scores
from captune.run_checkpoints import checkpoint_folders
from captune.training import train
from captune.vlm import load_image_text_model, save_adapter
from captune.vlm.loading import load_strictly


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    lora = {"rank": 4, "alpha": 8, "targets": ["all-linear"]}
    content = {
        "output": str(folder / "run"),
        "model": {"path": str(save("llava", folder / "llava"))},
        "data": {"train": str(toy_data / "manifest.jsonl"), "features": str(folder / "features")},
        "train": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 10, "learning_rate": 0.02, "lora": lora},
        "evaluate": {"max_new_tokens": 8},
    }
    train(parse_config(content, ["train.warmup_steps=0"]))
    return folder / "run"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the base models that are loaded."""
    names: list[str] = []

    def load(from_pretrained: Any, path: str, what: str, **options: Any) -> Any:
        names.append(path)
        return load_strictly(from_pretrained, path, what, **options)

    monkeypatch.setattr("captune.vlm.loading.load_strictly", load)
    return names


def evaluate(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


def test_the_scores_are_those_of_training(trained: Path, tmp_path: Path, loads: list[str]) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    written = (folder / "scores.json").read_bytes()
    shutil.rmtree(folder / "cache", ignore_errors=True)
    assert evaluate(folder) == 0
    assert (folder / "scores.json").read_bytes() == written
    assert len(loads) == 1
    rows = read_scores(folder).checkpoints
    assert [row.name for row in rows] == ["pretrained", "epoch0", "epoch1"]
    assert len({tuple(row.captions.values()) for row in rows}) > 1
    # A second evaluation reads all captions from the cache.
    assert any((folder / "cache" / "captions").glob("*.jsonl"))
    assert evaluate(folder) == 0
    assert (folder / "scores.json").read_bytes() == written


def test_captions_of_a_checkpoint_are_those_of_its_row(trained: Path) -> None:
    row = read_scores(trained).checkpoints[-1]
    manifest = load_run_config(trained / "config.yaml").evaluation_manifest
    images = {
        item["id"]: manifest.parent / item["image"] for item in map(json.loads, manifest.read_text().splitlines())
    }
    captioner = Captioner.from_pretrained(trained / "checkpoints" / "epoch-001")
    ids = list(row.captions)[:4]
    captions = captioner([images[image] for image in ids], None, DecodingOptions(max_new_tokens=8))
    assert captions == [row.captions[image] for image in ids]


def test_checkpoints_of_complete_parts_are_swapped(trained: Path, tmp_path: Path) -> None:
    config = load_run_config(trained / "config.yaml", [f"output={tmp_path / 'out'}", "train.parts=[vision_tower]"])
    model = load_image_text_model(resolve_model(config.model), default_device())
    model.train_parts(vision_tower=True)
    perturb(model)
    checkpoint = tmp_path / "checkpoints" / "epoch-000"
    checkpoint.mkdir(parents=True)
    save_adapter(checkpoint, model, record_of(model, "vision_tower", epoch=0))
    rows = evaluate_checkpoints(config, [checkpoint]).checkpoints
    before = read_scores(trained).checkpoints[0]
    assert dict(rows[0].captions) == dict(before.captions)
    assert dict(rows[1].captions) != dict(before.captions)


def ignore(done: int, count: int) -> None:
    """Ignore the progress."""


@pytest.mark.parametrize("stored", [False, True])
def test_the_pretrained_model_is_restored_after_a_checkpoint(trained: Path, stored: bool) -> None:
    config = load_run_config(trained / "config.yaml")
    checkpoints = checkpoint_folders(trained)
    evaluation = Evaluation(config, evaluation_set(config))
    model = load_run_model(config, evaluation, checkpoints, stored=stored)
    images = model.images(evaluation.image_files, ignore)
    rows = read_scores(trained).checkpoints
    for number in (0, 1, 0, 2, 1, 0):
        model.load(None if number == 0 else checkpoints[number - 1])
        captions = model.caption(evaluation, images, model.instruction, ignore)
        assert [caption.text for caption in captions] == list(rows[number].captions.values())


def test_a_checkpoint_of_another_model_is_refused(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = save("llava", tmp_path / "other")
    folder = shutil.copytree(trained, tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    base = load_run_config(folder / "config.yaml").model.path
    state = load_file(other / "model.safetensors")
    name = next(name for name in state if "up_proj" in name)
    state[name] *= 2
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.yaml").write_text(config.replace(base, str(other)))
    written = (folder / "scores.json").read_bytes()
    assert evaluate(folder) == 2
    assert "was trained on the frozen parts" in capfd.readouterr().err
    assert (folder / "scores.json").read_bytes() == written
    assert len(checkpoint_folders(folder)) == 2


def test_a_run_is_served_with_its_checkpoints(trained: Path) -> None:
    served = load_served(str(trained))
    assert served.names == ("pretrained", "epoch0", "epoch1")
    assert set(served.instructions.values()) == {"Describe this image in detail."}
    rows = {row.name: row.captions for row in read_scores(trained).checkpoints}
    manifest = load_run_config(trained / "config.yaml").evaluation_manifest
    sample = next(item for item in map(json.loads, manifest.read_text().splitlines()) if item["split"] == "test")
    pixels = served.captioner.prepare(manifest.parent / sample["image"])
    for name in ("epoch1", "pretrained", "epoch0", "epoch1"):
        served.select(name)
        captions = served.captioner.generate([pixels], None, DecodingOptions(max_new_tokens=8))
        assert [caption.text for caption in captions] == [rows[name][sample["id"]]]


def test_the_matrix_has_a_row_for_each_checkpoint(trained: Path, toy_data: Path, tmp_path: Path) -> None:
    """Also of a random model, whose captions have hardly any word of the references."""
    out = tmp_path / "matrix"
    command = [trained, "--out", out, "--data", f"{toy_data / 'manifest.jsonl'}:val", "--prompt", "What is it?"]
    assert evaluate(*command) == 0
    matrix = json.loads((out / "matrix.json").read_text())
    assert {row["checkpoint"] for row in matrix["rows"]} == {"pretrained", "epoch0", "epoch1"}
    for row, expected in zip(read_scores(out).checkpoints, read_scores(trained).checkpoints, strict=True):
        assert dict(row.captions) == dict(expected.captions)
