"""Progress of long work: a display that changes in place in a notebook, lines of text elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from captune.common import escape_html
from captune.events import Event, EventText, Listener, Progress

__all__ = ["in_notebook", "show_progress"]

_NOTEBOOK_SECONDS = 0.5
"""Seconds between two updates of a notebook."""
_LINE_SECONDS = 30.0
"""Seconds between two lines of progress where there is no notebook."""


@contextmanager
def show_progress(progress: bool | Listener | None) -> Iterator[Listener]:
    """Show the events of training or evaluation.

    Args:
        progress: whether to show them, or a function to call with each instead; None is True.

    Yields:
        The listener to pass to training or evaluation.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield lambda _event: None
    elif in_notebook():
        display = _NotebookDisplay()
        try:
            yield display
        finally:
            display.finish()
    else:
        yield _Lines()


def in_notebook() -> bool:
    """Whether this program runs in the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class _Lines:
    """Prints messages at once and progress every half minute, on stderr."""

    def __init__(self) -> None:
        self._text = EventText()
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        progress = self._text.progress(event)
        lines = self._text.messages(event)
        if progress is not None and time.monotonic() - self._last >= _LINE_SECONDS:
            lines = [progress.text(), *lines]
            self._last = time.monotonic()
        for line in lines:
            print(line, file=sys.stderr, flush=True)


class _NotebookDisplay:
    """One output of a cell: the messages so far, and a bar with the figures of the running task."""

    def __init__(self) -> None:
        from IPython.display import display

        self._text = EventText()
        self._view = _View()
        self._last = 0.0
        self._handle: Any = display(self._view, display_id=True)
        self._warnings = _Warnings(self._say)
        logging.getLogger("captune").addHandler(self._warnings)

    def __call__(self, event: Event) -> None:
        lines = self._text.messages(event)
        progress = self._text.progress(event)
        self._view.lines += lines
        changed = progress is not None and (self._view.progress is None or progress.task != self._view.progress.task)
        if progress is not None:
            self._view.progress = progress
        if lines or changed or time.monotonic() - self._last >= _NOTEBOOK_SECONDS:
            self._last = time.monotonic()
            self._handle.update(self._view)

    def _say(self, line: str) -> None:
        self._view.lines.append(line)
        self._handle.update(self._view)

    def finish(self) -> None:
        """Show the messages without a bar."""
        logging.getLogger("captune").removeHandler(self._warnings)
        self._view.progress = None
        self._handle.update(self._view)


class _Warnings(logging.Handler):
    """Passes captune's warnings to a function; without a handler Python prints them apart from the display."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the message of a record, beginning with a capital letter."""
        message = record.getMessage()
        self._say(message[:1].upper() + message[1:])


class _View:
    """What the cell shows."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: Progress | None = None

    def __repr__(self) -> str:
        return "\n".join([*self.lines, *([] if self.progress is None else [self.progress.text()])])

    def _repr_html_(self) -> str:
        lines = "".join(f'<div style="white-space:pre-wrap">{escape_html(line)}</div>' for line in self.lines)
        progress = self.progress
        if progress is None:
            return lines
        size = f'max="{progress.count}" value="{progress.done}"' if progress.count else ""
        figures = escape_html(progress.figures())
        return (
            f'{lines}<div>{escape_html(progress.task)} <progress {size} style="vertical-align:middle"></progress> '
            f"{figures}</div>"
        )
