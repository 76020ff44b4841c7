"""Tables for a terminal, for Markdown and for LaTeX from the same rows of text, and the escapes of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from captune.common.text import one_line

__all__ = [
    "escape_latex",
    "escape_markdown",
    "escape_pipes",
    "latex_tabular",
    "markdown_table",
    "table",
    "text_table",
]

_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    **{mark: f"\\{mark}" for mark in "{}$&#%_"},
}
_MARKDOWN = {
    **{mark: f"\\{mark}" for mark in r"\`*_[]|~#!"},
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
}

Rows = Sequence[Sequence[str]]


def escape_latex(text: str) -> str:
    """The text on one line for the body of a LaTeX document."""
    return "".join(_LATEX.get(mark, mark) for mark in one_line(text))


def escape_markdown(text: str) -> str:
    """The text on one line of Markdown, without anything that would be read as markup."""
    return "".join(_MARKDOWN.get(mark, mark) for mark in one_line(text))


def escape_pipes(row: Iterable[str]) -> list[str]:
    """Cells of a Markdown table whose other markup is kept."""
    return [cell.replace("|", r"\|") for cell in row]


def table(form: str, header: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """Lay out a table; the first column is text, the others are numbers.

    Args:
        form: "text"; "markdown", with the notes as code, so that their signs stay; or "latex", a `tabular` of the
            package booktabs with the notes as comments.
        header: a name for each column.
        rows: cells, as many as the header has.
        notes: lines below the table, in LaTeX above it.
    """
    blank = [""] if notes else []
    if form == "latex":
        lines = latex_tabular(map(escape_latex, header), [list(map(escape_latex, row)) for row in rows])
        return "\n".join([*(f"% {note}" for note in notes), *lines])
    if form == "markdown":
        rule = "|---|" + "---:|" * (len(header) - 1)
        lines = markdown_table(escape_pipes(header), list(map(escape_pipes, rows)), rule)
        return "\n".join([*lines, *blank, *(f"`{note}`" for note in notes)])
    return "\n".join([text_table(header, rows), *blank, *notes])


def text_table(header: Sequence[str], rows: Rows, *, numbers: bool = True) -> str:
    """Columns two spaces apart, no line longer than its text.

    Args:
        header: a name for each column.
        rows: cells, as many as the header has.
        numbers: align all columns but the first to the right.
    """
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [
            cell.rjust(width) if numbers and index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def markdown_table(header: Sequence[str], rows: Rows, rule: str = "") -> list[str]:
    """Lines of a table of GitHub's Markdown; cells are escaped already.

    Args:
        header: a name for each column.
        rows: cells, as many as the header has.
        rule: the line below the header; by default it aligns all columns but the first to the right.
    """
    rule = rule or f"| --- |{' ---: |' * (len(header) - 1)}"
    return [_pipe_row(header), rule, *map(_pipe_row, rows)]


def latex_tabular(header: Iterable[str], rows: Rows, indent: str = "") -> list[str]:
    """Lines of a `tabular` of the package booktabs; cells are escaped already."""
    head = list(header)
    body = ["\\toprule", _latex_row(head), "\\midrule", *map(_latex_row, rows), "\\bottomrule"]
    inner = indent and indent * 2
    begin = f"{indent}\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return [begin, *(inner + line for line in body), f"{indent}\\end{{tabular}}"]


def _pipe_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"
