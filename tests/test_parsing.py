"""Texts nested without end, or that expand beyond their size, end in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune import cli
from captune.config import load_config
from captune.errors import ConfigError
from captune.evaluation import load_protocol
from captune.parsing import load_json, load_yaml

DEEP = 100_000
"""Python 3.12 and newer read JSON that is nested some thousand times."""
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", ["[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP])
def test_deep_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|delimiter|Expecting"):
        load_json(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 700 + "]" * 700, "nested too deeply"),
        ("{a: " * 150 + "1" + "}" * 150, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1200)) + " " * 1200 + "a: 1\n", "nested too deeply"),
        (LAUGHS, "expand to more than 1,000,000 values"),
        (MERGES, "expand to more than 1,000,000 values"),
        ("a: [1, 2", "expected ',' or ']'"),
    ],
)
def test_hostile_yaml(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_yaml(text)
    path = tmp_path / "file.yaml"
    path.write_text(text)
    for read in (load_config, load_protocol):
        with pytest.raises(ConfigError, match=sentence) as caught:
            read(str(path))
        assert str(path) in str(caught.value)
        sentence_line, *excerpt = str(caught.value).split("\n")
        assert str(path) in sentence_line
        assert not excerpt or (len(excerpt) == 2 and excerpt[1].strip() == "^")
    with pytest.raises(ConfigError) as caught:
        load_config(Path("train_configs/toy.yaml"), [f"train={text}"])
    assert len(str(caught.value)) < 5_000


def test_aliases_and_merges_that_people_write() -> None:
    assert load_yaml("a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: *a\n") == {
        "a": {"x": 1, "y": [2]},
        "b": {"x": 3, "y": [2]},
        "c": {"x": 1, "y": [2]},
    }
    assert load_yaml("") is None


@pytest.mark.parametrize(
    "command",
    [
        ["train", "deep.yaml"],
        ["evaluate", "deep.yaml"],
        ["features", "deep.yaml"],
        ["plan", "deep.yaml"],
        ["convert", "deep.yaml", "--out", "new.yaml"],
        ["check", "deep.jsonl"],
        ["score", "--references", "deep.json", "--predictions", "deep.json"],
        ["report", "run"],
        ["prepare", "coco", "deep.json", "--out", "m.jsonl", "--check-images", "none"],
        ["prepare", "karpathy", "deep.json", "--out", "m.jsonl", "--check-images", "none"],
        ["prepare", "table", "deep.jsonl", "--out", "m.jsonl", "--check-images", "none"],
        ["caption", "model", "a.png"],
    ],
)
def test_every_command_says_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = '{"a":' * DEEP + "1" + "}" * DEEP
    for name in ("deep.yaml", "deep.json", "deep.jsonl", "run/scores.json", "model/config.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(deep)
    Path("a.png").touch()
    assert cli.run(lambda: cli.call(cli.app, command)) == 2
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "Traceback" not in printed
    assert "deep" in printed
    assert len(printed) < 2_000
