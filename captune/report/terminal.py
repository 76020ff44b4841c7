"""The table for a terminal: readable without colour, in a pipe and on 80 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from captune.report.record import RunScores
from captune.report.table import cells, daggers, leak_reasons, notes, signatures
from captune.report.text import one_line

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["table_notes", "terminal_table", "wrapped"]


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
