from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.config import TrainConfig
from captune.training.optimizer import learning_rate


def test_warm_up_then_cosine() -> None:
    config = TrainConfig(learning_rate=3e-5, min_learning_rate=1e-5, warmup_learning_rate=1e-6, warmup_steps=200)
    assert learning_rate(0, 2500, config) == 1e-6
    assert learning_rate(100, 2500, config) == pytest.approx(1.55e-5)
    # Figures of the original's scheduler for the slides' run.
    assert learning_rate(199, 2500, config) == pytest.approx(2.9855e-05, rel=1e-12)
    assert learning_rate(200, 2500, config) == pytest.approx(2.9685831611286308e-05, rel=1e-12)
    assert learning_rate(2499, 2500, config) == pytest.approx(1.0000007895682483e-05, rel=1e-12)


def test_no_warm_up_starts_at_the_top() -> None:
    assert learning_rate(0, 10, TrainConfig(warmup_steps=0)) == pytest.approx(3e-5)


def test_original_schedules(shared: Path) -> None:
    recorded = json.loads((shared / "goldens" / "lr_schedules.json").read_text())
    compared = 0
    for case in recorded.values():
        given = case["config"]
        if given["warmup_steps"] > given["iters_per_epoch"]:
            continue  # the original starts its warm-up over in every epoch there
        config = TrainConfig(
            learning_rate=given["init_lr"],
            min_learning_rate=given["min_lr"],
            # The original writes "no warm-up rate" as -1 and then starts at the top.
            warmup_learning_rate=given["warmup_start_lr"] if given["warmup_start_lr"] >= 0 else given["init_lr"],
            warmup_steps=given["warmup_steps"],
        )
        rates = case["lr_at"] if "lr_at" in case else dict(enumerate(case["lr"]))
        for step, rate in rates.items():
            assert learning_rate(int(step), case["total_steps"], config) == pytest.approx(rate, rel=1e-9), case
            compared += 1
    assert compared > 100
