"""Training: samples in a reproducible order, the loop, checkpoints that hold only what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.training.equivalence import CheckedObjective
    from captune.training.feature_stage import store_features
    from captune.training.memory_plan import Measured, Plan, Planner, Proposal, measure_memory
    from captune.training.minigpt4 import load_for_training
    from captune.training.optimizer import learning_rate
    from captune.training.run import check_settings, train
    from captune.training.sample_order import TrainingSamples
    from captune.training.trainer import TrainStep
    from captune.training.vlm_memory_plan import ImageTextPlanner, StoreForecast, measure_image_text_memory

__all__ = [
    "CheckedObjective",
    "ImageTextPlanner",
    "Measured",
    "Plan",
    "Planner",
    "Proposal",
    "StoreForecast",
    "TrainStep",
    "TrainingSamples",
    "check_settings",
    "learning_rate",
    "load_for_training",
    "measure_image_text_memory",
    "measure_memory",
    "store_features",
    "train",
]

__getattr__ = lazy_names(
    __name__,
    {
        "equivalence": ["CheckedObjective"],
        "optimizer": ["learning_rate"],
        "memory_plan": ["Measured", "Plan", "Planner", "Proposal", "measure_memory"],
        "vlm_memory_plan": ["ImageTextPlanner", "StoreForecast", "measure_image_text_memory"],
        "minigpt4": ["load_for_training"],
        "feature_stage": ["store_features"],
        "run": ["check_settings", "train"],
        "sample_order": ["TrainingSamples"],
        "trainer": ["TrainStep"],
    },
)
