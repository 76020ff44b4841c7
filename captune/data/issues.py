"""Issues of a data set: collected over a complete file, listed with file and line, and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["KINDS", "NOTES", "Issue", "Issues", "plural", "printable"]

KINDS: Final = {
    "malformed": "malformed row",
    "conflict": "contradictory row",
    "encoding": "non-UTF-8 row",
    "path": "unsafe image name",
    "duplicate": "duplicate id",
    "empty": "empty caption",
    "missing": "missing image",
    "undecodable": "undecodable image",
    "split": "missing split",
    "leak": "leaked image",
    "repaired": "repaired row",
    "unused": "text that is not used",
    "quoted": "cell with quotation marks as in CSV",
    "small": "small image",
    "shared": "image under two ids",
    "repeated": "repeated caption",
    "long": "over-long caption",
    "truncated": "truncated target",
    "stopped": "caption with a stop symbol",
    "special": "caption with a special token",
}
"""Each kind of problem and what one of it is called."""

NOTES: Final = frozenset(
    {"repaired", "unused", "quoted", "small", "shared", "repeated", "long", "truncated", "stopped", "special"}
)
"""The kinds that are worth knowing and stop nothing."""

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Issue:
    """Something wrong at one position.

    Attributes:
        file: in which it occurs.
        line: its line, counted from 1; 0 where the format has no lines.
        kind: a key of `KINDS`.
        message: what is wrong, without the position.
        rows: captions, or rows that could not be read, which an import leaves out for it; notes leave out none.
    """

    file: str
    line: int
    kind: str
    message: str
    rows: int = 1

    def __str__(self) -> str:
        location = f"{self.file}:{self.line}" if self.line else self.file
        return printable(f"{location}: {self.message}")


class Issues:
    """Counts every problem and keeps the first ones, so that memory is bounded on a file of bad rows.

    Attributes:
        counts: how many there are of each kind.
        first: those that are listed.
        rows: captions and unread rows that were left out for all of them.

    Args:
        shown: how many are kept to be listed.
        on_issue: called with every problem, also with those that are not kept.
    """

    def __init__(self, shown: int = _SHOWN, on_issue: Callable[[Issue], None] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[Issue] = []
        self.rows = 0
        self._shown = shown
        self._on_problem = on_issue

    def add(self, problem: Issue) -> None:
        """Count a problem."""
        self.counts[problem.kind] += 1
        if problem.kind not in NOTES:
            self.rows += problem.rows
        if len(self.first) < self._shown:
            self.first.append(problem)
        if self._on_problem is not None:
            self._on_problem(problem)

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def fatal(self) -> int:
        """How many there are that are more than notes."""
        return sum(count for kind, count in self.counts.items() if kind not in NOTES)

    def in_words(self) -> str:
        """Numbers per kind: "2 missing images, 1 malformed row"."""
        return ", ".join(plural(self.counts[kind], name) for kind, name in KINDS.items() if self.counts[kind])

    def listing(self) -> str:
        """One line a problem, each with file and line, and a last line that counts those not shown."""
        lines = [f"  {problem}" for problem in self.first]
        if len(self) > len(self.first):
            lines.append(f"  ... and {len(self) - len(self.first)} more")
        return "\n".join(lines)


def plural(count: int, name: str) -> str:
    """A number and its noun: "1 image", "2,000 images", "2 images under two ids"."""
    noun, *rest = re.split("(?= under | with | that )", name, maxsplit=1)
    return f"{count:,} {noun}{'' if count == 1 else 's'}{''.join(rest)}"


def printable(text: str) -> str:
    """Text that a terminal can show: control characters, which could drive it, become U+FFFD, stray bytes `\\xe9`."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte of a file's name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else "\ufffd"
