"""Parts of messages: the text of an error, a shortened text, a list of names, the closest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "duration", "error_text", "first_line", "listed", "one_line", "shorten"]


def error_text(error: BaseException | str, limit: int = 300) -> str:
    """The text of an error on one line, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def first_line(error: BaseException) -> str:
    """The first line of an error's text without its full stop, or the error's type if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def duration(seconds: float) -> str:
    """Seconds as `1:13` or, from an hour on, `2:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shorten(text: str, limit: int, ending: str = "…") -> str:
    """The text, cut to `limit` characters with `ending` as the last of them if it is longer."""
    return text if len(text) <= limit else text[: limit - len(ending)] + ending


def listed(items: Iterable[str]) -> str:
    """Items as "a", "a and b" or "a, b and c"; an empty text for none."""
    names = list(items)
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, cutoff: float = 0.6) -> str:
    """A hint at the known name that is closest to an unknown one.

    Args:
        name: the unknown name.
        known: names that are accepted.
        otherwise: the hint if no known name is close.
        cutoff: similarity from which a name is close, 0 to 1.

    Returns:
        "did you mean 'NAME'?" or `otherwise`.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{close[0]}'?" if close else otherwise


def one_line(text: str) -> str:
    """The text on one line, with control characters and direction marks spelt out.

    A name from a file could otherwise move the terminal's cursor, colour it or reverse the line.
    """
    return "".join(
        mark if mark.isprintable() else " " if mark in "\n\r\t" else mark.encode("unicode_escape").decode("ascii")
        for mark in text
    )
