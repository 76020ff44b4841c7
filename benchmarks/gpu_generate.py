"""Captions a second on a CUDA GPU: prefill, milliseconds a step against the bandwidth floor, seconds for 1,000 images.

    python benchmarks/gpu_generate.py [--size 7b] [--batches 32 64 128 256 512] [--tokens 16 180] [--json]

Random weights of the true size are made on the GPU; captions end at the given number of tokens in every way, because
random weights never end one by themselves. In turns, in one process, after a warm-up:

    generate          transformers' `generate`, dynamic cache
    generate, static  its static cache, which it compiles by itself on CUDA
    captune           captune's loop
    captune, compiled the same with steps of one shape through torch.compile, as CUDA graphs

A step cannot be quicker than reading the weights and the keys and values once; the floor is their bytes over the
memory bandwidth measured in this run by copying. `identical` is the share of captions that are equal to those of
`generate`; in bfloat16 the ways round differently, so it is not 100 % of the time.

`--size tiny --device cpu` runs the same program on a CPU, to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig  # noqa: E402

from captune.decoding import DecodingOptions, Request, generate_ids  # noqa: E402
from captune.model import IMAGE_SLOT, MiniGPT4, MiniGPT4Config, MiniGPT4Processor  # noqa: E402

SIZES = {"tiny": (128, 344, 2, 2), "7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
PREFIX, QUERIES, SUFFIX = 9, 32, 11
VOCABULARY = 32_000


class Numbers:
    """A vocabulary without words and without an end."""

    bos_id: int | None = 1
    eos_id: int | None = None
    vocabulary_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [3 + ord(character) for character in text]

    def decode(self, ids: Any) -> str:
        return "x" * len(list(ids))

    def piece_id(self, piece: str) -> int | None:
        return None

    def save(self, folder: Path) -> None: ...


def build(size: str, device: torch.device, dtype: torch.dtype) -> MiniGPT4:
    width, inner, layers, heads = SIZES[size]
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=64, encoder_hidden_size=16
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=2048,
        ),
        query_tokens=QUERIES,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MiniGPT4(config)
    finally:
        torch.set_default_dtype(before)
    model.projection.float()
    model.processor = MiniGPT4Processor(Numbers(), config)
    return model.to(device).eval()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(device: torch.device, run: Callable[[], Any]) -> float:
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def bandwidth(device: torch.device) -> float:
    """Bytes a second that this device reads, from copying half a gigabyte (read once, written once)."""
    source = torch.empty(2**27, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = [seconds(device, lambda: target.copy_(source)) for _ in range(5)]
    return 2 * source.numel() * source.element_size() / min(times)


def peer(model: MiniGPT4, prompt: tuple[int, ...], features: torch.Tensor, tokens: int, **settings: Any) -> Any:
    rows = torch.tensor([prompt], device=features.device).expand(len(features), -1)
    return model.generate(
        rows,
        features=features,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        **settings,
    ).tolist()


def measure(model: MiniGPT4, batch: int, tokens: int, rate: float, rounds: int) -> dict[str, Any]:
    device = model.projection.weight.device
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, QUERIES, model.config.feature_size, generator=generator).to(device)
    prompt = (1, *range(3, 3 + PREFIX - 1), *[IMAGE_SLOT] * QUERIES, *range(20, 20 + SUFFIX))
    requests = [Request(n, prompt, features[n : n + 1]) for n in range(batch)]

    def ours(count: int, compiled: bool = False) -> list[list[int]]:
        options = DecodingOptions(max_new_tokens=count, batch_size=batch, compiled=compiled)
        return generate_ids(model, requests, options, stop_symbol=False)

    ways: dict[str, Callable[[int], list[list[int]]]] = {
        "generate": lambda count: peer(model, prompt, features, count),
        "generate, static": lambda count: peer(model, prompt, features, count, cache_implementation="static"),
        "captune": ours,
        "captune, compiled": lambda count: ours(count, compiled=True),
    }
    result: dict[str, Any] = {"batch": batch, "tokens": tokens}
    texts: dict[str, list[list[int]]] = {}
    for name, run in ways.items():
        try:
            texts[name] = run(tokens)
            run(1)
        except torch.OutOfMemoryError:
            result[name] = {"error": "out of memory"}
    whole: dict[str, list[float]] = {name: [] for name in texts}
    first: dict[str, list[float]] = {name: [] for name in texts}
    for _ in range(rounds):
        for name in texts:
            first[name].append(seconds(device, lambda name=name: ways[name](1)))  # type: ignore[misc]
            whole[name].append(seconds(device, lambda name=name: ways[name](tokens)))  # type: ignore[misc]
    config = model.llm.config
    weights = sum(p.numel() * p.element_size() for n, p in model.llm.named_parameters() if "embed_tokens" not in n)
    # Halfway through the caption; keys and values of every row are read at each step.
    cached = batch * (len(prompt) + tokens / 2) * 2 * config.num_hidden_layers * config.hidden_size
    floor = (weights + cached * model.llm.dtype.itemsize) / rate
    for name in texts:
        step = (statistics.median(whole[name]) - statistics.median(first[name])) / max(1, tokens - 1)
        result[name] = {
            "first_token_ms": round(statistics.median(first[name]) * 1e3, 2),
            "step_ms": round(step * 1e3, 3),
            "times_the_floor": round(step / floor, 3),
            "seconds_for_1000": round(statistics.median(whole[name]) * 1000 / batch, 3),
            "identical": statistics.mean(a == b for a, b in zip(texts[name], texts["generate"], strict=True)),
        }
    result["floor_ms"] = round(floor * 1e3, 3)
    result["ratio"] = round(result["generate"]["seconds_for_1000"] / result["captune"]["seconds_for_1000"], 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 180])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_generate.py: there is no CUDA GPU; --size tiny --device cpu only shows that the program works.")
    transformers.utils.logging.set_verbosity_error()
    model = build(arguments.size, device, getattr(torch, arguments.dtype))
    rate = bandwidth(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if not arguments.json:
        print(f"{name}: {rate / 1e9:.0f} GB/s copied; {arguments.size}, {arguments.dtype}, torch {torch.__version__}")
    for tokens in arguments.tokens:
        for batch in arguments.batches:
            result = measure(model, batch, tokens, rate, arguments.rounds)
            if arguments.json:
                print(json.dumps({"device": name, "size": arguments.size, **result}), flush=True)
                continue
            print(f"\nbatch {batch}, {tokens} tokens; a step's floor is {result['floor_ms']:.2f} ms; ", end="")
            print(f"ratio to generate {result['ratio']:.2f}")
            for way in ("generate", "generate, static", "captune", "captune, compiled"):
                print(f"  {way:18} {json.dumps(result[way])}")


if __name__ == "__main__":
    main()
