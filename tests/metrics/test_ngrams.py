"""N-grams counted by sorting against n-grams counted one by one."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.metrics import ngrams as ngrams_module
from captune.metrics.encoding import Rows
from captune.metrics.ngrams import ORDERS, sort_ngrams

VOCABULARY = 5
captions = st.lists(st.integers(0, VOCABULARY - 1), max_size=8)
images = st.lists(st.lists(captions, min_size=1, max_size=3), min_size=1, max_size=5)
Gram = tuple[int, ...]


def grams_of(caption: list[int], order: int) -> list[Gram]:
    return [tuple(caption[start : start + order]) for start in range(len(caption) - order + 1)]


# In blocks of any length, and with word numbers of 16 bits and of more.
@pytest.mark.parametrize(("block", "step"), [(1, 1), (3, 1), (1 << 15, 1), (1 << 15, 40_000)])
@given(images)
@settings(max_examples=100, deadline=None)
def test_sorted_ngrams_are_those_counted_one_by_one(block: int, step: int, sample: list[list[list[int]]]) -> None:
    sample = [[[word * step for word in caption] for caption in group] for group in sample]
    vocabulary = VOCABULARY * step
    flat = [caption for group in sample for caption in group]
    words = Rows(np.array(list(chain.from_iterable(flat)), np.int32), np.cumsum([0, *map(len, flat)]))
    image_offsets = np.cumsum([0, *map(len, sample)])
    shorter: list[Gram] = [()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams_module, "_BLOCK", block)
        orders = 0
        for order, ngrams in enumerate(sort_ngrams(words, vocabulary, words.owners, image_offsets), 1):
            orders += 1
            named = [(*shorter[key // vocabulary], key % vocabulary) for key in ngrams.keys.tolist()]
            assert named == sorted({gram for caption in flat for gram in grams_of(caption, order)})
            held = Counter(gram for group in sample for gram in {g for c in group for g in grams_of(c, order)})
            assert ngrams.images.tolist() == [held[gram] for gram in named]
            at: list[int] = []
            for caption in flat:
                numbers = [named.index(gram) for gram in grams_of(caption, order)]
                at += numbers + [-1] * (len(caption) - len(numbers))
            assert ngrams.at.tolist() == at
            slots = sorted((number, position) for position, number in enumerate(at) if number >= 0)
            assert ngrams.slots.tolist() == [(number << ngrams.bits) + position for number, position in slots]
            _check_repeats(ngrams.repeats, at, words.offsets.tolist())
            shorter = named
        assert orders == ORDERS


def _check_repeats(repeats: ngrams_module.Repeats, at: list[int], offsets: list[int]) -> None:
    expected: dict[int, int] = {}
    later: list[int] = []
    for start, end in pairwise(offsets):
        first: dict[int, int] = {}
        for position in range(start, end):
            if at[position] >= 0 and first.setdefault(at[position], position) != position:
                expected[first[at[position]]] = expected.get(first[at[position]], 1) + 1
                later.append(position)
    assert dict(zip(repeats.first.tolist(), repeats.times.tolist(), strict=True)) == expected
    assert sorted(repeats.later.tolist()) == later
