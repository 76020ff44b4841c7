"""The embedded default: drawn scenes in Flickr30k's layout, and a tiny pretrained MiniGPT-4 trained to see them.

scenes.py      what is in a scene: typed records sampled from a seed
pen.py         an outlined pen in hundredths of the picture's width
people.py      men, women, boys and girls in action
drawing.py     the picture of a scene
captions.py    five captions of a scene, and the terse notes of pretraining
flickr30k.py   all of it in the exact layout of Flickr30k
pretrained/    the checkpoint, loaded as the model `toy`; `tools/toy/` of the repository trains it
"""

from __future__ import annotations

from typing import Any

from captune.toy.drawing import draw_scene
from captune.toy.flickr30k import Flickr30kFolder, ToyRow, plan_rows, write_flickr30k
from captune.toy.scenes import sample_scenes

__all__ = [
    "TOY_SETTINGS",
    "Flickr30kFolder",
    "ToyRow",
    "draw_scene",
    "plan_rows",
    "sample_scenes",
    "write_flickr30k",
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
