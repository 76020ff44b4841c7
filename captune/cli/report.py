"""`captune report`: table, chart and analysis of a run, or of a bare CSV table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from captune.report import Analysis, RunScores

__all__ = ["register", "report"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report")(report)


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR|TABLE.csv",
            help="A run directory with scores.json, that file, or a CSV table 'checkpoint,BLEU-1,...'.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the files go; by default into the run directory. A CSV table is only printed without it.",
            show_default=False,
        ),
    ] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="Show confidence intervals in the tables.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write metrics.pdf.")] = False,
    lang: Annotated[str, typer.Option(help="Language in which the page opens: en or zh.")] = "en",
    as_json: Annotated[bool, typer.Option("--json", help="Print table and analysis as one JSON object.")] = False,
) -> None:
    """Write table, chart, analysis and report.html of a run, and print table and analysis."""
    from captune.errors import InputError
    from captune.report import LANGUAGES, analyse, read_csv, read_scores, write_report

    if lang not in LANGUAGES:
        raise InputError(f"--lang is {lang!r}, expected {' or '.join(LANGUAGES)}.")
    bare = source.suffix.lower() in (".csv", ".tsv") and not source.is_dir()
    run = read_csv(source) if bare else read_scores(source)
    folder = out or (None if bare else source if source.is_dir() else source.parent)
    files = []
    if folder is not None:
        formats = ("png", "svg", "pdf") if pdf else ("png", "svg")
        files = write_report(folder, run, intervals=intervals, chart_formats=formats, language=lang)
    analysis = analyse(run)
    if as_json:
        _print_json(run, analysis, files)
    else:
        print_report(run, analysis, intervals=intervals)
    for file in files:
        print(file, file=sys.stderr)


def print_report(run: RunScores, analysis: Analysis, *, intervals: bool = False) -> None:
    """Print table, notes and analysis to stdout, in colour and bold only on a terminal."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    from captune.report import sentences, terminal_table
    from captune.report.terminal import table_notes, wrapped

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    table = terminal_table(run, intervals=intervals)
    # A table wider than the terminal is printed whole: a wider window or a program may read it.
    widest = console.options.update(max_width=10_000)
    needed = Measurement.get(console, widest, table).maximum
    Console(file=sys.stdout, highlight=False, emoji=False, width=max(console.width, needed)).print(table)
    for note in table_notes(run):
        console.print(Text(note), soft_wrap=True)
    for item in sentences(run, analysis):
        console.print(Text(f"\n{item.topic}", style="bold"), soft_wrap=True)
        console.print(Text(wrapped(item.text, console.width)), soft_wrap=True)


def _print_json(run: RunScores, analysis: Analysis, files: list[Path]) -> None:
    """Print everything that a program may want; null stands for not a number."""
    import json
    import math

    from captune.report import sentences

    def score(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows: list[dict[str, Any]] = [
        {
            "checkpoint": row.name,
            "epoch": row.epoch,
            "signature": row.signature,
            "leak": row.leak,
            "corpus": {name: score(value) for name, value in row.corpus.items()},
        }
        for row in run.checkpoints
    ]
    answer = {
        "data": run.data,
        "split": run.split,
        "protocol": run.protocol,
        "images": run.images,
        "checkpoints": rows,
        "analysis": analysis.to_dict(),
        "sentences": [{"topic": item.topic, "text": item.text} for item in sentences(run, analysis)],
        "files": [str(file) for file in files],
    }
    print(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace").decode())
