"""What each fast switch of training is worth, alone and combined, and the tokens that it saves.

    python benchmarks/prefix.py [--json]

The peer is the plain way on the same model: one row a caption, transformers' masks, logits everywhere. Each row of
the table turns on some switches. `ratio` is the time of forward and backward against the peer's, `tokens` how many
fewer positions the language model computes. Gradients are compared with the peer's in float32; and in float64, with
LLaMA's norms computed there too, with one packed row a caption. Features are in memory.
"""

from __future__ import annotations

import sys
from typing import Any

from families import precise_norms
from measuring import INSTRUCTION, Output, alternate, captions, median, options, relative, use_numbers

# isort: split
import torch
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from captune.config import OptimizationsConfig
from captune.model import MiniGPT4, MiniGPT4Config
from captune.model.packing import constant_prefix_length, pack
from captune.training.loss import Objective
from captune.training.sample_order import TrainingSample

QUERIES, FEATURES, PER_IMAGE = 32, 192, 5
OFF = {"shared_prefix": False, "constant_prefix": False, "target_logits": False}
SWITCHES = {
    "plain rows": OFF,
    "target logits": {**OFF, "target_logits": True},
    "+ constant prefix": {**OFF, "target_logits": True, "constant_prefix": True},
    "+ shared prefix": {**OFF, "target_logits": True, "shared_prefix": True},
    "+ both": {},
}


def build(width: int, layers: int, vocabulary: int) -> MiniGPT4:
    """A model with random weights whose language model has these dimensions."""
    torch.manual_seed(0)
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, image_size=28),
        qformer_config=Blip2QFormerConfig(hidden_size=FEATURES, encoder_hidden_size=16),
        text_config=LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 43 // 16,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=1024,
        ),
        query_tokens=QUERIES,
    )
    model = MiniGPT4(config, parts=("llm",)).eval()
    with torch.no_grad():
        for parameter in model.llm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return use_numbers(model)


def gradient(objective: Objective, model: MiniGPT4, samples: list[TrainingSample]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the projection, for random features."""
    random = torch.Generator().manual_seed(1)
    weight = model.projection.weight
    features = torch.randn(len(samples), QUERIES, FEATURES, generator=random).to(weight.dtype)
    loss = objective.loss(samples, features)
    return float(loss.detach()), torch.autograd.grad(loss, weight)[0]


def positions(model: MiniGPT4, samples: list[TrainingSample], fast: OptimizationsConfig) -> int:
    """Positions that the language model computes, padding included."""
    layout = model.processor.layout
    prompt = layout.prompt(INSTRUCTION).ids
    rows = [[layout.target_ids(caption)[0] for caption in sample.captions] for sample in samples]
    if not fast.target_logits:
        flat = [caption for row in rows for caption in row]
        return len(flat) * (len(prompt) + max(map(len, flat)))
    if not fast.shared_prefix:
        rows = [[caption] for row in rows for caption in row]
    cached = constant_prefix_length(prompt) if fast.constant_prefix else 0
    return pack(prompt, rows, cached=cached, multiple=1).input_ids.numel()


def main() -> int:
    """Measure every combination of switches and compare its gradients."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--captions", type=int, default=PER_IMAGE)
    parser.add_argument("--lengths", type=int, nargs=2, default=(14, 14), help="fewest and most tokens of a caption")
    arguments = parser.parse_args()
    shape = f"{arguments.images} images x {arguments.captions} captions of {arguments.lengths[0]}"
    shape += "" if arguments.lengths[0] == arguments.lengths[1] else f" to {arguments.lengths[1]}"
    output = Output(
        arguments.json,
        f"{shape} tokens; language model {arguments.width} x {arguments.layers}, vocabulary {arguments.vocabulary:,}",
    )
    model = build(arguments.width, arguments.layers, arguments.vocabulary)
    texts = captions(arguments.images * arguments.captions, tuple(arguments.lengths), arguments.vocabulary)
    per = arguments.captions
    samples = [TrainingSample(n, tuple(texts[n * per : (n + 1) * per])) for n in range(arguments.images)]
    switches = {name: OptimizationsConfig(**values) for name, values in SWITCHES.items()}
    objectives = {name: Objective(model, INSTRUCTION, fast) for name, fast in switches.items()}
    # The first call also computes the constant text's keys and values, which a run does once.
    single = {name: gradient(objective, model, samples) for name, objective in objectives.items()}
    ways = {name: lambda name=name: gradient(objectives[name], model, samples) for name in objectives}
    seconds = median(alternate(ways, arguments.rounds))
    precise = build(arguments.width, arguments.layers, arguments.vocabulary).double()
    few = samples[:2]
    with precise_norms(precise):
        exact = {
            name: gradient(Objective(precise, INSTRUCTION, fast), precise, few)[1]
            for name, fast in switches.items()
            if fast.target_logits
        }
    peer = "plain rows"
    results: list[dict[str, Any]] = []
    for name, fast in switches.items():
        values = {
            "ratio": round(seconds[peer] / seconds[name], 3),
            "token_ratio": round(positions(model, samples, switches[peer]) / positions(model, samples, fast), 3),
            "loss_difference": abs(single[name][0] - single[peer][0]) / single[peer][0],
            "gradient_relative_difference": relative(single[name][1], single[peer][1]),
            "float64_gradient": relative(exact[name], exact["target logits"]) if name in exact else None,
        }
        results.append(values)
        output.line(kind="way", way=name, seconds=round(seconds[name], 4), **values)
    output.table(
        ["", "s/step", "ratio", "tokens", "loss f32", "gradient f32", "gradient f64"],
        [
            [name, f"{seconds[name]:.2f}", f"{row['ratio']:.2f}", f"{row['token_ratio']:.2f}"]
            + ["-" if row[key] is None else f"{row[key]:.1e}" for key in list(row)[2:]]
            for name, row in zip(switches, results, strict=True)
        ],
    )
    output.line(kind="result", **results[-1])
    last = results[-1]
    same = last["loss_difference"] < 1e-6 and last["gradient_relative_difference"] < 1e-5
    return 0 if same and last["float64_gradient"] < 1e-12 else 1


if __name__ == "__main__":
    sys.exit(main())
