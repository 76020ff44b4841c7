"""Making names, reasons and captions harmless where they are shown."""

from __future__ import annotations

__all__ = ["latex", "markdown", "one_line"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
}

_MARKDOWN = {
    **{mark: f"\\{mark}" for mark in r"\`*_[]|~#!"},
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
}


def one_line(text: str) -> str:
    """The text on one line, with control characters and direction marks spelt out.

    A name from a file could otherwise move the terminal's cursor, colour it or turn the line round.
    """
    return "".join(
        mark if mark.isprintable() else " " if mark in "\n\r\t" else mark.encode("unicode_escape").decode("ascii")
        for mark in text
    )


def latex(text: str) -> str:
    """The text for the body of a LaTeX document."""
    return "".join(_LATEX.get(mark, mark) for mark in one_line(text))


def markdown(text: str) -> str:
    """The text for a cell or a line of Markdown, with nothing in it that would be taken for markup."""
    return "".join(_MARKDOWN.get(mark, mark) for mark in one_line(text))
