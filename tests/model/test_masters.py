"""Steps in float32 under weights in bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from captune.training.optimizer import MasterAdamW


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


def test_a_run_goes_on_exactly() -> None:
    weights = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    whole, halved = (MasterAdamW([{"params": [weight]}], lr=1e-3) for weight in weights)
    steps(whole, weights[0], 9)
    steps(halved, weights[1], 4)
    later = MasterAdamW([{"params": [weights[1]]}], lr=1e-3)
    later.load_state_dict(halved.state_dict())
    steps(later, weights[1], 5)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(whole.state_dict()["masters"][0], later.state_dict()["masters"][0])
