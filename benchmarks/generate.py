"""Captions a second: captune's decoding loop against transformers' `generate` with its dynamic cache.

    python benchmarks/generate.py [--images 256] [--batch 32] [--rounds 2] [--beams 1] [--json]

One process, one thread, the same random weights, the same features, A/B/A/B in turns; seconds are those that the
processor worked, so that other programs on the machine do not count. Random weights never end a caption, so an end is
planted as people's captions have it: lengths are those of real captions where the folder `../shared` is next to the
repository, else drawn with the same mean and spread, and the model generates the end of text at that length. Three
peers are shown: `generate` with the id of the end (it runs each batch to its longest caption), the same with captune's
stop criterion that decodes the tail of every row, and `generate` without either, as in the original project. The ratio
is against the first, the quickest.

Two shapes of a language model: `wide` (the default, 8 layers of 512), where a step's work grows with its rows, and
`deep` (32 layers of 128), where a step costs nearly the same for one row as for 32, as it does on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig, StoppingCriteriaList  # noqa: E402

from captune.decoding import DecodingOptions, Request, generate_ids  # noqa: E402
from captune.decoding.transformers_generate import StopSymbol  # noqa: E402
from captune.model import IMAGE_SLOT, MiniGPT4, MiniGPT4Config, MiniGPT4Processor  # noqa: E402

SHAPES = {"wide": (512, 8), "deep": (128, 32)}
PREFIX, QUERIES, SUFFIX = 9, 32, 11
VOCABULARY = 32_000
"""LLaMA's."""
EOS = 2
LIMIT = 60
TOKENS_PER_WORD = 1.35
"""LLaMA's tokens for a word of a caption, without full stop and stop symbol."""


class Numbers:
    """A vocabulary of numbers: this benchmark has no words."""

    bos_id: int | None = 1
    eos_id: int | None = EOS
    vocabulary_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        """An id for each character."""
        return [3 + ord(character) for character in text]

    def decode(self, ids: Any) -> str:
        """The characters of ids; the end has none."""
        return "".join(chr(i - 3) if i < 1000 else "x" for i in ids if i > EOS)

    def piece_id(self, piece: str) -> int | None:
        """No piece has an id."""
        return None

    def save(self, folder: Path) -> None:
        """Nothing is saved."""


def lengths(count: int) -> tuple[list[int], str]:
    """Tokens of people's captions, the end included, and where they are from."""
    source = ROOT.parent / "shared" / "captions" / "flickr30k" / "flickr_annotations_30k.csv"
    if source.exists():
        with open(source, encoding="utf-8") as file:
            rows = [json.loads(row["raw"]) for row in csv.DictReader(file)]
        # One caption of each image, far apart in the file.
        step = max(1, len(rows) // count)
        words = [len(captions[n % len(captions)].split()) for n, captions in enumerate(rows[::step][:count])]
        return [min(LIMIT, round(n * TOKENS_PER_WORD) + 1) for n in words], "Flickr30k"
    drawn = torch.empty(count).log_normal_(2.75, 0.4, generator=torch.Generator().manual_seed(0))
    return [int(n) for n in drawn.round().clamp(4, LIMIT)], "drawn"


def build(width: int, layers: int) -> MiniGPT4:
    """A model with random weights whose language model has this width and so many layers."""
    torch.manual_seed(0)
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, encoder_hidden_size=16
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=width * 43 // 16,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=EOS,
        ),
        query_tokens=QUERIES,
    )
    model = MiniGPT4(config).eval()
    with torch.no_grad():
        for parameter in model.llm.parameters():
            if parameter.ndim > 1:
                # Attention far from uniform, and logits far from each other, so that captions depend on the image.
                parameter.mul_(3)
        model.llm.lm_head.weight[EOS] = 0
    model.processor = MiniGPT4Processor(Numbers(), config)
    return model


class Planted:
    """Makes the model generate the end of text where each image's caption is to end.

    After every forward it knows the newest token's position, and the row's image by one number of the first layer's
    values at the first image token, which both engines keep in their caches row by row. The work is the same for both.
    """

    def __init__(self, model: MiniGPT4, prompt: tuple[int, ...], features: torch.Tensor, ends: list[int]) -> None:
        self._column = prompt.index(IMAGE_SLOT)
        self._prompt = len(prompt)
        self._ends = torch.tensor(ends)
        self._known = torch.zeros(0)
        handle = model.llm.register_forward_hook(self._learn, with_kwargs=True)
        with torch.inference_mode():
            model.llm(inputs_embeds=model.embed(torch.tensor([prompt] * len(features)), model.project(features)))
        handle.remove()
        assert self._known.unique().numel() == len(ends)
        model.llm.register_forward_hook(self._end, with_kwargs=True)

    def _mark(self, cache: Any, rows: int) -> torch.Tensor:
        return cache.layers[0].values[:rows, 0, self._column, 0]

    def _learn(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self._known = self._mark(output.past_key_values, len(output.logits)).clone()

    def _end(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if kwargs.get("position_ids") is None:
            return
        kept, positions = kwargs.get("logits_to_keep"), kwargs["position_ids"]
        packed = isinstance(kept, torch.Tensor)
        # Rows of captune's packed forward are concatenated, and the logits of their last tokens too.
        positions = positions[0, kept] if packed else positions[:, -1]
        if int(positions.max()) < self._prompt - 1:
            return
        marks = self._mark(kwargs["past_key_values"], len(positions))
        images = (marks.unsqueeze(1) - self._known).abs().argmin(dim=1)
        logits = torch.where(positions - self._prompt + 2 == self._ends[images], 1e9, -1e9)
        if packed:
            output.logits[0, :, EOS] = logits
        else:
            output.logits[:, -1, EOS] = logits


def peer(model: MiniGPT4, prompt: tuple[int, ...], features: torch.Tensor, options: DecodingOptions, **settings: Any):
    """The captions of `generate`, batch by batch."""
    rows: list[list[int]] = []
    for start in range(0, len(features), options.batch_size):
        batch = features[start : start + options.batch_size]
        input_ids = torch.tensor([prompt]).expand(len(batch), -1)
        new = model.generate(
            input_ids,
            features=batch,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            do_sample=False,
            pad_token_id=EOS,
            **settings,
        )
        rows += [row[: row.index(EOS) + 1] if EOS in row else row for row in new.tolist()]
    return rows


def parameters(model: MiniGPT4) -> tuple[int, int]:
    """Of the layers, which every token passes, and of the head, which every new token passes."""
    head = model.llm.lm_head.weight.numel()
    return sum(p.numel() for p in model.llm.model.layers.parameters()), head


def captune_work(model: MiniGPT4, prompt: tuple[int, ...], ends: list[int]) -> float:
    """FLOPs of captune's greedy decoding, without attention: no token twice, none after an end.

    Of all but the last token of a prompt the last layer needs no more than keys and values (queries come with them).
    """
    layers, head = parameters(model)
    last = model.llm.model.layers[-1]
    unread = sum(p.numel() for part in (last.self_attn.o_proj, last.mlp) for p in part.parameters())
    fed = PREFIX + len(ends) * (len(prompt) - PREFIX) + sum(end - 1 for end in ends)
    return 2.0 * (fed * layers - len(ends) * (len(prompt) - PREFIX - 1) * unread + sum(ends) * head)


def peer_work(model: MiniGPT4, prompt: tuple[int, ...], ends: list[int], batch: int) -> float:
    """FLOPs of `generate`: complete prompts, and every row to the end of its batch's longest."""
    layers, head = parameters(model)
    flops = 0.0
    for start in range(0, len(ends), batch):
        rows = ends[start : start + batch]
        fed = len(prompt) + max(rows) - 1
        flops += 2.0 * len(rows) * (fed * layers + max(rows) * head)
    return flops


def measure(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates, work and equality of every way for one shape of the language model."""
    model = build(*SHAPES[shape])
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(arguments.images, QUERIES, model.config.feature_size, generator=generator)
    prompt = (1, *range(3, 3 + PREFIX - 1), *[IMAGE_SLOT] * QUERIES, *range(20, 20 + SUFFIX))
    ends, source = lengths(arguments.images)
    Planted(model, prompt, features, ends)
    options = DecodingOptions(max_new_tokens=LIMIT, beams=arguments.beams, batch_size=arguments.batch)
    requests = [Request(n, prompt, features[n : n + 1]) for n in range(len(features))]
    symbol = StoppingCriteriaList([StopSymbol(model.processor)])
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "captune": lambda: generate_ids(model, requests, options),
        "generate": lambda: peer(model, prompt, features, options, eos_token_id=EOS),
        "generate, stop criterion": lambda: peer(
            model, prompt, features, options, eos_token_id=EOS, stopping_criteria=symbol
        ),
    }
    if arguments.compiled:
        ways["captune, compiled"] = lambda: generate_ids(model, requests, replace(options, compiled=True))
    if arguments.beams == 1:
        # What greedy decoding generates does not depend on when it stops; which beam is best does.
        ways["generate, no stop"] = lambda: peer(model, prompt, features, options, eos_token_id=None)
    batch = features[: arguments.batch]
    generate_ids(model, requests[: arguments.batch], options)
    peer(model, prompt, batch, options, eos_token_id=EOS)
    if arguments.compiled:
        generate_ids(model, requests[: arguments.batch], replace(options, compiled=True))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rows: dict[str, list[list[int]]] = {}
    for turn in range(arguments.rounds):
        for name, run in ways.items():
            if turn and name == "generate, no stop":
                # The slowest by far; once is enough to show it.
                continue
            began = time.process_time()
            rows[name] = run()
            seconds[name].append(time.process_time() - began)
    assert [len(row) for row in rows["captune"]] == ends, "captions end where they were planted to"
    rate = {name: arguments.images / statistics.median(times) for name, times in seconds.items()}
    best = {name: arguments.images / min(times) for name, times in seconds.items()}
    same = {name: statistics.mean(a == b for a, b in zip(rows["captune"], rows[name], strict=True)) for name in ways}
    work = {"captune": captune_work(model, prompt, ends), "generate": peer_work(model, prompt, ends, arguments.batch)}
    return {
        "shape": shape,
        "parameters": sum(p.numel() for p in model.llm.parameters()),
        "images": arguments.images,
        "batch": arguments.batch,
        "beams": arguments.beams,
        "lengths": {
            "source": source,
            "mean": statistics.mean(ends),
            "sd": statistics.pstdev(ends),
            "longest": max(ends),
        },
        "images_per_s": {name: round(value, 2) for name, value in rate.items()},
        "best_images_per_s": {name: round(value, 2) for name, value in best.items()},
        "ratio_to": {name: round(rate["captune"] / value, 3) for name, value in rate.items() if name != "captune"},
        "ratio": round(rate["captune"] / rate["generate"], 3),
        "gflop_an_image": {name: round(flops / arguments.images / 1e9, 2) for name, flops in work.items()},
        "ratio_of_work": round(work["generate"] / work["captune"], 3) if arguments.beams == 1 else None,
        "identical": min(same.values()),
        "identical_to": same,
    }


def main() -> None:
    """Measure every shape and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="captune with compiled steps as well")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["wide"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    if not arguments.json:
        print(f"{platform.processor() or platform.machine()}, one thread; torch {torch.__version__}, ", end="")
        print(f"transformers {transformers.__version__}")
    for shape in arguments.shapes:
        result = measure(shape, arguments)
        if arguments.json:
            print(json.dumps(result), flush=True)
            continue
        tokens = result["lengths"]
        print(f"\n{shape}: {result['parameters'] / 1e6:.0f} M parameters, {result['images']} images, batch ", end="")
        print(f"{result['batch']}, beams {result['beams']}; captions of {tokens['mean']:.1f} tokens ", end="")
        print(f"(sd {tokens['sd']:.1f}, longest {tokens['longest']}, {tokens['source']})")
        if result["ratio_of_work"] is not None:
            print("  GFLOP an image: ", end="")
            print(", ".join(f"{name} {value}" for name, value in result["gflop_an_image"].items()), end="; ")
            print(f"ratio {result['ratio_of_work']:.2f}: all that fewer products can give")
        for name, rate in result["images_per_s"].items():
            against = "" if name == "captune" else f"  ratio {result['ratio_to'][name]:5.2f}"
            print(f"  {name:26} {rate:8.2f} images/s{against}  identical {result['identical_to'][name]:.1%}")


if __name__ == "__main__":
    main()
