"""The run of the demo: what `train_configs/toy.yaml` says, for those who installed the package alone."""

from __future__ import annotations

from typing import Any

__all__ = ["TOY_SETTINGS"]

TOY_SETTINGS: dict[str, Any] = {
    "output": "runs/toy",
    "data": {"train": "runs/demo/flickr30k/manifest.jsonl"},
    "model": {"path": "toy"},
    "train": {
        "epochs": 5,
        "batch_size": 40,
        "learning_rate": 1e-4,
        "min_learning_rate": 2e-5,
        "warmup_learning_rate": 1e-5,
        "warmup_steps": 20,
    },
    "evaluate": {"batch_size": 100, "max_new_tokens": 40},
}
"""Sections and keys that differ from the defaults."""
