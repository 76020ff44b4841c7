"""The table for a terminal: readable without colour, in a pipe and on 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captune.common import shorten
from captune.report.columns import format_value, order_metrics
from captune.report.course import course_of
from captune.report.record import RunScores
from captune.report.table import cells, daggers, leak_reasons, notes, signatures
from captune.report.text import one_line

_BLOCKS = "▁▂▃▄▅▆▇█"

LONGEST_LINE = 300
"""Characters of a caption that a terminal is shown."""

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["examples", "sparkline", "sparklines", "table_notes", "terminal_table", "wrapped"]


def terminal_table(run: RunScores, *, intervals: bool = False) -> Table:
    """The table as a rich renderable; the best value of a column is bold and carries a star.

    Args:
        run: the rows.
        intervals: also show the confidence interval of every score that has one, in a line below it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    marks = leak_reasons(run)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("checkpoint", no_wrap=True)
    for metric in run.metrics:
        table.add_column(Text(one_line(metric)), justify="right", no_wrap=True)
    tests = len({rival for row in run.checkpoints for given in row.p_values.values() for rival in given})
    for row, line in zip(run.checkpoints, cells(run), strict=True):
        name = Text(one_line(row.name))
        if row.leak:
            name.append(f" {marks[row.leak]}", style="bold red")
        values = []
        for cell in line:
            # Marks have a width of their own, so that the decimal points of a column stay below each other.
            value = Text(cell.value, style="bold" if cell.best else "")
            value.append(f"{'*' if cell.best else ' '}{daggers(cell):<{tests}}")
            if intervals and cell.interval:
                value.append(f"\n{cell.interval}{' ' * (1 + tests)}", style="not bold dim")
            values.append(value)
        table.add_row(name, *values)
    return table


def table_notes(run: RunScores) -> list[str]:
    """The lines beneath the table: star, provenance, scale, marks, leaks, signature."""
    lines = [one_line(note) for note in notes(run)]
    if any(cell.best for line in cells(run) for cell in line):
        lines.insert(0, "* best of its column.")
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
    run = course_of(run).run
    width = max(map(cell_width, map(one_line, run.metrics)))
    lines = []
    for metric in run.metrics:
        values = run.values(metric)
        name = one_line(metric)
        ends = f"{format_value(values[0])} to {format_value(values[-1])}"
        lines.append(f"{name}{' ' * (width - cell_width(name))}  {sparkline(values)}  {ends}")
    return lines


def examples(run: RunScores, count: int = 5) -> list[tuple[str, list[str]]]:
    """The images whose caption improved and regressed most from the first row to the last.

    Args:
        run: rows with captions and scores per image.
        count: how many of each.

    Returns:
        A heading and its lines for "improved" and for "regressed"; nothing without scores per image. Images are
        compared by CIDEr, or by the first metric that is given for every image.
    """
    rows = course_of(run).run.checkpoints
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
    found = []
    for heading, images in groups:
        lines = []
        for image in images[:count]:
            lines.append(f"{image}  {changes[image]:+.3f}")
            lines += [f"  {row.name}: {row.captions.get(image, '')}" for row in (first, last)]
        if lines:
            found.append((one_line(heading), [shorten(one_line(line), LONGEST_LINE) for line in lines]))
    return found


def cell_width(text: str) -> int:
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
