"""Positions that the language model computes for an image of real captions, row by row and batch by batch.

    python benchmarks/rows.py [captions.csv] [--images 8192] [--batch 32] [--multiple 8] [--json]

The peer is one row a caption in random batches, as the original trains. Each line of the table adds something: the
captions of an image after one prompt, batches of rows that are similarly long in characters, what captions begin with
in common fed once, batches of rows that are similarly long in tokens. Rows are padded to the longest of their batch.
The last two are what captune does, by captune's classes; the others are counted here. Words and punctuation are the
tokens, and the first thousand images' gradient of a small model is compared with that of plain rows. By default the
captions of Flickr30k in `../shared`, else a CSV file with a column `raw` of JSON lists.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import INSTRUCTION, ROOT, Output, options, relative
from prefix import FEATURES, QUERIES, build, use_numbers

# isort: split
import numpy as np
import torch

from captune.config import OptimizationsConfig, TrainConfig
from captune.data.manifest import Sample
from captune.model.packing import constant_prefix_length, pack
from captune.training.loss import Objective
from captune.training.sample_order import TrainingSample, TrainingSamples

FLICKR = ROOT.parent / "shared" / "captions" / "flickr30k" / "flickr_annotations_30k.csv"
SPECIAL = 64
"""Ids below are the prompt's."""
PLAIN = OptimizationsConfig(shared_prefix=False, constant_prefix=False, target_logits=False)


def numbered(path: Path, count: int) -> tuple[list[Sample], int]:
    """The images of a file with captions of numbers, a number for each word, and how many there are."""
    known: dict[str, int] = {}

    def ids(caption: str) -> str:
        return " ".join(str(known.setdefault(w, SPECIAL + len(known))) for w in re.findall(r"\w+|[^\w\s]", caption))

    with path.open(encoding="utf-8", newline="") as stream:
        rows = [json.loads(row["raw"]) for _, row in zip(range(count), csv.DictReader(stream), strict=False)]
    images = [Sample(str(n), "", tuple(map(ids, captions)), "train") for n, captions in enumerate(rows)]
    return images, SPECIAL + len(known)


def padded(batches: Sequence[Sequence[int]], multiple: int) -> int:
    """Positions of batches of rows of these lengths."""
    return sum(len(batch) * -(-max(batch) // multiple) * multiple for batch in batches)


def main() -> int:
    """Count the positions of every way and compare the gradient with plain rows."""
    parser = options(__doc__, rounds=1)
    parser.add_argument("captions", type=Path, nargs="?", default=FLICKR)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--multiple", type=int, default=8, help="the width of rows is one of this, as on a GPU")
    arguments = parser.parse_args()
    if not arguments.captions.is_file():
        sys.exit(f"There are no captions {arguments.captions}; give a CSV file with a column 'raw' of JSON lists.")
    images, vocabulary = numbered(arguments.captions, arguments.images)
    per = max(len(image.captions) for image in images)
    output = Output(arguments.json, f"{len(images):,} images x {per} captions, {arguments.batch} images a step")
    model = use_numbers(build(128, 2, vocabulary))
    layout = model.processor.layout
    prompt = layout.prompt(INSTRUCTION).ids
    cached = constant_prefix_length(prompt)
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    train = TrainConfig(epochs=1, batch_size=arguments.batch * per, captions_per_image=per)
    loose = train.model_copy(update={"debug": OptimizationsConfig(length_buckets=False)})

    def ids(sample: TrainingSample) -> list[tuple[int, ...]]:
        return [layout.target_ids(caption)[0] for caption in sample.captions]

    def all_tokens(sample: TrainingSample) -> int:
        return len(prompt) - cached + sum(len(caption) - 1 for caption in ids(sample))

    def counted(samples: TrainingSamples, length: Callable[[TrainingSample], int]) -> int:
        steps = [samples.batch(step) for step in range(samples.total_steps)]
        return padded([[length(sample) for sample in step] for step in steps], arguments.multiple)

    def packed(samples: TrainingSamples) -> int:
        steps = (samples.batch(step) for step in range(samples.total_steps))
        multiple = arguments.multiple
        return sum(pack(prompt, list(map(ids, s)), cached=cached, multiple=multiple).input_ids.numel() for s in steps)

    random = TrainingSamples(images, loose, 0)
    by_characters = TrainingSamples(images, train, 0, lambda sample: sum(map(len, sample.captions)))
    by_tokens = TrainingSamples(images, train, 0, objective.row_tokens)
    plain = [[len(prompt) + len(c) for s in random.batch(step) for c in ids(s)] for step in range(random.total_steps)]
    ways = {
        "one row a caption": padded(plain, 1),
        "one row an image": counted(random, all_tokens),
        "+ batches by characters": counted(by_characters, all_tokens),
        "+ common beginnings once": packed(by_characters),
        "+ batches by tokens (captune)": packed(by_tokens),
        "captune, without any padding": sum(objective.row_tokens(s) + len(prompt) - cached for s in dealt(random)),
    }
    some = [sample for sample in dealt(by_tokens) if sample.image < 1000]
    difference = relative(gradient(objective, some), gradient(Objective(model, INSTRUCTION, PLAIN), some))
    peer = ways["one row a caption"]
    for name, value in ways.items():
        output.line(kind="way", way=name, positions=value / len(images), ratio=round(peer / value, 3))
    output.table(
        ["", "positions an image", "ratio"],
        [[name, f"{value / len(images):.1f}", f"{peer / value:.2f}"] for name, value in ways.items()],
    )
    output.say(f"\nGradient of {len(some):,} images beside that of plain rows: relative difference {difference:.1e}")
    final = ways["+ batches by tokens (captune)"]
    output.line(kind="result", ratio=round(peer / final, 3), gradient_relative_difference=difference)
    return 0 if difference < 1e-5 else 1


def dealt(samples: TrainingSamples) -> list[TrainingSample]:
    """All samples of a pass."""
    return [sample for step in range(samples.total_steps) for sample in samples.batch(step)]


def gradient(objective: Objective, samples: Sequence[TrainingSample]) -> torch.Tensor:
    """Of the projection, summed over batches of eight."""
    total = torch.zeros_like(objective.model.projection.weight)
    random = np.random.default_rng(1)
    for start in range(0, len(samples), 8):
        part = samples[start : start + 8]
        features = torch.from_numpy(random.standard_normal((len(part), QUERIES, FEATURES), np.float32))
        total += torch.autograd.grad(objective.loss(part, features), objective.model.projection.weight)[0]
    return total


if __name__ == "__main__":
    sys.exit(main())
