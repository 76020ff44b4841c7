"""Training at full size on a CUDA GPU: tokens and captions a second, TFLOP/s, memory, beside transformers' BLIP-2.

    python benchmarks/gpu_train.py [--size 7b|13b] [--exact] [--json]   on a GPU; without one it exits with 2
    python benchmarks/gpu_train.py --tiny                                the same program on any machine at tiny dims

Random weights are made on the card in bfloat16: LLaMA's language model, and for the peer ViT-g and Q-Former at
BLIP-2's own dims. The peer is `Blip2ForConditionalGeneration`'s forward and backward without a Trainer's own cost: one
row a caption, tower included, gradient of `language_projection` alone. Captune trains on features as they come from its
store. Operations are counted by formula, 4 a weight and token (forward, and backward to the activations; frozen weights
have no gradient), useful tokens only, and set against the rate of a large matrix product measured in the same run. The
gradient is compared with that of plain rows; bfloat16 differs by its own noise. Captune compiles the language model's
layers, as it does by default on a GPU; the row below it does not. A first pass, which compiles, is timed by itself.
The peak is set beside what `captune plan` predicts for such a step. With `--exact` the gradient of two such layers in
float32 is compared as well, where rounding does not hide a difference, and each way's distance from the float32
gradient of the whole language model, where the card holds that: captune's must be no larger than that of plain rows.
"""

from __future__ import annotations

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
from captune.training.loss import Objective, targets_at_once
from captune.training.optimizations import compile_layers
from captune.training.packing import row_multiple
from captune.training.samples import TrainingSample

WAYS = {
    "captune": {},
    "captune, not compiled": {},
    "target logits": {**PLAIN, "target_logits": True},
    "plain rows": PLAIN,
}


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
    """What `captune plan` says of a step of `images` rows of `tokens` tokens, without an optimizer."""
    at_once = min(images * PER_IMAGE * LENGTH, targets_at_once(model.config.text_config.vocab_size))
    multiple = row_multiple(device)
    load = TrainingLoad(images, -(-tokens // multiple) * multiple, at_once, images, 9)
    parts = training_memory(measure_model(model.config, torch.bfloat16), load, towers=False).parts
    return sum(part.bytes for part in parts if part.name != "gradient and AdamW")


def main() -> int:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--size", choices=["7b", "13b"], default="7b")
    parser.add_argument("--images", type=int, default=32, help="images of a step of captune, five captions each")
    parser.add_argument("--peer-captions", type=int, default=32, help="captions of a step of the peer")
    parser.add_argument("--tiny", action="store_true", help="tiny dims, on a CPU where there is no GPU: a test run")
    parser.add_argument("--exact", action="store_true", help="compare gradients in float32 too")
    parser.add_argument("--profile", action="store_true", help="print which kernels a step of captune takes")
    arguments = parser.parse_args()
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
    vocabulary = model.config.text_config.vocab_size
    texts = captions(images * PER_IMAGE, (LENGTH, LENGTH), vocabulary - 1)
    samples = [TrainingSample(n, tuple(texts[n * PER_IMAGE : (n + 1) * PER_IMAGE])) for n in range(images)]
    features = torch.randn(images, 32, model.config.feature_size, device=device, dtype=torch.bfloat16)
    compiled = compile_layers(model)
    objectives = {
        way: Objective(model, INSTRUCTION, OptimizationsConfig(**fast), compiled if way == "captune" else None)
        for way, fast in WAYS.items()
    }
    kept: dict[str, torch.Tensor] = {}

    def step(way: str) -> None:
        # Plain ways go by parts, as they would not fit at once.
        parts = 1 if way.startswith("captune") else 4 if images >= 4 else 1
        total = torch.zeros_like(model.projection.weight)
        for part in range(parts):
            chosen = samples[part::parts]
            loss = objectives[way].loss(chosen, features[part::parts])
            total += torch.autograd.grad(loss, model.projection.weight)[0]
        kept[way] = total

    count = 2 if arguments.tiny else arguments.peer_captions
    ways = {"transformers Blip2": peer_step(peer, model.processor.layout, texts[:count], device)}
    ways |= {way: lambda way=way: step(way) for way in WAYS}
    done = {way: count if way.startswith("transformers") else len(texts) for way in ways}
    # The peer's towers lie on the card throughout; captune trains without them.
    towers = sum(p.numel() * p.element_size() for part in (peer.vision_model, peer.qformer) for p in part.parameters())
    peaks: dict[str, int] = {}
    first: dict[str, float] = {}
    for way, run in ways.items():
        first[way] = clocked(run, device)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run()
        peaks[way] = torch.cuda.max_memory_allocated() if on_gpu else 0
        if not way.startswith("transformers"):
            peaks[way] = max(0, peaks[way] - towers)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, run in ways.items():
            seconds[way].append(clocked(run, device))
    middle = median(seconds)
    weights = sum(p.numel() for p in model.llm.parameters()) - 2 * vocabulary * model.config.text_width
    prompt = len(model.processor.layout.prompt(INSTRUCTION).ids)
    # Useful tokens: an image's prompt behind the constant text, and every caption's tokens but the last.
    shared = images * (prompt - 9 + PER_IMAGE * (LENGTH - 1))
    head = 4 * len(texts) * LENGTH * vocabulary * model.config.text_width
    useful = (4 * shared * weights + head) / len(texts)
    rows, results = [], {}
    for way in ways:
        per_second = done[way] / middle[way]
        found = {
            "captions_per_s": round(per_second, 2),
            "ratio": round(per_second * middle["transformers Blip2"] / done["transformers Blip2"], 3),
            "useful_tflops": round(per_second * useful / 1e12, 3),
            "share_of_matmul": round(per_second * useful / 1e12 / rate, 4),
            "tokens_per_s": round(per_second * shared / len(texts), 1),
            "peak_gb": round(peaks[way] / 1e9, 2),
            "first_pass_s": round(first[way], 2),
            "gradient_relative_difference": relative(kept[way], kept["plain rows"]) if way in kept else None,
        }
        results[way] = found
        output.line(kind="way", way=way, **found)
        rows.append([way, *("-" if value is None else f"{value:,.4g}" for value in found.values())])
    heads = [
        "",
        "captions/s",
        "ratio",
        "useful TFLOP/s",
        "of matmul",
        "tokens/s",
        "peak GB",
        "first pass s",
        "gradient diff.",
    ]
    output.table(heads, rows)
    output.say(
        f"\nA matrix product of this run reaches {rate:.3g} TFLOP/s; {useful / 1e12:.3g} TFLOP a caption are useful."
    )
    planned = predicted_bytes(model, images, shared // images, device) / 1e9
    peak = results["captune"]["peak_gb"]
    output.say(f"captune plan says {planned:.2f} GB for captune's step; peak {peak:.2f} GB, the peer's towers apart.")
    if arguments.profile and on_gpu:
        output.say(f"\nA step of captune\n{kernels(lambda: step('captune'))}")
    # Two roundings of a gradient lie as far apart as this at 32 layers; a wrong one lies at 1.
    fair = results["captune"]["gradient_relative_difference"] < 0.3
    precise: dict[str, float] = {}
    away: dict[str, float] = {}
    if arguments.exact:
        precise = exact(size, device)
        fair = fair and max(precise.values()) < 1e-5
        told = "; ".join(f"{way} {difference:.1e}" for way, difference in precise.items())
        output.say(f"Gradient of two such layers in float32, relative difference from plain rows: {told}")
        away = distances(model, objectives, samples[:8], features[:8])
        fair = fair and (not away or away["captune"] <= 1.2 * away["plain rows"])
        told = "; ".join(f"{way} {distance:.3f}" for way, distance in away.items())
        output.say(f"Gradient in bfloat16, relative distance from plain rows in float32: {told or 'not measured'}")
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
