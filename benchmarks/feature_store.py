"""The feature store: writing, and reading in random order, against one file an image and running the towers again.

    python benchmarks/feature_store.py [--images 4096] [--json]

Features have the shape of BLIP-2's, 32 x 768 in bfloat16. `torch.save` writes one file an image, the usual way. Reads
fetch batches of 32 images in a random order, from the page cache; with `--cold` they are dropped from the system's
cache first. What recomputing costs is shown for a small tower (192 x 6 at 257 tokens; ViT-g is 300 times the work); it
is the lower bound of what the store saves. Times are the processor's, with `--cold` the clock's, since reading waits
then.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measuring import Output, alternate, median, options

# isort: split
import numpy as np
import torch
from transformers import Blip2VisionConfig, Blip2VisionModel

from captune.features import FeatureStore, TowerIdentity

QUERIES, WIDTH, BATCH, SHARD = 32, 768, 32, 1024


def forget(folder: Path) -> None:
    """Drop the files of a folder from the system's cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clocked(run: Callable[[], object]) -> float:
    """Seconds of processor time of a call."""
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


@dataclass(frozen=True)
class Measurement:
    """What writing and reading took, each by way.

    Attributes:
        written: seconds to write all images.
        read: median seconds to read all images.
        size: bytes of the files.
        opened: seconds to open the store.
        identical: whether the store returns what was written.
    """

    written: dict[str, float]
    read: dict[str, float]
    size: dict[str, int]
    opened: float
    identical: bool


def measure(folder: Path, count: int, rounds: int, *, cold: bool) -> Measurement:
    """Write and read random features of `count` images both ways."""
    torch.manual_seed(0)
    features = torch.randn(count, QUERIES, WIDTH).bfloat16()
    contents = [number.to_bytes(16, "big") for number in range(count)]
    order = np.random.default_rng(0).permutation(count)
    batches = [order[start : start + BATCH].tolist() for start in range(0, count, BATCH)]
    root, files = folder / "store", folder / "files"
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
    if cold:
        ways = {name: lambda run=run: (forget(folder), run())[1] for name, run in ways.items()}
    read = median(alternate(ways, rounds, clock=time.perf_counter if cold else time.process_time))
    sizes = {"captune": root, "torch.save": files}
    size = {key: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for key, path in sizes.items()}
    return Measurement(written, read, size, opened, identical)


def main() -> int:
    """Print the rates of both ways, against those of encoding again."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--cold", action="store_true", help="drop the files from the system's cache before each read")
    arguments = parser.parse_args()
    count = arguments.images
    output = Output(arguments.json, f"{count:,} images, features {QUERIES} x {WIDTH} bfloat16")
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), count, arguments.rounds, cold=arguments.cold)
    again = encoding_rate()
    rows = []
    for way in ("captune", "torch.save"):
        rows.append([way, count / result.written[way], count / result.read[way], result.size[way] / count])
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
    ratio = result.read["torch.save"] / result.read["captune"]
    to_recomputing = count / result.read["captune"] / again
    output.say(
        f"\nOpening took {result.opened * 1000:.0f} ms. Reading is {ratio:.1f} times as quick as torch.save's files "
        f"and {to_recomputing:,.0f} times as quick\nas encoding again; what is read "
        f"{'equals' if result.identical else 'DIFFERS FROM'} what was written, bit for bit."
    )
    output.line(
        kind="result",
        ratio=round(ratio, 3),
        ratio_to_recomputing=round(to_recomputing, 1),
        open_s=round(result.opened, 4),
        cold=arguments.cold,
        identical=result.identical,
    )
    return 0 if result.identical else 1


if __name__ == "__main__":
    sys.exit(main())
