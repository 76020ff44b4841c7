"""Tables for notebooks, with every text escaped: captions and file names come from anywhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from captune.common.text import one_line

__all__ = ["escape_html", "html_table"]

_CELL = "padding:.15em .8em;white-space:nowrap"


def escape_html(text: str) -> str:
    """The text for HTML, also inside an attribute; control characters and direction marks are spelt out."""
    marks = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
    return "".join(marks.get(mark, mark) for mark in one_line(text))


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    best: Collection[tuple[int, int]] = (),
    titles: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """A table as HTML that follows the style and the dark mode of the notebook.

    Args:
        header: C names; the first column is aligned left, the others right.
        rows: of C texts each.
        best: (row, column) of the cells in bold.
        titles: texts that appear over a name of the header, for all or the first of them; "" is none.
        notes: lines in small print below the table.
    """
    titles = [*titles, *[""] * (len(header) - len(titles))]
    names = "".join(
        f"<th {_style(column)}{f' title={_quoted(title)}' if title else ''}>{escape_html(name)}</th>"
        for column, (name, title) in enumerate(zip(header, titles, strict=True))
    )
    body = ""
    for index, row in enumerate(rows):
        cells = [
            f"<b>{escape_html(text)}</b>" if (index, column) in best else escape_html(text)
            for column, text in enumerate(row)
        ]
        body += "<tr>" + "".join(f"<td {_style(column)}>{cell}</td>" for column, cell in enumerate(cells)) + "</tr>"
    small = "".join(f'<div style="font-size:85%;opacity:.75">{escape_html(note)}</div>' for note in notes)
    return (
        f'<div style="overflow-x:auto"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>{small}</div>'
    )


def _style(column: int) -> str:
    return f'style="{_CELL};text-align:{"right" if column else "left"}"'


def _quoted(text: str) -> str:
    return f'"{escape_html(text)}"'
