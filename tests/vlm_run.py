"""Runs that tune a tiny transformers model, also in processes that are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from captune.config import RunConfig, parse_config
from captune.errors import CaptuneError
from captune.events import Event
from captune.training import train

SIZES = [(90, 60), (60, 90), (80, 80), (120, 50)]
COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210)}


def cards(folder: Path, train: int = 8, test: int = 2) -> list[dict[str, Any]]:
    """Rows of a manifest with plain cards of several sizes, whose images are written."""
    rows: list[dict[str, Any]] = []
    draws = np.random.default_rng(0)
    for number in range(train + test):
        name = list(COLORS)[number % len(COLORS)]
        width, height = SIZES[number % len(SIZES)]
        pixels = np.full((height, width, 3), COLORS[name], np.uint8)
        pixels[: height // 2] = draws.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        captions = [f"A {name} card.", f"The card is {name}.", f"Something {name} here."][: 2 + number % 2]
        row = {"id": f"card-{number}", "image": f"{number}.png", "captions": captions}
        rows.append(row | {"split": "train" if number < train else "test"})
    return rows


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a manifest; returns its path."""
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def data_of(folder: Path, train: int = 8, test: int = 2) -> Path:
    """Write a data set into a new folder; returns its manifest."""
    folder.mkdir(parents=True)
    return write_rows(folder, cards(folder, train, test))


def settings(
    folder: Path, manifest: Path, output: Path, *, train: Mapping[str, Any] | None = None, **others: Any
) -> RunConfig:
    """The configuration of a short run."""
    sections: dict[str, Any] = {
        "output": str(output),
        "log_every": 1,
        "save_every": 2,
        "model": {"path": str(folder)},
        "data": {"train": str(manifest), "features": str(output.parent / f"{output.name}-features")},
        "train": {
            "epochs": 2,
            "batch_size": 6,
            "captions_per_image": 3,
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "lora": {"rank": 4, "alpha": 8, "targets": ["all-linear"]},
        }
        | dict(train or {}),
        "evaluate": {"max_new_tokens": 4, "train_slice": 2},
    }
    for name, section in others.items():
        sections[name] = {**sections[name], **section} if isinstance(section, Mapping) else section
    return parse_config(sections)


class PowerFailure(Exception):  # noqa: N818  # no error of the program
    """Ends a run at once, wherever it is."""


class Moments:
    """Counts the moments of a run: its events, and the files that it syncs and renames.

    Args:
        fatal: number of the moment at which the run ends; 0 is never.
        kill: kill this process then; otherwise `PowerFailure` is raised.
    """

    def __init__(self, fatal: int = 0, *, kill: bool = False) -> None:
        self.fatal, self.kill = fatal, kill
        self.kinds: list[str] = []

    def __call__(self, event: Event) -> None:
        if event["event"] in ("features", "progress", "captions", "evaluation", "checkpoint"):
            self.count(str(event["event"]))

    def count(self, kind: str) -> None:
        self.kinds.append(kind)
        if len(self.kinds) == self.fatal:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise PowerFailure

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of a module that is a moment each time it is called, before it does anything."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count(name)
            return function(*args, **kwargs)

        return call


def run(config: RunConfig, fatal: int = 0, *, kill: bool = False) -> list[str]:
    """Train in this process, without charts; returns the moments of the run."""
    moments = Moments(fatal, kill=kill)
    names = ("fsync", "replace", "rename")
    with (
        patch.multiple(os, **{name: moments.counted(name, getattr(os, name)) for name in names}),
        patch("captune.report.write.draw_chart", lambda *_args, **_settings: {}),
    ):
        train(config, moments)
    return moments.kinds


def child(variables: Mapping[str, str], config: RunConfig, fatal: int, out: Path, setup: Callable[[], None]) -> None:
    """Train as one process of several; the sentence of an error is written to `out`."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    setup()
    try:
        moments = run(config, fatal, kill=True)
    except CaptuneError as error:
        out.write_text(str(error), encoding="utf-8")
        sys.exit(error.exit_code)
    out.write_text(json.dumps(moments), encoding="utf-8")


def nothing() -> None:
    """No setup."""


def run_processes(
    config: RunConfig, count: int = 1, *, fatal: int = 0, setup: Callable[[], None] = nothing
) -> list[tuple[int | None, str]]:
    """Train in new processes; returns their exit codes and what they wrote."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlm_run"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # Outside of the run's folder, which may have to stay away.
    outputs = [config.output.parent / f"{config.output.name}.{rank}.out" for rank in range(count)]
    processes = []
    for rank, out in enumerate(outputs):
        out.unlink(missing_ok=True)
        variables = {"OMP_NUM_THREADS": "1"}
        if count > 1:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(context.Process(target=child, args=(variables, config, fatal, out, setup)))
    # Python 3.11 does not pass the process that they are forked from where the tests' modules are.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path])):
        for process in processes:
            process.start()
    for process in processes:
        process.join(240)
    return [(p.exitcode, out.read_text() if out.exists() else "") for p, out in zip(processes, outputs, strict=True)]


def losses_of(output: Path) -> list[tuple[int, float]]:
    """Step and loss of every logged step; of one that was taken twice, the last."""
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return sorted({entry["step"]: entry["loss"] for entry in entries if entry["event"] == "step"}.items())


def weights_of(output: Path, epoch: int = 1) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    folder = output / "checkpoints" / f"epoch-{epoch:03d}"
    names = ("adapter_model.safetensors", "trained.safetensors")
    (file,) = (folder / name for name in names if (folder / name).exists())
    return load_file(file)


def is_equal(output: Path, expected: Path) -> bool:
    """Whether two runs have equal weights, bit for bit, losses and scores."""
    weights, others = weights_of(output), weights_of(expected)
    return (
        weights.keys() == others.keys()
        and all(torch.equal(weights[name], others[name]) for name in weights)
        and losses_of(output) == losses_of(expected)
        and (output / "scores.json").read_text() == (expected / "scores.json").read_text()
    )
