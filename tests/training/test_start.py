"""A run that starts from the weights of an earlier run's checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import InMemory, tiny_minigpt4
from tiny_run import PowerFailure, assert_equal_runs, entries, settings, steps_of, weights

from captune.config import RunConfig
from captune.data import resolve_image
from captune.distributed import DistributedContext
from captune.errors import ConfigError, WeightsError
from captune.evaluation import Evaluation, evaluation_set, training_images
from captune.events import Event
from captune.features import encode_images
from captune.hub import locate_checkpoint, refuse_checkpoint, resolve_model
from captune.metrics import Comparison
from captune.model import attach_lora, load_start, load_trained
from captune.report import read_scores
from captune.run_checkpoints import read_record
from captune.training import check_settings, train
from captune.training.equivalence import CheckedObjective
from captune.training.run_folder import RunStatus, run_status
from captune.training.start_checkpoint import StartCheckpoint, find_start, require_fitting_start
from captune.training.trainer import TrainStep

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(scope="module")
def stage1(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: None) -> Path:
    output = tmp_path_factory.mktemp("stage1") / "run"
    train(settings(toy_data, output))
    return output


def second(toy_data: Path, output: Path, start: Path, **changed: Any) -> RunConfig:
    """Another instruction, other data and another rate, from a checkpoint."""
    config = settings(toy_data, output, start=str(start), learning_rate=0.02, **changed)
    model = config.model.model_copy(update={"instruction": "What is it?"})
    data = config.data.model_copy(update={"train_images": 8})
    return config.model_copy(update={"model": model, "data": data, "seed": 7})


@pytest.fixture(scope="module")
def stage2(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, stage1: Path) -> Path:
    output = tmp_path_factory.mktemp("stage2") / "run"
    train(second(toy_data, output, stage1))
    return output


def test_a_run_from_a_checkpoint_equals_a_continuation_by_hand(toy_data: Path, stage1: Path, stage2: Path) -> None:
    config = second(toy_data, stage2, stage1)
    start = load_file(stage2 / "checkpoints" / "start" / "trained.safetensors")
    first = weights(stage1, 0)
    assert all(torch.equal(start[name], first[name]) for name in first)

    model = tiny_minigpt4()
    load_trained(model, stage1 / "checkpoints" / "epoch-000")
    images = training_images(config)
    features = InMemory(encode_images(model, [resolve_image(config.data.train, image.image) for image in images]))
    objective = CheckedObjective(model, "What is it?", config.train.enabled_optimizations)
    model.train()
    step = TrainStep(
        model, objective, images, features, config.train, seed=7, dist=DistributedContext(torch.device("cpu"))
    )
    by_hand = [step.run(number) for number in range(step.samples.total_steps)]
    assert [(number, result.loss, result.learning_rate) for number, result in enumerate(by_hand)] == steps_of(stage2)
    trained, expected = weights(stage2, 0), model.trained_state()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)
    assert not all(torch.equal(trained[name], first[name]) for name in first)


def test_the_first_row_is_the_start_checkpoint(toy_data: Path, stage1: Path, stage2: Path) -> None:
    rows = read_scores(stage2).checkpoints
    assert [(row.name, row.epoch) for row in rows] == [("start", None), ("epoch0", 0)]
    assert rows[1].p_values
    assert "pretrained" not in (stage2 / "table.md").read_text()
    assert [event.get("name") for event in entries(stage2, "evaluation")] == ["start", None]
    assert entries(stage2, "run")[0]["start"].endswith("checkpoints/epoch-000")
    assert run_status(second(toy_data, stage2, stage1)) is RunStatus.FINISHED
    start = find_start(second(toy_data, stage2, stage1), resuming=False)
    assert start is not None
    assert start.sentence == (
        f"Training starts from the checkpoint of epoch0 {start.folder} and not from the pretrained model."
    )


def test_the_record_lists_all_ancestors(toy_data: Path, stage1: Path, stage2: Path, tmp_path: Path) -> None:
    assert read_record(stage1 / "checkpoints" / "epoch-000").ancestors == ()
    output = tmp_path / "third"
    train(second(toy_data, output, stage2 / "checkpoints" / "best"))
    ancestors = read_record(output / "checkpoints" / "epoch-000").ancestors
    assert [Path(ancestor["checkpoint"]).parent.parent for ancestor in ancestors] == [stage1, stage2]
    assert [ancestor["train_images"] for ancestor in ancestors] == [16, 8]
    assert [ancestor["seed"] for ancestor in ancestors] == [42, 7]


@pytest.mark.parametrize("moment", [0, 2, 4])
def test_dying_changes_nothing_and_the_earlier_run_may_be_gone(
    toy_data: Path, tmp_path: Path, stage1: Path, stage2: Path, moment: int
) -> None:
    output = tmp_path / "run"
    copy = Path(shutil.copytree(stage1, tmp_path / "stage1", symlinks=True))
    config = second(toy_data, output, copy)
    events = 0

    def die(event: Event) -> None:
        nonlocal events
        if event["event"] in ("evaluation", "progress", "checkpoint"):
            events += 1
            if events == moment + 1:
                raise PowerFailure

    with pytest.raises(PowerFailure):
        train(config, die)
    if run_status(config) is RunStatus.UNFINISHED:
        shutil.rmtree(copy)
    train(config)
    assert_equal_runs(output, stage2, 1)


def test_new_lora_is_added_to_a_trained_projection(stage1: Path) -> None:
    folder = stage1 / "checkpoints" / "epoch-000"
    model = tiny_minigpt4()
    torch.manual_seed(1)
    attach_lora(model, rank=4, alpha=8)
    initial = model.trained_state()
    load_start(model, folder)
    expected = weights(stage1, 0)
    for name, tensor in model.trained_state().items():
        assert torch.equal(tensor, expected[name] if name in expected else initial[name])


def test_other_lora_is_refused_with_both_values(toy_data: Path, stage1: Path, tmp_path: Path) -> None:
    config = second(toy_data, tmp_path / "run", stage1)
    other = second(toy_data, tmp_path / "run", stage1, lora={"rank": 16, "alpha": 8})
    source = resolve_model(config.model)
    folder = stage1 / "checkpoints" / "epoch-000"
    record = read_record(folder)
    start = StartCheckpoint(
        str(folder), folder, replace(record, lora={"r": 4, "alpha": 8.0, "targets": ["q_proj"], "dropout": 0.0}), ()
    )
    with pytest.raises(ConfigError, match=r"train\.lora is null, .* set train\.lora to \{rank: 4, alpha: 8, targets:"):
        require_fitting_start(start, config, source)
    with pytest.raises(ConfigError, match=r"rank is 16, in the checkpoint 4; targets is .*'v_proj'.* the checkpoint"):
        require_fitting_start(start, other, source)


def test_another_base_model_is_refused(stage1: Path) -> None:
    with pytest.raises(WeightsError, match=r"epoch-000 was trained on the frozen parts .* \(of tiny\)"):
        load_start(tiny_minigpt4(seed=3), stage1 / "checkpoints" / "epoch-000")


def test_a_base_model_with_other_weights_is_refused_by_its_files(toy_data: Path, stage1: Path, tmp_path: Path) -> None:
    included = resolve_model("toy").path
    base, copied, other = (Path(shutil.copytree(included, tmp_path / name)) for name in ("base", "copied", "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["projection.weight"] += 1  # it is trained, and may differ
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    tensors["llm.lm_head.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    folder = stage1 / "checkpoints" / "epoch-000"
    start = StartCheckpoint(str(folder), folder, replace(read_record(folder), model=str(base)), ())
    config = second(toy_data, tmp_path / "run", stage1)
    for model in (base, copied):
        require_fitting_start(start, config, resolve_model(str(model)))
    with pytest.raises(
        WeightsError, match=r"was trained on the model .*base, and model\.path is .*other, which has other"
    ):
        require_fitting_start(start, config, resolve_model(str(other)))


def test_a_missing_start_is_named(toy_data: Path, stage1: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no folder .*epoch-007; there are epoch-000, or the folder of"):
        train(second(toy_data, tmp_path / "run", stage1 / "checkpoints" / "epoch-007"))
    with pytest.raises(WeightsError, match=r"No checkpoint is in .*; expected a folder such as"):
        locate_checkpoint(tmp_path)
    assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(ConfigError, match=r"inside of the output folder .* higher train\.epochs"):
        find_start(second(toy_data, stage1, stage1), resuming=False)


def broken(stage1: Path, folder: Path, damage: Callable[[bytes], bytes]) -> Path:
    """A copy of a checkpoint whose tensors are damaged."""
    copy = Path(shutil.copytree(stage1 / "checkpoints" / "epoch-000", folder))
    file = copy / "trained.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    return copy


def test_a_truncated_start_is_refused_without_torch(toy_data: Path, stage1: Path, tmp_path: Path) -> None:
    for name, damage, reason in (
        ("half", lambda data: data[: len(data) // 2], "is cut off: its header promises"),
        ("empty", lambda data: b"", "is no complete safetensors file"),
    ):
        start = broken(stage1, tmp_path / name, damage)
        config = second(toy_data, tmp_path / "run", start)
        with pytest.raises(WeightsError, match=reason), patch("captune.training.run.extra_imports", None):
            train(config)
        with pytest.raises(WeightsError, match=reason):
            check_settings(config)
    (start / "trained.safetensors").unlink()
    with pytest.raises(WeightsError):
        check_settings(config)
    assert not (tmp_path / "run").exists()


def test_a_refused_start_leaves_no_run(toy_data: Path, stage1: Path, tmp_path: Path) -> None:
    start = broken(stage1, tmp_path / "other", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    output = tmp_path / "run"
    with pytest.raises(WeightsError, match="is damaged: its SHA-256"):
        train(second(toy_data, output, start))
    assert not output.exists()
    # The corrected configuration begins in the same folder.
    assert train(second(toy_data, output, stage1)).folder == output


def test_a_checkpoint_as_the_model_is_refused_with_the_settings_that_continue_it(stage1: Path) -> None:
    folder = stage1 / "checkpoints" / "epoch-000"
    with pytest.raises(ConfigError, match=rf"set model\.path to tiny and train\.start to {folder}\."):
        refuse_checkpoint(resolve_model(str(folder)))


def test_a_run_without_a_link_gives_the_epoch_with_the_best_score(stage1: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stage1, tmp_path / "run", symlinks=True))
    shutil.copytree(run / "checkpoints" / "epoch-000", run / "checkpoints" / "epoch-001")
    assert locate_checkpoint(run) == run / "checkpoints" / "epoch-000"
    (run / "checkpoints" / "best").unlink()
    assert locate_checkpoint(run) == run / "checkpoints" / "epoch-000"  # the only one with a score
    (run / "scores.json").unlink()
    assert locate_checkpoint(run) == run / "checkpoints" / "epoch-001"


def test_images_of_earlier_stages_are_leaks(
    toy_data: Path, stage1: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first stage trained on images that the second one is evaluated on."""
    run = Path(shutil.copytree(stage1, tmp_path / "stage1", symlinks=True))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("train_split: train", "train_split: test"))
    config = second(toy_data, tmp_path / "run", run)
    start = find_start(config, resuming=False)
    assert start is not None
    assert evaluation_set(config).leak is None
    assert "4 of 4 evaluated images were trained on" in str(evaluation_set(config, ancestors=start.ancestors).leak)
    # What cannot be checked is named.
    (run / "config.yaml").unlink()
    start = find_start(config, resuming=False)
    assert start is not None
    with caplog.at_level(logging.WARNING):
        assert evaluation_set(config, ancestors=start.ancestors).leak is None
    assert "are unknown (its record names no manifest), so they are not searched for leaks" in caplog.text
    assert json.loads(json.dumps(start.ancestors)) == list(start.ancestors)


def test_early_stopping_counts_from_the_start_checkpoint(
    toy_data: Path, tmp_path: Path, stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[tuple[int | None, int | None]] = []

    def compare(self: Evaluation, epoch: int | None, other: int | None) -> dict[str, Comparison]:
        pairs.append((epoch, other))
        return {"CIDEr": Comparison(0.5, 1.0, 0.001)}

    monkeypatch.setattr(Evaluation, "compare", compare)
    output = tmp_path / "run"
    train(second(toy_data, output, stage1, epochs=4, early_stop=2))
    (event,) = entries(output, "early_stop")
    assert (event["epoch"], pairs) == (1, [(0, None), (1, None)])
    assert event["reason"] == "CIDEr did not rise significantly over start in 2 epochs (train.early_stop)"


def test_epochs_are_compared_with_the_start_checkpoint(toy_data: Path, stage1: Path, stage2: Path) -> None:
    config = second(toy_data, stage2, stage1)
    scores = read_scores(stage2)
    evaluation = Evaluation(config, evaluation_set(config))
    evaluation.restore(scores.checkpoints)
    start, epoch = (row.corpus["CIDEr"] for row in scores.checkpoints)
    test = evaluation.compare(0, None)["CIDEr"]
    assert test.difference == pytest.approx(epoch - start)
