"""What `captune report` prints: tables and sentences for a terminal, one JSON object for programs.

Tables are readable without colour, in a pipe and on 80 columns.
"""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.common import one_line, shorten

if TYPE_CHECKING:
    from rich.table import Table

    from captune.report import Analysis, Comparison, RunScores

__all__ = [
    "examples",
    "print_comparison",
    "print_examples",
    "print_json",
    "print_report",
    "print_verdict",
    "run_as_json",
    "sparkline",
    "sparklines",
    "terminal_table",
    "wrapped",
]

LONGEST_LINE = 300
"""Characters of a caption that a terminal is shown."""

_BLOCKS = "▁▂▃▄▅▆▇█"


def print_report(run: RunScores, analysis: Analysis, *, intervals: bool = False, training_images: str = "") -> None:
    """Print table, notes and analysis to stdout, in colour and bold only on a terminal.

    Args:
        run: the rows.
        analysis: of these.
        intervals: show confidence intervals.
        training_images: how many were used and left out; empty if all were used.
    """
    from captune.report import sentences

    _print_table(run, intervals=intervals)
    if training_images:
        _print_lines([f"Trained on {training_images}."])
    for item in sentences(run, analysis):
        _print_heading(item.topic)
        _print_wrapped([item.text])


def print_examples(run: RunScores, *, intervals: bool = False) -> None:
    """Print table, sparklines of a training, and the captions that improved and regressed most."""
    from captune.report import split_training_rows

    _print_table(run, intervals=intervals)
    if split_training_rows(run).is_training:
        _print_heading("Scores over training")
        _print_lines(f"  {line}" for line in sparklines(run))
    for heading, lines in examples(run):
        _print_heading(heading)
        _print_lines(f"  {line}" for line in lines)


def print_verdict(comparison: Comparison) -> None:
    """Print which of two runs is better, with the interval of the difference and its test."""
    from captune.report import comparison_headline

    verdict = comparison_headline(comparison)
    _print_lines(textwrap.wrap(verdict.title, _width(), break_on_hyphens=False))
    if verdict.detail:
        _print_wrapped([verdict.detail])


def print_comparison(comparison: Comparison, *, intervals: bool = False) -> None:
    """Print the table of runs, their tests and the images on which they differ most."""
    from captune.report import most_different_lines

    print()
    _print_table(comparison.table, intervals=intervals)
    (_print_pair if len(comparison.table.checkpoints) == 2 else _print_matrices)(comparison)
    _print_heading("Images on which the runs differ most (CIDEr)")
    width = _width()
    for line in most_different_lines(comparison):
        indent = "    " if line.startswith(" ") else "  "
        more = f"{indent}  "
        _print_lines(
            textwrap.wrap(line.strip(), width, initial_indent=indent, subsequent_indent=more, break_on_hyphens=False)
        )


def _width() -> int:
    """Columns of the terminal; a program reads lines of any length."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console.width if console.is_terminal or "COLUMNS" in os.environ else sys.maxsize


def _print_pair(comparison: Comparison) -> None:
    """Print the tests of two runs with a metric in each line."""
    from captune.report import pair_tests

    for heading, rows in pair_tests(comparison):
        _print_heading(heading)
        name_width = max(len(metric) for metric, _ in rows)
        _print_lines(f"  {metric:<{name_width}}  {difference}" for metric, difference in rows)
    rho = comparison.agreement[0, 1]
    print(f"\nRank correlation of CIDEr over the images: {rho:.2f}")


def _print_matrices(comparison: Comparison) -> None:
    """Print the tests of three or more runs as a table for each metric."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from captune.report import matrices

    names = [one_line(row.name) for row in comparison.table.checkpoints]
    for heading, rows in matrices(comparison):
        _print_heading(heading)
        matrix = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
        matrix.add_column("")
        for name in names:
            matrix.add_column(Text(name), justify="right", no_wrap=True)
        for name, cells in zip(names, rows, strict=True):
            matrix.add_row(Text(name), *map(Text, cells))
        _print_unclipped(matrix)


def run_as_json(run: RunScores, analysis: Analysis) -> dict[str, Any]:
    """Table and analysis as JSON values; null is not a number."""
    from captune.metrics import paragraph_warning
    from captune.report import sentences

    rows = [
        {
            "checkpoint": row.name,
            "epoch": row.epoch,
            "signature": row.signature,
            "leak": row.leak,
            **({"notes": list(row.notes)} if row.notes else {}),
            "corpus": {name: value if math.isfinite(value) else None for name, value in row.corpus.items()},
            **row.thinking_counts,
            **({} if row.error is None else {"error": row.error}),
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
        "warnings": [warning] if (warning := paragraph_warning(run.references, run.metrics)) else [],
    }


def print_json(tree: dict[str, Any], files: Iterable[Path]) -> None:
    """Print one JSON object on one line, with the files that were written."""
    text = json.dumps({**tree, "files": [str(file) for file in files]}, ensure_ascii=False, allow_nan=False)
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _print_table(run: RunScores, *, intervals: bool) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=sys.stdout)
    tables = [
        terminal_table(run, intervals=intervals, metrics_in_rows=metrics_in_rows) for metrics_in_rows in (False, True)
    ]
    wide, narrow = (Measurement.get(console, console.options.update(max_width=10_000), table) for table in tables)
    # A program reads the same columns at any width.
    has_width = console.is_terminal or "COLUMNS" in os.environ
    turned = has_width and wide.maximum > console.width >= narrow.maximum
    _print_unclipped(tables[turned])
    _print_lines(_notes(run, metrics_in_rows=turned))


def _print_unclipped(table: Any) -> None:
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

    width = Console(file=sys.stdout).width
    _print_lines(wrapped(line, width) for line in lines)


def _print_lines(lines: Iterable[str]) -> None:
    """Print lines as they are: rich would take square brackets for markup and numbers for colour."""
    for line in lines:
        print(line)


def terminal_table(run: RunScores, *, intervals: bool = False, metrics_in_rows: bool = False) -> Table:
    """The table as a rich renderable; the best value of a metric is bold and carries a star.

    Args:
        run: the rows.
        intervals: also show the confidence interval of every score that has one, in a line below it.
        metrics_in_rows: a row for each metric and a column for each checkpoint, which is narrow for few checkpoints.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from captune.report import cells, daggers, heading, leak_reasons, row_marks

    marks = leak_reasons(run)
    marks_width = len({rival for row in run.checkpoints for tests in row.p_values.values() for rival in tests})
    lines: list[list[Text]] = [[Text(), *(Text(one_line(heading(metric))) for metric in run.metrics)]]
    for row, line in zip(run.checkpoints, cells(run), strict=True):
        name = Text(one_line(row.name))
        for mark in row_marks(row, marks):
            name.append(f" {mark}", style="bold red")
        values = []
        for cell in line:
            # Marks have a fixed width, so that the decimal points of a column are aligned.
            value = Text(cell.value, style="bold" if cell.best else "")
            value.append(f"{'*' if cell.best else ' '}{daggers(cell):<{marks_width}}")
            if intervals and cell.interval:
                value.append(f"\n{cell.interval}{' ' * (1 + marks_width)}", style="not bold dim")
            values.append(value)
        lines.append([name, *values])
    if metrics_in_rows:
        lines = [list(column) for column in zip(*lines, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("metric" if metrics_in_rows else "checkpoint", no_wrap=True)
    for title in lines[0][1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for cells_of_row in lines[1:]:
        table.add_row(*cells_of_row)
    return table


def _notes(run: RunScores, *, metrics_in_rows: bool = False) -> list[str]:
    """The lines beneath the table: star, provenance, scale, marks, leaks, signature."""
    from captune.report import cells, notes, signatures

    lines = [one_line(note) for note in notes(run)]
    if any(cell.best for line in cells(run) for cell in line):
        lines.insert(0, "* best of its metric." if metrics_in_rows else "* best of its column.")
    return lines + [one_line(f"{label}: {text}" if text else f"{label}.") for label, text in signatures(run)]


def sparkline(values: Sequence[float | None]) -> str:
    """Values as a row of blocks, the lowest and the highest of them the smallest and the largest block.

    A value that is absent or not a number is a blank; equal values are all of the middle size.
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), max(finite) - min(finite)

    def block(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return " "
        return _BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span else len(_BLOCKS) // 2]

    return "".join(map(block, values))


def sparklines(run: RunScores) -> list[str]:
    """A line a metric: its name, its course over the training's rows, and its first and last score."""
    from captune.report import format_value, split_training_rows

    run = split_training_rows(run).run
    width = max(map(_cell_width, map(one_line, run.metrics)))
    lines = []
    for metric in run.metrics:
        values = run.values(metric)
        name = one_line(metric)
        ends = f"{format_value(values[0])} to {format_value(values[-1])}"
        lines.append(f"{name}{' ' * (width - _cell_width(name))}  {sparkline(values)}  {ends}")
    return lines


def examples(run: RunScores, count: int = 5) -> list[tuple[str, list[str]]]:
    """The images whose caption improved and regressed most from the first row of a training to the last.

    Without a training, the first two rows are compared.

    Args:
        run: rows with captions and scores per image.
        count: how many of each.

    Returns:
        A heading and its lines for "improved" and for "regressed"; nothing without scores per image. Images are
        compared by CIDEr, or by the first metric that is given for every image.
    """
    from captune.report import order_metrics, split_training_rows

    course = split_training_rows(run)
    rows = course.run.checkpoints if course.is_training else run.checkpoints[:2]  # as on the page
    first, last = rows[0], rows[-1]
    metrics = order_metrics(name for scores in last.per_image.values() for name in scores)
    metric = "CIDEr" if "CIDEr" in metrics else next(iter(metrics), "")
    changes = {
        image: scores[metric] - first.per_image[image][metric]
        for image, scores in last.per_image.items()
        if metric in scores and metric in first.per_image.get(image, {})
    }
    ranked = sorted((image for image in changes if math.isfinite(changes[image])), key=lambda image: changes[image])
    # A change that shows as 0.000 is none.
    groups = [
        (f"Most improved ({metric}, {first.name} to {last.name})", [i for i in ranked[::-1] if changes[i] >= 0.0005]),
        (f"Most regressed ({metric}, {first.name} to {last.name})", [i for i in ranked if changes[i] <= -0.0005]),
    ]
    sections = []
    for heading, images in groups:
        lines = []
        for image in images[:count]:
            lines.append(f"{image}  {changes[image]:+.3f}")
            lines += [f"  {row.name}: {row.captions.get(image, '')}" for row in (first, last)]
        if lines:
            sections.append((one_line(heading), [shorten(one_line(line), LONGEST_LINE) for line in lines]))
    return sections


def _cell_width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int) -> str:
    """A sentence on lines of at most `width` and 100 characters, two of them indentation.

    No line ends between a number and its "%" or inside a metric's name.
    """
    held = text.replace(" %", "\u00a0%")
    lines = textwrap.wrap(
        held,
        width=max(20, min(width, 100)),
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return "\n".join(lines).replace("\u00a0%", " %")
