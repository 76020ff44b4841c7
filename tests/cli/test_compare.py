"""`captune compare`: differences, their tests and their marks."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from captune import cli

WORDS = [
    "dog",
    "cat",
    "man",
    "woman",
    "horse",
    "bench",
    "street",
    "grass",
    "red",
    "blue",
    "small",
    "big",
    "runs",
    "sits",
]


def captune(*arguments: object) -> int:
    return cli.run(lambda: cli.call(cli.app, [str(argument) for argument in arguments]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """References, a good system, one that is much worse, and one that differs in a single caption."""
    source = random.Random(0)
    captions = {str(i): " ".join(source.choices(WORDS, k=8)) for i in range(120)}
    worse = {image: " ".join(text.split()[:4]) for image, text in captions.items()}
    content = {
        "refs": {image: [text, " ".join(source.choices(WORDS, k=8))] for image, text in captions.items()},
        "good": captions,
        "worse": worse,
        "same": {**captions, "7": "a dog"},
    }
    for name, value in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return {name: tmp_path / f"{name}.json" for name in content}


def compare(files: dict[str, Path], systems: list[str], *more: object) -> int:
    predictions = [part for name in systems for part in ("--predictions", files[name])]
    quick = ["--resamples", 200, "--trials", 500]
    return captune("compare", "--references", files["refs"], *predictions, *quick, *more)


def test_a_clear_difference_is_marked_and_a_small_one_is_not(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(files, ["good", "worse", "same"]) == 0
    out, err = capsys.readouterr()
    assert err.count("low scores whatever") == 0
    head, worse, same = out.split("\n\n")[:3]
    assert head.splitlines()[0].split()[0] == "System"
    assert "CIDEr (0-10)" in head
    assert "**" in next(line for line in worse.splitlines() if line.startswith("CIDEr"))
    assert "*" not in same
    assert "tok:ptb3.4.1" in out
    assert "p is not corrected" in out


def test_json(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from captune.metrics import score_captions

    assert compare(files, ["good", "worse"], "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    predictions, references = (json.loads(files[name].read_text()) for name in ("worse", "refs"))
    assert answer["baseline"] == "good"
    assert answer["systems"]["worse"]["scores"] == score_captions(predictions, references).corpus
    cider = answer["differences"]["worse"]["CIDEr"]
    assert cider["low"] < cider["difference"] < cider["high"] < 0
    assert cider["p_bootstrap"] < 0.05
    assert cider["p_randomization"] < 0.05
    assert cider["smallest_detectable"] > 0


def test_the_seed_decides(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for seed in (1, 1, 2):
        assert compare(files, ["good", "worse"], "--json", "--seed", seed) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_forms(files: dict[str, Path], capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert compare(files, ["good", "same"], "--format", form, "--metrics", "cider") == 0
    out = capsys.readouterr().out
    assert out.count("|---|") == (2 if form == "markdown" else 0)
    assert out.count(r"\begin{tabular}") == (2 if form == "latex" else 0)


def test_names(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(files, ["good", "same"], "--name", "old", "--name", "new") == 0
    assert "new - old" in capsys.readouterr().out
    assert compare(files, ["good", "same"], "--name", "old") == 2
    assert compare(files, ["good", "same"], "--name", "x", "--name", "x") == 2
    assert compare(files, ["good", "good"]) == 2
    assert "is given to two systems" in capsys.readouterr().err


def test_a_subset_is_the_same_for_all(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, gap in (("good", "1"), ("same", "2")):
        captions = json.loads(files[name].read_text())
        del captions[gap]
        files[name].write_text(json.dumps(captions))
    assert compare(files, ["good", "same"]) == 2
    capsys.readouterr()
    assert compare(files, ["good", "same"], "--subset", "--json") == 0
    out, err = capsys.readouterr()
    assert {system["signature"].split("|")[0] for system in json.loads(out)["systems"].values()} == {"n:118"}
    assert "2 of 120 images lack a prediction of some system" in err
    assert err.count("\n") == 1
    assert json.loads(out)["images"] == 118
    assert [warning.split(" lack")[0] for warning in json.loads(out)["warnings"]] == ["2 of 120 images"]


@pytest.mark.parametrize(
    ("systems", "more", "message"),
    [
        (["good"], [], "twice at least"),
        (["good", "same"], ["--metrics", "diversity"], "diversity is not compared"),
        (["good", "same"], ["--confidence", "1.5"], "confidence"),
    ],
)
def test_mistakes(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], systems: list[str], more: list[str], message: str
) -> None:
    assert compare(files, systems, *more) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_ids_that_nearly_match_are_named_in_a_subset(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    captions = json.loads(files["same"].read_text())
    files["same"].write_text(
        json.dumps({f"{image}.jpg" if image == "1" else image: t for image, t in captions.items()})
    )
    assert compare(files, ["good", "same"], "--subset") == 0
    assert "'1.jpg' and '1' may be the same image" in capsys.readouterr().err


@pytest.mark.parametrize("digits", ["2", "4", "17"])
def test_zeros_are_neither_marked_nor_tested(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], digits: str
) -> None:
    """BLEU-4 of captions of one wrong word is a smoothing constant, which differs from others of its kind."""
    captions = json.loads(files["same"].read_text())
    for name, text in (("good", "zzz"), ("same", "zzz yyy xxx")):
        files[name].write_text(json.dumps(dict.fromkeys(captions, text)))
    assert compare(files, ["good", "same"], "--metrics", "bleu,cider", "--digits", digits) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("BLEU-4"))
    assert "*" not in line
    assert line.split()[-3:] == ["–", "–", "–"]
    assert not re.search(r"[-+]0\.0+\b", out)
    assert compare(files, ["good", "same"], "--metrics", "bleu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["differences"]["same"]["BLEU-4"]["p_bootstrap"] is None
