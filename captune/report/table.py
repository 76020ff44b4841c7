"""Tables of scores: one row a checkpoint, one column a metric, as Markdown, LaTeX, CSV or single cells.

A table is also read from CSV, written here or elsewhere.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from captune.common import escape_latex, escape_markdown, latex_tabular
from captune.common import markdown_table as markdown_lines
from captune.data import CsvWriter, plain_cell
from captune.errors import InputError
from captune.parsing import first_repeated
from captune.report.columns import LOWER_IS_BETTER, column, format_value, heading, scale_sentence, shows_zero
from captune.report.files import read_text
from captune.report.learning_curve import SIGNIFICANT
from captune.report.scores_json import BASELINES, MAX_SCORE, CheckpointScores, RunScores

__all__ = [
    "SIGNIFICANT",
    "Cell",
    "cells",
    "csv_table",
    "daggers",
    "latex_table",
    "leak_reasons",
    "markdown_table",
    "notes",
    "provenance",
    "read_csv",
    "row_marks",
    "signatures",
]

DAGGERS = {"pretrained": "†", "previous": "‡"}
_BREAK = "\\allowbreak "
_ORIGIN = re.compile(r"\|(?:prompt|dec|exif|pixels|source):[^|]*")
"""Fields of a signature about how captions were made."""
NAME_COLUMN = "checkpoint"
LEAK_COLUMN = "leak"


@dataclass(frozen=True, slots=True)
class Cell:
    """One score, ready for any kind of table.

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
        None where no row is better than another: fewer than two scores, all shown alike, a highest one that is shown
        as 0, or a metric of unknown direction.
    """
    finite = run.finite(metric)
    direction = column(metric).direction
    if not direction or len({format_value(value) for value in finite}) < 2:
        return None
    best = max(finite) if direction > 0 else min(finite)
    return None if direction > 0 and shows_zero(best) else format_value(best)


def cells(run: RunScores) -> list[list[Cell]]:
    """All cells of the table, row by row in the order of `run.checkpoints` and `run.metrics`."""
    best = {metric: best_value(run, metric) for metric in run.metrics}
    return [[_cell(row, metric, best[metric]) for metric in run.metrics] for row in run.checkpoints]


def leak_reasons(run: RunScores) -> dict[str, str]:
    """Every reason for a mark -> the mark: LEAK, or LEAK 1, LEAK 2, ... when there are several."""
    reasons = list(dict.fromkeys(row.leak for row in run.checkpoints if row.leak))
    return {reason: "LEAK" if len(reasons) == 1 else f"LEAK {index}" for index, reason in enumerate(reasons, 1)}


def row_marks(row: CheckpointScores, leaks: Mapping[str, str]) -> list[str]:
    """What a table writes after the name of a row: its mark for a leak, and that it was not scored.

    Args:
        row: the row.
        leaks: from `leak_reasons`.
    """
    return [*([leaks[row.leak]] if row.leak else []), *(["not scored"] if row.error is not None else [])]


def notes(run: RunScores) -> list[str]:
    """Notes on the table, a sentence each: data, scale, marks and leaks."""
    lines = [f"Data: {provenance(run)}."]
    if scale := scale_sentence({metric: run.finite(metric) for metric in run.metrics}):
        lines.append(scale)
    if any(column(metric).direction < 0 for metric in run.metrics):
        lines.append(f"{LOWER_IS_BETTER} lower is better.")
    tested = {baseline for row in run.checkpoints for tests in row.p_values.values() for baseline in tests}
    # The first row is the pretrained model of a run, or the first of several models.
    names = {"pretrained": run.checkpoints[0].name, "previous": "the row above"}
    marks = [f"{DAGGERS[baseline]} differs from {names[baseline]}" for baseline in BASELINES if baseline in tested]
    if marks:
        condition = f"paired test over images, p < {SIGNIFICANT:g}, not corrected for the number of tests"
        lines.append(f"{', '.join(marks)} ({condition}).")
    if counted := [row for row in run.checkpoints if row.thinking]:
        lines.append(f"Thinking text was removed from captions: {', '.join(map(thinking_share, counted))}.")
    rows_of: dict[str, list[str]] = {}
    for row in run.checkpoints:
        for note in row.notes:
            rows_of.setdefault(note, []).append(row.name)
    lines += [f"{', '.join(names)}: {note}." for note, names in rows_of.items()]
    lines += [f"{row.name} was not scored: {row.error}" for row in run.checkpoints if row.error is not None]
    return lines + [f"{mark}: {reason}" for reason, mark in leak_reasons(run).items()]


def thinking_share(row: CheckpointScores) -> str:
    """Captions with thinking text in a row, such as "epoch1 12 of 200 (3 never end)"."""
    counts = row.thinking_counts
    endless = f" ({counts['unclosed']:,} never end)" if counts["unclosed"] else ""
    return f"{row.name} {counts['thinking']:,} of {len(row.captions):,}{endless}"


def signatures(run: RunScores) -> list[tuple[str, str]]:
    """The signatures to print below the table, each with its label.

    One when all rows agree, else each with its rows, since rows with different signatures must not be compared; models
    with different prompts, endpoints and files of captions may be.
    """
    run = run.scored
    distinct = dict.fromkeys(row.signature for row in run.checkpoints)
    if len(distinct) == 1:
        return [("Signature", signature) for signature in distinct if signature]
    without_prompt = {re.sub(r"\|prompt:\w+", "", signature) for signature in distinct}
    # Where captune generated no captions, it does not know all of their prompt, decoding and image processing.
    scoring = {_ORIGIN.sub("", signature) for signature in distinct}
    label = "Not comparable, signatures differ"
    if len(without_prompt) == 1:
        label = "Signatures differ in the prompt alone"
    elif len(scoring) == 1 and any("|source:" in signature for signature in distinct):
        label = "Scored alike; signatures differ in how the captions were made"
    rows_of = {
        signature: ", ".join(row.name for row in run.checkpoints if row.signature == signature)
        for signature in distinct
    }
    return [(label, ""), *((f"Signature of {names}", signature or "none") for signature, names in rows_of.items())]


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

    rows = [
        [escape_markdown(row.name) + "".join(f" **{mark}**" for mark in row_marks(row, marks)), *map(set_cell, line)]
        for row, line in zip(run.checkpoints, cells(run), strict=True)
    ]
    lines = markdown_lines(["checkpoint", *(escape_markdown(heading(metric)) for metric in run.metrics)], rows)
    below = [*notes(run), *(f"{label}: {text}".removesuffix(": ") for label, text in signatures(run))]
    return "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in below), ""])


def latex_table(run: RunScores, *, intervals: bool = False) -> str:
    """The table for a paper: booktabs, with notes and signature in the caption.

    Args:
        run: the rows.
        intervals: also set the confidence interval of every score that has one, in a line below it.
    """
    marks = leak_reasons(run)
    caption = " ".join(_latex_note(note) for note in notes(run))
    caption += "".join(
        f" {escape_latex(label)}{': ' + _latex_signature(text) if text else ''}." for label, text in signatures(run)
    )
    rows = []
    for row, line in zip(run.checkpoints, cells(run), strict=True):
        mark = "".join(f" (\\textbf{{{escape_latex(mark)}}})" for mark in row_marks(row, marks))
        rows.append([escape_latex(row.name) + mark, *map(_latex_cell, line)])
        if intervals and any(cell.interval for cell in line):
            small = (f"\\scriptsize {{{escape_latex(cell.interval)}}}" if cell.interval else "" for cell in line)
            rows.append(["", *small])
    lines = [
        "% Needs \\usepackage{booktabs}.",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        "  \\label{tab:captune}",
        *latex_tabular(["checkpoint", *(_latex_marks(heading(metric)) for metric in run.metrics)], rows, indent="  "),
        "\\end{table}",
    ]
    return "\n".join([*lines, ""])


def _cell(row: CheckpointScores, metric: str, best: str | None) -> Cell:
    """One score with its marks and interval."""
    value = row.corpus.get(metric)
    shown = format_value(value)
    tests = row.p_values.get(metric, {})
    bounds = row.intervals.get(metric)
    marked = value is not None and math.isfinite(value) and not shows_zero(value)
    return Cell(
        value=shown,
        best=shown == best,
        differs=tuple(baseline for baseline in BASELINES if marked and tests.get(baseline, 1.0) < SIGNIFICANT),
        interval=f"[{format_value(bounds[0])}, {format_value(bounds[1])}]" if bounds else "",
    )


def daggers(cell: Cell) -> str:
    """The marks of a cell's significant differences, such as "†‡"."""
    return "".join(DAGGERS[baseline] for baseline in cell.differs)


def _latex_cell(cell: Cell) -> str:
    value = f"\\textbf{{{escape_latex(cell.value)}}}" if cell.best else escape_latex(cell.value)
    signs = "".join({"†": "\\dagger", "‡": "\\ddagger"}[sign] for sign in daggers(cell))
    return f"{value}$^{{{signs}}}$" if signs else value


def _latex_note(note: str) -> str:
    """A note as a sentence of the caption."""
    text = _latex_marks(note)
    return text if text.endswith(".") else f"{text}."


def _latex_marks(text: str) -> str:
    """Escaped text with the marks of the table as symbols."""
    symbols = {"†": "$^{\\dagger}$", "‡": "$^{\\ddagger}$", LOWER_IS_BETTER: "$\\downarrow$"}
    return "".join(symbols.get(mark, mark) for mark in escape_latex(text))


def _latex_signature(signature: str) -> str:
    """A signature in typewriter type that may break after its bars."""
    bar = escape_latex("|")
    return f"\\texttt{{{escape_latex(signature).replace(bar, bar + _BREAK)}}}"


def csv_table(run: RunScores) -> str:
    """The table as CSV in full precision: `checkpoint,BLEU-1,...`, safe to open in a spreadsheet.

    There is a last column `leak` only when a row is marked. An absent score is an empty cell and one that
    is not a number reads `nan`.
    """
    leaked = any(row.leak for row in run.checkpoints)
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow([NAME_COLUMN, *run.metrics, *([LEAK_COLUMN] if leaked else [])])
    for row in run.checkpoints:
        scores = [repr(float(row.corpus[name])) if name in row.corpus else "" for name in run.metrics]
        writer.writerow([row.name, *scores, *([row.leak or ""] if leaked else [])])
    return text.getvalue()


def read_csv(path: str | Path) -> RunScores:
    """Read a table of corpus scores: a header `checkpoint,BLEU-1,...`, then one row a checkpoint.

    Comma, semicolon and tab are accepted as separators. Epochs are taken from names such as "epoch3".

    Args:
        path: the file.

    Returns:
        A run without captions, intervals or scores per image; its data has the name of the file.

    Raises:
        InputError: the file cannot be read, or a line of it is invalid.
    """
    path = Path(path)
    text = read_text(
        path,
        missing="give a run directory or a CSV table of scores",
        undecodable="save the table as UTF-8",
    )
    rows = _rows(text, path)
    if not rows:
        raise InputError(f"{path} is empty; expected a header '{NAME_COLUMN},BLEU-1,...' and one row a checkpoint.")
    (_, header), *body = rows
    header = [plain_cell(cell.strip()) for cell in header]
    metrics = [name for name in header[1:] if name != LEAK_COLUMN]
    if header[0].lower() != NAME_COLUMN or not all(metrics) or not metrics:
        raise InputError(f"{path}: the header is {','.join(header)[:80]!r}, expected '{NAME_COLUMN},BLEU-1,...'.")
    if len(set(header)) != len(header):
        raise InputError(f"{path}: the header has a column twice; names must be unique.")
    checkpoints = [_checkpoint(cells, header, f"{path}, line {line}") for line, cells in body]
    if not checkpoints:
        raise InputError(f"{path} has a header but no row; expected one row a checkpoint.")
    if (repeated := first_repeated(row.name for row in checkpoints)) is not None:
        raise InputError(f"{path} holds two rows called {repeated!r}; names must be unique.")
    return RunScores(data=path.stem, checkpoints=tuple(checkpoints))


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """All rows that are not blank, with the line each one ends on."""
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected CSV.") from None


def _checkpoint(cells: list[str], header: list[str], position: str) -> CheckpointScores:
    """One row of the table; `position` names it in messages."""
    if len(cells) != len(header):
        raise InputError(f"{position} has {len(cells)} cells, but the header has {len(header)}.")
    name = plain_cell(cells[0].strip())
    if not name:
        raise InputError(f"{position} has no name in its first cell.")
    corpus = {}
    leak = None
    for metric, cell in zip(header[1:], cells[1:], strict=True):
        if metric == LEAK_COLUMN:
            leak = plain_cell(cell.strip()) or None
        elif cell.strip():
            corpus[metric] = _score(cell.strip(), f"{position}: {metric}")
    if not corpus:
        raise InputError(f"{position} holds no score; expected at least one number.")
    epoch = re.fullmatch(r"epoch[ _-]?(\d{1,9})", name, re.IGNORECASE | re.ASCII)
    return CheckpointScores(name=name, corpus=corpus, epoch=int(epoch[1]) if epoch else None, leak=leak)


def _score(cell: str, position: str) -> float:
    """The number in a cell."""
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if abs(value) > MAX_SCORE:
        raise InputError(f"{position} is {cell[:40]!r}, expected a number such as 0.3175.")
    return value
