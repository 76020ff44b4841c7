"""Show how a table will be read, and let the user confirm it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from captune.cli.output import print_message

if TYPE_CHECKING:
    from captune.data.importers import Columns, TableGuess

__all__ = ["confirm_columns", "describe_guess", "is_interactive", "require_header"]

_SHOWN_ROWS = 3
_SHOWN_WIDTH = 44


def is_interactive() -> bool:
    """Whether questions can be answered: standard input and stderr are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm_columns(
    guess: TableGuess,
    source: Path,
    columns: Columns,
    command: Sequence[str],
    *,
    guessed: str = "columns",
    yes: bool,
) -> Columns:
    """Show the guessed columns on stderr and return them once they are confirmed.

    Args:
        guess: the layout of the table.
        source: the table.
        columns: as they will be read.
        command: arguments of `captune` that read it like this, without the options of columns.
        guessed: what is guessed, in the plural or as "encoding".
        yes: whether the user accepts any guess.

    Raises:
        DataError: not confirmed, or there is no terminal; names the command to run.
    """
    from captune.errors import DataError

    verb, them = ("is", "it") if guessed == "encoding" else ("are", "them")
    shown = "\n".join([f"The {guessed} of {source} {verb} guessed:", *describe_guess(guess, columns)])
    if yes:
        print_message(shown)
        if guess.encoding is not None:
            # Also under --quiet, since a wrong encoding stores wrong letters, and nothing fails.
            typer.echo(
                f"captune: warning: the encoding of {source} is guessed ({guess.encoding}) and not confirmed; compare "
                f"its letters with the original, such as {_example(guess, columns)}; --encoding sets another one.",
                err=True,
            )
        return columns
    typer.echo(shown, err=True)
    exact = shlex.join(["captune", *command, *columns.options()])
    if not is_interactive():
        raise DataError(
            f"the {guessed} of '{source}' {verb} guessed; pass --yes to accept {them}, or name {them}: {exact}"
        )
    if not typer.confirm("Read it like this?", default=True, err=True):
        raise DataError(f"nothing is written; name the {guessed}, as in: {exact}")
    return columns


def require_header(guess: TableGuess, source: Path) -> None:
    """Refuse a table whose first line is a row.

    Raises:
        DataError: says what to write before it.
    """
    from captune.errors import DataError

    if not guess.has_header:
        raise DataError(
            f"the first line of '{source}' is a row; put a line with the names of the columns before it, such as "
            "image,caption."
        )


def describe_guess(guess: TableGuess, columns: Columns) -> list[str]:
    """Lines with the columns, how the text was understood, and three rows.

    If the encoding is guessed, the rows have characters beyond ASCII, which show whether it is right.
    """
    from captune.common import text_table
    from captune.data import printable

    names = [columns.image, *columns.captions, *([] if columns.split is None else [columns.split])]
    lines = [f"  image     {_quoted([columns.image])}", f"  caption   {_quoted(columns.captions)}"]
    if columns.split is not None:
        lines.append(f"  split     {_quoted([columns.split])}")
    unused = [name for name in guess.names if name not in names]
    if unused:
        lines.append(f"  not read  {_quoted(unused)}")
    lines += [f"  note      {printable(note)}" for note in guess.notes]
    at = [guess.names.index(name) for name in names if name in guess.names]
    rows = [[_cell(row[index]) for index in at] for row in _shown_rows(guess, at)]
    table = text_table([_cell(guess.names[index]) for index in at], rows, numbers=False)
    return [*lines, *(f"      {line}" for line in table.splitlines())]


def _shown_rows(guess: TableGuess, at: Sequence[int]) -> list[list[Any]]:
    """The first rows; where the encoding is guessed, the first ones with characters beyond ASCII."""
    if guess.encoding is None:
        return guess.rows[:_SHOWN_ROWS]
    rows: dict[tuple[str, ...], list[Any]] = {}
    for row in guess.rows:
        texts = tuple(str(row[index]) for index in at)
        if not all(text.isascii() for text in texts):
            rows.setdefault(texts[1:], row)  # one row for several images with the same caption
    return (list(rows.values()) or guess.rows)[:_SHOWN_ROWS]


def _example(guess: TableGuess, columns: Columns) -> str:
    """The first caption with characters beyond ASCII, in quotation marks."""
    at = [guess.names.index(name) for name in columns.captions if name in guess.names]
    row = _shown_rows(guess, at)[:1]
    texts = [_cell(cells[index]) for cells in row for index in at]
    return f"'{next((text for text in texts if not text.isascii()), ''.join(texts[:1]))}'"


def _quoted(names: Sequence[str]) -> str:
    from captune.data import printable

    shown = ", ".join(f"'{printable(name)}'" for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _cell(value: Any) -> str:
    """A cell in few characters."""
    from captune.common import one_line, shorten

    if isinstance(value, dict):
        value = value.get("path") or "an image"
    if isinstance(value, bytes):
        value = "an image"
    return shorten(one_line("" if value is None else str(value)), _SHOWN_WIDTH)
