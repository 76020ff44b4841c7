"""Events of long work, for listeners such as a progress bar, a log or a notebook, and their text.

An event is a plain dictionary; `event` names it, the other keys are its values:

    stage       what                                        work without a count began, such as "Loading the model"
    run         model, images, captions, step, steps, processes, device
    reused      folder, left_out                            a finished run was reused, which left out these images
    features    what, done, count                           images encoded
    quarantined images, reasons                             broken images that are left out
    leaks       done, count                                 image files compared by the leak guard
    captions    epoch, done, count                          images captioned
    progress    step, steps, epoch, captions_per_s, loss, ...      after every optimizer step
    step        the same, every `log_every` steps
    unpacked    reason                                      packed rows would change the gradient
    sharded     processes, held, total                      bytes of the language model here, and of all of it
    checkpoint  epoch, folder
    evaluation  epoch, scores, page, thinking, unclosed     `page` only if training refreshes one; the last two, counts
                                                            of captions, only if captions had thinking text
    cell        row, column, scores                         one cell of the robustness matrix
    cost        peak_memory, energy where it is known       bytes and joules so far, after an evaluation
    done        skipped_steps

`EventText` is the one source of what a person reads: a display passes every event to it, shows `progress` as a line or
a bar, and prints `messages`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from captune.common import duration

__all__ = ["Event", "EventText", "Listener", "Progress", "thinking_note"]

Event = dict[str, Any]
"""One thing that happened."""

Listener = Callable[[Event], None]
"""Called with every event."""


_WIDTH = 80
"""Columns of a line of scores; a log has no width."""


@dataclass(frozen=True)
class Progress:
    """A task that is running.

    Attributes:
        task: what is done, such as "Training, epoch 1".
        done: units that are done.
        count: units of the complete task; None where that is unknown.
        unit: "step" or "images".
        loss: of the last step.
        learning_rate: of the last step.
        rate: units of `rate_unit` a second; None before it is known.
        rate_unit: "captions" or "images".
        seconds_left: estimated time to the end; None before it is known.
        note: other facts, such as "12/40 shards".
    """

    task: str
    done: int = 0
    count: int | None = None
    unit: str = "images"
    loss: float | None = None
    learning_rate: float | None = None
    rate: float | None = None
    rate_unit: str = "images"
    seconds_left: float | None = None
    note: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether all units are done."""
        return self.count is not None and self.done >= self.count

    def figures(self, width: int | None = None) -> str:
        """Count, loss, rate and time left, such as `step 120/1,000, loss 2.345, 41 captions/s, 3:20 left`.

        Args:
            width: maximum number of characters; learning rate, note, rate and unit are left out, in this order, to fit.
        """
        counted = f"{self.done:,}" if self.count is None else f"{self.done:,}/{self.count:,}"
        if self.count is None and not self.done:
            counted = ""
        step = f"step {counted}" if self.unit == "step" else f"{counted} {self.unit}" if counted else ""
        loss = "" if self.loss is None else f"loss {self.loss:.3f}"
        lr = "" if self.learning_rate is None else f"lr {self.learning_rate:.1e}"
        rate = "" if self.rate is None else f"{self.rate:,.{0 if self.rate >= 10 else 1}f} {self.rate_unit}/s"
        left = "" if self.seconds_left is None else f"{duration(self.seconds_left)} left"
        for parts in (
            (step, self.note, loss, lr, rate, left),
            (step, self.note, loss, rate, left),
            (step, loss, rate, left),
            (step, loss, left),
            (counted, loss, left),
        ):
            text = ", ".join(part for part in parts if part)
            if width is None or len(text) <= width:
                break
        return text

    def text(self, width: int | None = None) -> str:
        """The task and its figures in one line, of at most `width` characters where they fit."""
        figures = self.figures(None if width is None else width - len(self.task) - 2)
        return f"{self.task}: {figures}" if figures else self.task


class EventText:
    """Turns events into text; keeps the start of the running task for rate and time left.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._task = ""
        self._began = (0.0, 0)

    def progress(self, event: Event) -> Progress | None:
        """The state of the task that an event is about; None for other events."""
        name = event["event"]
        if name == "stage":
            self._task = event["what"]
            return Progress(event["what"])
        if name == "features":
            return self._counted(f"Encoding {event['what']}", event)
        if name == "leaks":
            return self._counted("Searching for leaks", event)
        if name == "captions":
            return self._counted(f"Captioning, {event.get('what') or _checkpoint(event)}", event)
        if name != "progress":
            return None
        done, count = event["step"] + 1, event["steps"]
        steps_per_s = self._rate("training", done)
        return Progress(
            f"Training, epoch {event['epoch']}",
            done,
            count,
            "step",
            event["loss"],
            event["learning_rate"],
            event["captions_per_s"],
            "captions",
            None if not steps_per_s else (count - done) / steps_per_s,
        )

    def messages(self, event: Event) -> list[str]:
        """The lines that are printed for an event; none for progress."""
        name = event["event"]
        if name in _MESSAGES:
            return _MESSAGES[name](event)
        return []

    def _counted(self, task: str, event: Event) -> Progress:
        done, count = event["done"], event["count"]
        rate = self._rate(task, done)
        return Progress(
            task, done, count, rate=rate or None, seconds_left=None if not rate else max(0, count - done) / rate
        )

    def _rate(self, task: str, done: int) -> float:
        """Units a second since the first event of the task; 0 before two events."""
        now = self._clock()
        if self._task != task or done < self._began[1]:
            self._task, self._began = task, (now, done)
        since, before = self._began
        return (done - before) / (now - since) if now > since else 0.0


def _checkpoint(event: Event) -> str:
    if event.get("name") is not None:
        return str(event["name"])
    return "pretrained" if event["epoch"] is None else f"epoch{event['epoch']}"


def _scores(event: Event) -> str:
    return "  ".join(f"{metric} {value:.3f}" for metric, value in event["scores"].items())


def _score_lines(name: str, scores: Mapping[str, float]) -> list[str]:
    """The scores of a row in lines of at most 80 columns; BLEU of four orders is one of them."""
    bleu = [f"BLEU-{order}" for order in range(1, 5)]
    parts = [f"{metric} {value:.3f}" for metric, value in scores.items()]
    if all(metric in scores for metric in bleu):
        grouped = f"BLEU-1..4 {' '.join(f'{scores[metric]:.3f}' for metric in bleu)}"
        others = [part for part in parts if part.partition(" ")[0] not in bleu]
        parts = [grouped, *others] if next(iter(scores)) in bleu else [*others, grouped]
    lines = [f"{name:<11}"]
    for part in parts:
        if len(lines[-1]) + len(part) + 2 > _WIDTH and lines[-1].strip():
            lines.append(" " * 11)
        lines[-1] += f"  {part}" if len(lines[-1]) > 11 else f" {part}"
    return lines


def thinking_note(counts: Mapping[str, Any]) -> str:
    """How many captions had thinking text, such as "thinking texts removed: 12, of which 3 never end"; empty if none.

    Args:
        counts: has `CheckpointScores.thinking_counts`.
    """
    if not counts.get("thinking"):
        return ""
    endless = f", of which {counts['unclosed']:,} never end" if counts["unclosed"] else ""
    return f"thinking texts removed: {counts['thinking']:,}{endless}"


def _run(event: Event) -> list[str]:
    resumed = [f"Resuming after step {event['step']:,}."] if event["step"] else []
    processes = "1 process" if event["processes"] == 1 else f"{event['processes']} processes"
    nearest = ", the nearest numbers with the captions of an image in one step" if not event["exact"] else ""
    steps = "1 step" if event["steps_per_epoch"] == 1 else f"{event['steps_per_epoch']:,} steps"
    return [
        *resumed,
        f"Training {event['model']} on {event['images']:,} images: {event['captions']:,} captions an epoch, "
        f"{event['steps']:,} steps, {processes} on {event['device']}.",
        f"An epoch has {steps}, with {event['step_captions']} captions "
        f"(train.batch_size is {event['batch_size']}{nearest}).",
    ]


def _quarantined(event: Event) -> list[str]:
    count = len(event["images"])
    which = (
        "1 training image cannot be read and is" if count == 1 else f"{count} training images cannot be read and are"
    )
    return [f"{which} left out:", *(f"  {reason}" for reason in event["reasons"])]


def _reused(event: Event) -> list[str]:
    lines = [f"Reusing the finished run in {event['folder']}: same configuration, same data."]
    if left_out := event.get("left_out"):
        count = "1 training image was" if len(left_out) == 1 else f"{len(left_out):,} training images were"
        lines.append(f"{count} left out of it, such as '{left_out[0]}'; its quarantine.json has the reasons.")
    return lines


def _computation(event: Event) -> list[str]:
    tried = "; ".join(f"{way}: {difference}" for way, difference in event["differences"].items())
    line = (
        f"The loss is computed from {event['name']} (relative difference of the gradient from the model's own "
        f"forward: {tried or 'not compared'})."
    )
    return [line, *([event["store"]] if event["store"] else [])]


def _sharded(event: Event) -> list[str]:
    if event["processes"] == 1:
        return ["train.sharding is fsdp, and is ignored: there is one process, which holds all layers."]
    return [
        f"The language model's layers are sharded (train.sharding): each of {event['processes']} processes "
        f"holds {event['held'] / 1e9:.2f} of {event['total'] / 1e9:.2f} GB."
    ]


def _evaluation(event: Event) -> list[str]:
    lines = _score_lines(_checkpoint(event), event["scores"])
    if removed := thinking_note(event):
        lines.append(f"{_checkpoint(event):<11} {removed}")
    if event.get("page") and event["epoch"] is None:
        lines.append(f"Every image with every caption, refreshed after each epoch: {event['page']}")
    return lines


def _done(event: Event) -> list[str]:
    skipped = event["skipped_steps"]
    return [f"{skipped} steps were skipped: their loss was infinite or undefined."] if skipped else []


_MESSAGES: dict[str, Callable[[Event], list[str]]] = {
    "cell": lambda event: [f"{event['row']:<11} {event['column']:<16} {_scores(event)}"],
    "computation": _computation,
    "done": _done,
    "early_stop": lambda event: [f"Stopped early after epoch{event['epoch']}: {event['reason']}."],
    "evaluation": _evaluation,
    "extended": lambda event: [
        f"Continuing the run with {event['epochs']} epochs instead of {event['epochs_before']}: from step "
        f"{event['step']} on, the learning rate follows the schedule of {event['steps']} steps "
        f"({event['learning_rate']:.3g} instead of {event['learning_rate_before']:.3g} at this step)."
    ],
    "quarantined": _quarantined,
    "replaced": lambda event: [
        f"The previous content of {event['folder']} was moved to {event['moved_to']}; remove that folder when "
        "you do not need it."
    ],
    "reused": _reused,
    "run": _run,
    "sharded": _sharded,
    "unpacked": lambda event: [f"Training in a slower way than possible: {event['reason']}."],
}
