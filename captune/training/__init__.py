"""Training: samples in a reproducible order, the loop, checkpoints that hold only what was trained."""

from __future__ import annotations

from captune.training.optimizer import learning_rate
from captune.training.samples import TrainingSamples
from captune.training.trainer import train

__all__ = ["TrainingSamples", "learning_rate", "train"]
