"""`captune evaluate` of a run's folder, wherever that lies now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from captune.cli import app, call, run
from captune.config import parse_config
from captune.training import train


def evaluate(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(
        parse_config(
            {
                "output": folder,
                "model": {"path": "toy"},
                "data": {"train": toy_data / "manifest.jsonl", "evaluate_images": 3, "train_images": 4},
                "train": {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1},
                "evaluate": {"max_new_tokens": 3},
            }
        )
    )
    return folder


def names(folder: Path) -> list[str]:
    return [row["name"] for row in json.loads((folder / "scores.json").read_text())["checkpoints"]]


def test_a_copy_is_evaluated_in_its_own_folder(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "scores.json").unlink()
    before = (trained / "scores.json").read_bytes()
    assert evaluate(copy) == 0
    assert names(copy) == ["pretrained", "epoch0"]
    assert (trained / "scores.json").read_bytes() == before


def test_a_copy_without_checkpoints_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints")
    assert evaluate(copy) == 0
    assert names(copy) == ["pretrained"]
    assert f"There is no checkpoint in {copy}" in capsys.readouterr().err


def test_the_output_that_is_asked_for_wins(trained: Path, tmp_path: Path) -> None:
    assert evaluate(trained, f"output={tmp_path / 'other'}") == 0
    assert names(tmp_path / "other") == ["pretrained"]
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["output"] == str(trained)


def test_nothing_is_captioned_for_a_place_that_takes_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("captune.evaluation.checkpoints.load_model", fail)
    assert evaluate(trained, "--out", trained / "config.yaml") == 2
    assert "is a file, and a folder is needed there" in capsys.readouterr().err
