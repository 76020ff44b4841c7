"""Training at full size on a CUDA GPU: tokens and captions a second, TFLOP/s, memory, against transformers' BLIP-2.

    python benchmarks/gpu_train.py [--size 7b|13b] [--exact] [--json]   on a GPU; without one it exits with 2
    python benchmarks/gpu_train.py --tiny                                the same program on any machine at tiny dims

Random weights are made on the card in bfloat16: LLaMA's language model, and for the peer ViT-g and Q-Former at BLIP-2's
dims. The peer is `Blip2ForConditionalGeneration`'s forward and backward without the cost of a Trainer: one row a
caption, tower included, gradient of `language_projection` alone. Captune trains on features as they come from its
store. Operations are counted by formula, 4 a weight and token (forward, and backward to the activations; frozen weights
have no gradient), useful tokens only, and compared with the rate of a large matrix product measured in the same run.
The gradient is compared with that of plain rows; bfloat16 differs by rounding noise. Captune compiles the language
model's layers, as it does by default on a GPU; the row below it does not. A first pass, which compiles, is timed
separately. The peak is compared with what `captune plan` predicts for such a step. With `--exact` the gradient of two
such layers in float32 is compared as well, where rounding does not hide a difference, and each way's distance from the
float32 gradient of the complete language model, where the card holds that: captune's must be no larger than that of
plain rows.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from typing import Any

from gpu_exactness import LENGTH, PER_IMAGE, PLAIN, distances, exact
from gpu_models import build, clocked, matmul_rate
from measuring import INSTRUCTION, Output, captions, kernels, median, options, relative

# isort: split
import torch

from captune.config import OptimizationsConfig
from captune.model import IMAGE_SLOT, MiniGPT4
from captune.model.memory import TrainingLoad, measure_model, training_memory
from captune.model.packing import row_multiple
from captune.training.loss import Objective, targets_at_once
from captune.training.optimizations import compile_layers
from captune.training.sample_order import TrainingSample

PEER = "transformers Blip2"
WAYS = {
    "captune": {},
    "captune, not compiled": {},
    "target logits": {**PLAIN, "target_logits": True},
    "plain rows": PLAIN,
}


HEADS = ["captions/s", "ratio", "useful TFLOP/s", "of matmul", "tokens/s", "peak GB", "first pass s", "gradient diff."]


def peer_step(peer: Any, layout: Any, texts: list[str], device: torch.device) -> Callable[[], object]:
    """Forward and backward of one row a caption, tower included."""
    image_id = peer.config.image_token_id
    prompt = [image_id if i == IMAGE_SLOT else i for i in layout.prompt(INSTRUCTION).ids]
    targets = [list(layout.target_ids(text)[0]) for text in texts]
    ids = torch.tensor([prompt + target for target in targets], device=device)
    labels = torch.tensor([[-100] * len(prompt) + target for target in targets], device=device)
    side = peer.config.vision_config.image_size
    pixels = torch.randn(len(texts), 3, side, side, device=device, dtype=torch.bfloat16)

    def step() -> torch.Tensor:
        loss = peer(pixel_values=pixels, input_ids=ids, labels=labels).loss
        return torch.autograd.grad(loss, peer.language_projection.weight)[0]

    return step


def predicted_bytes(model: MiniGPT4, images: int, tokens: int, device: torch.device) -> int:
    """What `captune plan` predicts for a step of `images` rows of `tokens` tokens, without an optimizer."""
    at_once = min(images * PER_IMAGE * LENGTH, targets_at_once(model.config.text_config.vocab_size))
    multiple = row_multiple(device)
    load = TrainingLoad(images, -(-tokens // multiple) * multiple, at_once, images, 9)
    parts = training_memory(measure_model(model.config, torch.bfloat16), load, towers=False).parts
    return sum(part.bytes for part in parts if part.name != "gradient and AdamW")


class Steps:
    """Captune's steps on the same images, captions and features in every way of `WAYS`.

    Args:
        model: is trained.
        texts: captions, `PER_IMAGE` for each image.
        features: (N, Q, F) of the images.

    Attributes:
        samples: the images' captions.
        features: of the images.
        objectives: by way.
        gradients: of the last step of each way.
    """

    def __init__(self, model: MiniGPT4, texts: list[str], features: torch.Tensor) -> None:
        images = range(len(features))
        self.samples = [TrainingSample(n, tuple(texts[n * PER_IMAGE : (n + 1) * PER_IMAGE])) for n in images]
        self.features = features
        compiled = compile_layers(model)
        self.objectives = {
            way: Objective(model, INSTRUCTION, OptimizationsConfig(**fast), compiled if way == "captune" else None)
            for way, fast in WAYS.items()
        }
        self.gradients: dict[str, torch.Tensor] = {}
        self._weight = model.projection.weight

    def run(self, way: str) -> None:
        """Compute the gradient of a step."""
        # Plain ways go by parts, as they would not fit at once.
        parts = 1 if way.startswith("captune") else 4 if len(self.samples) >= 4 else 1
        total = torch.zeros_like(self._weight)
        for part in range(parts):
            loss = self.objectives[way].loss(self.samples[part::parts], self.features[part::parts])
            total += torch.autograd.grad(loss, self._weight)[0]
        self.gradients[way] = total


def first_passes(
    ways: dict[str, Callable[[], object]], peer: Any, device: torch.device
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of a first call of each way, and peak bytes of a second one."""
    on_gpu = device.type == "cuda"
    # The peer's towers are on the card throughout; captune trains without them.
    towers = sum(p.numel() * p.element_size() for part in (peer.vision_model, peer.qformer) for p in part.parameters())
    first: dict[str, float] = {}
    peaks: dict[str, int] = {}
    for way, run in ways.items():
        first[way] = clocked(run, device)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run()
        peaks[way] = torch.cuda.max_memory_allocated() if on_gpu else 0
        if way != PEER:
            peaks[way] = max(0, peaks[way] - towers)
    return first, peaks


def useful_work(model: MiniGPT4, images: int) -> tuple[int, float]:
    """Tokens of a step of so many images, and floating-point operations a caption."""
    text = model.config.text_config
    weights = sum(p.numel() for p in model.llm.parameters()) - 2 * text.vocab_size * model.config.text_width
    prompt = len(model.processor.layout.prompt(INSTRUCTION).ids)
    # Useful tokens: an image's prompt after the constant text, and every caption's tokens but the last.
    tokens = images * (prompt - 9 + PER_IMAGE * (LENGTH - 1))
    texts = images * PER_IMAGE
    head = 4 * texts * LENGTH * text.vocab_size * model.config.text_width
    return tokens, (4 * tokens * weights + head) / texts


def compare_exactly(output: Output, size: str, model: MiniGPT4, steps: Steps) -> tuple[dict[str, float], ...]:
    """Print both comparisons with float32: differences of two layers, and distances of the complete model."""
    precise = exact(size, steps.features.device)
    differences = "; ".join(f"{way} {difference:.1e}" for way, difference in precise.items())
    output.say(f"Gradient of two such layers in float32, relative difference from plain rows: {differences}")
    away = distances(model, steps.objectives, steps.samples[:8], steps.features[:8])
    texts = "; ".join(f"{way} {distance:.3f}" for way, distance in away.items())
    output.say(f"Gradient in bfloat16, relative distance from plain rows in float32: {texts or 'not measured'}")
    return precise, away


def command_line() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--size", choices=["7b", "13b"], default="7b")
    parser.add_argument("--images", type=int, default=32, help="images of a step of captune, five captions each")
    parser.add_argument("--peer-captions", type=int, default=32, help="captions of a step of the peer")
    parser.add_argument("--tiny", action="store_true", help="tiny dims, on a CPU where there is no GPU: a test run")
    parser.add_argument("--exact", action="store_true", help="compare gradients in float32 too")
    parser.add_argument("--profile", action="store_true", help="print which kernels a step of captune takes")
    return parser


def main() -> int:
    """Train in every way and print rates, memory and differences."""
    arguments = command_line().parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("This benchmark needs a CUDA GPU, and torch finds none; --tiny tries it at tiny dims.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    size, images = ("tiny", 2) if arguments.tiny else (arguments.size, arguments.images)
    name = torch.cuda.get_device_name() if on_gpu else None
    output = Output(arguments.json, f"LLaMA {size}, random bfloat16 weights, {images} images x {PER_IMAGE}", name)
    rate = matmul_rate(device, 8192 if on_gpu else 512)
    model, peer = build(size, device)
    texts = captions(images * PER_IMAGE, (LENGTH, LENGTH), model.config.text_config.vocab_size - 1)
    features = torch.randn(images, 32, model.config.feature_size, device=device, dtype=torch.bfloat16)
    steps = Steps(model, texts, features)
    count = 2 if arguments.tiny else arguments.peer_captions
    ways = {PEER: peer_step(peer, model.processor.layout, texts[:count], device)}
    ways |= {way: lambda way=way: steps.run(way) for way in WAYS}
    done = {way: count if way == PEER else len(texts) for way in ways}
    first, peaks = first_passes(ways, peer, device)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, run in ways.items():
            seconds[way].append(clocked(run, device))
    middle = median(seconds)
    tokens, useful = useful_work(model, images)
    rows, results, gradients = [], {}, steps.gradients
    for way in ways:
        per_second = done[way] / middle[way]
        results[way] = {
            "captions_per_s": round(per_second, 2),
            "ratio": round(per_second * middle[PEER] / done[PEER], 3),
            "useful_tflops": round(per_second * useful / 1e12, 3),
            "share_of_matmul": round(per_second * useful / 1e12 / rate, 4),
            "tokens_per_s": round(per_second * tokens / len(texts), 1),
            "peak_gb": round(peaks[way] / 1e9, 2),
            "first_pass_s": round(first[way], 2),
            "gradient_relative_difference": None if way == PEER else relative(gradients[way], gradients["plain rows"]),
        }
        output.line(kind="way", way=way, **results[way])
        rows.append([way, *("-" if value is None else f"{value:,.4g}" for value in results[way].values())])
    output.table(["", *HEADS], rows)
    output.say(
        f"\nA matrix product of this run reaches {rate:.3g} TFLOP/s; {useful / 1e12:.3g} TFLOP a caption are useful."
    )
    planned = predicted_bytes(model, images, tokens // images, device) / 1e9
    peak = results["captune"]["peak_gb"]
    output.say(f"captune plan says {planned:.2f} GB for captune's step; peak {peak:.2f} GB, the peer's towers apart.")
    if arguments.profile and on_gpu:
        output.say(f"\nA step of captune\n{kernels(lambda: steps.run('captune'))}")
    # Two roundings of a gradient differ by this much at 32 layers; a wrong one differs by 1.
    fair = results["captune"]["gradient_relative_difference"] < 0.3
    precise: dict[str, float] = {}
    away: dict[str, float] = {}
    if arguments.exact:
        precise, away = compare_exactly(output, size, model, steps)
        fair = fair and max(precise.values()) < 1e-5 and (not away or away["captune"] <= 1.2 * away["plain rows"])
    output.line(
        kind="result",
        matmul_tflops=round(rate, 3),
        size=size,
        planned_gb=round(planned, 2),
        float32_differences=precise,
        distances_from_float32=away,
        **results["captune"],
    )
    return 0 if fair else 1


if __name__ == "__main__":
    sys.exit(main())
