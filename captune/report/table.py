"""The slides' table: one row a checkpoint, one column a metric, as Markdown, LaTeX or single cells."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from captune.report.columns import column, format_value, scale_sentence, shows_zero
from captune.report.course import SIGNIFICANT
from captune.report.record import BASELINES, CheckpointScores, RunScores
from captune.report.text import latex, markdown

__all__ = [
    "SIGNIFICANT",
    "Cell",
    "cells",
    "daggers",
    "latex_table",
    "leak_reasons",
    "markdown_table",
    "notes",
    "provenance",
    "signatures",
]

DAGGERS = {"pretrained": "†", "previous": "‡"}
RIVAL_NAMES = {"previous": "the row above"}
_BREAK = "\\allowbreak "


@dataclass(frozen=True, slots=True)
class Cell:
    """One score, ready to be set in any kind of table.

    Attributes:
        value: the score with four decimals, `nan`, or a dash where there is none.
        best: whether it is the best of its column.
        differs: what it differs from significantly: any of "pretrained" and "previous".
        interval: "[low, high]", or empty when not given.
    """

    value: str
    best: bool = False
    differs: tuple[str, ...] = ()
    interval: str = ""


def best_value(run: RunScores, metric: str) -> str | None:
    """The best score of a column as it is shown, so that what looks equal is equally best.

    Returns:
        None where no row is better than another: fewer than two scores, all shown alike, none above 0 as shown, or a
        metric of which the report does not know whether higher is better.
    """
    finite = run.finite(metric)
    direction = column(metric).direction
    if not direction or len({format_value(value) for value in finite}) < 2:
        return None
    best = max(finite) if direction > 0 else min(finite)
    return None if shows_zero(best) else format_value(best)


def cells(run: RunScores) -> list[list[Cell]]:
    """All cells of the table, row by row in the order of `run.checkpoints` and `run.metrics`."""
    best = {metric: best_value(run, metric) for metric in run.metrics}
    return [[_cell(row, metric, best[metric]) for metric in run.metrics] for row in run.checkpoints]


def leak_reasons(run: RunScores) -> dict[str, str]:
    """Every reason for a mark -> the mark: LEAK, or LEAK 1, LEAK 2, ... when there are several."""
    reasons = list(dict.fromkeys(row.leak for row in run.checkpoints if row.leak))
    return {reason: "LEAK" if len(reasons) == 1 else f"LEAK {index}" for index, reason in enumerate(reasons, 1)}


def notes(run: RunScores) -> list[str]:
    """What must be read with the table, a sentence each: where it comes from, scale, marks and leaks."""
    lines = [f"Data: {provenance(run)}."]
    if scale := scale_sentence({metric: run.finite(metric) for metric in run.metrics}):
        lines.append(scale)
    tested = {rival for row in run.checkpoints for tests in row.p_values.values() for rival in tests}
    # The first row is the pretrained model of a run, or the first of several models.
    names = {"pretrained": run.checkpoints[0].name, **RIVAL_NAMES}
    marks = [f"{DAGGERS[rival]} differs from {names[rival]}" for rival in BASELINES if rival in tested]
    if marks:
        condition = f"paired test over images, p < {SIGNIFICANT:g}, not corrected for the number of tests"
        lines.append(f"{', '.join(marks)} ({condition}).")
    return lines + [f"{mark}: {reason}" for reason, mark in leak_reasons(run).items()]


def signatures(run: RunScores) -> list[tuple[str, str]]:
    """The signatures to print beneath the table, each with the words before it.

    One when all rows agree, else every row's, since rows with different signatures must not be compared; models that
    are asked in different words may.
    """
    given = dict.fromkeys(row.signature for row in run.checkpoints)
    if len(given) == 1:
        return [("Signature", signature) for signature in given if signature]
    without_prompt = {re.sub(r"\|prompt:\w+", "", signature) for signature in given}
    label = "Signatures differ in the prompt alone" if len(without_prompt) == 1 else "Not comparable, signatures differ"
    return [
        (label, ""),
        *((f"Signature of {row.name}", row.signature or "none") for row in run.checkpoints),
    ]


def provenance(run: RunScores) -> str:
    """Data, split, protocol and number of images in a few words."""
    parts = [run.data, run.split, f"protocol {run.protocol}" if run.protocol else ""]
    if run.images is not None:
        parts.append(f"{run.images:,} image{'' if run.images == 1 else 's'}")
    return ", ".join(part for part in parts if part)


def markdown_table(run: RunScores, *, intervals: bool = False) -> str:
    """The table and its notes as GitHub-flavoured Markdown; the best value of a column is bold.

    Args:
        run: the rows.
        intervals: also write the confidence interval of every score that has one.
    """
    marks = leak_reasons(run)

    def set_cell(cell: Cell) -> str:
        value = f"**{cell.value}**" if cell.best else cell.value
        return value + daggers(cell) + (f" {cell.interval}" if intervals and cell.interval else "")

    lines = [
        _pipe_row(["checkpoint", *(markdown(name) for name in run.metrics)]),
        _pipe_row(["---", *("---:" for _ in run.metrics)]),
    ]
    for row, line in zip(run.checkpoints, cells(run), strict=True):
        mark = f" **{marks[row.leak]}**" if row.leak else ""
        lines.append(_pipe_row([markdown(row.name) + mark, *(set_cell(cell) for cell in line)]))
    under = [markdown(note) for note in notes(run)]
    under += [f"{markdown(label)}: {markdown(signature)}".removesuffix(": ") for label, signature in signatures(run)]
    return "\n".join([*lines, "", *(f"- {note}" for note in under), ""])


def latex_table(run: RunScores, *, intervals: bool = False) -> str:
    """The table for a paper: booktabs, with notes and signature in the caption.

    Args:
        run: the rows.
        intervals: also set the confidence interval of every score that has one, in a line below it.
    """
    marks = leak_reasons(run)
    caption = " ".join(_latex_note(note) for note in notes(run))
    caption += "".join(
        f" {latex(label)}{': ' + _latex_signature(text) if text else ''}." for label, text in signatures(run)
    )
    lines = [
        "% Needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        "  \\label{tab:captune}",
        f"  \\begin{{tabular}}{{l{'r' * len(run.metrics)}}}",
        "    \\toprule",
        f"    {_latex_row(['checkpoint', *(latex(name) for name in run.metrics)])}",
        "    \\midrule",
    ]
    for row, line in zip(run.checkpoints, cells(run), strict=True):
        mark = f" (\\textbf{{{latex(marks[row.leak])}}})" if row.leak else ""
        lines.append(f"    {_latex_row([latex(row.name) + mark, *map(_latex_cell, line)])}")
        if intervals and any(cell.interval for cell in line):
            small = [f"\\scriptsize {{{latex(cell.interval)}}}" if cell.interval else "" for cell in line]
            lines.append(f"    {_latex_row(['', *small])}")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


def _cell(row: CheckpointScores, metric: str, best: str | None) -> Cell:
    """One score with everything that is known about it."""
    value = row.corpus.get(metric)
    shown = format_value(value)
    tests = row.p_values.get(metric, {})
    bounds = row.intervals.get(metric)
    marked = value is not None and math.isfinite(value) and not shows_zero(value)
    return Cell(
        value=shown,
        best=marked and shown == best,
        differs=tuple(rival for rival in BASELINES if marked and tests.get(rival, 1.0) < SIGNIFICANT),
        interval=f"[{format_value(bounds[0])}, {format_value(bounds[1])}]" if bounds else "",
    )


def daggers(cell: Cell) -> str:
    """The marks of a cell's significant differences, such as "†‡"."""
    return "".join(DAGGERS[rival] for rival in cell.differs)


def _latex_cell(cell: Cell) -> str:
    value = f"\\textbf{{{latex(cell.value)}}}" if cell.best else latex(cell.value)
    signs = "".join({"†": "\\dagger", "‡": "\\ddagger"}[sign] for sign in daggers(cell))
    return f"{value}$^{{{signs}}}$" if signs else value


def _latex_note(note: str) -> str:
    """A note as a sentence of the caption."""
    text = latex(note).replace("†", "$^{\\dagger}$").replace("‡", "$^{\\ddagger}$")
    return text if text.endswith(".") else f"{text}."


def _latex_signature(signature: str) -> str:
    """A signature in typewriter type that may break after its bars."""
    bar = latex("|")
    return f"\\texttt{{{latex(signature).replace(bar, bar + _BREAK)}}}"


def _latex_row(values: list[str]) -> str:
    return " & ".join(values) + " \\\\"


def _pipe_row(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"
