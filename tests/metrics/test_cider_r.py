"""CIDEr-R against the formula of its paper, computed with dictionaries, one pair of captions at a time."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import numpy as np
import pytest

from captune.metrics import paired_bootstrap, score_captions
from captune.metrics.cider_r import length_penalty, repetition_penalty


def by_hand(predictions: dict[str, str], references: dict[str, list[str]]) -> list[float]:
    """The definition, for captions without punctuation."""
    grams = lambda text, n: Counter(zip(*(text.split()[i:] for i in range(n)), strict=False))  # noqa: E731
    images = len(references)
    document: Counter[tuple[str, ...]] = Counter()
    for group in references.values():
        document.update({gram for text in group for n in range(1, 5) for gram in grams(text, n)})
    weigh = lambda counts: {g: c * math.log(images / max(1, document[g])) for g, c in counts.items()}  # noqa: E731
    scores = []
    for image, group in references.items():
        ours, total = predictions[image], 0.0
        for text in group:
            words, others = (Counter(re.findall(r"\w+", caption)) for caption in (ours, text))
            penalty = 1.0
            for word, times in words.items():
                error = abs(times - others[word]) if word in others else times - 1
                penalty *= (1 / (1 + error)) ** (0.8 / len(words))
            long, longer = (max(0, len(caption.split()) - 1) for caption in (ours, text))
            penalty *= math.exp(-((long - longer) ** 2) / longer**2) ** 0.2
            for n in range(1, 5):
                left, right = weigh(grams(ours, n)), weigh(grams(text, n))
                norm = math.sqrt(sum(v * v for v in left.values()) * sum(v * v for v in right.values()))
                dot = sum(min(value, right[g]) * right[g] for g, value in left.items() if g in right)
                total += (dot / norm if norm else dot) * penalty
        scores.append(10 * total / 4 / len(group))
    return scores


def made_captions(images: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    source = random.Random(3)
    words = [
        "dog",
        "cat",
        "man",
        "horse",
        "bench",
        "street",
        "grass",
        "red",
        "blue",
        "small",
        "runs",
        "sits",
        "on",
        "the",
        "a",
    ]
    write = lambda most: " ".join(source.choices(words, k=source.randint(3, most)))  # noqa: E731
    references = {str(image): [write(14) for _ in range(source.randint(1, 4))] for image in range(images)}
    mix = lambda text: " ".join(word for word in text.split() for _ in range(source.choice((0, 1, 1, 2))))  # noqa: E731
    return {image: mix(group[0]) for image, group in references.items()}, references


def test_equals_the_formula() -> None:
    predictions, references = made_captions(60)
    scores = score_captions(predictions, references, ["cider-r"])
    expected = by_hand(predictions, references)
    np.testing.assert_allclose(scores.image_scores["CIDEr-R"], expected, rtol=1e-12, atol=1e-12)
    assert scores.corpus["CIDEr-R"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert "|cider-r:rep0.8,len0.2,df=corpus|" in scores.signature


def test_penalties_by_hand() -> None:
    assert repetition_penalty(Counter(["a", "a", "b"]), Counter(["a"])) == pytest.approx(math.sqrt(1 / 2))
    assert repetition_penalty(Counter(["c", "c", "c"]), Counter(["a"])) == pytest.approx(1 / 3)
    assert repetition_penalty(Counter(), Counter(["a"])) == 1.0
    penalties = length_penalty(np.array([5, 10, 0, 3]), np.array([10, 10, 0, 0]))
    assert penalties.tolist() == pytest.approx([math.exp(-0.25), 1.0, 1.0, 0.0])


def test_edges_are_numbers_and_cider_is_unchanged() -> None:
    predictions = {"1": "", "2": "dog dog", "3": "a cat sits"}
    references = {"1": ["a man"], "2": ["dog"], "3": ["a cat sits", "cat"]}
    scores = score_captions(predictions, references, ["cider", "cider-r"])
    assert scores.corpus["CIDEr"] == score_captions(predictions, references, ["cider"]).corpus["CIDEr"]
    values = scores.image_scores["CIDEr-R"]
    assert np.isfinite(values).all()
    assert values[0] == values[1] == 0.0 < values[2]


def test_repetition_costs_more_than_in_cider() -> None:
    predictions, references = made_captions(40)
    repeated = {image: f"{text} {text}" for image, text in predictions.items()}
    single, double = (score_captions(p, references, ["cider-r"]) for p in (predictions, repeated))
    test = paired_bootstrap(double, single, resamples=200)["CIDEr-R"]
    assert test.high < 0
    assert test.p_value < 0.05
