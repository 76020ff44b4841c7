"""Runs that tune `tiny_minigpt4`, and what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from captune.config import RunConfig, parse_config
from captune.events import Event

KILLED = """
import sys
sys.path[:0] = {path!r}
from tiny import tiny_features, tiny_minigpt4
from captune.config import load_config
from captune.training import minigpt4, preparation, train, trainer
import torch
torch.set_num_threads(1)
trainer.is_image_text_model = lambda source: False
minigpt4.load_for_training = lambda *given: tiny_minigpt4()
preparation.features_of = tiny_features
train(load_config({config!r}))
"""
"""A program that tunes `tiny_minigpt4`, for tests that kill it; fields `path` and `config`."""


def settings(toy_data: Path, output: Path, **changed: Any) -> RunConfig:
    return parse_config(
        {
            "output": str(output),
            "log_every": 1,
            "save_every": 2,
            "model": {"path": "tiny"},
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 16, "evaluate_images": 4},
            "train": {"epochs": 1, "batch_size": 20, "learning_rate": 0.01, "warmup_steps": 2, **changed},
            "evaluate": {"max_new_tokens": 4, "train_slice": 0},
        }
    )


def entries(output: Path, name: str) -> list[Event]:
    log = output / "log.jsonl"
    # A line that is being written right now is no line yet.
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["event"] == name]


def steps_of(output: Path) -> list[tuple[int, float, float]]:
    return [(event["step"], event["loss"], event["learning_rate"]) for event in entries(output, "step")]


def weights(output: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"epoch-{epoch:03d}" / "trained.safetensors")


def assert_equal_runs(output: Path, expected: Path, epochs: int) -> None:
    assert steps_of(output) == steps_of(expected)
    assert (output / "scores.json").read_text() == (expected / "scores.json").read_text()
    for epoch in range(epochs):
        ours, others = weights(output, epoch), weights(expected, epoch)
        assert ours.keys() == others.keys()
        assert all(torch.equal(ours[name], others[name]) for name in ours)


class PowerFailure(Exception):  # noqa: N818  # it is no error of the program
    """Ends a run at once, wherever it is."""
