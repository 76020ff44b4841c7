"""A run with more epochs continues in its folder; the best epoch is linked, and a run can stop early."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import KILLED, PowerFailure, assert_equal_runs, entries, settings, steps_of, weights

from captune.config import commented_yaml, load_run_config
from captune.errors import ConfigError
from captune.events import Event, EventText
from captune.metrics import Comparison
from captune.report import read_scores
from captune.run_checkpoints import checkpoint_folders
from captune.training import selection, train
from captune.training.optimizer import learning_rate
from captune.training.run_folder import RunStatus, inspect_run, run_status

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(scope="module")
def one_epoch(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: None) -> Path:
    output = tmp_path_factory.mktemp("one") / "run"
    train(settings(toy_data, output))
    return output


@pytest.fixture(scope="module")
def three_epochs(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, one_epoch: Path) -> Path:
    """The run with one epoch, continued with three."""
    output = Path(shutil.copytree(one_epoch, tmp_path_factory.mktemp("three") / "run", symlinks=True))
    train(settings(toy_data, output, epochs=3))
    return output


def test_more_epochs_continue_with_the_schedule_of_the_longer_run(
    toy_data: Path, one_epoch: Path, three_epochs: Path
) -> None:
    config = settings(toy_data, three_epochs, epochs=3)
    steps = steps_of(three_epochs)
    assert [step for step, _, _ in steps] == list(range(12))
    assert steps[:4] == steps_of(one_epoch)
    assert [rate for _, _, rate in steps[4:]] == [learning_rate(step, 12, config.train) for step in range(4, 12)]
    assert run_status(config) is RunStatus.FINISHED
    assert load_run_config(three_epochs / "config.yaml") == config.model_copy(update={"output": three_epochs})
    first, more = weights(one_epoch, 0), weights(three_epochs, 0)
    assert all(torch.equal(first[name], more[name]) for name in first)
    (event,) = entries(three_epochs, "extended")
    assert (event["epochs_before"], event["epochs"], event["steps_before"], event["steps"]) == (1, 3, 4, 12)
    (sentence,) = EventText().messages(event)
    assert "3 epochs instead of 1: from step 4 on, the learning rate follows the schedule of 12 steps" in sentence


@pytest.mark.parametrize("moment", [0, 1, 4, 6, 9])
def test_dying_while_a_run_is_continued_changes_nothing(
    toy_data: Path, tmp_path: Path, one_epoch: Path, three_epochs: Path, moment: int
) -> None:
    output = Path(shutil.copytree(one_epoch, tmp_path / "run", symlinks=True))
    events = 0

    def die(event: Event) -> None:
        nonlocal events
        if event["event"] in ("run", "extended", "progress", "checkpoint", "evaluation"):
            events += 1
            if events == moment + 1:
                raise PowerFailure

    with pytest.raises(PowerFailure):
        train(settings(toy_data, output, epochs=3), die)
    load_run_config(output / "config.yaml")
    train(settings(toy_data, output, epochs=3))
    assert_equal_runs(output, three_epochs, 3)


@pytest.mark.slow
def test_sigkill_while_a_run_is_continued(toy_data: Path, tmp_path: Path, one_epoch: Path, three_epochs: Path) -> None:
    output = Path(shutil.copytree(one_epoch, tmp_path / "run", symlinks=True))
    config = tmp_path / "run.yaml"
    config.write_text(commented_yaml(settings(toy_data, output, epochs=3)))
    program = KILLED.format(path=[str(Path(__file__).parent.parent)], config=str(config))
    kills = 0
    for logged in (5, 8, 11):
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        while process.poll() is None and len(steps_of(output)) < logged:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    train(settings(toy_data, output, epochs=3))
    assert kills
    assert_equal_runs(output, three_epochs, 3)


def test_an_unfinished_run_is_continued_with_more_epochs(toy_data: Path, tmp_path: Path, three_epochs: Path) -> None:
    output = tmp_path / "run"

    def die(event: Event) -> None:
        if event["event"] == "progress" and event["step"] == 3:
            raise PowerFailure

    with pytest.raises(PowerFailure):
        train(settings(toy_data, output), die)
    train(settings(toy_data, output, epochs=3))
    assert entries(output, "extended")[0]["step"] == 2
    assert len(steps_of(output)) == 12
    # Steps 2 and 3 were repeated with the rates of the longer run.
    assert steps_of(output)[:2] == steps_of(three_epochs)[:2]


def test_fewer_epochs_are_refused(toy_data: Path, three_epochs: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs is 2, and the run in .* has 3: more epochs continue a run"):
        train(settings(toy_data, three_epochs, epochs=2))


def test_changed_settings_are_named_with_their_values(toy_data: Path, one_epoch: Path, tmp_path: Path) -> None:
    changed = settings(toy_data, one_epoch, learning_rate=0.02, lora={"rank": 4})
    with pytest.raises(ConfigError, match=r"train\.learning_rate: 0\.01 -> 0\.02, train\.lora: null -> ") as caught:
        train(changed)
    assert "train.epochs" not in str(caught.value)
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    output = tmp_path / "run"
    train(settings(data, output))
    with (data / "manifest.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(ConfigError, match=r"on other data \(the content of .*manifest\.jsonl has changed, hash"):
        train(settings(data, output))


def best_of(output: Path, metric: str) -> str:
    rows = [row for row in read_scores(output).checkpoints if row.epoch is not None]
    best = max(rows, key=lambda row: row.corpus[metric])
    return f"epoch-{best.epoch:03d}"


def test_the_best_epoch_is_linked(toy_data: Path, three_epochs: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(three_epochs, tmp_path / "run", symlinks=True))
    link = output / "checkpoints" / "best"
    assert link.is_symlink()
    assert os.readlink(link) == best_of(output, "CIDEr")
    # Another metric of the finished run; the run is not repeated.
    events: list[Event] = []
    train(settings(toy_data, output, epochs=3, select="bleu-1"), events.append)
    assert [event["event"] for event in events] == ["reused"]
    assert os.readlink(link) == best_of(output, "BLEU-1")
    # A copy that followed the link is replaced by a link; a folder of somebody else stays.
    link.unlink()
    shutil.copytree(output / "checkpoints" / best_of(output, "BLEU-1"), link)
    train(settings(toy_data, output, epochs=3, select="BLEU-1"))
    assert link.is_symlink()
    link.unlink()
    link.mkdir()
    (link / "mine").write_text("precious")
    train(settings(toy_data, output, epochs=3, select="BLEU-1"))
    assert (link / "mine").read_text() == "precious"
    with pytest.raises(ConfigError, match=r"train\.select is 'CIDR'.*did you mean 'CIDEr'"):
        train(settings(toy_data, output, epochs=3, select="CIDR"))


def test_scores_with_a_leak_select_no_epoch(three_epochs: Path) -> None:
    from dataclasses import replace

    rows = read_scores(three_epochs).checkpoints
    assert selection.best_row(rows, "CIDEr", three_epochs) is not None
    marked = [replace(row, leak="8 images were trained on") for row in rows]
    assert selection.best_row(marked, "CIDEr", three_epochs) is None


def test_lower_is_better_where_the_metric_says_so(three_epochs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.metrics import Column

    rows = read_scores(three_epochs).checkpoints
    monkeypatch.setattr(selection, "find_column", lambda name: Column(name, higher_is_better=False))
    best = selection.best_row(rows, "CIDEr", three_epochs)
    assert best is not None
    assert best.corpus["CIDEr"] == min(row.corpus["CIDEr"] for row in rows if row.epoch is not None)


def test_the_newest_and_the_best_checkpoints_are_kept(toy_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    foreign = output / "checkpoints" / "epoch-000"

    def check(event: Event) -> None:
        if event["event"] == "evaluation" and event["epoch"] is not None:
            assert (output / "checkpoints" / f"epoch-{event['epoch']:03d}").is_dir()

    train(settings(toy_data, output, epochs=4, keep=1), check)
    kept = {folder.name for folder in checkpoint_folders(output)}
    best = os.readlink(output / "checkpoints" / "best")
    assert kept == {"epoch-003", best}
    assert len(read_scores(output).checkpoints) == 5
    config = settings(toy_data, output, epochs=4, keep=1)
    assert run_status(config) is RunStatus.FINISHED
    # It continues without the deleted ones, and a checkpoint of another run is not deleted.
    if not foreign.exists():
        shutil.copytree(output / "checkpoints" / "epoch-003", foreign)
    train(settings(toy_data, output, epochs=5, keep=1))
    assert foreign.is_dir()
    assert (output / "checkpoints" / "best").is_dir()
    assert (output / "checkpoints" / "epoch-004").is_dir()


def test_a_run_stops_early_and_is_finished(toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.evaluation import Evaluation

    monkeypatch.setattr(Evaluation, "compare", lambda self, epoch, other: {"CIDEr": Comparison(1.0, 0.5, 0.5)})
    output = tmp_path / "run"
    config = settings(toy_data, output, epochs=6, early_stop=2)
    train(config)
    (event,) = entries(output, "early_stop")
    assert event["epoch"] == 2
    assert EventText().messages(event) == [
        "Stopped early after epoch2: CIDEr did not rise significantly over epoch0 in 2 epochs (train.early_stop)."
    ]
    assert len(checkpoint_folders(output)) == 3
    assert run_status(config) is RunStatus.FINISHED
    events: list[Event] = []
    train(config, events.append)
    assert [event["event"] for event in events] == ["reused"]
    # More patience continues it, and no patience trains all epochs.
    train(settings(toy_data, output, epochs=6, early_stop=3))
    assert [event["epoch"] for event in entries(output, "early_stop")] == [2, 3]
    # Now every epoch rises.
    monkeypatch.setattr(Evaluation, "compare", lambda self, epoch, other: {"CIDEr": Comparison(1.0, 0.5, 0.01)})
    assert run_status(settings(toy_data, output, epochs=6, early_stop=3)) is RunStatus.FINISHED
    assert inspect_run(settings(toy_data, output, epochs=6)).status is RunStatus.UNFINISHED
    train(settings(toy_data, output, epochs=6))
    assert len(checkpoint_folders(output)) == 6
    assert run_status(settings(toy_data, output, epochs=6)) is RunStatus.FINISHED


@pytest.mark.parametrize("name", ["early_stop", "done", "evaluation"])
def test_dying_at_an_early_stop_changes_nothing(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from captune.evaluation import Evaluation

    monkeypatch.setattr(Evaluation, "compare", lambda self, epoch, other: {"CIDEr": Comparison(1.0, 0.5, 0.5)})
    output = tmp_path / "run"
    config = settings(toy_data, output, epochs=4, early_stop=1)

    def die(event: Event) -> None:
        if event["event"] == name and event.get("epoch") != 0 and (name != "evaluation" or event["epoch"] == 1):
            raise PowerFailure

    with pytest.raises(PowerFailure):
        train(config, die)
    train(config)
    assert run_status(config) is RunStatus.FINISHED
    assert len(checkpoint_folders(output)) == 2
