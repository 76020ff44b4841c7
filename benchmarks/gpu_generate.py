"""Captions a second on a CUDA GPU: prefill, milliseconds a step against the bandwidth floor, seconds for 1,000 images.

    python benchmarks/gpu_generate.py [--size 7b] [--batches 32 64 128 256 512] [--tokens 16 180] [--ways ...] [--json]

Random weights of the true size are made on the GPU; captions end at the given number of tokens in every way, because
random weights never generate an end. In turns, in one process, after a warm-up:

    generate          transformers' `generate`, dynamic cache
    generate, static  its static cache, which it compiles automatically on CUDA, a minute for each shape
    captune           captune's loop, whose steps are recorded as a CUDA graph
    captune, compiled the same with compiled layers

A step cannot be quicker than reading the weights and the keys and values once; the floor is their bytes over the
memory bandwidth measured in this run by copying. `step_ms` of captune is the median of its steps, of `generate` the
time of all tokens but the first over their number; what a call costs once (recording) is in `seconds_for_1000`.
`identical` is the share of captions that are equal to those of `generate`; in bfloat16 the ways round differently, so
it is not 100 % of the time. `--dtype float32` shows that it is the rounding.

`--size tiny --device cpu` runs the same program on a CPU, to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import kernels

# isort: split
import torch
import transformers
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from captune.decoding import DecodingOptions, Request, generate_ids
from captune.decoding.engine import DecodingEngine, SharedPrefix
from captune.decoding.options import StopRule
from captune.model import IMAGE_SLOT, MiniGPT4, MiniGPT4Config, MiniGPT4Processor

SIZES = {"tiny": (128, 344, 2, 2), "7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
PREFIX, QUERIES, SUFFIX = 9, 32, 11
VOCABULARY = 32_000
WAYS = ("generate", "generate, static", "captune", "captune, compiled")


class Numbers:
    """A vocabulary without words and without an end."""

    bos_id: int | None = 1
    eos_id: int | None = None
    vocabulary_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        """An id for each character."""
        return [3 + ord(character) for character in text]

    def decode(self, ids: Any) -> str:
        """A letter for each id."""
        return "x" * len(list(ids))

    def piece_id(self, piece: str) -> int | None:
        """No piece has an id."""
        return None

    def save(self, folder: Path) -> None:
        """Nothing is saved."""


def build(size: str, device: torch.device, dtype: torch.dtype) -> MiniGPT4:
    """A model with random weights, made on the device."""
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
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(device: torch.device, run: Callable[[], Any]) -> float:
    """How long a call takes, the work of the device included."""
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
    """The captions of `generate`, each of exactly so many tokens."""
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


def requests_for(model: MiniGPT4, count: int) -> tuple[list[Request], torch.Tensor]:
    """Requests for so many random images, and their features (N, Q, F) on the model's device."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, QUERIES, model.config.feature_size, generator=generator)
    features = features.to(model.projection.weight.device)
    prompt = (1, *range(3, 3 + PREFIX - 1), *[IMAGE_SLOT] * QUERIES, *range(20, 20 + SUFFIX))
    return [Request(n, prompt, features[n : n + 1]) for n in range(count)], features


def step_times(model: MiniGPT4, requests: list[Request], options: DecodingOptions) -> list[float]:
    """Seconds of every step of captune's loop on one batch; a step ends when its tokens are known on the CPU."""
    prompt = requests[0].prompt
    loop = DecodingEngine(
        model,
        options,
        StopRule(model.processor, symbol=False),
        slots=len(requests),
        longest_prompt=len(prompt),
        prefix=SharedPrefix(model, prompt[:PREFIX]),
    )
    loop.admit(requests)
    times = []
    while loop.active:
        times.append(seconds(model.projection.weight.device, loop.step))
    return times


def measure(
    model: MiniGPT4, batch: int, tokens: int, rate: float, rounds: int, selected: Sequence[str]
) -> dict[str, Any]:
    """Times and captions of the selected ways for one batch size and caption length."""
    device = model.projection.weight.device
    requests, features = requests_for(model, batch)
    prompt = requests[0].prompt
    options = DecodingOptions(max_new_tokens=tokens, batch_size=batch)
    compiled = replace(options, compiled=True)

    def ours(engine: DecodingOptions, count: int) -> list[list[int]]:
        return generate_ids(model, requests, replace(engine, max_new_tokens=count), stop_symbol=False)

    static = {"cache_implementation": "static"}
    all_ways: dict[str, Callable[[int], list[list[int]]]] = {
        "generate": lambda count: peer(model, prompt, features, count),
        "generate, static": lambda count: peer(model, prompt, features, count, **static),
        "captune": lambda count: ours(options, count),
        "captune, compiled": lambda count: ours(compiled, count),
    }
    ways = {name: run for name, run in all_ways.items() if name in selected}
    result: dict[str, Any] = {"batch": batch, "tokens": tokens}
    texts: dict[str, list[list[int]]] = {}
    began_with: dict[str, float] = {}
    for name, run in ways.items():
        try:
            began = time.perf_counter()
            texts[name] = run(tokens)
            began_with[name] = time.perf_counter() - began
            run(1)
        except torch.OutOfMemoryError:
            result[name] = {"error": "out of memory"}
    complete: dict[str, list[float]] = {name: [] for name in texts}
    first: dict[str, list[float]] = {name: [] for name in texts}
    for _ in range(rounds):
        for name in texts:
            first[name].append(seconds(device, lambda name=name: ways[name](1)))  # type: ignore[misc]
            complete[name].append(seconds(device, lambda name=name: ways[name](tokens)))  # type: ignore[misc]
    config = model.llm.config
    weights = sum(p.numel() * p.element_size() for n, p in model.llm.named_parameters() if "embed_tokens" not in n)
    # Halfway through the caption; keys and values of every row are read at each step.
    cached = batch * (len(prompt) + tokens / 2) * 2 * config.num_hidden_layers * config.hidden_size
    floor = (weights + cached * model.llm.dtype.itemsize) / rate
    for name in texts:
        step = (statistics.median(complete[name]) - statistics.median(first[name])) / max(1, tokens - 1)
        if name.startswith("captune"):
            times = step_times(model, requests, compiled if name.endswith("compiled") else options)
            step = statistics.median(times[1:] or times)
        result[name] = {
            "first_token_ms": round(statistics.median(first[name]) * 1e3, 2),
            "step_ms": round(step * 1e3, 3),
            "times_the_floor": round(step / floor, 3),
            "seconds_for_1000": round(statistics.median(complete[name]) * 1000 / batch, 3),
            "first_call_s": round(began_with[name], 2),
        }
        if "generate" in texts:
            same = (a == b for a, b in zip(texts[name], texts["generate"], strict=True))
            result[name]["identical"] = round(statistics.mean(same), 4)
    result["floor_ms"] = round(floor * 1e3, 3)
    if "generate" in texts and "captune" in texts:
        ratio = result["generate"]["seconds_for_1000"] / result["captune"]["seconds_for_1000"]
        result["ratio"] = round(ratio, 3)
    return result


def thousand(model: MiniGPT4, batch: int, tokens: int, compiled: bool) -> float:
    """Seconds for 1,000 captions, from stored features to ids, one batch after the other."""
    requests, _ = requests_for(model, 1000)
    options = DecodingOptions(max_new_tokens=tokens, batch_size=batch, compiled=compiled)
    device = model.projection.weight.device
    return seconds(device, lambda: generate_ids(model, requests, options, stop_symbol=False))


def main() -> None:
    """Measure every batch size and caption length and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 180])
    parser.add_argument("--ways", choices=WAYS, nargs="*", default=WAYS)
    parser.add_argument("--thousand", type=int, default=256, help="batch of the 1,000 captions of 16 tokens; 0 is none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print which kernels a call of each captune way takes")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_generate.py: there is no CUDA GPU; --size tiny --device cpu only shows that the program works.")
    transformers.utils.logging.set_verbosity_error()
    model = build(arguments.size, device, getattr(torch, arguments.dtype))
    rate = bandwidth(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if not arguments.json:
        print(
            f"{name}: {rate / 1e9:.0f} GB/s copied; {arguments.size}, {arguments.dtype}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}"
        )
    for tokens in arguments.tokens:
        for batch in arguments.batches:
            result = measure(model, batch, tokens, rate, arguments.rounds, arguments.ways)
            if arguments.json:
                print(json.dumps({"device": name, "size": arguments.size, **result}), flush=True)
                continue
            print(f"\nbatch {batch}, {tokens} tokens; a step's floor is {result['floor_ms']:.2f} ms", end="")
            print(f"; ratio to generate {result['ratio']:.2f}" if "ratio" in result else "", flush=True)
            for way in arguments.ways:
                print(f"  {way:18} {json.dumps(result[way])}", flush=True)
    ours = [way for way in arguments.ways if way.startswith("captune")]
    if arguments.thousand:
        for way in ours:
            took = thousand(model, arguments.thousand, 16, way.endswith("compiled"))
            if arguments.json:
                print(json.dumps({"device": name, "way": way, "batch": arguments.thousand, "thousand_s": took}))
            else:
                print(f"\n1,000 captions of 16 tokens in batches of {arguments.thousand}, {way}: {took:.2f} s")
    if arguments.profile:
        for way in ours:
            requests, _ = requests_for(model, arguments.batches[-1])
            options = DecodingOptions(max_new_tokens=16, batch_size=len(requests), compiled=way.endswith("compiled"))
            steps = kernels(lambda options=options, requests=requests: step_times(model, requests, options))
            print(f"\n{way}\n{steps}")


if __name__ == "__main__":
    main()
