"""Progress on stderr: one line that changes on a terminal, a line at an interval in a log or pipe.

Both show the same facts, which `captune.events` puts into words. Nothing is printed under `--quiet`; the file of
`--log-file` receives the lines of a log.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from captune.cli.output import log_line, print_message, settings
from captune.common import duration
from captune.events import Event, EventText, Listener, Progress

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

    from captune.bulk import Progress as JobProgress

__all__ = [
    "HasShare",
    "Update",
    "caption_progress",
    "download_progress",
    "import_progress",
    "metric_progress",
    "show_progress",
    "working",
]

_SILENT_SECONDS = 2.0
"""Seconds that work without a count may take before a log says what it is."""
_REFRESH_SECONDS = 0.1
"""Seconds between two updates of an import, whose images may be thousands a second."""
_WIDEST_BAR = 24
_NARROWEST_BAR = 8


class HasShare(Protocol):
    """A source whose share that has been read is known."""

    @property
    def share(self) -> float:
        """From 0 to 1."""


class Update(Protocol):
    """Updates the progress of an import."""

    def __call__(self, done: int, count: int | None = None) -> None:
        """Set the number of images done, and of all images where that is known."""


@contextmanager
def show_progress() -> Iterator[Listener]:
    """Show events.

    Yields:
        The listener to pass to training or evaluation.
    """
    text = EventText(time.monotonic)
    with _display() as display:

        def listen(event: Event) -> None:
            if (progress := text.progress(event)) is not None:
                display.show(progress)
            for line in text.messages(event):
                display.say(line)

        yield listen


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that work without a count is being done while the block runs: imports, or a model that is loaded.

    Args:
        what: the work, such as "Loading torch and the model".
    """
    with _display() as display:
        display.show(Progress(what))
        yield


@contextmanager
def metric_progress() -> Iterator[Callable[[str], None]]:
    """Show which metric runs.

    Yields:
        the function to call with the name of a metric.
    """
    with ExitStack() as stack:
        display: _Display | None = None

        def show(name: str) -> None:
            # Only now: a display has a thread, and other metrics fork before.
            nonlocal display
            if display is None:
                display = stack.enter_context(_display())
            display.show(Progress(f"Computing {name}"))

        yield show


@contextmanager
def import_progress(title: str, source: HasShare) -> Iterator[Update]:
    """Show the images and the rate of an import.

    Args:
        title: of the task.
        source: knows how much of it is read.

    Yields:
        the function that updates the progress.
    """
    started = shown = time.monotonic()
    with _display() as display:

        def update(done: int, count: int | None = None) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < _REFRESH_SECONDS:
                return
            shown, seconds = now, now - started
            share = source.share if count is None else done / max(count, 1)
            # The count of images is estimated from the share of the file that is read.
            total = count if count is not None else round(done / share) if share > 0 else None
            left = None if not 0 < share <= 1 else seconds / share - seconds
            display.show(Progress(title, done, total, rate=done / seconds, seconds_left=left))

        yield update


@contextmanager
def caption_progress() -> Iterator[Callable[[JobProgress], None]]:
    """Show the progress of a captioning job.

    Yields:
        the listener of `captune.bulk.Progress`.
    """
    with _display() as display:

        def show(job: JobProgress) -> None:
            quarantine = f"{job.rejected:,} in quarantine, " if job.rejected else ""
            display.show(
                Progress(
                    "Captioning",
                    job.captioned + job.rejected,
                    job.images,
                    rate=job.images_per_s,
                    seconds_left=job.seconds_left,
                    note=f"{quarantine}{job.shards_done:,}/{job.shards:,} shards",
                )
            )

        yield show


@contextmanager
def download_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Show a download: a bar on a terminal, one line for each tenth (or 64 MiB) elsewhere.

    Yields:
        the function to call with the bytes done and the bytes of all, where that is known.
    """
    if _is_terminal():
        with _display() as display:
            started = time.monotonic()

            def show(done: int, total: int | None) -> None:
                seconds = max(time.monotonic() - started, 1e-6)
                left = None if total is None or not done else (total - done) * seconds / done
                count = None if total is None else round(total / 1e6)
                rate = done / seconds / 1e6
                display.show(Progress("Downloading", round(done / 1e6), count, "MB", None, None, rate, "MB", left))

            yield show
        return
    shown = -1

    def write(done: int, total: int | None) -> None:
        nonlocal shown
        step = done * 10 // total if total else done >> 26
        if step != shown:
            shown = step
            of_total = f" of {total / 1e6:,.0f} MB ({done / total:.0%})" if total else ""
            print_message(f"{done / 1e6:,.0f} MB{of_total}")

    yield write


def _is_terminal() -> bool:
    return sys.stderr.isatty()


class _Display(Protocol):
    """Shows the running task and prints lines."""

    def show(self, progress: Progress) -> None:
        """Show the state of the running task."""

    def say(self, line: str) -> None:
        """Print a line that remains."""


@contextmanager
def _display() -> Iterator[_Display]:
    """The display of this process: a changing line on a terminal, lines elsewhere."""
    if settings.quiet or not _is_terminal():
        log = _Lines()
        try:
            yield log
        finally:
            log.close()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, emoji=False)
    running = Running()
    with Live(
        running, console=console, transient=True, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False
    ) as live:
        log = _Lines(printed=False)
        try:
            yield _Screen(console, live, running, log)
        finally:
            log.close()


class _Lines:
    """Lines in a log: messages at once, progress at the interval of the settings.

    The first step of a training is printed at once, and the end of a task whose progress was printed. Work without a
    count is named once it takes longer than `_SILENT_SECONDS`, then at the interval with the time that it has taken.

    Args:
        printed: print on stderr; otherwise lines are for the file of `--log-file` only.
    """

    def __init__(self, *, printed: bool = True) -> None:
        self._write = print_message if printed else log_line
        self._last = time.monotonic()
        self._task = ""
        self._is_shown = False
        self._has_loss = False
        self._stage: threading.Event | None = None

    def show(self, progress: Progress) -> None:
        if progress.task != self._task and progress.count is None and not progress.done and progress.rate is None:
            self._announce(progress.task)
            return
        self.close()
        now = time.monotonic()
        due = now - self._last >= settings.progress_seconds
        first = progress.loss is not None and not self._has_loss
        self._has_loss |= first
        last = progress.is_finished and self._is_shown and progress.task == self._task
        if progress.task != self._task:
            self._task, self._is_shown = progress.task, False
        if due or first or last:
            self._last, self._is_shown = now, not last
            self._write(progress.text())

    def say(self, line: str) -> None:
        self.close()  # a result ends the work before it, whose name would follow the result
        self._write(line)

    def close(self) -> None:
        """Work without a count, if there is any, has ended."""
        if self._stage is not None:
            self._stage.set()
            self._stage = None

    def _announce(self, task: str) -> None:
        self.close()
        self._task, self._is_shown = task, False
        self._stage = ended = threading.Event()
        began = time.monotonic()

        def write() -> None:
            wait = min(_SILENT_SECONDS, settings.progress_seconds or _SILENT_SECONDS)
            text = f"{task} ..."
            while not ended.wait(wait):
                self._write(text)
                wait = max(settings.progress_seconds, _SILENT_SECONDS)
                text = f"{task} ... {duration(time.monotonic() - began + wait)}"

        threading.Thread(target=write, daemon=True).start()


class Running:
    """The running task as a rich renderable that fits the width: a bar with figures, or a spinner."""

    def __init__(self) -> None:
        from rich.spinner import Spinner

        self.progress: Progress | None = None
        self._spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line, or several where the text does not fit; nothing before the first task."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self.progress
        if progress is None:
            return
        if progress.count is None:
            self._spinner.update(text=Text(progress.text()))
            yield self._spinner
            return
        # One column remains free: some terminals wrap a line that ends in the last one.
        width = options.max_width - len(progress.task) - 3
        figures = progress.figures(width - _NARROWEST_BAR)
        bar_width = min(_WIDEST_BAR, width - len(figures))
        row = Table.grid(padding=(0, 1))
        cells: list[Text | ProgressBar] = [Text(progress.task, no_wrap=True), Text(figures)]
        if bar_width >= _NARROWEST_BAR:
            cells.insert(1, ProgressBar(total=max(progress.count, 1), completed=progress.done, width=bar_width))
        row.add_row(*cells)
        yield row


class _Screen:
    """A terminal: one changing line, and messages above it."""

    def __init__(self, console: Console, live: Live, running: Running, log: _Lines) -> None:
        self._console, self._live, self._running, self._log = console, live, running, log

    def show(self, progress: Progress) -> None:
        self._running.progress = progress
        self._log.show(progress)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)
        self._log.close()
        log_line(line)
