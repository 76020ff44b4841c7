"""What `captune plan` predicts of a run's memory, against the bytes that are counted in two steps and a generation.

    python benchmarks/memory.py [--json]

Bytes are counted on the tensors: weights, what autograd keeps for the backward pass, gradient and optimizer, keys and
values. Each row of the table is another setting of the tiny model that comes with captune. The last part counts what
autograd keeps of one layer at Vicuna-7B's width, a token, from tensors without storage: it needs no GPU and no memory.
`ratio` is the worst of predicted over counted, in either direction.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measuring import Output, options

# isort: split
import torch
from transformers import LlamaConfig

from captune.config import parse_config
from captune.hub import resolve_model
from captune.model.loading import load_config_and_processor
from captune.model.memory import measure_model
from captune.training.memory_plan import Planner, measure_memory
from captune.training.preparation import load_for_training

SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "separate rows": ["train.debug.shared_prefix=false"],
    "plain rows": [f"train.debug.{name}=false" for name in ("shared_prefix", "constant_prefix", "target_logits")],
    "checkpointing": ["train.gradient_checkpointing=true"],
    "LoRA": ["train.lora={rank: 8}"],
}
LIMIT_7B = 130 * 1024
"""Bytes a token and layer that a frozen layer of Vicuna-7B's width may keep in bfloat16."""


def main() -> int:
    """Predict and count the bytes of every setting and print both."""
    arguments = options(__doc__).parse_args()
    output = Output(arguments.json, "predicted by captune plan, and counted")
    rows, worst = [], 1.0
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in SETTINGS.items():
            content = {"output": folder, "data": {"train": str(Path(folder) / "manifest.jsonl")}}
            config = parse_config(content, [*overrides, "train.batch_size=20", "evaluate.batch_size=8"])
            device = torch.device("cpu")
            planner = Planner(config, *load_config_and_processor(config.model), device, caption_tokens=24)
            model = load_for_training(
                resolve_model(config.model), config.train, config.model.instruction, config.seed, device
            )
            for part in measure_memory(config, model, planner):
                worst = max(worst, part.ratio, 1 / part.ratio)
                rows.append([name, part.name, f"{part.predicted:,}", f"{part.measured:,}", f"{part.ratio:.3f}"])
                output.line(
                    kind="part",
                    setting=name,
                    part=part.name,
                    predicted=part.predicted,
                    measured=part.measured,
                    ratio=round(part.ratio, 4),
                )
    output.table(["", "", "predicted", "counted", "ratio"], rows)
    vicuna = load_config_and_processor(config.model)[0]
    vicuna.lora = None
    vicuna.text_config = LlamaConfig()
    size = measure_model(vicuna, torch.bfloat16, None)
    kept = size.layer(1, 100, 0) / 100
    output.say(f"\nVicuna-7B's width: a frozen layer keeps {kept / 1024:.1f} KiB a token in bfloat16 (at most 130)")
    output.line(kind="result", ratio=round(worst, 4), kib_per_token_and_layer_7b=round(kept / 1024, 2))
    return 0 if worst < 1.2 and kept <= LIMIT_7B else 1


if __name__ == "__main__":
    sys.exit(main())
