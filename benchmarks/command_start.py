"""The start of a command: `captune --help` next to an empty Python and an import of typer, alternating.

Prints the median wall time of each in milliseconds, and what `--help` costs beyond Python and typer. Run it on a quiet
machine: python benchmarks/command_start.py --repeats 15
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import typer'": ["-c", "import typer"],
    "captune --version": ["-m", "captune", "--version"],
    "captune --help": ["-m", "captune", "--help"],
    "captune train --help": ["-m", "captune", "train", "--help"],
    "captune train missing.yaml": ["-m", "captune", "train", "missing.yaml"],
}
"""Arguments of Python by the name of what is timed."""


def milliseconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Time every command in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, arguments in COMMANDS.items():
            times[name].append(milliseconds(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:<28} {median:7.0f} ms")
    print(f"captune --help / import typer {medians['captune --help'] / medians[list(COMMANDS)[1]]:6.2f}")


if __name__ == "__main__":
    main()
