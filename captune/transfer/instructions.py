"""Lists of instructions to see how much a model's captions depend on the words it is asked with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from captune.data.readers import SourceFile, text_lines
from captune.errors import DataError

__all__ = ["SHIPPED", "read_instructions"]

SHIPPED = ("en", "zh")
"""Lists that come with captune: English, Chinese."""


def read_instructions(source: str) -> list[str]:
    """Read a list of instructions, one a line; lines that begin with # are notes.

    Args:
        source: a name out of `SHIPPED`, or a file.

    Raises:
        DataError: there is no such file, it is no UTF-8 text, holds no instruction, or one twice.
    """
    if source in SHIPPED:
        lines = (files("captune.transfer") / "prompts" / f"{source}.txt").read_text(encoding="utf-8").splitlines()
    elif not Path(source).exists():
        raise DataError(f"there is no list of instructions '{source}'; give {' or '.join(SHIPPED)}, or a text file.")
    else:
        lines = list(text_lines(SourceFile(source)))
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise DataError(f"the list of instructions '{source}' is empty; write one a line.")
    if twice := next((line for line in found if found.count(line) > 1), None):
        raise DataError(f"the list of instructions '{source}' holds {twice!r} twice.")
    return found
