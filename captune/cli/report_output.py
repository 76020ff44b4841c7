"""What `captune report` prints: tables and sentences for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.report import Analysis, Comparison, RunScores

__all__ = ["print_comparison", "print_examples", "print_json", "print_report", "run_as_json"]


def print_report(run: RunScores, analysis: Analysis, *, intervals: bool = False) -> None:
    """Print table, notes and analysis to stdout, in colour and bold only on a terminal."""
    from captune.report import sentences

    _print_table(run, intervals=intervals)
    for item in sentences(run, analysis):
        _print_heading(item.topic)
        _print_wrapped([item.text])


def print_examples(run: RunScores, *, intervals: bool = False) -> None:
    """Print table, sparklines and the captions that improved and regressed most."""
    from captune.report.terminal import examples, sparklines

    _print_table(run, intervals=intervals)
    _print_heading("Course")
    _print_lines(f"  {line}" for line in sparklines(run))
    for heading, lines in examples(run):
        _print_heading(heading)
        _print_lines(f"  {line}" for line in lines)


def print_comparison(comparison: Comparison, *, intervals: bool = False) -> None:
    """Print the table of runs, their tests and the images that tell them apart."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from captune.report.comparison import matrices, telling_lines
    from captune.report.text import one_line

    _print_table(comparison.table, intervals=intervals)
    names = [one_line(row.name) for row in comparison.table.checkpoints]
    for heading, rows in matrices(comparison):
        _print_heading(heading)
        matrix = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
        matrix.add_column("")
        for name in names:
            matrix.add_column(Text(name), justify="right", no_wrap=True)
        for name, cells in zip(names, rows, strict=True):
            matrix.add_row(Text(name), *map(Text, cells))
        _print_whole(matrix)
    _print_heading("Images that tell the runs apart (CIDEr)")
    _print_lines(f"  {line}" for line in telling_lines(comparison))


def run_as_json(run: RunScores, analysis: Analysis) -> dict[str, Any]:
    """Table and analysis as JSON values; null stands for not a number."""
    from captune.report import sentences

    rows = [
        {
            "checkpoint": row.name,
            "epoch": row.epoch,
            "signature": row.signature,
            "leak": row.leak,
            "corpus": {name: value if math.isfinite(value) else None for name, value in row.corpus.items()},
        }
        for row in run.checkpoints
    ]
    return {
        "data": run.data,
        "split": run.split,
        "protocol": run.protocol,
        "images": run.images,
        "checkpoints": rows,
        "analysis": analysis.to_dict(),
        "sentences": [{"topic": item.topic, "text": item.text} for item in sentences(run, analysis)],
    }


def print_json(tree: dict[str, Any], files: Iterable[Path]) -> None:
    """Print one JSON object on one line, with the files that were written."""
    text = json.dumps({**tree, "files": [str(file) for file in files]}, ensure_ascii=False, allow_nan=False)
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _print_table(run: RunScores, *, intervals: bool) -> None:
    from captune.report import terminal_table
    from captune.report.terminal import table_notes

    _print_whole(terminal_table(run, intervals=intervals))
    _print_lines(table_notes(run))


def _print_whole(table: Any) -> None:
    """Print a table; one wider than the terminal is not cut: a wider window or a program may read it."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(file=sys.stdout, highlight=False, emoji=False, width=max(console.width, needed)).print(table)


def _print_heading(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    console.print(Text(f"\n{text}", style="bold"), soft_wrap=True)


def _print_wrapped(lines: Iterable[str]) -> None:
    """Print sentences indented and wrapped to the terminal."""
    from rich.console import Console

    from captune.report.terminal import wrapped

    width = Console(file=sys.stdout).width
    _print_lines(wrapped(line, width) for line in lines)


def _print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are: rich would take square brackets for markup and numbers for colour."""
    for line in lines:
        print(line)
