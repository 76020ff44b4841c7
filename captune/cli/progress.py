"""Events as a person sees them: a progress bar on a terminal, one line an event anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from captune.events import Event, Listener

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["show_progress"]


@contextmanager
def show_progress() -> Iterator[Listener]:
    """Show events on stderr while the block runs.

    Yields:
        The listener to give to training or evaluation.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Display(console, bars)


class _Display:
    """Keeps one bar for what is going on and writes a line for what is over."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars
        self._running: tuple[str, TaskID] | None = None

    def __call__(self, event: Event) -> None:
        name = event["event"]
        if name == "features":
            self._advance(f"Encoding {event['what']}", event["done"], event["count"])
        elif name == "leaks":
            self._advance("Looking for leaks", event["done"], event["count"])
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
                self._say(f"Going on after step {event['step']:,}.")
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
        elif name == "unpacked":
            self._say(f"Training with one row a caption, which is slower: {event['reason']}.")
        elif name == "sharded" and event["processes"] == 1:
            self._say("train.shard is layers, and is ignored: there is one process, which holds all layers.")
        elif name == "sharded":
            self._say(
                f"The language model's layers are divided, as train.shard says: each of {event['processes']} processes "
                f"holds {event['held'] / 1e9:.2f} of {event['whole'] / 1e9:.2f} GB."
            )
        elif name == "evaluation":
            scores = "  ".join(f"{metric} {value:.3f}" for metric, value in event["scores"].items())
            self._say(f"{_checkpoint(event):<11} {scores}")
            if event.get("page") and event["epoch"] is None:
                self._say(f"Every image with every caption, refreshed after each epoch: {event['page']}")
        elif name == "replaced":
            self._say(
                f"What was in {event['folder']} was moved to {event['moved_to']}; remove that folder when you do not "
                "need it anymore."
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
