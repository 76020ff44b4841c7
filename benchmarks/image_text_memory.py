"""What `captune plan` predicts of runs that tune transformers models, against counted bytes, at middle size.

    python benchmarks/image_text_memory.py [--json] [FAMILY ...]

Each family of `tests/vision_families.py` below gets a decoder of 8 layers that is 512 wide, a vocabulary of 32,000 and
images of 500 x 375 pixels. Five captions of 40 tokens are computed with one image, in a packed row and in plain rows.
`weights` and `features of an image` are the bytes of tensors, `kept for the backward pass` is what autograd saves.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from measuring import Output, options

# isort: split
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging
from vision_families import FAMILIES, Recipe, save_family

from captune.config import parse_config
from captune.data import Sample
from captune.data.manifest import write_manifest
from captune.hub import resolve_model
from captune.training import ImageTextPlanner, measure_image_text_memory

LIMIT = 1.1
WIDTH, SIDE = 512, 192
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32_000,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
}
SETTINGS: dict[str, list[str]] = {
    "packed row": [],
    "plain rows": ["train.debug.shared_prefix=false"],
    "packed row, bfloat16": ["model.dtype=bfloat16"],
    "packed row, LoRA of q and v, projector": [
        "train.lora={rank: 8, targets: [q_proj, v_proj]}",
        "train.parts=[lora, projector]",
    ],
}


def middle(family: str) -> Recipe:
    """A family's recipe with a larger decoder and more image tokens."""
    recipe = FAMILIES[family]()
    config, square = recipe.config, {"height": SIDE, "width": SIDE}
    config["text_config"].update(TEXT)
    if family == "qwen2_5_vl":
        config["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
        config["vision_config"]["out_hidden_size"] = WIDTH
        recipe.images["size"] = {"shortest_edge": 1024, "longest_edge": 500 * 400}
    elif family == "llava":
        config["vision_config"]["image_size"] = SIDE
        recipe.images.update({"size": {"shortest_edge": SIDE}, "crop_size": square})
    elif family == "paligemma":
        config["vision_config"].update({"image_size": SIDE, "projection_dim": WIDTH})
        config.update({"projection_dim": WIDTH, "hidden_size": WIDTH})
        recipe.images.update({"size": square, "image_seq_length": (SIDE // 8) ** 2})
    return recipe


def main() -> int:
    """Predict and count the bytes of every family and setting, and print both."""
    parser = options(__doc__)
    parser.add_argument("families", nargs="*", default=["llava", "qwen2_5_vl", "idefics3", "paligemma"])
    arguments = parser.parse_args()
    output = Output(arguments.json, "predicted by captune plan, and counted")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rows, worst = [], 1.0
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            FAMILIES["middle"] = lambda family=family: middle(family)  # type: ignore[misc]
            save_family("middle", folder / "model")
            Image.new("RGB", (500, 375), (200, 40, 90)).save(folder / "1.png")
            write_manifest(folder / "manifest.jsonl", [Sample("1", "1.png", ("A dog.",), "train")])
            for name, overrides in SETTINGS.items():
                content = {
                    "output": str(folder / "run"),
                    "model": {"path": str(folder / "model")},
                    "data": {"train": str(folder / "manifest.jsonl")},
                }
                config = parse_config(content, overrides)
                planner = ImageTextPlanner(config, torch.device("cpu"), caption_tokens=40)
                for part in measure_image_text_memory(config, resolve_model(config.model), planner):
                    worst = max(worst, part.ratio, 1 / part.ratio)
                    numbers = [f"{part.predicted:,}", f"{part.measured:,}", f"{part.ratio:.3f}"]
                    rows.append([family, name, part.name, *numbers])
                    output.line(
                        kind="part",
                        family=family,
                        setting=name,
                        part=part.name,
                        predicted=part.predicted,
                        measured=part.measured,
                        ratio=round(part.ratio, 4),
                    )
    output.table(["family", "setting", "", "predicted", "counted", "ratio"], rows)
    output.say(f"\nworst ratio: {worst:.3f}, of at most {LIMIT}")
    output.line(kind="result", ratio=round(worst, 4))
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
