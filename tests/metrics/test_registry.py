"""A metric of an installed package is scored, resampled, signed and printed like those of captune."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from captune.metrics import BUILT_IN, METRICS, check_metrics, find_column

PACKAGE = '''
from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from captune.metrics import Column, MeanOfImages, PredictionBatch


class WordCount(MeanOfImages):
    columns: ClassVar[tuple[Column, ...]] = (Column("Words", top=None, higher_is_better=False),)

    def statistics(self, predictions: PredictionBatch) -> Any:
        return np.array([[float(len(caption.split()))] for caption in predictions.captions])


class OneRow(WordCount):
    def statistics(self, predictions: PredictionBatch) -> Any:
        return np.zeros((1, 1))


class Cider(WordCount):
    columns = (Column("CIDEr", 1.0),)


class NoMetric:
    """Without the base class."""
'''
ENTRIES = """[captune.metrics]
words = word_metrics:WordCount
one-row = word_metrics:OneRow
also-cider = word_metrics:Cider
no-metric = word_metrics:NoMetric
missing = word_metrics_missing:Words
bleu = word_metrics:WordCount
"""
REFERENCES = {"1": ["a dog runs", "the dog"], "2": ["two men sit on a bench"], "3": ["a woman rides a bike"]}
PREDICTIONS = {"1": "a dog", "2": "two men on a bench", "3": "a bike"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as pip would leave it, to be put on the path."""
    folder = tmp_path / "site"
    information = folder / "word_metrics-2.5.dist-info"
    information.mkdir(parents=True)
    (folder / "word_metrics.py").write_text(PACKAGE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: word-metrics\nVersion: 2.5\n")
    (information / "entry_points.txt").write_text(ENTRIES)
    for name, captions in (("references", REFERENCES), ("predictions", PREDICTIONS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(captions))
    (tmp_path / "longer.json").write_text(json.dumps({image: f"{text} there" for image, text in PREDICTIONS.items()}))
    return folder


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(package)!r}); "
    return subprocess.run(
        [sys.executable, "-c", code + arguments[0], *arguments[1:]],
        cwd=package.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def captune(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(package, "from captune.cli import main; main()", *arguments)


FILES = ("--references", "references.json", "--predictions", "predictions.json")


def test_a_metric_of_a_package_is_scored_signed_and_resampled(package: Path) -> None:
    result = captune(package, "score", *FILES, "--metrics", "words,bleu", "--json", "--confidence", "--per-image")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["scores"]["Words"] == 3.0
    assert answer["scales"]["Words"] == "unbounded"
    assert answer["intervals"]["Words"]["low"] < 3.0 < answer["intervals"]["Words"]["high"]
    assert "|words:2.5|" in answer["signature"]
    assert answer["per_image"]["2"]["Words"] == 5.0
    assert 0 < answer["scores"]["BLEU-4"] < 1, "a package cannot replace a metric of captune"


def test_a_report_knows_its_direction(package: Path) -> None:
    (package.parent / "table.csv").write_text("checkpoint,BLEU-4,Words\npretrained,0.1,9\nepoch0,0.2,8\n")
    result = captune(package, "report", "table.csv", "--out", "report")
    assert result.returncode == 0, result.stderr
    assert "Words ↓" in result.stdout
    assert "8.0000*" in result.stdout
    assert "Words ↓" in (package.parent / "report" / "table.md").read_text(encoding="utf-8")
    assert "Words ↓" in (package.parent / "report" / "report.html").read_text(encoding="utf-8")


def test_one_score_and_a_comparison_know_it(package: Path) -> None:
    one = captune(package, "score", *FILES, "--metric", "words", "--quiet")
    assert one.stdout == "3.0000\n"
    both = captune(package, "compare", *FILES, "--predictions", "longer.json", "--metrics", "words", "--json")
    assert json.loads(both.stdout)["differences"]["longer"]["Words"]["difference"] == 1.0


def test_protocol_table_and_page_know_it(package: Path) -> None:
    program = """
import json
from captune.metrics import ScoringOptions, Scorer, Scores, Signature
from captune.evaluation.protocol import Protocol
from captune.report.columns import column
rules = Protocol(name="words", metrics=("words", "rouge-l"))
predictions, references = (json.load(open(name + ".json")) for name in ("predictions", "references"))
scores = Scorer(references, ScoringOptions(rules.metrics)).score(predictions)
again = Scores.from_dict(json.loads(json.dumps(scores.to_dict())))
assert again.corpus == scores.corpus and again.details == scores.details == Signature.parse(scores.signature)
print(column("Words").direction, column("Words").top, list(scores.corpus))
"""
    result = python(package, f"exec({program!r})")
    assert result.stdout == "-1 None ['Words', 'ROUGE-L']\n", result.stderr


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("one-row", "returned statistics of shape (1, 1) for 3 images"),
        ("cider,also-cider", "both have the column 'CIDEr'"),
        ("no-metric", "is not a subclass of Metric"),
        ("missing", "cannot be imported: No module named 'word_metrics_missing'"),
        (
            "letters",
            "choose out of bleu, cider, cider-d, cider-r, rouge-l, meteor, spice, spider, bertscore, chair, clipscore, "
            "clipscore-sentences, pac-s, words, ",
        ),
    ],
)
def test_a_faulty_package_is_one_sentence(package: Path, metrics: str, message: str) -> None:
    result = captune(package, "score", *FILES, "--metrics", metrics)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_built_in_metric_has_a_row_with_its_source_in_the_documentation(repository: Path) -> None:
    text = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = text[text.index("| `--metrics`") :].partition("\n\n")[0]
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    for name in BUILT_IN:
        _, _, prints, scale, _, source, _ = (cell.strip() for cell in rows[name].split("|"))
        assert prints, name
        assert scale, name
        assert source or name == "cider-d", name
        for column in METRICS[name].columns:
            assert column.description or METRICS[name].__doc__, column.name
            assert column.name in text or column.name.startswith("BLEU"), column.name


def test_every_built_in_metric_has_columns() -> None:
    check_metrics(METRICS)
    names = [column for metric in METRICS.values() for column in metric.names()]
    assert len(set(names)) == len(names)
    scales = {column.name: column.scale for metric in METRICS.values() for column in metric.columns}
    assert scales["BLEU-1"] == "0-1"
    assert scales["CIDEr"] == "0-10"
    assert (scales["CLIPScore"], scales["RefCLIPScore"]) == ("0-2.5", "0-1.4")
    column = find_column("CIDEr-D")
    assert column is not None
    assert (column.name, column.top, column.higher_is_better) == ("CIDEr-D", 10.0, True)
    assert find_column("Length") is None
