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
    scaled = ("--metrics", "bleu", "--scale", "100", "--digits", digits, "--all-pairs")
    assert compare(files, ["good", "same"], *scaled) == 0
    assert "nan" not in capsys.readouterr().out
    assert compare(files, ["good", "same"], "--metrics", "bleu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["differences"]["same"]["BLEU-4"]["p_bootstrap"] is None


def test_all_pairs_are_corrected_for_their_number(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from captune.metrics import holm

    arguments = (["good", "worse", "same"], "--all-pairs", "--columns", "cider")
    assert compare(files, *arguments, "--json") == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [(pair["system"], pair["baseline"]) for pair in pairs] == [
        ("worse", "good"),
        ("same", "good"),
        ("same", "worse"),
    ]
    tests = [pair["differences"]["CIDEr"] for pair in pairs]
    expected = holm([max(test["p_bootstrap"], test["p_randomization"]) for test in tests])
    assert [test["p_holm"] for test in tests] == expected
    assert compare(files, *arguments) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("same - worse"))
    assert "* " in line
    assert f"{expected[2]:.4f}" in line
    assert "corrected for all 3 pairs" in out
    assert "BLEU" not in out


def test_the_table_of_a_paper(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--format", "latex", "--scale", "100", "--columns", "CIDEr,BLEU-4", "--digits", "1"]
    labels = ["--caption", "Systems on \\emph{test}.", "--label", "tab:main"]
    assert compare(files, ["worse", "good"], *options, *labels, "--name", "a_b", "--name", "ours") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        r"\begin{table}",
        r"  \centering",
        r"  \caption{Systems on \emph{test}.}",
        r"  \label{tab:main}",
    ]
    assert r"System & CIDEr (0-1000) & BLEU-4 (0-100) \\" in lines[6]
    worse, ours = lines[8], lines[9]
    assert r"a\_b" in worse
    assert worse.count(r"\textbf") == 0
    assert re.fullmatch(r" *ours & \\textbf\{\d{3}\.\d\}\*\* & \\textbf\{100\.0\}\*\* \\\\", ours)
    assert r"\end{table}" in lines


def test_seeds_are_pooled(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = [part for name in ("a", "a", "b") for part in ("--name", name)]
    arguments = (["good", "same", "worse"], *names, "--pool-seeds", "--metrics", "cider")
    assert compare(files, *arguments, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    pooled = answer["systems"]["a"]
    assert pooled["seeds"] == 2
    assert pooled["spread"]["CIDEr"] > 0
    assert pooled["intervals"]["CIDEr"]["low"] < pooled["scores"]["CIDEr"] < pooled["intervals"]["CIDEr"]["high"]
    assert "seeds" not in answer["systems"]["b"]
    assert "p_randomization" not in answer["differences"]["b"]["CIDEr"]
    assert compare(files, *arguments) == 0
    out = capsys.readouterr().out
    assert "±" in out
    assert "a (2 seeds)" in out
    assert "p random" not in out
    assert compare(files, ["good", "worse"], "--pool-seeds") == 2
    assert "same --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--columns", "CIDErr"], "There is no score 'CIDErr'"),
        (["--columns", ","], "--columns is empty"),
        (["--label", "x"], "add --format latex"),
        (["--scale", "10"], "'1', '100'"),
    ],
)
def test_mistakes_of_the_table(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert compare(files, ["good", "worse"], *more) == 2
    assert message in capsys.readouterr().err
