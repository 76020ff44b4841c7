"""What the hash table of `captune.metrics.string_hash_table` saves over one dictionary look-up for each chunk.

    python benchmarks/string_hash_table.py [--images 20000] [--rounds 7]

Captions are scored in this process with and without the table, in turns; a figure is the median of the CPU time of one
thread. The scores of every image must be equal. Needs the folder `../shared`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import chain
from typing import Any

from score import corpus

from captune.metrics import score_captions
from captune.metrics.encoding import Encoder
from captune.metrics.string_hash_table import ChunkTable
from captune.metrics.tokenizers import tokenizer

TABLE = ChunkTable.codes


def without_table(self: ChunkTable, captions: Any) -> None:
    """Leave every batch to the dictionary."""


def main() -> None:
    """Time both ways and compare their scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    data = corpus(arguments.images)
    captions = [*chain.from_iterable(data["references"].values()), *data["predictions"].values()]
    seconds: dict[str, list[float]] = {}
    scores: dict[str, Any] = {}
    for _ in range(arguments.rounds):
        for name, codes in (("with the table", TABLE), ("with a dictionary", without_table)):
            ChunkTable.codes = codes  # type: ignore[method-assign, assignment]
            start = time.process_time()
            Encoder(tokenizer("ptb")).encode(captions)
            middle = time.process_time()
            scores[name] = score_captions(data["predictions"], data["references"]).per_image
            seconds.setdefault(f"tokenize {name}", []).append(middle - start)
            seconds.setdefault(f"score {name}", []).append(time.process_time() - middle)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{arguments.images:,} images, {len(captions):,} captions; scores of every image are equal:", end=" ")
    print(scores["with the table"] == scores["with a dictionary"])
    for step in ("tokenize", "score"):
        table, dictionary = medians[f"{step} with the table"], medians[f"{step} with a dictionary"]
        gain = statistics.median(
            b / a for a, b in zip(seconds[f"{step} with the table"], seconds[f"{step} with a dictionary"], strict=True)
        )
        print(f"{step:9s} table {table:.3f} s, dictionary {dictionary:.3f} s, paired ratio {gain:.2f}")


if __name__ == "__main__":
    main()
