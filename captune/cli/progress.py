"""Progress on stderr: bars on a terminal, lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from captune.events import Event, Listener

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

__all__ = ["HasShare", "Update", "caption_progress", "download_progress", "import_progress", "show_progress"]

_EVERY = 30.0
"""Seconds between two lines of `caption_progress` where there is no terminal."""


class HasShare(Protocol):
    """A source whose share that has been read is known."""

    @property
    def share(self) -> float:
        """From 0 to 1."""


class Update(Protocol):
    """Updates the bar of an import."""

    def __call__(self, done: int, count: int | None = None) -> None:
        """Set the number of images done, and of all images where that is known."""


@contextmanager
def show_progress() -> Iterator[Listener]:
    """Show events: a progress bar on a terminal, one line an event anywhere else.

    Yields:
        The listener to pass to training or evaluation.
    """
    from rich.console import Console
    from rich.progress import TextColumn

    console = Console(stderr=True, highlight=False)
    with _bars(
        console, TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[figures]}"), width=24
    ) as bars:
        yield _Display(console, bars)


@contextmanager
def import_progress(title: str, source: HasShare) -> Iterator[Update | None]:
    """Show a bar with images and rate on a terminal, and nothing anywhere else.

    Args:
        title: of the bar.
        source: knows how much of it is read.

    Yields:
        the function that updates the bar; None where there is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import TextColumn

    figures = "{task.percentage:>3.0f} %  {task.fields[images]:,} images, {task.fields[rate]:,.0f}/s"
    started = time.monotonic()
    with _bars(Console(stderr=True), TextColumn(figures)) as bars:
        task = bars.add_task(escape(title), total=1.0, images=0, rate=0.0)

        def update(done: int, count: int | None = None) -> None:
            rate = done / max(time.monotonic() - started, 1e-6)
            bars.update(task, completed=source.share if count is None else done / count, images=done, rate=rate)

        yield update


@contextmanager
def caption_progress() -> Iterator[Callable[[object], None]]:
    """Show the progress of a captioning job: one line that changes on a terminal, one every half minute elsewhere.

    Yields:
        the listener of `captune.bulk.Progress`, which is shown as its text.
    """
    if not sys.stderr.isatty():
        shown = time.monotonic()

        def write(progress: object) -> None:
            nonlocal shown
            if time.monotonic() - shown >= _EVERY:
                shown = time.monotonic()
                print(progress, file=sys.stderr, flush=True)

        yield write
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, TextColumn

    with Progress(TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda progress: bars.update(task, description=escape(str(progress)))


@contextmanager
def download_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Show a download: a bar on a terminal, one line for each tenth (or 64 MiB) elsewhere.

    Yields:
        the function to call with the bytes done and the bytes of all, where that is known.
    """
    if not sys.stderr.isatty():
        shown = -1

        def write(done: int, total: int | None) -> None:
            nonlocal shown
            step = done * 10 // total if total else done >> 26
            if step != shown:
                shown = step
                of_total = f" of {total / 1e6:,.0f} MB ({done / total:.0%})" if total else ""
                print(f"{done / 1e6:,.0f} MB{of_total}", file=sys.stderr, flush=True)

        yield write
        return
    from rich.console import Console
    from rich.progress import DownloadColumn

    with _bars(Console(stderr=True), DownloadColumn()) as bars:
        task = bars.add_task("Downloading", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _bars(console: Console, *figures: ProgressColumn, width: int = 40) -> Progress:
    """Bars with some figures, the elapsed time and the time left; shown on a terminal only, and removed at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        *figures,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Display:
    """Keeps one bar for the running task and writes a line for each finished one."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars
        self._running: tuple[str, TaskID] | None = None

    def __call__(self, event: Event) -> None:
        name = event["event"]
        if name == "features":
            self._advance(f"Encoding {event['what']}", event["done"], event["count"])
        elif name == "leaks":
            self._advance("Searching for leaks", event["done"], event["count"])
        elif name == "captions":
            self._advance(f"Captioning, {event.get('what') or _checkpoint(event)}", event["done"], event["count"])
        elif name == "cell":
            scores = "  ".join(f"{metric} {value:.3f}" for metric, value in event["scores"].items())
            self._say(f"{event['row']:<11} {event['column']:<16} {scores}")
        elif name == "progress":
            figures = (
                f"loss {event['loss']:.3f}  lr {event['learning_rate']:.1e}  {event['captions_per_s']:.0f} captions/s"
            )
            self._advance(f"Training, epoch {event['epoch']}", event["step"] + 1, event["steps"], figures)
        elif name == "run":
            if event["step"]:
                self._say(f"Resuming after step {event['step']:,}.")
            self._say(
                f"Training {event['model']} on {event['images']:,} images: {event['captions']:,} captions an epoch, "
                f"{event['steps']:,} steps, {event['processes']} process(es) on {event['device']}."
            )
            nearest = ", the nearest numbers with the captions of an image in one step" if not event["exact"] else ""
            self._say(
                f"An epoch has {event['steps_per_epoch']:,} step(s), with {event['step_captions']} captions "
                f"(train.batch_size is {event['batch_size']}{nearest})."
            )
        elif name == "quarantined":
            self._say(f"{len(event['images'])} training image(s) cannot be read and are left out:")
            for reason in event["reasons"]:
                self._say(f"  {reason}")
        elif name == "computation":
            tried = "; ".join(f"{way}: {difference}" for way, difference in event["differences"].items())
            self._say(
                f"The loss is computed from {event['name']} (relative difference of the gradient from the model's own "
                f"forward: {tried or 'not compared'})."
            )
            if event["store"]:
                self._say(event["store"])
        elif name == "unpacked":
            self._say(f"Training in a slower way than possible: {event['reason']}.")
        elif name == "sharded" and event["processes"] == 1:
            self._say("train.sharding is fsdp, and is ignored: there is one process, which holds all layers.")
        elif name == "sharded":
            self._say(
                f"The language model's layers are sharded (train.sharding): each of {event['processes']} processes "
                f"holds {event['held'] / 1e9:.2f} of {event['total'] / 1e9:.2f} GB."
            )
        elif name == "evaluation":
            scores = "  ".join(f"{metric} {value:.3f}" for metric, value in event["scores"].items())
            self._say(f"{_checkpoint(event):<11} {scores}")
            if event.get("page") and event["epoch"] is None:
                self._say(f"Every image with every caption, refreshed after each epoch: {event['page']}")
        elif name == "replaced":
            self._say(
                f"The previous content of {event['folder']} was moved to {event['moved_to']}; remove that folder when "
                "you do not need it."
            )
        elif name == "reused":
            self._say(f"Reusing the finished run in {event['folder']}: same configuration, same data.")
        elif name == "done" and event["skipped_steps"]:
            self._say(f"{event['skipped_steps']} steps were skipped: their loss was infinite or undefined.")

    def _advance(self, what: str, done: int, count: int, figures: str = "") -> None:
        if self._running is None or self._running[0] != what:
            if self._running is not None:
                self._bars.remove_task(self._running[1])
            self._running = (what, self._bars.add_task(what, total=count, figures=figures))
        self._bars.update(self._running[1], completed=done, total=count, figures=figures)

    def _say(self, line: str) -> None:
        if self._console.is_terminal:
            self._console.print(line)
        else:
            # A pipe or a log file gets the line as it is, not wrapped at 80 columns.
            print(line, file=sys.stderr, flush=True)


def _checkpoint(event: Event) -> str:
    if "name" in event:
        return str(event["name"])
    return "pretrained" if event["epoch"] is None else f"epoch{event['epoch']}"
