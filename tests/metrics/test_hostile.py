"""Hostile captions: an answer or one sentence, in bounded time and memory."""

from __future__ import annotations

import resource
import time

import pytest

from captune.errors import MetricInputError
from captune.metrics import score_captions

SMALL_REFERENCES = {"2": ["a dog runs on the grass", "the dog is running"]}
SMALL_PREDICTIONS = {"2": "a dog runs"}
LONG = "a man rides a horse on the beach and " * 280_000  # 10 MB


@pytest.fixture(autouse=True)
def bounded() -> object:
    """Every test here takes less than half a minute of a processor and less than 3 GiB."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 << 20


def test_a_prediction_of_ten_megabytes() -> None:
    scores = score_captions(SMALL_PREDICTIONS | {"1": LONG}, SMALL_REFERENCES | {"1": ["a man on a horse", "a beach"]})
    assert 0 < scores.per_image["1"]["ROUGE-L"] < 1e-3
    assert scores.per_image["1"]["CIDEr"] < 1e-9


def test_a_reference_of_ten_megabytes() -> None:
    scores = score_captions(SMALL_PREDICTIONS | {"1": "a man on a horse"}, SMALL_REFERENCES | {"1": [LONG, "a beach"]})
    assert scores.per_image["1"]["BLEU-1"] > 0.5


def test_ten_megabytes_against_ten_megabytes_is_one_sentence() -> None:
    with pytest.raises(MetricInputError, match="ROUGE-L of image '1' would compare"):
        score_captions(SMALL_PREDICTIONS | {"1": LONG}, SMALL_REFERENCES | {"1": [LONG + "b"]})


def test_a_caption_without_white_space() -> None:
    scores = score_captions(SMALL_PREDICTIONS | {"1": "a" * 10_000_000}, SMALL_REFERENCES | {"1": ["a man"]})
    assert scores.per_image["1"]["ROUGE-L"] == 0


def test_a_hundred_thousand_references_of_one_image() -> None:
    references = [f"a man number {number % 977} rides a horse" for number in range(100_000)]
    scores = score_captions(SMALL_PREDICTIONS | {"1": "a man rides a horse"}, SMALL_REFERENCES | {"1": references})
    assert scores.per_image["1"]["ROUGE-L"] > 0.7
    assert "refs:2-100000" in scores.signature


@pytest.mark.parametrize(
    "caption",
    [
        "a \ud800 dog",
        "\udfff",
        "a\x00dog",
        "\x00",
        "a\x1bdog\x07",
        "\x85\u2028\u2029\v\f\r",
        "a\tdog\n\nruns",
        "🙂" * 1000,
    ],
)
def test_odd_characters(caption: str) -> None:
    for compat in ("caption", "coco-caption"):
        scores = score_captions(
            SMALL_PREDICTIONS | {"1": caption}, SMALL_REFERENCES | {"1": ["a dog", caption]}, compat=compat
        )
        assert 0 <= scores.per_image["1"]["ROUGE-L"] <= 1


def test_ever_new_words_do_not_fill_the_memory() -> None:
    captions = [f"word{number} other{number}" for number in range(50_000)]
    scores = score_captions(SMALL_PREDICTIONS | {"1": "word1 other1"}, SMALL_REFERENCES | {"1": captions})
    assert scores.per_image["1"]["BLEU-2"] > 0.9
