"""Tables for a terminal, for Markdown and for LaTeX, from the same rows of text."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["latex_table", "markdown_table", "table", "text_table"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def table(form: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Lay out a table; the first column is text, the others are numbers.

    Args:
        form: "text", "markdown" or "latex".
        header: a name for each column.
        rows: cells, as many as the header has.
        notes: lines below the table.
    """
    return {"text": text_table, "markdown": markdown_table, "latex": latex_table}[form](header, rows, notes)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Columns two spaces apart, numbers flush right, no line longer than its text."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        shown.append("  ".join(cells).rstrip())
    return "\n".join([*shown, *([""] if notes else []), *notes])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table of GitHub's Markdown; notes are code, so that their signs stay."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    below = [f"`{note}`" for note in notes]
    return "\n".join([line(header), rule, *map(line, rows), *([""] if notes else []), *below])


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    r"""A `tabular` in the manner of booktabs; notes are comments, since a signature is for the appendix."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_escape, cells)) + r" \\"

    columns = "l" + "r" * (len(header) - 1)
    body = [r"\begin{tabular}{" + columns + "}", r"\toprule", line(header), r"\midrule", *map(line, rows)]
    return "\n".join([*[f"% {note}" for note in notes], *body, r"\bottomrule", r"\end{tabular}"])


def _escape(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda match: _LATEX[match[0]], text)
