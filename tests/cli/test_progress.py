"""Progress in a log and on a terminal: the same facts, at an interval, in 80 columns."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from captune.cli import progress as displays
from captune.cli.output import OutputSettings
from captune.cli.progress import Running, show_progress, working
from captune.events import Event, EventText, Progress


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def step(number: int, **figures: object) -> Event:
    usual = {"epoch": number // 50, "steps": 150, "loss": 2.3456, "learning_rate": 1e-5, "captions_per_s": 41.2}
    return {"event": "progress", "step": number, **usual, **figures}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(displays.time, "monotonic", clock)
    return clock


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> OutputSettings:
    settings = OutputSettings()
    monkeypatch.setattr("captune.cli.output.settings", settings)
    monkeypatch.setattr(displays, "settings", settings)
    return settings


def test_a_step_has_loss_rate_and_time_left() -> None:
    clock = Clock()
    text = EventText(clock)
    text.progress(step(0))
    clock.seconds = 10.0
    progress = text.progress(step(20))
    assert progress is not None
    assert progress.text() == "Training, epoch 0: step 21/150, loss 2.346, lr 1.0e-05, 41 captions/s, 1:04 left"


def test_images_have_a_rate_once_two_counts_are_known() -> None:
    clock = Clock()
    text = EventText(clock)
    first = text.progress({"event": "captions", "epoch": 1, "done": 32, "count": 200})
    assert first is not None
    assert first.text() == "Captioning, epoch1: 32/200 images"
    clock.seconds = 4.0
    second = text.progress({"event": "captions", "epoch": 1, "done": 72, "count": 200})
    assert second is not None
    assert second.text() == "Captioning, epoch1: 72/200 images, 10 images/s, 0:13 left"
    # Another task starts anew.
    third = text.progress({"event": "captions", "epoch": 2, "done": 10, "count": 200})
    assert third is not None
    assert third.rate is None


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "progress",
    [
        Progress("Training, epoch 12", 12_345, 123_456, "step", 2.345, 1e-5, 1234.0, "captions", 12_345.0),
        Progress("Captioning, epoch12", 12_345, 123_456, rate=12.3, seconds_left=359_999.0),
        Progress(
            "Captioning", 1_234_567, 5_000_000, rate=51.2, seconds_left=4380.0, note="3 in quarantine, 12/40 shards"
        ),
        Progress("Encoding evaluation images", 12, 25_000, rate=51.2, seconds_left=4380.0),
    ],
)
def test_the_line_of_a_terminal_fits(progress: Progress, width: int) -> None:
    screen = io.StringIO()
    running = Running()
    running.progress = progress
    Console(file=screen, width=width, force_terminal=True, color_system="standard").print(running)
    (line,) = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert len(line) <= width
    assert "…" not in line
    assert progress.task in line
    assert f"{progress.done:,}/{progress.count:,}" in line
    assert line.rstrip().endswith(" left")
    if width > 60:
        assert line.count("━") + line.count("╸") + line.count("╺") >= 8
    if progress.loss is not None:
        assert "loss 2.345" in line
    if width == 120:
        assert "/s" in line


def test_a_log_has_a_line_at_the_interval(
    capsys: pytest.CaptureFixture[str], clock: Clock, settings: OutputSettings
) -> None:
    with show_progress() as listener:
        for number in range(150):
            clock.seconds = float(number)
            listener(step(number))
        listener({"event": "evaluation", "epoch": 0, "scores": {"CIDEr": 0.5}})
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(",")[1].strip().split(": ")[1] for line in lines[:-1]] == [
        f"step {number}/150" for number in (1, 31, 61, 91, 121, 150)
    ]
    assert all("loss 2.346" in line and "captions/s" in line for line in lines[:-1])
    assert lines[1].endswith("1:59 left")
    assert lines[-1] == "epoch0      CIDEr 0.500"


def test_an_interval_of_zero_prints_every_step(
    capsys: pytest.CaptureFixture[str], clock: Clock, settings: OutputSettings
) -> None:
    settings.progress_seconds = 0
    with show_progress() as listener:
        for number in range(10):
            listener(step(number))
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_a_short_task_prints_nothing(
    capsys: pytest.CaptureFixture[str], clock: Clock, settings: OutputSettings
) -> None:
    with show_progress() as listener:
        for done in range(0, 201, 50):
            listener({"event": "captions", "epoch": None, "done": done, "count": 200})
    assert capsys.readouterr().err == ""


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str], clock: Clock, settings: OutputSettings) -> None:
    settings.quiet = True
    with show_progress() as listener:
        listener(step(0))
        listener({"event": "evaluation", "epoch": 0, "scores": {"CIDEr": 0.5}})
    assert capsys.readouterr().err == ""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_long_work_without_a_count_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: OutputSettings
) -> None:
    monkeypatch.setattr(displays, "_SILENT_SECONDS", 0.02)
    settings.progress_seconds = 0.02
    lines: list[str] = []
    monkeypatch.setattr(displays, "print_message", lines.append)
    with working("Loading torch"):
        wait_for(lambda: len(lines) >= 2)
    assert lines[0] == "Loading torch ..."
    assert lines[1].startswith("Loading torch ... 0:0")
    with working("Loading torch"):
        pass
    lines.clear()
    assert not lines


def test_every_message_is_a_sentence_of_the_event() -> None:
    text = EventText()
    run = {
        "event": "run",
        "model": "toy",
        "images": 1200,
        "captions": 6000,
        "steps_per_epoch": 150,
        "step_captions": "40",
        "batch_size": 40,
        "exact": True,
        "step": 20,
        "steps": 450,
        "processes": 1,
        "device": "cpu",
    }
    assert text.messages(run) == [
        "Resuming after step 20.",
        "Training toy on 1,200 images: 6,000 captions an epoch, 450 steps, 1 process on cpu.",
        "An epoch has 150 steps, with 40 captions (train.batch_size is 40).",
    ]
    assert text.messages({"event": "quarantined", "images": ["a"], "reasons": ["a.jpg is empty"]}) == [
        "1 training image cannot be read and is left out:",
        "  a.jpg is empty",
    ]
    assert text.messages({"event": "checkpoint", "epoch": 1, "folder": "x"}) == []
    assert text.messages({"event": "done", "skipped_steps": 0}) == []
    assert text.progress(run) is None


def test_scores_of_a_row_fit_80_columns() -> None:
    text = EventText()
    scores = {"BLEU-1": 0.25, "BLEU-2": 0.2, "BLEU-3": 0.1, "BLEU-4": 0.05, "CIDEr": 1.25, "ROUGE-L": 0.5}
    event: Event = {"event": "evaluation", "epoch": 12, "scores": scores}
    assert text.messages(event) == ["epoch12     BLEU-1..4 0.250 0.200 0.100 0.050  CIDEr 1.250  ROUGE-L 0.500"]
    event["scores"] = {**scores, "METEOR": 0.3, "SPICE": 0.2, "CLIPScore": 0.7}
    lines = text.messages(event)
    assert all(len(line) <= 80 for line in lines)
    assert lines[1] == "            METEOR 0.300  SPICE 0.200  CLIPScore 0.700"


def test_a_result_is_not_followed_by_the_name_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(displays, "print_message", written.append)
    lines = displays._Lines()
    lines.show(Progress("Scoring pretrained"))
    ended = lines._stage
    assert ended is not None
    lines.say("pretrained  CIDEr 1.0")
    assert ended.is_set()
    assert written == ["pretrained  CIDEr 1.0"]
