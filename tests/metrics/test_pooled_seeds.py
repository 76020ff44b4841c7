"""Seeds of a system as one system, and Holm's correction."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from captune.errors import MetricInputError
from captune.metrics import Scorer, Scores, ScoringOptions, compare_pooled, holm, paired_bootstrap, pool_seeds

WORDS = ["dog", "cat", "man", "horse", "bench", "street", "grass", "red", "blue", "runs", "sits"]


def scored(systems: int, images: int = 60, skill: float = 0.5) -> list[Scores]:
    """Systems that copy a word of the reference with a chance of `skill`, each with other random numbers."""
    source = random.Random(1)
    references = {str(i): [" ".join(source.choices(WORDS, k=8)) for _ in range(2)] for i in range(images)}
    scorer = Scorer(references, ScoringOptions(metrics=("bleu", "cider")))
    result = []
    for number in range(systems):
        draw = random.Random(100 * skill + number)
        captions = {
            image: " ".join(word if draw.random() < skill else draw.choice(WORDS) for word in group[0].split())
            for image, group in references.items()
        }
        result.append(scorer.score(captions))
    return result


def test_mean_and_spread_are_of_the_seeds_and_the_interval_is_around_the_mean() -> None:
    seeds = scored(4)
    pooled = pool_seeds(seeds, resamples=300)
    for name, score in pooled.items():
        values = [seed.corpus[name] for seed in seeds]
        assert score.mean == pytest.approx(np.mean(values))
        assert score.spread == pytest.approx(np.std(values, ddof=1))
        assert score.low < score.mean < score.high
        assert score.seeds == 4
    assert pooled == pool_seeds(seeds, resamples=300)
    assert pooled != pool_seeds(seeds, resamples=300, seed=1)


def test_the_interval_covers_seeds_as_well_as_images() -> None:
    """With images that never differ only seeds vary, and the deviation of their mean is s / sqrt(S)."""
    (score,) = scored(1)
    rows = np.ones_like(score.statistics["cider"])
    seeds = [Scores(score.ids, {"cider": rows * value}, score.details) for value in (1.0, 1.2, 1.5, 1.9, 2.0, 2.2)]
    pooled = pool_seeds(seeds, confidence=0.6827, resamples=4000)["CIDEr"]
    expected = np.std([1.0, 1.2, 1.5, 1.9, 2.0, 2.2], ddof=1) / math.sqrt(6)
    assert (pooled.high - pooled.low) / 2 == pytest.approx(expected, rel=0.08)
    alike = pool_seeds([seeds[0]] * 3, resamples=50)["CIDEr"]
    assert (alike.spread, alike.low, alike.high) == (0.0, 1.0, 1.0)


def test_one_seed_each_is_the_paired_bootstrap() -> None:
    first, second = scored(2)
    assert compare_pooled([first], [second], resamples=200) == paired_bootstrap(first, second, resamples=200)
    assert math.isnan(pool_seeds([first], resamples=50)["CIDEr"].spread)


def test_better_systems_differ_and_equal_ones_do_not() -> None:
    weak, strong = scored(4), scored(3, skill=0.9)
    better = compare_pooled(strong, weak, resamples=300)["CIDEr"]
    assert better.low > 0
    assert better.p_value < 0.01
    assert better.frequencies
    same = compare_pooled(weak[:2], weak[2:], resamples=300)["CIDEr"]
    assert same.low < 0 < same.high
    assert same.p_value > 0.05


def test_seeds_of_other_images_are_refused() -> None:
    with pytest.raises(MetricInputError, match="same images"):
        pool_seeds([*scored(1), *scored(1, images=50)])
    with pytest.raises(MetricInputError, match="no seeds"):
        pool_seeds([])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([math.nan, 0.02])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.02
    assert holm([]) == []
