"""SPIDEr: the mean of SPICE and CIDEr of every image; SPICE runs once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from captune.metrics import confidence_intervals, find_column, score_captions
from captune.metrics.external import spice as spice_module

REFERENCES = {"1": ["a dog runs", "the dog"], "2": ["two men sit on a bench"], "3": ["a woman rides a bike"]}
PREDICTIONS = {"1": "a dog", "2": "two men on a bench", "3": ""}
SPICE = [0.5, 0.25, 0.0]


def test_is_the_mean_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spice(predictions: list[str], references: list[list[str]], **_: Any) -> Any:
        calls.append(predictions)
        return SimpleNamespace(per_image=np.array(SPICE))

    monkeypatch.setattr(spice_module, "spice", spice)
    monkeypatch.setattr(spice_module.Spice, "check_requirements", lambda options: None)
    scores = score_captions(PREDICTIONS, REFERENCES, ["spice", "cider", "spider"])
    assert calls == [["a dog", "two men on a bench", ""]]
    expected = (np.array(SPICE) + scores.image_scores["CIDEr"]) / 2
    assert scores.image_scores["SPIDEr"].tolist() == expected.tolist()
    assert scores.corpus["SPIDEr"] == pytest.approx((scores.corpus["SPICE"] + scores.corpus["CIDEr"]) / 2)
    assert "|cider:D,df=corpus|spice:1.0" in scores.signature
    interval = confidence_intervals(scores, resamples=50)["SPIDEr"]
    assert interval.low <= interval.score <= interval.high
    assert interval.frequencies == "kept from the complete set"
    column = find_column("SPIDEr")
    assert column is not None
    assert column.scale == "0-5.5"
