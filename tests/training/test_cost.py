"""What a real run writes is what the report reads: rates, memory, energy, and the slice of training images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from captune.config import parse_config
from captune.report import read_scores
from captune.report.learning_curve import read_log
from captune.training import run_log, train
from captune.training.run_log import CostMeter

CPU = torch.device("cpu")


def test_a_run_tells_the_report_everything(toy_data: Path, tmp_path: Path) -> None:
    config = parse_config(
        {
            "output": str(tmp_path),
            "log_every": 1,
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 8, "evaluate_images": 4},
            "train": {"epochs": 1, "batch_size": 20, "warmup_steps": 1},
            "evaluate": {"max_new_tokens": 4, "train_subset": 3},
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
    place = folder / name
    place.mkdir(exist_ok=True)
    (place / "energy_uj").write_text(f"{microjoules}\n")


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
