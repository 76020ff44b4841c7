"""The schedule of the learning rate, and AdamW with float32 master weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from captune.config import TrainConfig
from captune.training.optimizer import MasterAdamW, learning_rate


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
        golden = case["config"]
        if golden["warmup_steps"] > golden["iters_per_epoch"]:
            continue  # the original starts its warm-up over in every epoch there
        config = TrainConfig(
            learning_rate=golden["init_lr"],
            min_learning_rate=golden["min_lr"],
            # The original writes "no warm-up rate" as -1 and then starts at the top.
            warmup_learning_rate=golden["warmup_start_lr"] if golden["warmup_start_lr"] >= 0 else golden["init_lr"],
            warmup_steps=golden["warmup_steps"],
        )
        rates = case["lr_at"] if "lr_at" in case else dict(enumerate(case["lr"]))
        for step, rate in rates.items():
            assert learning_rate(int(step), case["total_steps"], config) == pytest.approx(rate, rel=1e-9), case
            compared += 1
    assert compared > 100


def steps(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def test_small_steps_are_not_lost_in_rounding() -> None:
    settings = {"lr": 1e-4, "weight_decay": 0.0}
    plain, kept = (nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    steps(torch.optim.AdamW([plain], **settings), plain, 100)
    steps(MasterAdamW([{"params": [kept]}], **settings), kept, 100)
    assert torch.equal(plain, torch.ones_like(plain))
    torch.testing.assert_close(kept.float(), torch.full((3,), 0.99), atol=4e-3, rtol=0)


def test_float32_is_plain_adamw() -> None:
    one, other = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    steps(torch.optim.AdamW([one], lr=0.1, weight_decay=0.3), one, 7)
    steps(MasterAdamW([{"params": [other]}], lr=0.1, weight_decay=0.3), other, 7)
    assert torch.equal(one, other)


def test_a_run_resumes_exactly() -> None:
    weights = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    uninterrupted, halved = (MasterAdamW([{"params": [weight]}], lr=1e-3) for weight in weights)
    steps(uninterrupted, weights[0], 9)
    steps(halved, weights[1], 4)
    later = MasterAdamW([{"params": [weights[1]]}], lr=1e-3)
    later.load_state_dict(halved.state_dict())
    steps(later, weights[1], 5)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(uninterrupted.state_dict()["masters"][0], later.state_dict()["masters"][0])
