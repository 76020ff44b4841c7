"""All files of a report appear at once and complete, and a failure is one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from captune.errors import InputError, ToolError
from captune.report import read_scores, write_report, write_scores
from captune.report.robustness_matrix import Cell, Column, Matrix, Row, matrix_of, matrix_to_json

FILES = ["table.md", "table.csv", "table.tex", "analysis.md", "metrics.png", "metrics.svg", "report.html"]


def test_writes_everything_next_to_the_scores(make_run: Any, slides: Any, tmp_path: Path) -> None:
    write_scores(make_run(slides), tmp_path)
    files = write_report(tmp_path)
    assert [file.name for file in files] == FILES
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, "scores.json"}
    assert "BLEU-4 rose fastest" in (tmp_path / "analysis.md").read_text()


def test_writing_again_changes_no_byte(make_run: Any, slides: Any, tmp_path: Path) -> None:
    write_scores(make_run(slides), tmp_path)
    before = {file: file.read_bytes() for file in write_report(tmp_path)}
    assert {file: file.read_bytes() for file in write_report(tmp_path, read_scores(tmp_path))} == before


def test_pdf_and_a_folder_that_is_not_there_yet(make_run: Any, slides: Any, tmp_path: Path) -> None:
    files = write_report(tmp_path / "a" / "b", make_run(slides), chart_formats=("pdf",))
    assert files[-2].read_bytes().startswith(b"%PDF")


def test_missing_scores(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scores\.json does not exist"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(make_run: Any, slides: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ToolError, match=r"table.md cannot be written \(.+\); remove it or choose"):
        write_report(tmp_path / "file", make_run(slides))


def test_hostile_captions_pass_through(make_run: Any, slides: Any, tmp_path: Path) -> None:
    run = make_run(slides)
    captions = {"../../etc": "<script>\x00\u202e" + "a" * 10_000, "🐶": "\ud800 lone"}
    row = dataclasses.replace(run.checkpoints[0], captions=captions)
    write_scores(dataclasses.replace(run, checkpoints=(row,)), tmp_path)
    assert read_scores(tmp_path).checkpoints[0].captions == captions
    assert len(write_report(tmp_path)) == len(FILES)


def test_a_matrix_of_other_captions_is_left_out(
    make_run: Any, slides: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(slides)
    first = run.checkpoints[0]
    rows = (Row(first.name, first.name, "Describe."), Row(f"{first.name}, prompt 2", first.name, "What is it?"))
    columns = (Column("home", "home", 8), Column("other", "data", 8))
    cells = tuple(
        # Only the first prompt on the home data is the run's own prompt.
        Cell(
            row.name,
            column.name,
            first.corpus if (row, column) == (rows[0], columns[0]) else {"CIDEr": 9.0},
            {},
            {},
            {},
            1,
            0.0,
            0,
            "",
        )
        for row in rows
        for column in columns
    )
    (tmp_path / "matrix.json").write_text(matrix_to_json(Matrix(rows, columns, cells)))
    assert matrix_of(tmp_path, run) is not None
    other = dataclasses.replace(first, corpus={name: value + 0.01 for name, value in first.corpus.items()})
    assert matrix_of(tmp_path, dataclasses.replace(run, checkpoints=(other, *run.checkpoints[1:]))) is None
    assert "matrix.json was computed from other captions" in caplog.text
