"""Tuning: samples in a reproducible order, the loop, checkpoints that hold only what was trained."""

from __future__ import annotations

from captune.training.loop import train
from captune.training.samples import TrainingSamples
from captune.training.schedule import learning_rate

__all__ = ["TrainingSamples", "learning_rate", "train"]
