"""Agreement of metrics with people: values, intervals, tests and the published values of Flickr8k-CF."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.agreement import (
    Agreement,
    Judgements,
    image_resamples,
    kendall_taus,
    measure_agreement,
    published_values,
    read_judgements,
)
from captune.agreement.resampling import differences, ordered_pairs
from captune.errors import MetricInputError
from captune.metrics import ScoringOptions, score_captions

QUICK = ScoringOptions(metrics=("bleu", "cider", "rouge-l"))


@pytest.fixture
def polaris(rated_rows: list[dict[str, Any]]) -> Judgements:
    return Judgements(
        "Polaris",
        [row["mt"] for row in rated_rows],
        [row["imgid"] for row in rated_rows],
        [row["refs"] for row in rated_rows],
        np.array([row["score"] for row in rated_rows]),
    )


def test_values_are_those_of_the_scores(polaris: Judgements) -> None:
    agreement = measure_agreement(polaris, QUICK, main="tau-b", resamples=200)
    assert agreement.measures == ("tau-b", "tau-c", "accuracy")
    assert (agreement.judgements, agreement.images) == (60, 20)
    items = [str(index) for index in range(60)]
    scores = score_captions(
        dict(zip(items, polaris.captions, strict=True)),
        {item: list(references) for item, references in zip(items, polaris.references, strict=True)},
    ).image_scores
    assert list(agreement.metrics) == list(scores)
    for metric, measured in agreement.metrics.items():
        assert polaris.scores is not None
        taus = kendall_taus(scores[metric], polaris.scores)
        assert measured["tau-b"].value == taus.b
        assert measured["tau-c"].value == taus.c
        for estimate in measured.values():
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.value is not None
            assert estimate.low <= estimate.value <= estimate.high
    assert agreement.signature.startswith("data:Polaris|n:60|refs:5|tok:ptb3.4.1")
    assert measure_agreement(polaris, QUICK, main="tau-b", resamples=200).to_dict() == agreement.to_dict()


def brute_accuracy(judgements: Judgements, values: np.ndarray, ties_count: float) -> float:
    hits, count = 0.0, 0
    people = judgements.scores
    assert people is not None
    for one, other in itertools.combinations(range(len(values)), 2):
        if judgements.images[one] == judgements.images[other] and people[one] != people[other]:
            count += 1
            if values[one] == values[other]:
                hits += ties_count
            else:
                hits += (values[one] > values[other]) == (people[one] > people[other])
    return hits / count


@pytest.mark.parametrize("ties_count", [0.0, 0.5])
def test_accuracy_on_pairs_of_one_image(polaris: Judgements, ties_count: float) -> None:
    random = np.random.default_rng(1)
    values = random.integers(0, 3, 60).astype(np.float64)
    images = np.unique(polaris.images, return_inverse=True)[1]
    assert polaris.scores is not None
    alike, tied, total = ordered_pairs(values, polaris.scores, images, 20).sum(axis=0).tolist()
    assert (alike + ties_count * tied) / total == pytest.approx(brute_accuracy(polaris, values, ties_count))


def test_pairs_by_category(foil: tuple[Path, Path]) -> None:
    judgements = read_judgements("foil", [foil[0]], foil[1])[1]
    assert judgements.pairs is not None
    agreement = measure_agreement(judgements, QUICK, resamples=50)
    assert agreement.measures == ("accuracy",)
    assert agreement.is_pairs
    assert agreement.metrics["CIDEr"]["accuracy"].value == 1.0
    categories = ["HC"] * 15 + ["MM"] * 5
    turned = judgements.pairs.copy()
    turned[15:] = turned[15:, ::-1]
    split = Judgements(
        "x", judgements.captions, judgements.images, judgements.references, pairs=turned, categories=categories
    )
    measured = measure_agreement(split, QUICK, resamples=50).metrics["CIDEr"]
    assert {name: estimate.value for name, estimate in measured.items()} == {
        "mean of categories": 0.5,
        "HC": 1.0,
        "MM": 0.0,
    }


def test_a_metric_that_ties_everything_is_not_defined(polaris: Judgements) -> None:
    same = Judgements("x", ["a dog"] * 60, polaris.images, [["a dog"]] * 59 + [["a dog", "a cat"]], polaris.scores)
    agreement = measure_agreement(same, ScoringOptions(metrics=("rouge-l",)), resamples=20)
    assert agreement.metrics["ROUGE-L"]["tau-c"].value is None
    assert agreement.ties["ROUGE-L"] == 1.0
    assert agreement.tests == ()
    few = Judgements("x", ["a dog"], ["1"], [["a dog"]], np.array([1.0]))
    with pytest.raises(MetricInputError, match="has 1 judgements"):
        measure_agreement(few, QUICK)


def test_differences_and_holm() -> None:
    from captune.metrics import holm

    random = np.random.default_rng(0)
    noise = random.normal(size=1000)
    resampled = {"good": 0.5 + noise, "fair": 0.4 + noise, "equal": 0.4 + noise + 0.2 * random.normal(size=1000)}
    values = {"equal": 0.4, "good": 0.5, "fair": 0.399, "undefined": math.nan}
    tests = {test.metrics: test for test in differences(values, resampled)}
    assert set(tests) == {("good", "equal"), ("good", "fair"), ("equal", "fair")}
    assert tests["good", "fair"].p_value == 1 / 1001
    assert tests["equal", "fair"].p_value > 0.9
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_metrics_do_not_differ() -> None:
    drawn = np.random.default_rng(0).normal(size=100)
    (test,) = differences({"one": 0.3, "other": 0.3}, {"one": drawn, "other": drawn.copy()})
    assert (test.difference, test.p_value) == (0.0, 1.0)


def test_resamples_draw_every_image_once_on_average() -> None:
    draws = image_resamples(50, 3, 400)
    assert (draws.sum(axis=1) == 50).all()
    assert draws.mean() == 1.0


def test_published_values_have_sources() -> None:
    for title in ("Flickr8k-Expert", "Flickr8k-CF", "Composite", "Polaris", "Nebula"):
        values = published_values(title)
        assert len({(row.metric, row.measure) for row in values}) == len(values) > 8
        assert all(row.source and 0 < row.value < 100 for row in values)
    for title, measure in (
        ("FOIL, 1 reference", "accuracy"),
        ("FOIL, 4 references", "accuracy"),
        ("Pascal-50S, 5 references", "mean of categories"),
    ):
        values = published_values(title)
        assert {row.measure for row in values} == {measure}
        assert {"BLEU-4", "CIDEr", "BERTScore", "RefCLIPScore"} <= {row.metric for row in values}
    assert published_values("my ratings") == ()


@pytest.fixture(scope="module")
def flickr8k_cf(shared: Path) -> Agreement:
    path = shared / "judgements" / "flickr8k_crowdflower.txt.gz"
    if not path.is_file():
        pytest.skip("needs the judgements of Flickr8k-CF in '../shared'")
    captions = shared / "captions" / "flickr8k" / "Flickr8k.token.txt"
    (judgements,) = read_judgements("flickr8k-cf", [path], captions)
    assert judgements.count == 47_288
    assert "65 rows left out" in judgements.notes[0]
    return measure_agreement(judgements, QUICK, main="tau-b", resamples=200)


def test_flickr8k_cf_gives_the_published_values(flickr8k_cf: Agreement) -> None:
    compared = 0
    for row in published_values("Flickr8k-CF"):
        if row.metric in flickr8k_cf.metrics:
            value = flickr8k_cf.metrics[row.metric][row.measure].value
            assert value is not None
            assert abs(100 * value - row.value) < 0.1
            compared += 1
    assert compared == 8
