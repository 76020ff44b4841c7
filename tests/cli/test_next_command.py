"""The line with the next command: quoted, on stderr, silent where a program reads."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from captune.cli import next_command, output
from captune.cli.next_command import show_next
from captune.cli.output import OutputSettings


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
