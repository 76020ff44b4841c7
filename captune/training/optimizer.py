"""The optimizer and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from captune.config import TrainConfig
from captune.model.masters import MasterAdamW

__all__ = ["build_optimizer", "learning_rate"]


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine, as `LinearWarmupCosineLRScheduler` of the original computes them.

    The cosine runs over the whole run, warm-up included, so there is a small jump down where the warm-up ends. The
    original counts warm-up steps within an epoch and starts over in each one that is shorter than the warm-up; that
    fault is not repeated.

    Args:
        step: optimiser steps taken before this one.
        total_steps: optimiser steps of the whole run.
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
    """AdamW that decays matrices and leaves biases and gains alone, as the original groups them.

    On a GPU all parameters are updated by one kernel.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.is_cuda for parameter in parameters)
    return MasterAdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused or None)
