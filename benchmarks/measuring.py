"""What the training benchmarks share: alternating runs, the machine's line, tables, JSON lines, captions of numbers.

Time is the processor time of this process, on one thread, unless a program says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import transformers  # noqa: E402

from captune.model import IMAGE_SLOT, MiniGPT4, MiniGPT4Processor  # noqa: E402

__all__ = [
    "IMAGE_SLOT",
    "INSTRUCTION",
    "ROOT",
    "Numbers",
    "Output",
    "alternate",
    "captions",
    "kernels",
    "median",
    "options",
    "relative",
    "use_numbers",
]

INSTRUCTION = "<ImageHere>"
BEFORE, AFTER = 9, 11
"""Tokens before and after the image, as in MiniGPT-4's conversation with a common instruction."""


class Numbers:
    """A vocabulary whose words are token ids, so that a benchmark decides every length."""

    bos_id: int | None = 1
    eos_id: int | None = 2

    def __init__(self, size: int) -> None:
        self.vocabulary_size = size

    def encode(self, text: str) -> list[int]:
        """The numbers of a text; any other word has id 3."""
        return [int(word) if word.isdigit() else 3 for word in text.split()]

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """The numbers of the joined pieces."""
        return self.encode("".join(pieces))

    def decode(self, ids: Any) -> str:
        """Ids as numbers, without special tokens."""
        return " ".join(str(i) for i in ids if i > 2)

    def piece_id(self, piece: str) -> int | None:
        """No piece has an id."""
        return None

    def save(self, folder: Path) -> None:
        """Nothing is saved."""


def use_numbers(model: MiniGPT4) -> MiniGPT4:
    """Give a model a processor whose prompt is 9 tokens, the image, and 11 tokens, and whose words are numbers."""
    before, after = (" ".join(map(str, range(first, first + n))) for first, n in ((3, BEFORE - 1), (20, AFTER)))
    model.config.conversation = "chat"
    model.config.wrapping = {"template": f"{before} {{}} {after}", "stop_symbol": " 2", "bos": True}
    model.processor = MiniGPT4Processor(Numbers(model.config.text_config.vocab_size), model.config)
    return model


def captions(count: int, lengths: tuple[int, int], vocabulary: int, seed: int = 0) -> list[str]:
    """Random captions.

    Args:
        count: how many.
        lengths: fewest and most tokens, stop symbol included.
        vocabulary: V; words are between 32 and V.
        seed: of the draw.
    """
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=random).tolist()
    return [" ".join(map(str, torch.randint(32, vocabulary, (n - 1,), generator=random).tolist())) for n in drawn]


def options(description: str | None, rounds: int = 3) -> argparse.ArgumentParser:
    """Command-line options that every program has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="alternating runs of each way")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, the last with the ratio")
    return parser


def alternate(
    ways: dict[str, Callable[[], Any]], rounds: int, *, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every way in every round, the ways by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    return seconds


def median(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The middle one of every way's times."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Length of the difference over the length of the second."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def kernels(run: Callable[[], Any], most: int = 14) -> str:
    """Which kernels of a GPU a call takes, the longest first: their share, milliseconds, how many, and names."""
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    rows = [row for row in profiler.key_averages() if row.self_device_time_total > 0 and not row.cpu_time_total]
    rows.sort(key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows)
    lines = [f"  {total / 1e3:.1f} ms of kernels"]
    for row in rows[:most]:
        took = row.self_device_time_total
        lines.append(f"  {took / total:6.1%} {took / 1e3:9.2f} ms {row.count:6} x {row.key[:90]}")
    return "\n".join(lines)


class Output:
    """A table for people, or JSON lines.

    Args:
        as_json: which of the two.
        title: of the table.
        device: name of the card, where one is used.
    """

    def __init__(self, as_json: bool, title: str, device: str | None = None) -> None:
        self._as_json = as_json
        torch.set_num_threads(1)
        transformers.utils.logging.set_verbosity_error()
        self.machine = {
            "machine": device or _processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "load": round(os.getloadavg()[0], 2),
        }
        if as_json:
            self.line(kind="machine", **self.machine)
            return
        machine = self.machine
        print(f"{machine['machine']}, {machine['threads']} thread; Python {machine['python']}, ", end="")
        print(f"torch {machine['torch']}, transformers {machine['transformers']}; ", end="")
        print(f"load of the machine {machine['load']:.2f}\n\n{title}")

    def line(self, **values: Any) -> None:
        """Print a JSON line, with `--json`."""
        if self._as_json:
            print(json.dumps(values), flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, where people read: the first column to the left, the others to the right."""
        if self._as_json:
            return
        texts = [list(map(str, row)) for row in (head, *rows)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        for row in texts:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            print("  " + "  ".join(cells).rstrip(), flush=True)

    def say(self, sentence: str) -> None:
        """A sentence, where people read."""
        if not self._as_json:
            print(sentence, flush=True)


def _processor() -> str:
    """The processor's name as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
