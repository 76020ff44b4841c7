"""Importing and checking millions of captions: rows a second and peak memory, against one line of pandas.

    python benchmarks/import_rows.py [--rows 10000000] [--captions 5] [--shuffled] [--json]

A CSV of made-up captions, `--captions` an image, is imported with `captune prepare table` and the manifest is checked
with `captune check`; no image is looked at. pandas reads the same file, groups the captions by image and writes JSON
Lines. Each runs as a separate process; memory is the peak of its resident set. Both outputs must hold the same images
with the same captions in the same order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORDS = ("a", "man", "woman", "dog", "red", "runs", "sits", "on", "the", "grass", "with", "ball", "two", "near")
PANDAS = """
import sys, pandas
table = pandas.read_csv(sys.argv[1])
table.groupby("image", sort=False)["caption"].agg(list).reset_index().to_json(
    sys.argv[2], orient="records", lines=True, force_ascii=False)
"""


def write_rows(path: Path, rows: int, captions: int, shuffled: bool) -> None:
    """A CSV of captions; in the order of images, or with the captions of an image far apart."""
    draw = random.Random(0)
    images = rows // captions
    pool = [" ".join(draw.choices(WORDS, k=draw.randint(6, 16))) for _ in range(4096)]
    with path.open("w", encoding="utf-8") as stream:
        stream.write("image,caption\n")
        for number in range(images * captions):
            image = number % images if shuffled else number // captions
            stream.write(f"{image:09d}.jpg,{pool[draw.getrandbits(12)]} {number}\n")


def measured(command: list[str]) -> dict[str, float]:
    """Run a command to its end; seconds and peak resident memory in MB of this process alone."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(errors.decode())
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return {"seconds": time.perf_counter() - started, "peak_mb": usage.ru_maxrss / scale}


def same(manifest: Path, table: Path) -> bool:
    """Whether both files hold the same images and captions, in this order."""
    with manifest.open(encoding="utf-8") as one, table.open(encoding="utf-8") as other:
        for left, right in zip(one, other, strict=True):
            sample, row = json.loads(left), json.loads(right)
            if (sample["id"] + ".jpg", sample["captions"]) != (row["image"], row["caption"]):
                return False
    return True


def main() -> None:
    """Import, check and group the same captions and print rates and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="captune-rows-") as name:
        folder = Path(name)
        table, manifest, peer = folder / "rows.csv", folder / "manifest.jsonl", folder / "pandas.jsonl"
        write_rows(table, arguments.rows, arguments.captions, arguments.shuffled)
        captune = [sys.executable, "-c", "from captune.cli import main; main()"]
        nothing = ["--check-images", "none"]
        results: dict[str, Any] = {
            "captune prepare": measured([*captune, "prepare", "table", str(table), "--out", str(manifest), *nothing]),
            "captune check": measured([*captune, "check", str(manifest), *nothing]),
            "pandas": measured([sys.executable, "-c", PANDAS, str(table), str(peer)]),
        }
        identical = same(manifest, peer)
    ratio = results["pandas"]["peak_mb"] / results["captune prepare"]["peak_mb"]
    for result in results.values():
        result["rows_per_s"] = arguments.rows / result["seconds"]
    if arguments.json:
        for what, result in results.items():
            print(json.dumps({"what": what, "rows": arguments.rows, **result}))
        print(json.dumps({"memory_ratio": ratio, "identical": identical}))
        return
    order = "shuffled" if arguments.shuffled else "in the order of images"
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, pandas {version('pandas')}")
    print(f"{arguments.rows:,} captions, {arguments.captions} an image, {order}")
    for what, result in results.items():
        print(
            f"  {what:<16} {result['seconds']:>7.1f} s {result['rows_per_s']:>10,.0f} captions/s "
            f"{result['peak_mb']:>8,.0f} MB at the peak"
        )
    print(f"  pandas needs {ratio:.1f} times the memory of captune prepare; same captions: {identical}")


if __name__ == "__main__":
    main()
