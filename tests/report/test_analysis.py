"""The analysis: true on the slides' own table, and on every odd shape a run can have."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from captune.report import CheckpointScores, RunScores, analyse, read_csv, recommends_more_epochs, sentences
from captune.report.narrative import LANGUAGES, analysis_markdown, catalogue, percent
from captune.report.scores_json import MAX_SCORE


def _texts(run: RunScores) -> dict[str, str]:
    return {item.topic: item.text for item in sentences(run, analyse(run))}


def test_slides_gains_are_stated_as_they_are(shared: Any) -> None:
    run = read_csv(shared / "slides_table.csv")
    texts = _texts(run)
    for claim in ("BLEU-1 +23 %", "BLEU-2 +42 %", "BLEU-3 +63 %", "BLEU-4 +84 %", "CIDEr +17 %", "ROUGE-L +18 %"):
        assert claim in texts["Gain"]
    assert texts["Fastest and slowest"] == (
        "Relative to the first row, BLEU-4 rose fastest (+84 %), CIDEr (+17 %) and ROUGE-L (+18 %) least."
    )
    assert texts["Best checkpoint"] == "epoch4 is best on all 6 metrics."


def test_slides_jumps_trend_and_advice(make_run: Any, slides: Any) -> None:
    analysis = analyse(make_run(slides))
    jumps = {
        e.metric: (e.largest_jump.after, round(e.largest_jump.change, 4)) for e in analysis.metrics if e.largest_jump
    }
    assert jumps == {
        "BLEU-1": ("epoch0", 0.0252),
        "BLEU-2": ("epoch0", 0.0352),
        "BLEU-3": ("epoch0", 0.0361),
        "BLEU-4": ("epoch0", 0.0473),
        "CIDEr": ("epoch1", 0.0251),
        "ROUGE-L": ("epoch1", 0.0368),
    }
    assert {entry.trend for entry in analysis.metrics} == {"rising"}
    assert analysis["CIDEr"].slope == pytest.approx((0.5115 - 0.4829) / 2)
    assert analysis["CIDEr"].pace == pytest.approx((0.5115 - 0.4361) / 5)
    assert (analysis.advice, analysis.best, analysis.disagreements) == ("continue", "epoch4", ())
    assert analysis.ranking == ("BLEU-4", "BLEU-3", "BLEU-2", "BLEU-1", "ROUGE-L", "CIDEr")


@pytest.mark.parametrize(
    ("values", "trend", "advice"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5), "rising", "continue"),
        ((0.1, 0.5, 0.6, 0.6, 0.6), "flat", "stop"),
        ((0.1, 0.2, 0.6, 0.6), "flat", "stop"),
        ((0.6, 0.5, 0.2, 0.2), "collapsed", "lower learning rate"),
        ((0.1, 0.5, 0.7, 0.6, 0.5), "falling", "lower learning rate"),
        ((0.1, 0.6, 0.3, 0.6, 0.3), "swinging", "lower learning rate"),
        ((0.5, 0.5, 0.5, 0.5, 0.5), "flat", "stop"),
        ((0.1, 0.2, 0.3), None, None),
        ((0.1, math.nan, 0.3, 0.4, 0.5), None, None),
    ],
)
def test_trend_and_advice(make_run: Any, values: tuple[float, ...], trend: str | None, advice: str | None) -> None:
    analysis = analyse(make_run({"CIDEr": values}))
    assert analysis["CIDEr"].trend == trend
    assert analysis.advice == advice


def test_a_metric_that_collapsed_is_not_flat(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.19, 0.0013, 0.0012, 0.0013), "BLEU-1": (0.3, 0.31, 0.31, 0.31)})
    analysis = analyse(run)
    assert analysis["CIDEr"].trend == "collapsed"
    assert analysis["BLEU-1"].trend == "flat"
    assert analysis.advice == "lower learning rate"
    assert "flat at a score below the first row: CIDEr" in _texts(run)["Last epochs"]
    # A fall that its test does not support, or one from an epoch that is higher than the first row, is none.
    unsure = make_run({"CIDEr": (0.19, 0.17, 0.17, 0.17)}, p_values={"pretrained": 0.4})
    assert analyse(unsure)["CIDEr"].trend == "flat"
    assert analyse(make_run({"CIDEr": (0.3, 0.9, 0.4, 0.41, 0.4)}))["CIDEr"].trend == "flat"


def test_a_quarter_of_the_pace_separates_flat_from_rising(make_run: Any) -> None:
    # Range 0.4 over 4 steps is a pace of 0.1; the last slope is exactly the required share of it.
    assert analyse(make_run({"CIDEr": (0.0, 0.2, 0.348, 0.374, 0.4)}))["CIDEr"].trend == "rising"
    assert analyse(make_run({"CIDEr": (0.0, 0.2, 0.352, 0.376, 0.4)}))["CIDEr"].trend == "flat"


def test_epochs_that_are_far_apart_count_as_such(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.3, 0.32, 0.34, 0.36)})
    rows = [
        dataclasses.replace(row, epoch=epoch) for row, epoch in zip(run.checkpoints, (None, 0, 20, 40, 60), strict=True)
    ]
    analysis = analyse(dataclasses.replace(run, checkpoints=tuple(rows)))
    assert analysis["CIDEr"].slope == pytest.approx(0.001)
    assert analysis["CIDEr"].pace == pytest.approx(0.26 / 61)


def test_a_rise_within_noise_is_called_so_unless_a_paired_test_supports_it(make_run: Any) -> None:
    values = {"CIDEr": (0.40, 0.42, 0.44, 0.46, 0.48)}
    assert analyse(make_run(values, half_width=0.1)).advice == "more images"
    assert analyse(make_run(values, half_width=0.03)).advice == "continue"
    sure = make_run(values, half_width=0.1, p_values={"previous": 0.01})
    assert analyse(sure).advice == "continue"
    assert "within noise" in _texts(make_run(values, half_width=0.1))["Advice"]


def test_most_metrics_decide_and_cider_breaks_a_tie(make_run: Any) -> None:
    rising, flat = (0.1, 0.2, 0.3, 0.4), (0.1, 0.4, 0.4, 0.4)
    assert analyse(make_run({"BLEU-1": rising, "CIDEr": flat})).advice == "stop"
    assert analyse(make_run({"BLEU-1": flat, "CIDEr": rising})).advice == "continue"
    three = make_run({"BLEU-1": rising, "BLEU-2": rising, "CIDEr": flat})
    assert (analyse(three).advice, analyse(three).advised_by) == ("continue", ("BLEU-1", "BLEU-2"))


def test_a_first_value_of_zero_has_no_relative_gain(make_run: Any) -> None:
    run = make_run({"BLEU-4": (0.00004, 0.38), "CIDEr": (0.7, 1.3)})
    analysis = analyse(run)
    assert analysis["BLEU-4"].relative_gain is None
    assert analysis.ranking == ("CIDEr",)
    assert "BLEU-4 +0.3800 (0.0000 to 0.3800) (no relative gain, since it starts at 0)" in _texts(run)["Gain"]
    assert "inf" not in analysis_markdown(run, analysis)


def test_one_checkpoint_is_not_compared(make_run: Any) -> None:
    texts = _texts(make_run({"CIDEr": (0.7,)}))
    assert texts == {"Gain": "There is only one checkpoint, pretrained, so nothing can be compared yet."}


def test_equal_rows_are_reported_as_equal(make_run: Any) -> None:
    texts = _texts(make_run({"CIDEr": (0.7, 0.7, 0.70001), "BLEU-4": (0.2, 0.2, 0.2)}))
    assert texts["Gain"].startswith("All 3 rows have the same scores")
    assert "Advice" not in texts


def test_missing_scores_are_listed_and_never_computed_with(make_run: Any) -> None:
    run = make_run({"CIDEr": (math.nan, 0.5, 0.6), "BLEU-4": (0.1, 0.2, 0.3), "ROUGE-L": (math.nan,) * 3})
    texts = _texts(run)
    assert texts["Missing"] == "There is no value at pretrained for CIDEr; at any row for ROUGE-L."
    assert "CIDEr unknown (nan to 0.6000)" in texts["Gain"]
    assert analyse(run)["CIDEr"].largest_jump.change == pytest.approx(0.1)  # type: ignore[union-attr]


def test_drops_and_disagreements_are_named(make_run: Any) -> None:
    run = make_run({"BLEU-4": (0.10, 0.20, 0.15), "CIDEr": (0.5, 0.4, 0.45), "ROUGE-L": (0.5, 0.6, 0.7)})
    texts = _texts(run)
    assert "BLEU-4 -0.0500 from epoch0 to epoch1" in texts["Drops"]
    assert "CIDEr -0.1000 from pretrained to epoch0" in texts["Drops"]
    # First to last row, then step by step.
    assert texts["Agreement"].startswith("From pretrained to epoch1, CIDEr gets worse while BLEU-4 and ROUGE-L improve")
    assert texts["Best checkpoint"].startswith("epoch0 is best on BLEU-4; pretrained is best on CIDEr")
    assert texts["Fastest and slowest"].endswith("BLEU-4 rose fastest (+50 %); CIDEr (-10 %) got worse.")


def test_when_nothing_improves_no_metric_is_called_fastest(make_run: Any) -> None:
    texts = _texts(make_run({"BLEU-4": (0.2, 0.1), "CIDEr": (0.5, 0.5)}))
    assert texts["Fastest and slowest"] == "Relative to the first row, no metric improved; BLEU-4 (-50 %) got worse."


def test_bounds_of_the_gain_come_from_the_paired_difference_where_there_is_one(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.5, 0.6)}, half_width=0.05)
    assert analyse(run)["CIDEr"].relative_interval == pytest.approx((0.0, 0.4))
    assert "paired on the same images they would be narrower" in _texts(run)["Gain"]
    last = dataclasses.replace(run.checkpoints[-1], differences={"CIDEr": {"pretrained": (0.075, 0.125)}})
    paired = dataclasses.replace(run, checkpoints=(run.checkpoints[0], last))
    assert analyse(paired)["CIDEr"].relative_interval == pytest.approx((0.15, 0.25))
    assert _texts(paired)["Gain"].endswith("CIDEr +20 % (0.5000 to 0.6000, between +15 % and +25 %).")


def test_significance_of_the_last_row(make_run: Any) -> None:
    run = make_run({"BLEU-4": (0.1, 0.2), "CIDEr": (0.5, 0.6)})
    tests = {"BLEU-4": {"pretrained": 0.002}, "CIDEr": {"pretrained": 0.4}}
    last = dataclasses.replace(run.checkpoints[-1], p_values=tests)
    texts = _texts(dataclasses.replace(run, checkpoints=(run.checkpoints[0], last)))
    assert texts["Significance"] == (
        "epoch0 differs from pretrained by more than chance on BLEU-4 (p <= 0.002) "
        "but the difference may be chance on CIDEr (p = 0.40)."
    )


def test_a_leak_is_reported_first(make_run: Any, slides: Any) -> None:
    items = sentences(make_run(slides, leak="test in training."), analyse(make_run(slides)))
    assert items[0].topic == "Leak"
    assert items[0].text == ("All rows are marked LEAK (test in training): not to be compared with published scores.")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.2321, "+23 %"),
        (0.0949, "+9.5 %"),
        (0.0996, "+10 %"),
        (0.0042, "+0.42 %"),
        (0.0, "+0 %"),
        (-0.5, "-50 %"),
        (12.3456, "+1,235 %"),
        (1e308, "+1e+308-fold"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


scores = st.none() | st.floats(0, 10) | st.just(math.nan) | st.sampled_from([0.0, 1e-9, MAX_SCORE, -1.0])


@example([{"CIDEr": 1.0}, {"CIDEr": MAX_SCORE}])
@given(
    st.lists(st.dictionaries(st.sampled_from(["BLEU-4", "CIDEr", "new"]), scores, min_size=1), min_size=1, max_size=7)
)
def test_any_table_can_be_put_into_words(table: list[dict[str, float | None]]) -> None:
    rows = tuple(
        CheckpointScores(name=f"r{index}", corpus={name: value for name, value in row.items() if value is not None})
        for index, row in enumerate(table)
    )
    run = RunScores(data="any", checkpoints=rows)
    analysis = analyse(run)
    json.dumps(analysis.to_dict(), allow_nan=False)
    english, chinese = sentences(run, analysis), sentences(run, analysis, "zh")
    assert len(chinese) == len(english)
    for item in (*english, *chinese):
        assert item.text.endswith((".", "。"))
        assert "\n" not in item.text
        assert "inf" not in item.text


def test_the_catalogues_have_the_same_messages() -> None:
    english, chinese = (catalogue(language) for language in LANGUAGES)
    assert english.page.keys() == chinese.page.keys()
    # English has the notes of the table from the table itself.
    notes = {key for key in chinese.messages if key.startswith("note.")}
    assert chinese.messages.keys() - english.messages.keys() == notes - {"note.best"}
    assert english.messages.keys() <= chinese.messages.keys()


def test_overfitting_is_seen_on_the_training_slice(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.5, 0.8, 0.7), "BLEU-4": (0.1, 0.2, 0.3)})
    assert analyse(run).overfit is None
    slices = ({"CIDEr": 0.5, "BLEU-4": 0.1}, {"CIDEr": 0.9, "BLEU-4": 0.2}, {"CIDEr": 1.2, "BLEU-4": 0.3})
    rows = [dataclasses.replace(row, train_slice=s) for row, s in zip(run.checkpoints, slices, strict=True)]
    texts = _texts(dataclasses.replace(run, checkpoints=tuple(rows)))
    assert texts["Over-fitting"] == (
        "Since epoch0, CIDEr rises on training images (+0.3000) and falls on the evaluated ones (-0.1000)."
    )
    assert _texts(dataclasses.replace(run, checkpoints=tuple(rows[:2])))["Over-fitting"].startswith("No metric rises")
    # A fall that chance explains is none.
    wide = [dataclasses.replace(row, intervals={"CIDEr": (0.6, 1.0)}) for row in rows]
    assert _texts(dataclasses.replace(run, checkpoints=tuple(wide)))["Over-fitting"].startswith("No metric rises")
    narrow = [dataclasses.replace(row, intervals={"CIDEr": (0.75, 0.85)}) for row in rows]
    assert "CIDEr rises" in _texts(dataclasses.replace(run, checkpoints=tuple(narrow)))["Over-fitting"]


def test_length_drift(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.5, 0.8)})
    captions = ("A dog runs over the green grass .", "A dog.")
    rows = [dataclasses.replace(row, captions={"1": c}) for row, c in zip(run.checkpoints, captions, strict=True)]
    run = dataclasses.replace(run, checkpoints=tuple(rows), references={"1": ("A dog runs.", "One dog is running.")})
    assert _texts(run)["Length"] == "epoch0 writes 2.0 words per caption, pretrained wrote 7.0; references have 3.5."


def test_no_epoch_is_recommended_if_none_is_better_than_the_first_row(make_run: Any) -> None:
    texts = _texts(make_run({"CIDEr": (0.5, 0.1, 0.19, 0.0), "BLEU-1": (0.4, 0.5, 0.5, 0.5)}))
    assert texts["Advice"].startswith("No epoch scores higher than pretrained: keep pretrained")


def test_the_metric_of_train_select_decides_whether_an_epoch_is_better(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.5, 0.6, 0.7, 0.55), "BLEU-1": (0.4, 0.3, 0.3, 0.3), "BLEU-2": (0.4, 0.3, 0.3, 0.3)})
    assert not _texts(run)["Advice"].startswith("No epoch")
    assert _texts(dataclasses.replace(run, select="bleu-1"))["Advice"].startswith("No epoch scores higher than")


def test_a_run_that_got_worse_is_advised_on_with_few_rows(make_run: Any) -> None:
    assert _texts(make_run({"CIDEr": (3.2, 0.7, 0.6)}))["Advice"].startswith("No epoch scores higher than pretrained")
    assert "Advice" not in _texts(make_run({"CIDEr": (0.7, 3.2, 3.1)}))


def test_the_epoch_before_a_fall_is_recommended(make_run: Any) -> None:
    texts = _texts(make_run({"CIDEr": (0.2, 3.26, 0.74, 0.91, 1.64), "BLEU-1": (0.1, 0.6, 0.2, 0.3, 0.4)}))
    assert texts["Advice"] == (
        "Take epoch0: CIDEr is 3.2600 there, fell to 0.7400 at epoch1 and is 1.6400 at epoch3; to train further, start "
        "from epoch0 with a lower learning rate."
    )
    # Most of the fall is made up for.
    recovered = _texts(make_run({"CIDEr": (0.2, 3.26, 0.74, 1.91, 3.2), "BLEU-1": (0.1, 0.6, 0.2, 0.4, 0.6)}))
    assert recovered["Advice"].startswith("Continue training")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"CIDEr": (0.1, 0.2, 0.3, 0.4, 0.5)}, True),
        ({"CIDEr": (0.1, 0.2, 0.6, 0.6)}, False),
        ({"CIDEr": (0.1, 0.2, 0.3)}, False),
        ({"CIDEr": (0.2, 3.26, 0.74, 0.91, 1.64), "BLEU-1": (0.1, 0.6, 0.2, 0.3, 0.4)}, False),
        ({"CIDEr": (0.2, 3.26, 0.74, 1.91, 3.2), "BLEU-1": (0.1, 0.6, 0.2, 0.4, 0.6)}, True),
        ({"CIDEr": (0.9, 0.1, 0.2, 0.3, 0.4), "BLEU-1": (0.9, 0.1, 0.2, 0.3, 0.4)}, None),
    ],
)
def test_more_epochs_are_recommended_where_the_advice_says_so(
    make_run: Any, values: dict[str, tuple[float, ...]], expected: bool | None
) -> None:
    run = make_run(values)
    continues = _texts(run).get("Advice", "").startswith("Continue training")
    assert recommends_more_epochs(run, analyse(run)) == continues
    assert expected in (None, continues)
