"""`captune report`: what goes to stdout, what to stderr, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from captune.cli import app, call, run
from captune.report import read_csv, write_scores
from captune.report.scores_json import CheckpointScores, RunScores

TABLE = """checkpoint,BLEU-4,CIDEr,ROUGE-L
pretrained,0.1529,0.4361,0.5758
epoch0,0.2002,0.4502,0.6101
epoch1,0.2320,0.4753,0.6469
epoch2,0.2807,0.5115,0.6803
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def run_dir(table: Path) -> Path:
    bare = read_csv(table)
    folder = table.parent / "run"
    folder.mkdir()
    scores = RunScores(data="toy", split="test", protocol="karpathy", images=200, checkpoints=bare.checkpoints)
    write_scores(scores, folder)
    return folder


def _call(*arguments: object) -> int:
    return run(lambda: call(app, [str(argument) for argument in arguments]))


def test_run_directory(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("report", run_dir) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["checkpoint", "BLEU-4", "CIDEr", "ROUGE-L"]
    assert "epoch2" in out
    assert "0.2807*" in out
    assert "BLEU-4 rose fastest (+84 %)" in out
    assert "\x1b" not in out
    assert [Path(line).name for line in err.splitlines()] == [
        "table.md",
        "table.csv",
        "table.tex",
        "analysis.md",
        "metrics.png",
        "metrics.svg",
        "report.html",
    ]
    assert (run_dir / "table.csv").read_text() == TABLE.replace("0.2320", "0.232")


def test_images_that_were_left_out_are_counted(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"event": "run", "images": 31, "steps": 4},
        {"event": "quarantined", "images": ["IMG_3"], "reasons": ["x"]},
    ]
    (run_dir / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert _call("report", run_dir) == 0
    sentence = "Trained on 31 of 32 training images; 1 left out as unreadable (IMG_3)."
    assert sentence in capsys.readouterr().out.splitlines()
    page = (run_dir / "report.html").read_text()
    assert "Training images left out as unreadable" in page
    assert "1 (IMG_3)" in page
    assert _call("report", run_dir, "--json") == 0
    assert json.loads(capsys.readouterr().out)["left_out_images"] == ["IMG_3"]


def test_a_run_that_got_worse_is_not_suggested_for_sharing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "checkpoints").mkdir()
    assert _call("report", run_dir) == 0
    assert f"captune push {run_dir} --to ./run-model" in capsys.readouterr().err
    content = json.loads((run_dir / "scores.json").read_text())
    content["checkpoints"][0]["corpus"]["CIDEr"] = 0.9
    (run_dir / "scores.json").write_text(json.dumps(content))
    assert _call("report", run_dir) == 0
    err = capsys.readouterr().err
    assert f"No checkpoint of {run_dir} is better than pretrained by CIDEr (0.900)." in err
    assert "push" not in err
    assert err.splitlines()[-1].endswith(f"captune report {run_dir} --terminal")


def test_scores_file_itself_and_pdf(run_dir: Path, tmp_path: Path) -> None:
    assert _call("report", run_dir / "scores.json", "--out", tmp_path / "out", "--pdf") == 0
    assert (tmp_path / "out" / "metrics.pdf").exists()
    assert not (run_dir / "table.md").exists()


def test_bare_table_is_only_printed(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("report", table) == 0
    out, err = capsys.readouterr()
    assert "Data: table." in out
    assert err == ""
    assert [file.name for file in table.parent.iterdir()] == ["table.csv"]


def test_slides_table_of_the_shared_folder(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("report", shared / "slides_table.csv") == 0
    out = " ".join(capsys.readouterr().out.split())
    for claim in ("BLEU-1 +23 %", "BLEU-2 +42 %", "BLEU-3 +63 %", "BLEU-4 +84 %", "CIDEr +17 %", "ROUGE-L +18 %"):
        assert claim in out


def test_json_is_one_object(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("report", run_dir, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["checkpoints"][0]["corpus"] == {"BLEU-4": 0.1529, "CIDEr": 0.4361, "ROUGE-L": 0.5758}
    assert answer["analysis"]["advice"] == "continue"
    assert answer["images"] == 200
    assert len(answer["files"]) == 7


def test_no_line_of_the_table_is_cut_in_a_narrow_pipe(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert _call("report", run_dir, "--intervals") == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert "pretrained   0.1529   0.4361   0.5758" in out


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "does not exist"), ("{", "is not JSON ("), ('{"format": 9}', "format 9")],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    content: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    assert _call("report", tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


def test_a_file_in_place_of_the_folder_is_one_sentence_and_exit_code_2(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call("report", run_dir, "--out", run_dir / "scores.json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is a file, and a folder is needed there" in err


def test_a_report_replaces_neither_its_table_nor_files_of_others(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("checkpoint,BLEU-1\na,0.5\nb,0.6\n")
    before = table.read_bytes()
    assert _call("report", table, "--out", tmp_path) == 2
    assert "is read here" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of somebody else")
    assert _call("report", table, "--out", tmp_path / "out") == 2
    assert _call("report", run_dir, "--out", tmp_path / "out") == 2
    assert "report.html' exists, and captune report did not write it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    assert _call("report", table, "--out", tmp_path / "new") == 0
    assert _call("report", table, "--out", tmp_path / "new") == 0
    assert table.read_bytes() == before


def test_a_closed_pipe_is_no_traceback(run_dir: Path, repository: Path) -> None:
    program = "import sys; from captune.cli import main; sys.argv = ['captune', 'report', sys.argv[1]]; main()"
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert "Traceback" not in err


def _with_captions(folder: Path, caption: str) -> Path:
    references = {str(number): (f"A dog runs at place {number}.",) for number in range(8)}
    captions = {image: caption or texts[0] for image, texts in references.items()}
    scores = {image: {"CIDEr": 0.5 if caption else 2.0} for image in captions}
    first = CheckpointScores("pretrained", {"CIDEr": 0.1}, per_image={key: {"CIDEr": 1.0} for key in captions})
    last = CheckpointScores("epoch0", {"CIDEr": 0.5}, epoch=0, captions=captions, per_image=scores)
    folder.mkdir(parents=True)
    write_scores(RunScores("toy", (first, last), "test", "karpathy", 8, references), folder)
    return folder


def test_several_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = _with_captions(tmp_path / "x" / "run", ""), _with_captions(tmp_path / "y" / "run", "a dog")
    assert _call("report", one, other, "--out", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert "x/run" in out
    assert "y/run epoch0 minus x/run epoch0" in out
    assert [Path(line).name for line in err.splitlines()][-1] == "report.html"
    assert _call("report", one, other / "scores.json", "--json") == 0
    assert {test["metric"] for test in json.loads(capsys.readouterr().out)["tests"]} >= {"CIDEr", "BLEU-4"}
    assert _call("report", one, one) == 2
    assert "given twice" in capsys.readouterr().err


def test_terminal_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _with_captions(tmp_path / "run", "")
    assert _call("report", folder, "--terminal") == 0
    out = capsys.readouterr().out
    assert "▁█" in out
    assert "Most improved (CIDEr, pretrained to epoch0)" in out
    assert [file.name for file in folder.iterdir()] == ["scores.json"]


def test_unknown_language(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("report", run_dir, "--lang", "de") == 2
    assert "--lang is 'de', expected en or zh." in capsys.readouterr().err


def test_a_report_elsewhere_changes_nothing_in_the_run(run_dir: Path, tmp_path: Path) -> None:
    """The page takes log and pictures from the run, wherever it is written."""
    (run_dir / "log.jsonl").write_text('{"time": 3, "event": "run", "model": "a-model-of-mine", "steps": 7}\n')
    assert run(lambda: app(["report", str(run_dir), "--out", str(tmp_path / "elsewhere")], standalone_mode=False)) == 0
    page = (tmp_path / "elsewhere" / "report.html").read_text(encoding="utf-8")
    assert "a-model-of-mine" in page
    assert not (run_dir / "report.html").exists()
