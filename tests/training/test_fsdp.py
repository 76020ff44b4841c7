"""A language model divided between two processes: the run is that of a single one, whatever happens on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sharded_run
import torch
from safetensors.torch import load_file

from captune.config import commented_yaml, parse_config
from captune.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """The outputs of a run.

    Attributes:
        codes: the processes' exit codes.
        err: its standard error.
        output: its folder.
        reports: what each process wrote down.
    """

    codes: list[int | None]
    err: str
    output: Path
    reports: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        lines = (self.output / "log.jsonl").read_text().splitlines()
        return [event["loss"] for event in map(json.loads, lines) if event["event"] == "step"]

    @property
    def captions(self) -> list[Any]:
        paths = sorted((self.output / "captions").glob("*-[pe]*.json"))
        return [json.loads(path.read_text()) for path in paths if "references" not in path.name]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.output / "checkpoints" / "epoch-001" / "trained.safetensors")


def go(toy_data: Path, folder: Path, *words: object, processes: int = 2, **train: object) -> Run:
    """A run of 13 images, whose captions the two processes share unevenly, with 5 to evaluate on."""
    config = parse_config(
        {
            "output": str(folder / "run"),
            "log_every": 1,
            "save_every": 2,
            "model": {"path": "tiny"},
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 13, "evaluate_images": 5},
            "train": {"epochs": 2, "batch_size": 25, "learning_rate": 0.01, "warmup_steps": 2, **train},
            "evaluate": {"max_new_tokens": 8, "train_slice": 4, "batch_size": 2},
        }
    )
    folder.mkdir(exist_ok=True)
    words = (str(folder / "run.yaml"), str(folder), *words)
    Path(words[0]).write_text(commented_yaml(config))
    codes: list[int | None] = [0]
    if processes == 1:
        sharded_run.main(*words)
    else:
        codes = start(processes, words)
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("[01].json"))]
    return Run(codes, "".join(path.read_text() for path in sorted(folder.glob("*.err"))), folder / "run", reports)


def start(count: int, words: tuple[Any, ...]) -> list[int | None]:
    """Run processes to their end, as torchrun would start them; returns their exit codes."""
    # Forked from a process that has imported all they need, they start at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sharded_run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    running = [context.Process(target=sharded_run.child, args=(environment, *words)) for environment in environments]
    # Python 3.11 does not pass the process that they are forked from where the tests' modules are.
    with patch.dict(os.environ, PYTHONPATH=str(Path(sharded_run.__file__).parent)):
        for process in running:
            process.start()
    for process in running:
        process.join(60)
    late = [process for process in running if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, "the processes wait for each other"
    return [process.exitcode for process in running]


SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"micro_batch_size": 10, "lora": {"rank": 4, "alpha": 8}, "gradient_checkpointing": True},
    # A step is one image, so that one of the processes has none.
    "idle": {"batch_size": 5, "steps_per_epoch": 2, "instructions": ["a dog?", "look"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SETTINGS)
def test_divided_between_two_is_the_run_of_one(toy_data: Path, tmp_path: Path, what: str) -> None:
    alone = go(toy_data, tmp_path / "alone", processes=1, **SETTINGS[what])
    divided = go(toy_data, tmp_path / "divided", sharding="fsdp", **SETTINGS[what])
    assert divided.codes == [0, 0], divided.err
    assert divided.losses == pytest.approx(alone.losses, rel=1e-5)
    assert divided.captions == alone.captions
    # Three evaluations of five images and a slice of four: each image is captioned by one of the processes.
    assert [report["captions"] for report in divided.reports] == [[3, 2] * 3, [2, 2] * 3]
    for report in divided.reports:
        lora = sum(tensor.nbytes for name, tensor in divided.weights.items() if "lora" in name)
        assert report["held"] - lora == (report["total"] - lora) / 2
    for name, weight in alone.weights.items():
        torch.testing.assert_close(divided.weights[name], weight, atol=1e-5, rtol=1e-4)


def test_one_process_out_of_memory_does_not_leave_the_other_waiting(toy_data: Path, tmp_path: Path) -> None:
    """In a forward, in a backward, and while captioning."""
    alone = go(toy_data, tmp_path / "alone", processes=1, batch_size=40)
    cramped = go(toy_data, tmp_path / "cramped", "cramped", batch_size=40, sharding="fsdp")
    assert cramped.codes == [0, 0], cramped.err
    assert [report["outages"] for report in cramped.reports] == [0, 3]
    assert re.findall(r"out of memory: continuing with micro-batches of (\d)", cramped.err) == ["2", "1"]
    assert cramped.losses == pytest.approx(alone.losses, rel=1e-5)
    assert cramped.captions == alone.captions


@pytest.mark.slow
def test_killed_or_stopped_and_started_again_it_ends_the_same(toy_data: Path, tmp_path: Path) -> None:
    uninterrupted = go(toy_data, tmp_path / "whole", sharding="fsdp")
    broken = tmp_path / "broken"
    killed = go(toy_data, broken, "die", 3, sharding="fsdp")
    assert killed.codes[0] == -signal.SIGKILL
    # The other one has lost it, and does not wait for ever.
    assert killed.codes[1] != 0
    stopped = go(toy_data, broken, "stop", 4, sharding="fsdp")
    assert stopped.codes == [128 + signal.SIGTERM] * 2, stopped.err
    assert "stopped by SIGTERM after step 5 of 6, which is saved" in stopped.err
    resumed = go(toy_data, broken, sharding="fsdp")
    assert resumed.codes == [0, 0], resumed.err
    assert resumed.losses == uninterrupted.losses
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in uninterrupted.weights.items())
    assert (resumed.output / "scores.json").read_text() == (uninterrupted.output / "scores.json").read_text()


def test_one_process_says_that_it_divides_nothing(toy_data: Path, tmp_path: Path) -> None:
    alone = go(toy_data, tmp_path / "alone", processes=1, sharding="fsdp", epochs=1, steps_per_epoch=1)
    events = [json.loads(line) for line in (alone.output / "log.jsonl").read_text().splitlines()]
    sharded = next(event for event in events if event["event"] == "sharded")
    assert (sharded["processes"], sharded["held"]) == (1, sharded["total"])


def test_a_quantized_model_is_not_divided() -> None:
    with pytest.raises(ConfigError, match=r"train\.sharding is fsdp and model\.quantization is nf4"):
        parse_config({"model": {"quantization": "nf4"}, "train": {"sharding": "fsdp"}})
