"""`captune meta`: tables, JSON, the folder of files, and refusals."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captune import cli

WORDS = ["dog", "cat", "man", "woman", "horse", "bench", "street", "grass", "red", "blue", "small", "big"]


def captune(*arguments: object) -> int:
    return cli.run(lambda: cli.call(cli.app, [str(argument) for argument in arguments]))


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """A table of 90 captions of 30 images; people like captions with many right words."""
    source = random.Random(0)
    path = tmp_path / "ratings.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "caption", "score", "references"])
        for image in range(30):
            words = source.choices(WORDS, k=8)
            references = [" ".join([*words[:6], *source.choices(WORDS, k=2)]) for _ in range(3)]
            for kept in (1, 4, 7):
                caption = " ".join([*words[:kept], *source.choices(WORDS, k=8 - kept)])
                writer.writerow([f"{image}.jpg", caption, kept + source.choice((0, 1)), references])
    return path


def test_tables_json_and_files(ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert captune("meta", "table", ratings, "--resamples", 100, "--out", out) == 0
    printed = capsys.readouterr()
    assert "ratings.csv: 90 judged captions of 30 images" in printed.out
    assert "Metric   tau-c   95 % interval" in printed.out
    assert "data:ratings.csv|n:90|refs:3|tok:ptb3.4.1|cider:D,df=corpus" in printed.out
    assert str(out / "agreement.html") in printed.err
    assert captune("meta", "table", ratings, "--resamples", 100, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree == json.loads((out / "agreement.json").read_text())
    (result,) = tree["results"]
    assert result["metrics"]["CIDEr"]["tau-c"]["value"] > 0.3
    assert len(result["tests"]) == 15
    rows = list(csv.DictReader((out / "agreement.csv").read_text().splitlines()))
    assert len(rows) == 6 * 3
    assert float(rows[0]["value"]) == result["metrics"]["BLEU-1"]["tau-c"]["value"]
    assert "\\begin{tabular}" in (out / "agreement.tex").read_text()
    # Its own files may be replaced, others not.
    assert captune("meta", "table", ratings, "--resamples", 0, "--out", out, "--metrics", "rouge-l") == 0
    capsys.readouterr()
    (out / "agreement.csv").write_text("mine")
    assert captune("meta", "table", ratings, "--out", out) == 2
    assert "agreement.csv' exists" in capsys.readouterr().err
    assert (out / "agreement.csv").read_text() == "mine"


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_other_forms(ratings: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    arguments = ("--resamples", 20, "--format", form, "--all-pairs", "--metrics", "bleu")
    assert captune("meta", "table", ratings, *arguments) == 0
    printed = capsys.readouterr().out
    assert ("BLEU-1 vs. BLEU-4" in printed) or ("BLEU-4 vs. BLEU-1" in printed)
    assert ("\\begin{tabular}" in printed) == (form == "latex")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["flickr9k", "{ratings}"], "DATASET is 'flickr9k', expected one of: flickr8k-expert"),
        (["table", "{ratings}", "--metrics", "bleu,nothing"], "here is no metric 'nothing'"),
        (["table", "{ratings}", "--metrics", "diversity"], "diversity has no score of a caption"),
        (["table", "{ratings}x"], "There is no file"),
        (["flickr8k-cf", "{ratings}", "--references", "{ratings}"], "has no line of image#n"),
        (["table", "{ratings}", "--split", "test"], "has no column 'split'"),
        (["study", "{folder}"], "holds no study"),
        (["table", "{ratings}", "--out", "{ratings}"], "ratings.csv"),
    ],
)
def test_refusals(ratings: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    filled = [argument.format(ratings=ratings, folder=ratings.parent) for argument in arguments]
    assert captune("meta", *filled) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.out == ""
    assert printed.err.strip().count("\n") == 0


def test_foil_has_two_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = random.Random(1)
    annotations, captions = [], []
    for image in range(1, 13):
        texts = [" ".join(source.choices(WORDS, k=8)) for _ in range(5)]
        captions += [{"image_id": image, "id": 10 * image + n, "caption": text} for n, text in enumerate(texts)]
        for foil in (True, False):
            text = texts[0].replace(texts[0].split()[0], "zebra") if foil else texts[0]
            annotations.append({"image_id": image, "id": image, "caption": text, "foil": foil})
    (tmp_path / "foil.json").write_text(json.dumps({"annotations": annotations}))
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": captions}))
    command = ("meta", "foil", tmp_path / "foil.json", "-r", tmp_path / "coco.json", "--resamples", 20)
    assert captune(*command, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "FOIL, 1 reference: 12 pairs of captions of 12 images" in printed
    assert "FOIL, 4 references" in printed
    page = (tmp_path / "out" / "agreement.html").read_text()
    assert "How well metrics agree with people: FOIL<" in page


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of the browser whose console must stay empty."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
    yield page
    context.close()
    assert messages == []


def test_the_page_in_a_browser(ratings: Path, tmp_path: Path, page: Any) -> None:
    table = tmp_path / "polaris.csv"
    text = ratings.read_text().replace("0.jpg,", "<script>document.title='x'</script>,")
    table.write_text(text)
    assert captune("meta", "polaris", table, "--resamples", 50, "--out", tmp_path / "out") == 0
    page.goto((tmp_path / "out" / "agreement.html").as_uri())
    assert page.title() == "Agreement with people: Polaris – captune"
    assert page.locator("svg.chart circle").count() == 6
    assert page.locator("svg.chart polygon").count() == 11
    assert "CIDEr" in page.locator("table").first.inner_text()
    assert "arXiv:2512.21582" in page.locator("main").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(ratings: Path, tmp_path: Path, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    table = tmp_path / "polaris.csv"
    table.write_text(ratings.read_text())
    assert captune("meta", "polaris", table, "--resamples", 50, "--out", tmp_path / "out") == 0
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto((tmp_path / "out" / "agreement.html").as_uri())
    results = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    context.close()
    assert results.violations_count == 0, results.generate_report()
