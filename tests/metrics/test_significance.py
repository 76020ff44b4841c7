"""Error bars: against known distributions, and the same with the same seed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from captune.errors import MetricInputError
from captune.metrics import Scores, Signature, score_captions
from captune.metrics.significance import approximate_randomization, confidence_intervals, paired_bootstrap

DETAILS = Signature(n=1, refs="5", tok="ptb3.4.1")


def system(values: np.ndarray) -> Scores:
    """A system whose ROUGE-L of each image is known."""
    return Scores(tuple(range(len(values))), {"rouge-l": values[:, None]}, DETAILS)


def test_interval_of_a_mean_is_the_one_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 2000)
    interval = confidence_intervals(system(values), resamples=4000)["ROUGE-L"]
    error = values.std() / np.sqrt(len(values))
    assert interval.score == pytest.approx(values.mean())
    assert interval.deviation == pytest.approx(error, rel=0.05)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=error / 8)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=error / 8)


def test_bleu_is_resampled_from_its_statistics() -> None:
    random = np.random.default_rng(2)
    words = list("abcdefgh")
    references = {str(i): [" ".join(random.choice(words, 8)) for _ in range(2)] for i in range(40)}
    predictions = {image: " ".join(random.choice(words, 7)) for image in references}
    scores = score_captions(predictions, references, tokenize="none")
    intervals = confidence_intervals(scores, resamples=500)
    assert list(intervals) == list(scores.corpus)
    assert all(interval.low <= interval.score <= interval.high for interval in intervals.values())
    # The corpus score of one resample, by hand, with the same random numbers.
    drawn = np.random.default_rng(12345).integers(0, 40, (500, 40), np.int64)
    ids = list(references)
    by_hand = [
        score_captions(
            {str(i): predictions[ids[index]] for i, index in enumerate(row)},
            {str(i): references[ids[index]] for i, index in enumerate(row)},
            ["bleu"],
            tokenize="none",
        ).corpus["BLEU-2"]
        for row in drawn[:60]
    ]
    some = confidence_intervals(scores, resamples=500)["BLEU-2"]
    assert np.mean(by_hand) == pytest.approx((some.low + some.high) / 2, abs=some.deviation)
    assert intervals["CIDEr"].frequencies == "kept from the complete set"
    assert intervals["BLEU-1"].frequencies is None


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).random(100)
    first, second, other = (confidence_intervals(system(values), seed=seed)["ROUGE-L"] for seed in (7, 7, 8))
    assert first == second != other


def test_equal_systems_do_not_differ() -> None:
    values = np.random.default_rng(4).random(200)
    for test in (paired_bootstrap, approximate_randomization):
        result = test(system(values), system(values))["ROUGE-L"]
        assert result.difference == 0
        assert result.p_value == 1


def test_p_values_are_those_of_the_normal_distribution() -> None:
    random = np.random.default_rng(5)
    baseline = random.random(1000)
    noise = random.normal(0, 0.1, 1000)
    # Two standard errors away: a two-sided p-value of 4.6 %.
    better = baseline + (noise - noise.mean()) + 2 * noise.std() / np.sqrt(1000)
    bootstrap = paired_bootstrap(system(better), system(baseline), resamples=5000)["ROUGE-L"]
    randomization = approximate_randomization(system(better), system(baseline))["ROUGE-L"]
    assert bootstrap.p_value == pytest.approx(0.0455, abs=0.012)
    assert randomization.p_value == pytest.approx(0.0455, abs=0.012)
    assert bootstrap.low < bootstrap.difference < bootstrap.high
    # Four fifths of the time at 5 %: 1.96 + 0.84 standard errors.
    assert bootstrap.smallest == pytest.approx(2.80 * noise.std() / np.sqrt(1000), rel=0.05)


def test_images_are_paired_by_their_id() -> None:
    values = np.random.default_rng(6).random(50)
    turned = Scores(tuple(str(i) for i in reversed(range(50))), {"rouge-l": values[::-1, None]}, DETAILS)
    assert paired_bootstrap(system(values), turned)["ROUGE-L"].p_value == 1


def test_what_cannot_be_compared_is_one_sentence() -> None:
    values = np.random.default_rng(7).random(50)
    with pytest.raises(MetricInputError, match="same images"):
        paired_bootstrap(system(values), system(values[:40]))
    other = Scores(tuple(range(50)), {"cider": values[:, None]}, DETAILS)
    with pytest.raises(MetricInputError, match="no score in common"):
        approximate_randomization(system(values), other)
    with pytest.raises(MetricInputError, match="confidence of 95"):
        confidence_intervals(system(values), confidence=95)
    with pytest.raises(MetricInputError, match="1 resamples"):
        confidence_intervals(system(values), resamples=1)


def test_a_thousand_resamples_of_five_thousand_images_take_seconds() -> None:
    statistics = {
        "bleu": np.random.default_rng(8).integers(1, 12, (5000, 10)),
        "rouge-l": np.random.default_rng(9).random((5000, 1)),
    }
    scores = Scores(tuple(range(5000)), statistics, DETAILS)
    start = time.perf_counter()
    confidence_intervals(scores)
    assert time.perf_counter() - start < 10
