"""The feature store: writing, reading in random order, beside one file an image, and beside running the towers again.

    python benchmarks/feature_store.py [--images 4096] [--json]

Features have the shape of BLIP-2's, 32 x 768 in bfloat16. `torch.save` writes one file an image, the usual way. Reads
fetch batches of 32 images in a random order, from the page cache; with `--cold` the system is asked to forget the files
first. What recomputing costs is shown for a small tower (192 x 6 at 257 tokens; ViT-g is 300 times the work); it is
the lower bound of what the store saves. Times are the processor's, with `--cold` the clock's, since reading waits then.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import Output, alternate, median, options

# isort: split
import numpy as np
import torch
from transformers import Blip2VisionConfig, Blip2VisionModel

from captune.features import FeatureStore, TowerIdentity

QUERIES, WIDTH, BATCH, SHARD = 32, 768, 32, 1024


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clocked(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def encoding_rate() -> float:
    """Images a second through a small tower."""
    config = Blip2VisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, image_size=224
    )
    tower = Blip2VisionModel(config).eval()
    pixels = torch.randn(8, 3, 224, 224)
    with torch.inference_mode():
        tower(pixels)
        return len(pixels) / min(clocked(lambda: tower(pixels)) for _ in range(3))


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--cold", action="store_true", help="drop the files from the system's cache before each read")
    arguments = parser.parse_args()
    output = Output(arguments.json, f"{arguments.images:,} images, features {QUERIES} x {WIDTH} bfloat16")
    count = arguments.images
    torch.manual_seed(0)
    features = torch.randn(count, QUERIES, WIDTH).bfloat16()
    contents = [number.to_bytes(16, "big") for number in range(count)]
    order = np.random.default_rng(0).permutation(count)
    batches = [order[start : start + BATCH].tolist() for start in range(0, count, BATCH)]
    with tempfile.TemporaryDirectory() as name:
        root, files = Path(name) / "store", Path(name) / "files"
        files.mkdir()
        store = FeatureStore(root, TowerIdentity("", "", "", torch.bfloat16, QUERIES, WIDTH))

        def write_store() -> None:
            for start in range(0, count, SHARD):
                store.add(contents[start : start + SHARD], features[start : start + SHARD])

        def write_files() -> None:
            for number in range(count):
                torch.save(features[number].clone(), files / f"{number}.pt")

        written = {"captune": clocked(write_store), "torch.save": clocked(write_files)}
        opened = clocked(store.refresh)
        stored = store.read(contents)
        identical = torch.equal(stored[order.tolist()], features[order.tolist()])

        def read_store() -> None:
            for batch in batches:
                stored[batch]

        def read_files() -> None:
            for batch in batches:
                torch.stack([torch.load(files / f"{number}.pt") for number in batch])

        ways: dict[str, Callable[[], None]] = {"captune": read_store, "torch.save": read_files}
        if arguments.cold:
            ways = {name: lambda run=run: (forget(Path(root.parent)), run())[1] for name, run in ways.items()}
        clock = time.perf_counter if arguments.cold else time.process_time
        read = median(alternate(ways, arguments.rounds, clock=clock))
        sizes = {"captune": root, "torch.save": files}
        size = {key: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for key, path in sizes.items()}
    again = encoding_rate()
    rows = []
    for way in ("captune", "torch.save"):
        rows.append([way, count / written[way], count / read[way], size[way] / count])
        output.line(
            kind="way",
            way=way,
            written_per_s=round(rows[-1][1]),
            read_per_s=round(rows[-1][2]),
            bytes_per_image=round(rows[-1][3]),
        )
    output.table(
        ["", "written images/s", "read images/s", "bytes an image"],
        [[way, f"{w:,.0f}", f"{r:,.0f}", f"{b:,.0f}"] for way, w, r, b in rows]
        + [["small tower, again", "", f"{again:,.0f}", ""]],
    )
    ratio = read["torch.save"] / read["captune"]
    output.say(
        f"\nOpening took {opened * 1000:.0f} ms. Reading is {ratio:.1f} times as quick as torch.save's files and "
        f"{count / read['captune'] / again:,.0f} times as quick\nas encoding again; what is read "
        f"{'equals' if identical else 'DIFFERS FROM'} what was written, bit for bit."
    )
    output.line(
        kind="result",
        ratio=round(ratio, 3),
        ratio_to_recomputing=round(count / read["captune"] / again, 1),
        open_s=round(opened, 4),
        cold=arguments.cold,
        identical=identical,
    )
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
