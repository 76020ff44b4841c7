"""The table in all its spellings: best values, marks, escapes, and CSV there and back."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from captune.errors import InputError
from captune.report import CheckpointScores, RunScores, csv_table, latex_table, markdown_table, read_csv
from captune.report.table import cells, notes, signatures


def test_markdown_of_the_slides(make_run: Any, slides: Any) -> None:
    lines = markdown_table(make_run(slides)).splitlines()
    assert lines[0] == "| checkpoint | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | CIDEr | ROUGE-L |"
    assert lines[2] == "| pretrained | 0.3175 | 0.2371 | 0.1843 | 0.1529 | 0.4361 | 0.5758 |"
    assert lines[7] == ("| epoch4 | **0.3912** | **0.3375** | **0.3005** | **0.2807** | **0.5115** | **0.6803** |")
    assert "- Data: flickr30k, test, protocol karpathy, 1,000 images." in lines
    assert "- Scale: CIDEr 0-10, others 0-1." in lines
    assert r"- Signature: data:toy\|tok:ptb3.4.1\|cider:D" in lines


def test_csv_has_the_slides_header_and_full_precision(make_run: Any, tmp_path: Path) -> None:
    run = make_run({"CIDEr": (1 / 3, 2 / 3), "BLEU-4": (0.1, math.nan), "SPICE": (0.25, 0.5)})
    text = csv_table(run)
    assert text.splitlines() == [
        "checkpoint,BLEU-4,CIDEr,SPICE",
        "pretrained,0.1,0.3333333333333333,0.25",
        "epoch0,nan,0.6666666666666666,0.5",
    ]
    (tmp_path / "table.csv").write_text(text)
    again = read_csv(tmp_path / "table.csv")
    assert csv_table(again) == text
    assert [row.epoch for row in again.checkpoints] == [None, 0]


def test_slides_table_is_read(shared: Path, slides: Any) -> None:
    run = read_csv(shared / "slides_table.csv")
    assert {metric: tuple(run.values(metric)) for metric in run.metrics} == dict(slides)


def test_leak_column_only_where_a_row_is_marked(make_run: Any, slides: Any, tmp_path: Path) -> None:
    assert csv_table(make_run(slides)).startswith("checkpoint,BLEU-1,BLEU-2,BLEU-3,BLEU-4,CIDEr,ROUGE-L\n")
    text = csv_table(make_run(slides, leak="test images, seen in training"))
    (tmp_path / "t.csv").write_text(text)
    assert {row.leak for row in read_csv(tmp_path / "t.csv").checkpoints} == {"test images, seen in training"}


def test_what_looks_equal_is_equally_best(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.50004, 0.50001)})
    assert [row[0].best for row in cells(run)] == [False, True, True]


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5, 0.50001), (math.nan, math.nan), (math.nan, 0.5)], ids=str)
def test_nothing_is_best_where_nothing_differs(make_run: Any, values: tuple[float, ...]) -> None:
    assert not any(row[0].best for row in cells(make_run({"CIDEr": values})))


def test_a_metric_of_unknown_direction_has_no_best_value(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.2), "length": (9.0, 12.0)})
    assert [[cell.best for cell in row] for row in cells(run)] == [[False, False], [True, False]]
    assert "Scale: CIDEr 0-10, length not known." in notes(run)


def test_absent_scores_are_dashes(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.2)})
    more = CheckpointScores(name="epoch1", epoch=1, corpus={"SPICE": 0.3})
    run = dataclasses.replace(run, checkpoints=(*run.checkpoints, more))
    assert [[cell.value for cell in row] for row in cells(run)][2] == ["–", "0.3000"]


def test_values_off_the_scale_are_not_called_on_it(make_run: Any) -> None:
    assert notes(make_run({"BLEU-4": (15.29, 28.07)}))[1].startswith("Scale: unknown")


def test_marks_of_significance_and_their_legend(make_run: Any, slides: Any) -> None:
    run = make_run(slides, p_values={"pretrained": 0.001, "previous": 0.04})
    text = markdown_table(run)
    assert "| 0.3427†‡ |" in text
    assert "† differs from pretrained, ‡ differs from the row above" in text
    assert "†" not in markdown_table(make_run(slides, p_values={"pretrained": 0.05, "previous": 0.5})).split("\n\n")[0]
    assert "0.3427$^{\\dagger\\ddagger}$" in latex_table(run)


def test_intervals_on_request(make_run: Any, slides: Any) -> None:
    run = make_run(slides, half_width=0.01)
    assert "[0.3075, 0.3275]" not in markdown_table(run)
    assert "| 0.3175 [0.3075, 0.3275] |" in markdown_table(run, intervals=True)
    assert r"\scriptsize {[0.3075, 0.3275]}" in latex_table(run, intervals=True)


def test_leak_reasons_become_footnotes(make_run: Any, slides: Any) -> None:
    run = make_run(slides, leak="5 % of the training images are the test")
    assert "| pretrained **LEAK** |" in markdown_table(run)
    assert "- LEAK: 5 % of the training images are the test" in markdown_table(run)
    rows = [dataclasses.replace(row, leak=f"reason {i % 2}") for i, row in enumerate(run.checkpoints)]
    two = dataclasses.replace(run, checkpoints=tuple(rows))
    assert "| epoch0 **LEAK 2** |" in markdown_table(two)
    assert {"LEAK 1: reason 0", "LEAK 2: reason 1"} <= set(notes(two))


def test_rows_with_other_signatures_are_called_not_comparable(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.2)})
    rows = [dataclasses.replace(row, signature=f"tok:{row.name}") for row in run.checkpoints]
    lines = signatures(dataclasses.replace(run, checkpoints=tuple(rows)))
    assert lines[0] == ("Not comparable, signatures differ", "")
    assert ("Signature of epoch0", "tok:epoch0") in lines


HOSTILE = r"a|b <script>alert(1)</script> \input{x} $x_1^2$ 50% & #1 ~ `*_[l](u)" + "\x1b[31m\u202e\n\0"


def _hostile() -> RunScores:
    rows = tuple(
        CheckpointScores(name=f"{index} {HOSTILE}", corpus={f"m{HOSTILE}": 0.5}, signature=HOSTILE, leak=HOSTILE)
        for index in range(2)
    )
    return RunScores(data=HOSTILE, checkpoints=rows)


def test_hostile_names_stay_text_in_markdown() -> None:
    text = markdown_table(_hostile())
    assert "<" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3, 3]


def test_hostile_names_stay_text_in_latex() -> None:
    text = latex_table(_hostile())
    assert r"\input" not in text
    assert r"\textbackslash{}input\{x\}" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    body = text.split("\\midrule")[1].split("\\bottomrule")[0]
    assert len(re.findall(r"(?<!\\)&", body)) == 2
    assert not re.search(r"(?<!\\)[$%#_]", text.split("\\caption")[1])


def test_latex_is_booktabs_with_the_signature_in_the_caption(make_run: Any, slides: Any) -> None:
    text = latex_table(make_run(slides))
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 1
    assert r"\begin{tabular}{lrrrrrr}" in text
    assert r"Signature: \texttt{data:toy\textbar{}\allowbreak tok:ptb3.4.1" in text
    assert r"epoch4 & \textbf{0.3912} & \textbf{0.3375}" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("BLEU-1,CIDEr\n0.1,0.2\n", "expected 'checkpoint,BLEU-1"),
        ("checkpoint\nepoch0\n", "expected 'checkpoint,BLEU-1"),
        ("checkpoint,CIDEr,CIDEr\na,1,1\n", "has a column twice"),
        ("checkpoint,CIDEr\n", "no row"),
        ("checkpoint,CIDEr\na,0.1,0.2\n", "line 2 has 3 cells"),
        ("checkpoint,CIDEr\na,0.1\n\na,0.2\n", "two rows called 'a'"),
        ("checkpoint,CIDEr\na,high\n", "line 2: CIDEr is 'high'"),
        ("checkpoint,CIDEr\na,inf\n", "line 2: CIDEr is 'inf'"),
        ("checkpoint,CIDEr\n,0.1\n", "no name"),
        ("checkpoint,CIDEr\na,\n", "no score"),
        ('checkpoint,CIDEr\n"a,0.1\n', "line 2"),
    ],
)
def test_a_broken_csv_is_named_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_csv(file)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_from_a_spreadsheet(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    lines = [["Checkpoint", " CIDEr ", "BLEU-4"], ["pretrained", "0.5", ""], ["", "", ""], ["Epoch 3", "0.75", "nan"]]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(separator.join(line) for line in lines).encode())
    run = read_csv(file)
    assert run.values("CIDEr") == [0.5, 0.75]
    assert run.values("BLEU-4")[0] is None
    assert [row.epoch for row in run.checkpoints] == [None, 3]


def test_rows_of_endpoints_and_files_are_compared(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.2, 0.3, 0.4)})
    scoring = "n:5|refs:5|tok:ptb|cider:D"
    made = (
        "|prompt:1a|dec:greedy|v:1",
        "|prompt:1a|dec:greedy|v:1",
        "|source:file|v:1",
        "|dec:greedy|source:endpoint|v:1",
    )
    remarks = ((), (), ("read from a file",), ("read from a file", "a server decodes"))
    rows = tuple(
        dataclasses.replace(row, signature=scoring + rest, notes=remark)
        for row, rest, remark in zip(run.checkpoints, made, remarks, strict=True)
    )
    mixed = dataclasses.replace(run, checkpoints=rows)
    first, second, *_ = signatures(mixed)
    assert first == ("Scored alike; signatures differ in how the captions were made", "")
    assert second == ("Signature of pretrained, epoch0", scoring + made[0])
    assert notes(mixed)[-2:] == ["epoch1, epoch2: read from a file.", "epoch2: a server decodes."]
    # Another tokenizer makes other scores.
    other = dataclasses.replace(rows[2], signature=rows[2].signature.replace("ptb", "13a"))
    assert signatures(dataclasses.replace(run, checkpoints=(*rows[:2], other)))[0][0].startswith("Not comparable")
