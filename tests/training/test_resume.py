"""A run that is killed at any moment and started again ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import KILLED, PowerFailure, steps_of

from captune.config import RunConfig, parse_config
from captune.errors import ConfigError, StoppedError
from captune.events import Event
from captune.training import train
from captune.training.run_folder import RunStatus, inspect_run, run_status

pytestmark = pytest.mark.usefixtures("tiny_model")


def settings(toy_data: Path, output: Path) -> RunConfig:
    return parse_config(
        {
            "output": str(output),
            "log_every": 1,
            "save_every": 2,
            "model": {"path": "tiny"},
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 16, "evaluate_images": 4},
            "train": {"epochs": 2, "batch_size": 20, "learning_rate": 0.01, "warmup_steps": 2},
            "evaluate": {"max_new_tokens": 4},
        }
    )


def final(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / "epoch-001" / "trained.safetensors")


@pytest.fixture(scope="module")
def undisturbed(toy_data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: None) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    train(settings(toy_data, output))
    return output


@pytest.mark.parametrize("moment", [0, 3, 6, 10, 13])
def test_dying_at_any_event_changes_nothing(toy_data: Path, tmp_path: Path, undisturbed: Path, moment: int) -> None:
    output = tmp_path / "disturbed"
    events = 0

    def die(event: Event) -> None:
        nonlocal events
        if event["event"] in ("progress", "checkpoint", "evaluation", "captions"):
            events += 1
            if events == moment + 1:
                raise PowerFailure

    with pytest.raises(PowerFailure):
        train(settings(toy_data, output), die)
    train(settings(toy_data, output))
    assert steps_of(output) == steps_of(undisturbed)
    expected, weights = final(undisturbed), final(output)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (output / "scores.json").read_text() == (undisturbed / "scores.json").read_text()


def test_sigterm_saves_and_says_how_to_resume(toy_data: Path, tmp_path: Path, undisturbed: Path) -> None:
    output = tmp_path / "stopped"

    def send(event: Event) -> None:
        if event["event"] == "progress" and event["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="after step 3 of 8, which is saved") as caught:
        train(settings(toy_data, output), send)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert run_status(settings(toy_data, output)) is RunStatus.UNFINISHED
    events: list[Event] = []
    train(settings(toy_data, output), events.append)
    assert next(event for event in events if event["event"] == "run")["step"] == 3
    assert steps_of(output) == steps_of(undisturbed)


def test_a_broken_newest_state_is_passed_over(toy_data: Path, tmp_path: Path, undisturbed: Path) -> None:
    output = tmp_path / "broken"

    def die(event: Event) -> None:
        if event["event"] == "progress" and event["step"] == 6:
            raise PowerFailure

    with pytest.raises(PowerFailure):
        train(settings(toy_data, output), die)
    newest = sorted((output / "resume").iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    train(settings(toy_data, output))
    assert steps_of(output) == steps_of(undisturbed)


def test_a_run_whose_steps_an_older_captune_dealt_otherwise_is_refused(toy_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "older"

    def die(event: Event) -> None:
        if event["event"] == "progress" and event["step"] == 3:
            raise PowerFailure

    with pytest.raises(PowerFailure):
        train(settings(toy_data, output), die)
    log = output / "log.jsonl"
    log.write_text(log.read_text().replace('"steps_per_epoch": 4', '"steps_per_epoch": 20', 1))
    with pytest.raises(ConfigError, match=r"begun with 20 steps per epoch by an older captune, .* into 4; finish"):
        train(settings(toy_data, output))


def test_finished_runs_rest_and_others_are_not_overwritten(toy_data: Path, undisturbed: Path) -> None:
    config = settings(toy_data, undisturbed)
    events: list[Event] = []
    train(config, events.append)
    assert [event["event"] for event in events] == ["reused"]
    assert run_status(config.model_copy(update={"seed": 1})) is RunStatus.OTHER


def test_a_run_of_an_older_captune_is_known_again(toy_data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Its configuration lacks the newest fields, and explains the others otherwise."""
    output = tmp_path / "older"
    shutil.copytree(undisturbed, output)
    config = settings(toy_data, output)
    written = output / "config.yaml"
    content = yaml.safe_load(written.read_text(encoding="utf-8")) | {"output": str(output)}
    del content["train"]["debug"], content["evaluate"]["beams"]
    written.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run_status(config) is RunStatus.FINISHED
    written.write_text(yaml.safe_dump(content | {"gone": 1}), encoding="utf-8")
    state = inspect_run(config)
    assert state.status is RunStatus.DAMAGED
    assert "cannot be read" in state.reason


@pytest.mark.slow
def test_sigkill(toy_data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """The real thing: processes killed once so many steps are in the log."""
    from captune.config import commented_yaml

    output = tmp_path / "killed"
    config = tmp_path / "run.yaml"
    config.write_text(commented_yaml(settings(toy_data, output)))
    program = KILLED.format(path=[str(Path(__file__).parent.parent)], config=str(config))
    kills = 0
    for logged in (1, 4, 5, 7):
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        while process.poll() is None and (not output.exists() or len(steps_of(output)) < logged):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    train(settings(toy_data, output))
    assert kills
    assert steps_of(output) == steps_of(undisturbed)
    expected, weights = final(undisturbed), final(output)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
