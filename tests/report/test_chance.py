"""Noise is not a finding: zeros, differences that pass no test, and rows that are no checkpoints."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from captune.cli.report_output import sparklines
from captune.metrics import Scorer, approximate_randomization, paired_bootstrap
from captune.report import (
    CheckpointScores,
    RunScores,
    TrainingLog,
    analyse,
    build_page,
    markdown_table,
    read_csv,
    sentences,
)
from captune.report.axis import checkpoint_axis
from captune.report.columns import format_value
from captune.report.comparison import compare_runs, comparison_markdown
from captune.report.learning_curve import split_training_rows
from captune.report.page_charts import score_charts
from captune.report.table import cells, latex_table


def _texts(run: RunScores) -> dict[str, str]:
    return {item.topic: item.text for item in sentences(run, analyse(run))}


def _tested(run: RunScores, p: float | dict[int, float], half: float = 0.02) -> RunScores:
    """The run with a paired test of every row, against the first one and the one before."""
    rows = list(run.checkpoints)
    for index, row in enumerate(rows):
        value = p if isinstance(p, float) else p.get(index, 0.001)
        tests = {metric: {"pretrained": value, "previous": value} for metric in row.corpus} if index else {}
        bounds = {metric: (score - half, score + half) for metric, score in row.corpus.items()}
        rows[index] = dataclasses.replace(row, p_values=tests, intervals=bounds)
    return dataclasses.replace(run, checkpoints=tuple(rows))


def _with(run: RunScores, *others: CheckpointScores, first: bool = False) -> RunScores:
    rows = (*others, *run.checkpoints) if first else (*run.checkpoints, *others)
    return dataclasses.replace(run, checkpoints=rows)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-10, 9e-7, 4e-5])
def test_what_shows_as_zero_has_no_mark(make_run: Any, value: float) -> None:
    assert format_value(value) == format_value(-value) == "0.0000"
    run = _tested(make_run({"BLEU-4": (value, value / 2, value / 3), "CIDEr": (0.5, 0.6, 0.7)}), 0.001)
    assert all(not line[0].best and not line[0].differs for line in cells(run))
    assert all(line[1].differs for line in cells(run)[1:])
    for text in (markdown_table(run), latex_table(run)):
        assert not re.search(r"\*\*0\.0000|0\.0000\**(†|‡|\$)|-0\.0000", text)
    analysis = analyse(run)
    assert analysis["BLEU-4"].best is analysis["BLEU-4"].p_value is analysis["BLEU-4"].largest_jump is None
    assert analysis["BLEU-4"].drops == ()
    assert analysis.ranking == ("CIDEr",)
    for text in (*_texts(run).values(), *(item.text for item in sentences(run, analysis, "zh"))):
        assert "BLEU-4" not in text or "BLEU-4 is unchanged" in text or "BLEU-4 不变" in text or "flat" in text


def test_zeros_are_not_tested() -> None:
    references = {str(n): ["a red dog runs fast", "the dog runs"] for n in range(12)}
    scorer = Scorer(references)
    one = scorer.score(dict.fromkeys(references, "blue"))
    other = scorer.score({image: "blue sky" if int(image) % 2 else "green" for image in references})
    for test in (paired_bootstrap(one, other, resamples=50), approximate_randomization(one, other, trials=50)):
        for name, result in test.items():
            if max(one.corpus[name], other.corpus[name]) < 1e-6:
                assert math.isnan(result.p_value)
                assert str(result) == "0.0000 (not tested)"
        assert any(math.isnan(result.p_value) for result in test.values())
    good = scorer.score(dict.fromkeys(references, "a red dog runs fast"))
    assert paired_bootstrap(good, one, resamples=50)["BLEU-4"].p_value < 0.05


def test_a_comparison_prints_no_negative_zero(make_run: Any) -> None:
    references = {str(n): ("a red dog runs fast",) for n in range(12)}
    runs = {}
    for name, caption in (("one", "blue"), ("other", "green sky")):
        row = CheckpointScores(
            name="epoch0", corpus={"CIDEr": 0.0}, epoch=0, captions=dict.fromkeys(references, caption)
        )
        # A captioner after the checkpoints is not what a run is compared by.
        blip = dataclasses.replace(
            row, name="blip", epoch=None, captions=dict.fromkeys(references, "a red dog runs fast")
        )
        runs[name] = RunScores(data="d", checkpoints=(row, blip), images=12, references=references)
    comparison = compare_runs(runs, resamples=50)
    text = comparison_markdown(comparison)
    assert "0.0000" in text
    assert not re.search(r"[-+]0\.0000|\(p = ", text)
    assert comparison.to_dict()["tests"][0]["p_value"] is None


def test_differences_that_pass_no_test_are_no_findings(make_run: Any) -> None:
    table = {"BLEU-4": (0.30, 0.29, 0.31, 0.30, 0.295), "CIDEr": (0.50, 0.505, 0.49, 0.50, 0.48)}
    texts = _texts(_tested(make_run(table), 0.4))
    assert texts["Drops"] == "No metric gets worse at any step by more than chance."
    assert (
        texts["Agreement"]
        == "No two metrics disagree about the direction of any step, as far as it is more than chance."
    )
    assert texts["Gain"] == "From pretrained to epoch3: BLEU-4 and CIDEr differ by no more than chance."
    assert "Largest jump" not in texts
    assert "Fastest and slowest" not in texts
    assert "is best" not in texts["Best checkpoint"]
    assert "lower the learning rate" not in texts.get("Advice", "").lower()
    chinese = {
        item.topic: item.text for item in sentences(*(lambda r: (r, analyse(r)))(_tested(make_run(table), 0.4)), "zh")
    }
    assert chinese["增益"] == "从 pretrained 到 epoch3：BLEU-4、CIDEr 的差异未超出随机波动。"
    assert "降低学习率" not in chinese.get("建议", "")


def test_differences_that_pass_are(make_run: Any) -> None:
    table = {"BLEU-4": (0.10, 0.20, 0.15), "CIDEr": (0.5, 0.4, 0.45)}
    texts = _texts(_tested(make_run(table), 0.001))
    assert "BLEU-4 -0.0500 from epoch0 to epoch1" in texts["Drops"]
    assert "CIDEr gets worse while BLEU-4 improves" in texts["Agreement"]
    assert texts["Best checkpoint"] == "epoch0 is best on BLEU-4; pretrained is best on CIDEr."
    # One step passes, the other does not.
    texts = _texts(_tested(make_run(table), {1: 0.001, 2: 0.3}))
    assert texts["Drops"] == "CIDEr -0.1000 from pretrained to epoch0."
    assert (
        "epoch0 scores best on BLEU-4, though not by more than chance over every other row" in texts["Best checkpoint"]
    )


def test_falling_and_swinging_need_tests_for_advice(make_run: Any) -> None:
    for values in ((0.1, 0.5, 0.7, 0.6, 0.5), (0.1, 0.6, 0.3, 0.6, 0.3)):
        assert analyse(_tested(make_run({"CIDEr": values}), 0.001)).advice == "lower learning rate"
        assert analyse(_tested(make_run({"CIDEr": values}), 0.5)).advice != "lower learning rate"
        assert analyse(make_run({"CIDEr": values})).advice == "lower learning rate"


def test_overfitting_needs_the_test(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.5, 0.8, 0.7)})
    slices = ({"CIDEr": 0.5}, {"CIDEr": 0.9}, {"CIDEr": 1.2})
    rows = tuple(dataclasses.replace(row, train_slice=s) for row, s in zip(run.checkpoints, slices, strict=True))
    run = dataclasses.replace(run, checkpoints=rows)
    assert len(analyse(_tested(run, 0.001)).overfit or ()) == 1
    assert analyse(_tested(run, 0.3)).overfit == ()


def _score_charts(run: RunScores) -> str:
    return "".join(drawing for _, drawing in score_charts(run, {}))


BLIP = CheckpointScores(name="blip2-opt", corpus={"BLEU-4": 0.1, "CIDEr": 0.9})


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("tests", [False, True])
def test_other_captioners_are_no_epochs(make_run: Any, first: bool, tests: bool) -> None:
    training = make_run({"BLEU-4": (0.10, 0.2, 0.3, 0.4), "CIDEr": (0.3, 0.4, 0.5, 0.6)})
    run = _with(training, BLIP, dataclasses.replace(BLIP, name="llava"), first=first)
    run = _tested(run, 0.001) if tests else run
    analysis = analyse(run)
    assert analysis.rows == ("pretrained", "epoch0", "epoch1", "epoch2")
    texts = _texts(run)
    chinese = {item.topic: item.text for item in sentences(run, analysis, "zh")}
    for by_topic, topic in ((texts, "Other captioners"), (chinese, "其他描述模型")):
        assert "blip2-opt" in by_topic[topic]
        assert "epoch2" in by_topic[topic]
        for name, text in by_topic.items():
            assert name == topic or not re.search("blip2|llava", text), (name, text)
    assert "blip2-opt scores higher on CIDEr, scores lower on BLEU-4" in texts["Other captioners"]
    assert "lower the learning rate" not in " ".join(texts.values())
    assert analysis.advice == "continue"
    assert all(line.split()[-1] in ("0.4000", "0.6000") for line in sparklines(run))
    axis = checkpoint_axis(run, 3.5)
    assert axis.joined == 4
    assert len(axis.positions) == 6
    assert list(axis.positions) == sorted(axis.positions)
    assert [label.strip() for label in axis.labels[4:]] == ["blip2-opt", "llava"]
    for chart in re.findall(r'<polyline class="line[^"]*" points="([^"]*)"', _score_charts(run)):
        assert len(chart.split()) == 4
    assert _score_charts(run).count('class="mark') == 12


def test_the_chart_joins_no_captioner(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    from captune.report import draw_chart

    lines: list[tuple[int, Any]] = []
    plot = Axes.plot

    def seen(self: Axes, places: Any, values: Any, **settings: Any) -> Any:
        if not settings.get("transform"):
            lines.append((len(places), settings["linestyle"]))
        return plot(self, places, values, **settings)

    monkeypatch.setattr(Axes, "plot", seen)
    training = make_run({"BLEU-4": (0.10, 0.2, 0.3), "CIDEr": (0.3, 0.4, 0.5)})
    assert draw_chart(_with(training, BLIP, dataclasses.replace(BLIP, name="llava-1.5-7b-hf")), ("svg",))["svg"]
    assert [length for length, style in lines if style == "none"] == [2, 2]
    assert [length for length, style in lines if style != "none"] == [3, 3]


def test_models_without_a_training_are_compared_and_not_advised() -> None:
    rows = tuple(
        CheckpointScores(name=name, corpus={"CIDEr": score, "BLEU-4": score / 3})
        for name, score in (("blip-base", 0.9), ("git", 0.8), ("vit-gpt2", 0.6), ("minigpt4", 0.5))
    )
    for images in (100, None):
        run = RunScores(data="d", checkpoints=rows, images=images)
        texts = _texts(run)
        assert set(texts) == {"Models"}
        assert texts["Models"].startswith("Compared with blip-base: git scores lower on BLEU-4 and CIDEr;")
        assert not checkpoint_axis(run, 3.5).joined
        assert "polyline" not in _score_charts(run)


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        ("pretrained epoch0 epoch1 blip2", 3),
        ("base epoch-1 epoch-2 blip2", 3),
        ("blip2 pretrained epoch0", 2),
        ("pretrained step-100 step-200 blip-2 llava-1.5", 3),
        ("base ckpt1 ckpt2", 3),
        ("checkpoint-500 checkpoint-1000", 2),
        ("pretrained blip2", 1),
    ],
)
def test_rows_of_a_table_from_elsewhere(tmp_path: Path, names: str, rows: int) -> None:
    lines = [f"{name},0.{number + 1}" for number, name in enumerate(names.split())]
    (tmp_path / "t.csv").write_text("\n".join(["checkpoint,CIDEr", *lines]), encoding="utf-8")
    course = split_training_rows(read_csv(tmp_path / "t.csv"))
    assert (len(course.run.checkpoints), course.is_training) == (rows, True)
    assert not any("blip" in row.name for row in course.run.checkpoints)


def test_a_test_against_a_row_of_another_captioner_is_not_the_steps(make_run: Any) -> None:
    """The row above a checkpoint may be another captioner's; its test is no test of the training."""
    training = make_run({"CIDEr": (0.3, 0.4, 0.5)})
    rows = list(_tested(_with(training, BLIP), 0.001).checkpoints)
    rows.insert(2, rows.pop())
    run = dataclasses.replace(training, checkpoints=tuple(rows))
    kept = split_training_rows(run).run.checkpoints
    assert [row.name for row in kept] == ["pretrained", "epoch0", "epoch1"]
    assert set(kept[2].p_values["CIDEr"]) == {"pretrained"}


def test_the_pages_lengths_and_classes_leave_other_captioners_alone(make_run: Any) -> None:
    training = make_run({"CIDEr": (0.3, 0.4)})
    words = ("a dog", "a dog runs", "the cat sleeps on the mat")
    rows = [
        dataclasses.replace(row, captions={"1": text, "2": text})
        for row, text in zip((*training.checkpoints, BLIP), words, strict=True)
    ]
    run = dataclasses.replace(training, checkpoints=tuple(rows), references={"1": ("a dog",), "2": ("a dog",)})
    text = build_page(run, TrainingLog())
    gained = text.partition('data-t="words_gained"')[2].partition("</p>")[0]
    assert "runs" in gained
    assert "cat" not in gained
