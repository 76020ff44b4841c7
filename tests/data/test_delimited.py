"""No cell of a CSV file that captune writes is a formula, and what captune reads back is the text that it was."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.data.delimited import CsvWriter, plain_cell, safe_cell
from captune.report import CheckpointScores, RunScores, read_csv
from captune.report.table import csv_table

FORMULAS = (
    "=cmd|x!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "－x",
    "-",
    "-inf",
    "+nan",
    "=1",
    "'=1",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_text(text: str) -> None:
    assert safe_cell(text) == f"'{text}"
    assert plain_cell(safe_cell(text)) == text


@pytest.mark.parametrize("text", ["-0.5", "+1", "1e-5", "-1E+5", "epoch0", "a=b", "", "'tis", "''", " =1", ".5", "-.5"])
def test_numbers_and_other_text_stay(text: str) -> None:
    assert safe_cell(text) == plain_cell(text) == text


@given(st.text(st.sampled_from("'=+-@\t\r\n1.ae "), max_size=6))
def test_every_text_comes_back(text: str) -> None:
    assert plain_cell(safe_cell(text)) == text


def test_rows() -> None:
    out = io.StringIO()
    CsvWriter(out).writerow(["=1", -0.5, 3, None, "a,b"])
    assert out.getvalue() == '\'=1,-0.5,3,,"a,b"\n'


def test_a_table_is_safe_and_read_again(tmp_path: Path) -> None:
    rows = [
        CheckpointScores(name=name, corpus={"=metric": -0.5, "BLEU-1": 0.25}, leak="@why" if index else None)
        for index, name in enumerate(("=cmd|x!A0", "+a", "'-b", "epoch1"))
    ]
    text = csv_table(RunScores(data="d", checkpoints=tuple(rows)))
    for line in csv.reader(io.StringIO(text)):
        assert all(not cell or cell[0] not in "=+-@" or float(cell) for cell in line)
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    again = read_csv(tmp_path / "table.csv").checkpoints
    assert [(row.name, row.corpus, row.leak) for row in again] == [(row.name, row.corpus, row.leak) for row in rows]
