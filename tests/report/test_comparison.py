"""Several runs on the same images: who is better, by more than chance or not, and where they part."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from captune.cli.report_output import examples, sparkline, sparklines, wrapped
from captune.errors import InputError
from captune.report import CheckpointScores, RunScores, compare_runs, write_comparison
from captune.report.comparison import comparison_markdown, matrices, most_different_lines, pair_tests

ANIMALS = ("dog", "cat", "horse", "bird", "cow")
PLACES = ("beach", "street", "park", "field", "house", "river")


def _run(shift: int, *, leak: str | None = None) -> RunScores:
    """Thirty images; every `shift`-th caption is about something else."""
    scenes = [(animal, setting) for animal in ANIMALS for setting in PLACES]
    references = {f"{a}-{p}": (f"A {a} runs at the {p}.", f"One {a} is running near a {p}.") for a, p in scenes}
    captions = {
        image: "Two people sit down." if shift and index % shift == 0 else references[image][0]
        for index, image in enumerate(references)
    }
    row = CheckpointScores(name="epoch0", epoch=0, corpus={"CIDEr": 9.9}, captions=captions, leak=leak)
    return RunScores("toy", (row,), "test", "karpathy", len(captions), references)


def test_better_captions_win_by_more_than_chance() -> None:
    comparison = compare_runs({"good": _run(0), "bad": _run(2)})
    assert [row.name for row in comparison.table.checkpoints] == ["good", "bad"]
    assert comparison.differences["CIDEr"][0, 1] > 0
    assert comparison.p_values["CIDEr"][0, 1] < 0.01
    assert comparison.table.checkpoints[0].corpus["CIDEr"] != 9.9  # computed anew
    low, high = comparison.table.checkpoints[1].intervals["CIDEr"]
    assert low < comparison.table.checkpoints[1].corpus["CIDEr"] < high
    assert len(comparison.most_different) == 10
    bad = comparison.table.checkpoints[1].captions
    assert all(bad[image] == "Two people sit down." for image in comparison.most_different)


def test_equal_runs_do_not_differ() -> None:
    comparison = compare_runs({"a": _run(3), "b": _run(3), "c": _run(5)})
    assert comparison.differences["CIDEr"][0, 1] == 0
    assert comparison.p_values["CIDEr"][0, 1] == 1
    assert comparison.agreement[0, 1] == pytest.approx(1)
    assert set(comparison.agreement) == {(0, 1), (0, 2), (1, 2)}
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_matrices_are_antisymmetric_tests_and_symmetric_agreement() -> None:
    comparison = compare_runs({"a": _run(0), "b": _run(2)})
    tests, agreement = matrices(comparison)[0][1], matrices(comparison)[-1][1]
    assert tests[0][0] == "–"
    assert tests[0][1].startswith("+")
    assert tests[1][0] == tests[0][1].replace("+", "-", 1)
    assert agreement[0][1] == agreement[1][0]


@pytest.mark.parametrize("images", [20, 10])
def test_runs_of_different_lengths_are_also_compared_at_equal_length(tmp_path: Path, images: int) -> None:
    """A run that appends words to some captions of 30; on the other images both are equal."""
    run = _run(4)
    captions = {
        image: f"{text} There is much more to see in it." if index >= images else text
        for index, (image, text) in enumerate(run.checkpoints[0].captions.items())
    }
    long = dataclasses.replace(run, checkpoints=(dataclasses.replace(run.checkpoints[0], captions=captions),))
    comparison = compare_runs({"short": run, "long": long})
    tests = comparison.equal_length[0, 1]
    assert (tests.images, tests.total) == (images, 30)
    assert comparison.differences["CIDEr"][0, 1] > 0.5
    assert tests.tests["CIDEr"][0].difference == 0
    (record,) = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["equal_length"]
    assert (record["images"], record["differences"]["CIDEr"]["difference"]) == (images, 0)
    assert (record["differences"]["CIDEr"]["low"] is None) == (images < 20)
    headings = dict(matrices(comparison))
    cells = headings["CIDEr: row minus column, images whose captions differ by at most 10 % in words"]
    interval = "0.0000 [+0.0000, +0.0000], 20 images"
    assert cells[0][1] == (interval if images == 20 else "0.0000, 10 images, too few to test")
    assert not any(heading.startswith("BLEU-1") and "10 %" in heading for heading in headings)
    write_comparison(tmp_path, comparison)
    assert "at most 10 % in words" in (tmp_path / "report.html").read_text()
    # Runs of about the same length have no such tables.
    assert compare_runs({"a": _run(4), "b": _run(4)}).equal_length == {}


def test_tests_of_two_runs_name_the_second_minus_the_first() -> None:
    comparison = compare_runs({"good": _run(0), "bad": _run(2)})
    (heading, rows), *_ = pair_tests(comparison)
    assert heading == "bad minus good"
    cells = {h.partition(":")[0]: cells for h, cells in matrices(comparison) if h.endswith("row minus column")}
    assert dict(rows) == {metric: cells[metric][1][0] for metric in cells}
    assert dict(rows)["CIDEr"].startswith("-")


def test_lengths_that_no_image_shares_have_no_tables() -> None:
    run = _run(0)
    captions = dict.fromkeys(run.references, "A dog.")
    short = dataclasses.replace(run, checkpoints=(dataclasses.replace(run.checkpoints[0], captions=captions),))
    comparison = compare_runs({"long": run, "short": short})
    assert comparison.equal_length[0, 1].images == 0
    assert not any("10 %" in heading for heading, _ in [*matrices(comparison), *pair_tests(comparison)])


def test_files_of_a_comparison(tmp_path: Path) -> None:
    comparison = compare_runs({"a|<b>": _run(0, leak="because"), "b": _run(2)})
    files = write_comparison(tmp_path, comparison)
    assert [file.name for file in files] == ["table.md", "table.csv", "table.tex", "comparison.md", "report.html"]
    text = comparison_markdown(comparison)
    assert r"| | a\|&lt;b&gt; | b |" in text
    assert "**LEAK**" in (tmp_path / "table.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "CIDEr: row minus column" in page
    assert "Largest jump" not in page
    assert len(most_different_lines(comparison)) == 30


def test_runs_on_other_images_or_without_captions_are_refused() -> None:
    run = _run(0)
    fewer = dataclasses.replace(run, references=dict(list(run.references.items())[:5]))
    with pytest.raises(InputError, match="captions of other images than references"):
        compare_runs({"a": run, "b": fewer})
    row = dataclasses.replace(run.checkpoints[0], captions=dict(list(run.checkpoints[0].captions.items())[:5]))
    with pytest.raises(InputError, match="b and a were not evaluated on the same images"):
        compare_runs({"a": run, "b": dataclasses.replace(fewer, checkpoints=(row,))})
    with pytest.raises(InputError, match="b holds no captions or no references"):
        compare_runs({"a": run, "b": dataclasses.replace(run, references={})})


@pytest.mark.parametrize(
    ("values", "blocks"),
    [
        ((0.0, 0.5, 1.0), "▁▅█"),
        ((1.0, 1.0), "▅▅"),
        ((0.1, None, float("nan"), 0.2), "▁  █"),
        ((None,), " "),
        ((), ""),
    ],
)
def test_sparkline(values: tuple[float | None, ...], blocks: str) -> None:
    assert sparkline(values) == blocks


def test_sparklines_of_the_slides(make_run: Any, slides: Any) -> None:
    lines = sparklines(make_run(slides))
    assert lines[4].split() == ["CIDEr", "▁▂▅▅▆█", "0.4361", "to", "0.5115"]


def test_examples_that_changed_most(make_run: Any) -> None:
    base = make_run({"CIDEr": (0.5, 0.6)})
    captions = {str(index): f"caption {index}\n\x1b[2J" for index in range(20)}
    scores = [{str(i): {"CIDEr": 0.5} for i in range(20)}, {str(i): {"CIDEr": 0.05 * i} for i in range(20)}]
    rows = [
        dataclasses.replace(r, captions=captions, per_image=s) for r, s in zip(base.checkpoints, scores, strict=True)
    ]
    improved, regressed = examples(dataclasses.replace(base, checkpoints=tuple(rows)), count=2)
    assert improved[0] == "Most improved (CIDEr, pretrained to epoch0)"
    assert improved[1][0] == "19  +0.450"
    assert regressed[1][0] == "0  -0.500"
    assert "\x1b" not in "".join(improved[1])
    assert examples(base) == []


def test_wrapping_keeps_numbers_with_their_signs() -> None:
    lines = wrapped("BLEU-4 rose by +84 % " * 12, 30).splitlines()
    assert all(len(line) <= 30 and line.startswith("  ") for line in lines)
    assert not any(line.strip().startswith("%") for line in lines)
