"""Metrics that other packages register, in tables, charts and on the page: scale, direction and style."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from captune.metrics import Column, find_column
from captune.report import RunScores, markdown_table, write_report
from captune.report.chart import _figure, draw_chart, plain_matplotlib
from captune.report.columns import scale_sentence
from captune.report.narrative import catalogue
from captune.report.page_charts import score_charts
from captune.report.robustness_matrix import Cell, Matrix, Row
from captune.report.robustness_matrix import Column as MatrixColumn
from captune.report.table import best_value, latex_table

REGISTERED = {
    "Words": Column("Words", top=None, higher_is_better=False),
    "A share with a long name of its package": Column(
        "A share with a long name of its package", top=1.0, higher_is_better=False
    ),
    "Percent": Column("Percent", top=100.0),
    "Judge": Column("Judge", top=10.0),
    "CIDEr-X": Column("CIDEr-X", top=1.0),
}
SCORES = {
    "BLEU-4": (0.1, 0.2, 0.3),
    "CIDEr": (0.5, 0.6, 0.9),
    "Words": (12.0, 10.0, 8.0),
    "A share with a long name of its package": (0.4, 0.2, 0.0),
    "Percent": (30.0, 50.0, 70.0),
    "CIDEr-X": (0.2, 0.3, 0.4),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, make_run: Any) -> RunScores:
    """A run with metrics of captune and of other packages, each on two images."""
    monkeypatch.setattr("captune.report.columns.find_column", lambda name: REGISTERED.get(name) or find_column(name))
    run: RunScores = make_run(SCORES, half_width=0.02)
    rows = [
        dataclasses.replace(
            row,
            captions={"a": f"a dog {index}", "b": f"a cat {index}"},
            per_image={"a": row.corpus, "b": {name: value / 2 for name, value in row.corpus.items()}},
        )
        for index, row in enumerate(run.checkpoints)
    ]
    return dataclasses.replace(run, checkpoints=tuple(rows))


def test_tables_show_the_direction_and_the_scale(run: RunScores) -> None:
    markdown, latex = markdown_table(run), latex_table(run)
    assert "| Words ↓ | A share with a long name of its package ↓ | Percent | CIDEr-X |" in markdown
    assert "Scale: Percent 0-100, CIDEr 0-10, Words unbounded, others 0-1." in markdown
    assert "↓ lower is better." in markdown
    assert r"Words $\downarrow$ &" in latex
    assert "↓" not in latex


def test_the_lowest_score_is_best_even_if_it_is_0(run: RunScores, make_run: Any) -> None:
    assert best_value(run, "Words") == "8.0000"
    assert "| **0.0000** |" in markdown_table(run).splitlines()[4]
    assert best_value(make_run({"BLEU-4": (0.0, -0.1)}), "BLEU-4") is None


def test_the_scale_is_translated() -> None:
    texts = catalogue("zh").messages
    assert scale_sentence({"CIDEr": [1.0], "BLEU-1": [0.5]}, texts) == "取值范围：CIDEr 0–10，其余 0–1。"
    assert scale_sentence({"unknown": [1.0], "BLEU-1": [0.5]}, texts) == "取值范围：BLEU-1 0–1，unknown 未知。"
    assert "CIDEr" in scale_sentence({"CIDEr": [11.0]}, texts)


def test_the_picture_draws_them_on_their_scale(run: RunScores, make_run: Any) -> None:
    pytest.importorskip("matplotlib")
    with plain_matplotlib():
        figure = _figure(run)
        left, right = figure.axes
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in left.texts]
    assert (left.get_ylabel(), right.get_ylabel()) == ("score (0–1)", "CIDEr (0–10)")
    assert left.get_ylim()[1] < 1
    assert len({line.get_marker() for line in left.lines if not line.get_label().startswith("_")}) == 3
    assert max(box.x1 for box in boxes) < right.get_window_extent().x0
    with plain_matplotlib():
        (only,) = _figure(make_run({"Judge": (5.0, 6.0)})).axes
        both = _figure(make_run({"BLEU-4": (0.1, 0.2), "CIDEr": (0.5, 0.6), "Judge": (5.0, 6.0)})).axes
    assert only.get_ylabel() == both[1].get_ylabel() == "score (0–10)"
    assert [text.get_text() for text in both[1].get_legend().get_texts()] == ["CIDEr", "Judge"]
    assert draw_chart(run, ("svg",)) == draw_chart(run, ("svg",))


def test_the_page_has_a_chart_for_each_scale(run: RunScores) -> None:
    drawings = [ElementTree.fromstring(drawing) for _, drawing in score_charts(run, catalogue("en").page)]
    labels = [next(node.text for node in drawing.iter("text")) for drawing in drawings]
    assert labels == ["CIDEr (0–10)", "score (0–1)", "Percent (0–100)"]
    for drawing in drawings:
        lines = [point for node in drawing.iter("polyline") for point in node.attrib["points"].split()]
        across = [float(point.split(",")[0]) for point in lines]
        assert 52 < min(across) < max(across) - 100  # a long name leaves space for the lines


@pytest.mark.usefixtures("run")
def test_the_matrix_shows_drops_of_a_metric_that_can_drop() -> None:
    cell = Cell("pretrained", "home", {"Percent": 30.0, "Words": 12.0}, {}, {}, {}, 1, 0.0, 0, "")
    matrix = Matrix((Row("pretrained", "pretrained", "Describe."),), (MatrixColumn("home", "home", 8),), (cell,))
    assert matrix.main_metric == "Percent"
    only_words = dataclasses.replace(cell, scores={"Words": 12.0})
    assert dataclasses.replace(matrix, cells=(only_words,)).main_metric == "Words"


def test_the_explorer_sorts_by_what_is_better(run: RunScores, browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path, run, chart_formats=("svg",), language="zh")
    page = browser.new_page(viewport={"width": 360, "height": 800})
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto((tmp_path / "report.html").as_uri())
    notes = page.inner_text("#scores ul[data-only=zh]")
    assert "取值范围：Percent 0–100，CIDEr 0–10，Words 无上限，其余 0–1。" in notes
    assert "↓ 越低越好。" in notes
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("#filter")
    page.select_option("#metric", label="Words ↓")
    for order, first in (("best", "b"), ("worst", "a"), ("improved", "a"), ("regressed", "b")):
        page.select_option("#sort", order)
        assert page.locator("#cards h3").first.text_content() == first
    # A fall of the number of words is an improvement.
    assert page.locator("#cards span.down").count() == 0
    assert page.locator("#cards span.up").all_text_contents() == ["▼ −1.000", "▼ −2.000", "▼ −2.000", "▼ −4.000"]
    assert not errors
    page.close()
