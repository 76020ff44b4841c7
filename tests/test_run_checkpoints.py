"""Selecting a checkpoint of a run by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.cli.evaluate import is_model
from captune.config import STORED_HEADING
from captune.errors import WeightsError
from captune.hub import locate_base, locate_model, recorded_name
from captune.run_checkpoints import checkpoint_folder, is_run, select_checkpoint, selected_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with four checkpoints, of which the second is the best and the last has no score."""
    folder = tmp_path / "run"
    for epoch in range(4):
        checkpoint_folder(folder, epoch).mkdir(parents=True)
        (checkpoint_folder(folder, epoch) / "checkpoint.json").write_text("{}")
    (folder / "config.yaml").write_text("")
    rows = [{"epoch": None, "corpus": {"CIDEr": 9.0}}]
    rows += [{"epoch": epoch, "corpus": {"CIDEr": value}} for epoch, value in enumerate((0.5, 0.7, 0.7))]
    (folder / "scores.json").write_text(json.dumps({"checkpoints": rows}))
    return folder


def test_the_best_epoch_is_selected(run: Path) -> None:
    selected = selected_checkpoint(run)
    assert selected is not None
    assert selected.folder == checkpoint_folder(run, 1)  # the earlier of two equal ones
    assert str(selected) == f"{checkpoint_folder(run, 1)}, the best of 4 checkpoints by CIDEr (0.700)"
    assert locate_model(str(run)) == str(checkpoint_folder(run, 1))


def test_the_link_decides_if_its_checkpoint_exists(run: Path) -> None:
    (run / "checkpoints" / "best").symlink_to("epoch-003")
    assert select_checkpoint(run).folder == checkpoint_folder(run, 3)
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to("epoch-009")
    assert select_checkpoint(run).folder == checkpoint_folder(run, 1)


@pytest.mark.parametrize("scores", [None, "{", '{"checkpoints": [{"epoch": 1, "corpus": null}]}'])
def test_without_scores_the_last_is_selected(run: Path, scores: str | None) -> None:
    (run / "scores.json").unlink()
    if scores is not None:
        (run / "scores.json").write_text(scores)
    selected = select_checkpoint(run)
    assert selected.folder == checkpoint_folder(run, 3)
    assert "no scores" in selected.reason


@pytest.mark.parametrize(
    ("name", "epoch"), [("2", 2), ("epoch2", 2), ("epoch-002", 2), ("best", 1), ("last", 3), ("epoch-1", 1)]
)
def test_a_checkpoint_is_named(run: Path, name: str, epoch: int) -> None:
    selected = selected_checkpoint(f"{run}@{name}")
    assert selected is not None
    assert selected.folder == checkpoint_folder(run, epoch)


@pytest.mark.parametrize("name", ["7", "epoch", "epoch2x", "../run"])
def test_an_unknown_checkpoint_is_refused(run: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="it has epoch0, epoch1, epoch2, epoch3, best and last"):
        selected_checkpoint(f"{run}@{name}")


def test_other_names_are_no_runs(tmp_path: Path, run: Path) -> None:
    (tmp_path / "model").mkdir()
    for file in ("config.json", "config.yaml"):
        (tmp_path / "model" / file).write_text("{}")
    names = (tmp_path / "model", "toy", "user/model", "user/model@main", checkpoint_folder(run, 0))
    for name in names:
        assert not is_run(name)
        assert selected_checkpoint(name) is None
    # Other trainers write their configuration next to an adapter.
    (tmp_path / "adapter").mkdir()
    for file in ("adapter_config.json", "config.yaml"):
        (tmp_path / "adapter" / file).write_text("{}")
    assert locate_model(str(tmp_path / "adapter")) == str(tmp_path / "adapter")
    assert is_model(str(tmp_path / "adapter"), [], has_data=True)
    assert not is_model(str(run), [], has_data=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("seed: 1\n")
    assert not is_run(tmp_path / "empty"), "the configuration of another program"
    (tmp_path / "empty" / "config.yaml").write_text(f"# {STORED_HEADING}\n")
    with pytest.raises(WeightsError, match="is a run without checkpoints"):
        selected_checkpoint(tmp_path / "empty")


def test_base_models_are_recorded_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "project" / "models" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    checkpoint = tmp_path / "project" / "runs" / "a" / "checkpoints" / "epoch-000"
    checkpoint.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    assert recorded_name("models/base") == str(model)
    assert [recorded_name(name) for name in ("toy", "user/model")] == ["toy", "user/model"]

    (tmp_path / "project").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    checkpoint = moved / "runs" / "a" / "checkpoints" / "epoch-000"
    assert locate_base(str(model), checkpoint, "../../../../models/base") == str(moved / "models" / "base")
    # An earlier version recorded the path as it was configured.
    assert locate_base("models/base", checkpoint) == str(moved / "models" / "base")
    with pytest.raises(WeightsError, match="There is no model folder"):
        locate_base(str(model), checkpoint)
