"""The base rate of CHAIR: how often people "hallucinate" when other people's captions are the truth.

    python benchmarks/hallucination.py [--images 5000] [--truncate RULE]

Each caption of an image is scored against the image's other captions, with COCO's 80 classes; the numbers are means
over the rounds. People mention what other people left out, so a system's CHAIR against references means little below
this rate. Files of `../shared/captions` that are not there are left out. The last column is the time of all rounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from captune.metrics import ScoringOptions, leave_one_out, read_references

CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "captions"
FILES = {
    "COCO val2017": "coco/captions_val2017.json.gz",
    "Flickr8k": "flickr8k/captions.txt",
    "Flickr30k": "flickr30k/flickr_annotations_30k.csv",
}


def read(path: Path) -> Mapping[str, Sequence[str]]:
    """The captions of each image."""
    if path.name != "flickr_annotations_30k.csv":
        return read_references(path).captions
    with path.open(encoding="utf-8", newline="") as file:
        return {row["filename"]: json.loads(row["raw"]) for row in csv.DictReader(file)}


def main() -> None:
    """Print a line for each set of captions."""
    parser = argparse.ArgumentParser(description="How often people's captions mention objects that others leave out.")
    parser.add_argument("--images", type=int, default=5000, help="images of each set at most")
    parser.add_argument("--truncate", help="words=N, complete=N or sentences=N")
    arguments = parser.parse_args()
    options = ScoringOptions(truncate=arguments.truncate)
    paths = {name: CAPTIONS / file for name, file in FILES.items() if (CAPTIONS / file).is_file()}
    if not paths:
        print(f"There are no captions in {CAPTIONS}.")
    for name, path in paths.items():
        images = ((image, texts) for image, texts in read(path).items() if len(texts) >= 5)
        references = {image: texts[:5] for image, texts in islice(images, arguments.images)}
        start = time.perf_counter()
        rounds = leave_one_out(references, options)
        seconds = time.perf_counter() - start
        means = {key: sum(scores.corpus[key] for scores in rounds) / len(rounds) for key in rounds[0].corpus}
        line = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"{name:<12}  {len(references):>5,} images  {line}  {seconds:.1f} s")


if __name__ == "__main__":
    main()
