"""The line with the next command: quoted, on stderr, silent where a program reads."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from captune.cli import next_command, output
from captune.cli.next_command import show_next
from captune.cli.output import OutputSettings
from captune.cli.train import run_training
from captune.config import RunConfig
from captune.report import CheckpointScores, RunScores, write_scores


@pytest.fixture(autouse=True)
def default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (output, next_command):
        monkeypatch.setattr(module, "settings", OutputSettings())


def test_the_line_can_be_pasted_into_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "my photos.yaml", "data.train=it's.jsonl", Path("a") / "b"]
    show_next(words)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert shlex.split(printed.err.removeprefix("Next: ")) == ["captune", *map(str, words)]
    assert printed.err.count("\n") == 1


def test_a_reason_precedes_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    show_next(["check", "m.jsonl"], "look at the captions")
    assert capsys.readouterr().err == "Next, to look at the captions: captune check m.jsonl\n"


@pytest.mark.parametrize("setting", ["quiet", "as_json"])
def test_nothing_is_printed_for_programs(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (output, next_command):
        setattr(module.settings, setting, True)
    show_next(["train", "a.yaml"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("scores", "continues"), [((0.1, 0.3, 0.5, 0.7), True), ((0.7, 0.3, 0.2, 0.1), False)])
def test_training_that_still_improves_is_continued_by_the_same_command(
    scores: tuple[float, ...],
    continues: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "image": "a.jpg", "captions": ["A."], "split": "train"}\n')
    config = tmp_path / "my photos.yaml"
    config.write_text(f"output: {tmp_path}/run\ndata: {{train: {tmp_path}/m.jsonl}}\ntrain: {{epochs: 2}}\n")
    rows = [
        CheckpointScores("pretrained" if epoch is None else f"epoch{epoch}", {"CIDEr": score}, epoch=epoch)
        for epoch, score in zip((None, 0, 1, 2), scores, strict=True)
    ]

    def train(settings: RunConfig, *_: object, **__: object) -> None:
        settings.output.mkdir()
        write_scores(RunScores("m", tuple(rows), "test", "karpathy", 30), settings.output / "scores.json")

    monkeypatch.setattr("captune.preflight.check_run", lambda *_, **__: None)
    monkeypatch.setattr("captune.training.train", train)
    run_training(config, ["train.epochs=3", "seed=1"])
    line = shlex.join(["captune", "train", str(config), "seed=1", "train.epochs=6"])
    assert (f"Next, to continue training: {line}\n" in capsys.readouterr().err) == continues
