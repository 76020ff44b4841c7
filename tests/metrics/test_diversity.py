"""Variety of captions, by counting and by its limits."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from captune.metrics.diagnostics import measure_diversity

CAPTIONS = ["a dog runs", "A dog runs.", "two dogs", ""]
texts = st.lists(st.text(alphabet="ab ", max_size=12), max_size=8)


def test_counted_by_hand() -> None:
    result = measure_diversity(CAPTIONS)
    assert result.distinct_1 == 5 / 8
    assert result.distinct_2 == 3 / 5
    assert result.vocabulary == 5
    assert result.mean_length == 2.0
    assert result.unique == 3 / 4
    assert result.novel is None
    assert result.lengths.tolist() == [3, 3, 2, 0]


def test_novel_is_compared_word_by_word() -> None:
    result = measure_diversity(CAPTIONS, training=["a DOG runs !", "a cat"])
    assert result.is_novel is not None
    assert result.is_novel.tolist() == [False, False, True, True]
    assert result.novel == 0.5
    assert measure_diversity(["b"], training=["c", "b a"]).novel == 1.0


def test_words_without_text() -> None:
    result = measure_diversity(["", ""])
    assert math.isnan(result.distinct_1)
    assert result.to_dict()["distinct-1"] is None
    assert measure_diversity([]).vocabulary == 0


@given(texts)
def test_equals_sets_of_words(captions: list[str]) -> None:
    result = measure_diversity(captions, tokenize="13a")
    words = [caption.split() for caption in captions]
    flat = [word for caption in words for word in caption]
    pairs = [pair for caption in words for pair in pairwise(caption)]
    assert result.vocabulary == len(set(flat))
    assert flat == [] or result.distinct_1 == len(set(flat)) / len(flat)
    assert pairs == [] or result.distinct_2 == len(set(pairs)) / len(pairs)
    assert captions == [] or result.unique == len({tuple(caption) for caption in words}) / len(captions)


@given(texts, texts)
def test_novel_equals_sets_of_captions(captions: list[str], training: list[str]) -> None:
    known = {tuple(caption.split()) for caption in training}
    result = measure_diversity(captions, tokenize="13a", training=training)
    assert result.is_novel is not None
    assert result.is_novel.tolist() == [tuple(caption.split()) not in known for caption in captions]


@given(texts)
def test_the_order_of_captions_does_not_matter(captions: list[str]) -> None:
    assert measure_diversity(captions).to_dict() == measure_diversity(captions[::-1]).to_dict()
