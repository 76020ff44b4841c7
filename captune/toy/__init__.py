"""The embedded default: drawn scenes in Flickr30k's layout, and two tiny models pretrained on such scenes.

scenes.py        what is in a scene: typed records sampled from a seed
pen.py           an outlined pen in hundredths of the picture's width
people.py        men, women, boys and girls in action
drawing.py       the picture of a scene
captions.py      five captions of a scene, and the terse notes of pretraining
flickr30k.py     all of it in the exact layout of Flickr30k
pretrained/      a MiniGPT-4, the model `toy`
pretrained_vlm/  an Idefics3 of SmolVLM's shape, the model `toy-vlm`; `tools/toy/` of the repository trains both
"""

from __future__ import annotations

from typing import Any

from captune.toy.drawing import draw_scene
from captune.toy.flickr30k import Flickr30kFolder, ToyRow, plan_rows, write_flickr30k, write_objects
from captune.toy.scenes import sample_scenes

__all__ = [
    "TOY_SETTINGS",
    "TOY_VLM_SETTINGS",
    "Flickr30kFolder",
    "ToyRow",
    "draw_scene",
    "plan_rows",
    "sample_scenes",
    "write_flickr30k",
    "write_objects",
]

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
"""The run of `captune demo`, as in `train_configs/toy.yaml`: sections and keys that differ from the defaults."""

TOY_VLM_SETTINGS: dict[str, Any] = {
    "output": "runs/toy_vlm",
    "data": {"train": "runs/demo/flickr30k/manifest.jsonl"},
    "model": {"path": "toy-vlm"},
    "train": {
        "epochs": 3,
        "learning_rate": 2e-3,
        "min_learning_rate": 2e-4,
        "warmup_learning_rate": 2e-4,
        "warmup_steps": 10,
    },
    "evaluate": {"batch_size": 100},
}
"""The run of `captune demo --model toy-vlm`, as in `train_configs/toy_vlm.yaml`."""
