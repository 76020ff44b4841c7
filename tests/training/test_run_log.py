"""The log of a run and its trackers, and the speed, memory and energy that the report reads from it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from captune.config import parse_config
from captune.errors import MissingExtraError
from captune.report import read_scores
from captune.report.learning_curve import read_log
from captune.training import run_log, train
from captune.training.run_log import CostMeter, RunLogger


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_events_are_kept_and_passing_ones_only_shown(tmp_path: Path) -> None:
    shown: list[str] = []
    with RunLogger(tmp_path, listener=lambda event: shown.append(event["event"])) as journal:
        journal.log("captions", done=1, count=2)
        journal.log("step", step=0, loss=1.5)
    assert shown == ["captions", "step"]
    assert [(entry["event"], entry.get("loss")) for entry in entries(tmp_path)] == [("step", 1.5)]


def test_resuming_drops_what_is_done_again(tmp_path: Path) -> None:
    with RunLogger(tmp_path) as journal:
        for step in range(4):
            journal.log("step", step=step, loss=float(step))
        journal.log("evaluation", epoch=0)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"event": "st')
    with RunLogger(tmp_path, resumed_at=2) as journal:
        journal.log("step", step=2, loss=9.0)
    assert [entry.get("loss") for entry in entries(tmp_path)] == [0.0, 1.0, 9.0]


def test_processes_without_a_folder_are_silent(tmp_path: Path) -> None:
    with RunLogger(None) as journal:
        journal.log("step", step=0)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_the_curves_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLogger(tmp_path, "tensorboard") as journal:
        journal.log("step", step=3, loss=0.25, note="no number")
    curves = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(curves.Tags()["scalars"]) == {"step/loss", "step/step"}
    assert [(point.step, point.value) for point in curves.Scalars("step/loss")] == [(3, 0.25)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_trackers_are_called_as_they_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[tuple[str, Any]] = []
    library = ModuleType(name)
    library.init = lambda **settings: calls.append(("init", settings))  # type: ignore[attr-defined]
    library.log = lambda figures, step: calls.append(("log", (figures, step)))  # type: ignore[attr-defined]
    library.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, library)
    with RunLogger(tmp_path, name, {"seed": 1}) as journal:
        journal.log("step", step=2, loss=0.5)
    assert [call for call, _ in calls] == ["init", "log", "finish"]
    assert calls[0][1]["config"] == {"seed": 1}
    assert calls[1][1] == ({"step/step": 2.0, "step/loss": 0.5}, 2)


def test_an_absent_tracker_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"captune\[track\]"):
        RunLogger(tmp_path, "wandb")


CPU = torch.device("cpu")


def test_a_run_reports_everything(toy_data: Path, tmp_path: Path) -> None:
    config = parse_config(
        {
            "output": str(tmp_path),
            "log_every": 1,
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 8, "evaluate_images": 4},
            "train": {"epochs": 1, "batch_size": 20, "warmup_steps": 1},
            "evaluate": {"max_new_tokens": 4, "train_slice": 3},
        }
    )
    train(config)
    log = read_log(tmp_path / "log.jsonl")
    assert len(log.steps) == len(log.loss) == len(log.lr) == 2
    assert all(math.isfinite(value) and value > 0 for value in (*log.loss, *log.lr))
    assert log.captions_per_s is not None
    assert log.captions_per_s > 0
    assert log.peak_memory is not None
    assert 50e6 < log.peak_memory < 50e9
    assert {"model", "images", "captions", "steps", "device", "processes"} <= log.facts.keys()
    rows = read_scores(tmp_path).checkpoints
    assert [set(row.train_slice) == set(row.corpus) for row in rows] == [True, True]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'data-t="memory"' in page
    assert 'data-t="captions_an_epoch"' in page


def counter(folder: Path, name: str, microjoules: int) -> None:
    domain = folder / name
    domain.mkdir(exist_ok=True)
    (domain / "energy_uj").write_text(f"{microjoules}\n")


def test_energy_of_processor_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "POWERCAP", tmp_path)
    assert "energy" not in CostMeter(CPU).read()
    for name, before in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 0), ("intel-rapl:0:0", 5)):
        counter(tmp_path, name, before)
    meter = CostMeter(CPU)
    counter(tmp_path, "intel-rapl:0", 4_500_000)
    counter(tmp_path, "intel-rapl:1", 2_000_000)
    counter(tmp_path, "intel-rapl:0:0", 900_000_000)
    assert meter.read()["energy"] == 5.5
    counter(tmp_path, "intel-rapl:1", 1)
    before_the_wrap = meter.read()
    assert before_the_wrap["energy"] == 3.5
    counter(tmp_path, "intel-rapl:0", 1)
    assert "energy" not in meter.read()
