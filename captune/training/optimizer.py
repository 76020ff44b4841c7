"""The optimizer and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captune.config import TrainConfig

__all__ = ["MasterAdamW", "build_optimizer", "learning_rate"]


class MasterAdamW(torch.optim.AdamW):
    """AdamW with float32 master weights; float32 parameters need no separate master.

    Args:
        groups: parameter groups as for AdamW.
        settings: `lr`, `betas`, `weight_decay`, ... of AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **settings: Any) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(
            [{**group, "params": list(map(self._master, group["params"]))} for group in groups], **settings
        )

    def _master(self, parameter: Tensor) -> Tensor:
        if parameter.dtype == torch.float32:
            return parameter
        master = parameter.detach().float().requires_grad_()
        self._pairs.append((parameter, master))
        return master

    def master_of(self, parameter: Tensor) -> Tensor:
        """The float32 tensor that the optimizer updates for a parameter, and that its moments belong to."""
        return next((master for trained, master in self._pairs if trained is parameter), parameter)

    @torch.no_grad()
    def take_over(self, parameter: Tensor, value: Tensor) -> None:
        """Set a parameter and its master to a float32 value."""
        self.master_of(parameter).copy_(value)
        parameter.copy_(value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Copy gradients to the masters, update these, and round them to the weights."""
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        loss: float | None = super().step(closure)
        for parameter, master in self._pairs:
            parameter.copy_(master)
            master.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Delete the gradients of weights and masters."""
        super().zero_grad(set_to_none)
        for parameter, _ in self._pairs:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW and the masters, which an exact resume needs."""
        return {**super().state_dict(), "masters": [master.detach().clone() for _, master in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of `state_dict`."""
        state = dict(state_dict)
        masters = state.pop("masters")
        super().load_state_dict(state)
        for (parameter, master), saved in zip(self._pairs, masters, strict=True):
            master.copy_(saved)
            parameter.copy_(master)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine, as `LinearWarmupCosineLRScheduler` of the original computes them.

    The cosine spans the complete run including the warm-up, so the rate drops slightly at the end of the warm-up. The
    original counts warm-up steps within an epoch and starts over in each one that is shorter than the warm-up; that
    fault is not repeated.

    Args:
        step: number of the step, from 0.
        total_steps: optimizer steps of the run.
        config: highest, lowest and first rate, and the length of the warm-up.

    Returns:
        The rate for this step.
    """
    if step < config.warmup_steps:
        rise = (config.learning_rate - config.warmup_learning_rate) * step / max(config.warmup_steps, 1)
        return min(config.learning_rate, config.warmup_learning_rate + rise)
    fall = 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
    return (config.learning_rate - config.min_learning_rate) * fall + config.min_learning_rate


def build_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> MasterAdamW:
    """AdamW with weight decay on matrices but not on biases and gains, as in the original.

    On a GPU all parameters are updated by one kernel.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.is_cuda for parameter in parameters)
    return MasterAdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused or None)
