"""What must hold for any captions, tried on random ones, and equality with the formulas written out plainly."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.metrics import Scorer, Scores, ScoringOptions, score_captions
from captune.metrics import ngrams as ngrams_module

METRICS = ("bleu", "cider", "rouge-l")
caption = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "1\u00a02"]), max_size=9).map(" ".join)
worded = st.lists(st.sampled_from("abcde"), min_size=4, max_size=9).map(" ".join)
image = st.tuples(worded, st.lists(worded, min_size=1, max_size=4))
images = st.lists(image, min_size=2, max_size=6)


def score(sample: list[tuple[str, list[str]]], **options: object) -> Scores:
    predictions = {str(number): prediction for number, (prediction, _) in enumerate(sample)}
    references = {str(number): captions for number, (_, captions) in enumerate(sample)}
    return score_captions(predictions, references, METRICS, tokenize="none", **options)  # type: ignore[arg-type]


def grams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def plain_clipped(prediction: str, references: list[str], order: int) -> int:
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= grams(reference, order)
    return sum((grams(prediction, order) & most).values())


def plain_cider(sample: list[tuple[str, list[str]]]) -> list[float]:
    """CIDEr-D as the paper's authors wrote it down."""
    frequency = Counter(
        gram for _, refs in sample for gram in {g for ref in refs for n in range(1, 5) for g in grams(ref, n)}
    )

    def vector(text: str, order: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (math.log(len(sample)) - math.log(max(1, frequency[gram])))
            for gram, count in grams(text, order).items()
        }

    result = []
    for prediction, refs in sample:
        total = 0.0
        for reference in refs:
            apart = max(0, len(prediction.split()) - 1) - max(0, len(reference.split()) - 1)
            for order in range(1, 5):
                weights, other = vector(prediction, order), vector(reference, order)
                dot = sum(min(weight, other.get(gram, 0)) * other.get(gram, 0) for gram, weight in weights.items())
                norm = math.hypot(*weights.values()) * math.hypot(*other.values())
                total += (dot / norm if norm else dot) * math.exp(-(apart**2) / 72)
        result.append(total / 4 / len(refs) * 10)
    return result


def plain_common(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for a in first:
        previous = 0
        for column, b in enumerate(second, 1):
            previous, row[column] = row[column], previous + 1 if a == b else max(row[column], row[column - 1])
    return row[-1]


def plain_rouge(prediction: str, references: list[str]) -> float:
    tokens = prediction.split(" ")
    pairs = [(plain_common(tokens, ref.split(" ")), ref.split(" ")) for ref in references]
    precision = max(common / len(tokens) for common, _ in pairs)
    recall = max(common / len(ref) for common, ref in pairs)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0


@given(st.lists(st.tuples(caption, st.lists(caption, min_size=1, max_size=4)), min_size=2, max_size=6))
@settings(max_examples=150, deadline=None)
def test_equal_to_the_formulas_written_out(sample: list[tuple[str, list[str]]]) -> None:
    if not any(ref.split() for _, refs in sample for ref in refs):
        return
    scores = score(sample)
    statistics = scores.statistics["bleu"]
    for index, (prediction, references) in enumerate(sample):
        clipped = [plain_clipped(prediction, references, order) for order in range(1, 5)]
        assert statistics[index, 6:].tolist() == clipped
        assert scores.image_scores["ROUGE-L"][index] == pytest.approx(plain_rouge(prediction, references), abs=1e-12)
    np.testing.assert_allclose(scores.image_scores["CIDEr"], plain_cider(sample), rtol=0, atol=1e-9)


@given(images, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_images_and_of_references_does_not_matter(sample: list[tuple[str, list[str]]], random: object) -> None:
    shuffle = random.shuffle  # type: ignore[attr-defined]
    moved = [(prediction, list(captions)) for prediction, captions in sample]
    for _, captions in moved:
        shuffle(captions)
    order = list(range(len(sample)))
    shuffle(order)
    before, after = score(sample), score([moved[index] for index in order])
    for name, value in before.corpus.items():
        assert after.corpus[name] == pytest.approx(value, abs=1e-12)
        np.testing.assert_allclose(after.image_scores[name], before.image_scores[name][order], atol=1e-12)


@given(images)
@settings(max_examples=50, deadline=None)
def test_doubled_references_change_nothing(sample: list[tuple[str, list[str]]]) -> None:
    before = score(sample)
    after = score([(prediction, captions * 2) for prediction, captions in sample])
    assert after.corpus == pytest.approx(before.corpus, abs=1e-12)


@given(images)
@settings(max_examples=50, deadline=None)
def test_the_only_reference_itself_scores_the_maximum(sample: list[tuple[str, list[str]]]) -> None:
    sample = [(captions[0], captions[:1]) for _, captions in sample]
    scores = score(sample)
    assert scores.image_scores["ROUGE-L"].tolist() == [1.0] * len(sample)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"):
        assert scores.corpus[name] == pytest.approx(1, abs=1e-8)
        assert scores.corpus[name] >= score([(captions[0][:-2], captions) for _, captions in sample]).corpus[name]
    # An n-gram order whose n-grams are in every image weighs nothing; all others give their quarter of 10.
    weighed = [
        sum(any(weight > 0 for weight in _weights(sample, index, order)) for order in range(1, 5))
        for index in range(len(sample))
    ]
    np.testing.assert_allclose(scores.image_scores["CIDEr"], [2.5 * count for count in weighed], atol=1e-9)


def _weights(sample: list[tuple[str, list[str]]], index: int, order: int) -> list[float]:
    held = [set(grams(captions[0], order)) for _, captions in sample]
    return [len(sample) - sum(gram in other for other in held) for gram in held[index]]


@given(images, worded)
@settings(max_examples=50, deadline=None)
def test_one_reference_more_never_lowers_the_clipped_counts(sample: list[tuple[str, list[str]]], extra: str) -> None:
    before = score(sample).statistics["bleu"]
    after = score([(prediction, [*captions, extra]) for prediction, captions in sample]).statistics["bleu"]
    assert (after[:, 6:] >= before[:, 6:]).all()
    assert (after[:, 6:] <= after[:, 2:6]).all()


@given(images)
@settings(max_examples=30, deadline=None)
def test_references_prepared_once_score_any_number_of_systems(sample: list[tuple[str, list[str]]]) -> None:
    references = {str(number): captions for number, (_, captions) in enumerate(sample)}
    scorer = Scorer(references, ScoringOptions(METRICS, tokenize="none"))
    scorer.score(dict.fromkeys(references, "words never seen before"))
    again = scorer.score({str(number): prediction for number, (prediction, _) in enumerate(sample)})
    assert again.corpus == score(sample).corpus


def test_a_large_vocabulary_is_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = [("a b a b c", ["a b c a b", "c c b a"]), ("b c d", ["a b c d", "d e a b"])] * 3
    narrow = score(sample)
    monkeypatch.setattr(ngrams_module, "_NARROW", 0)
    assert score(sample).corpus == narrow.corpus


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = [("a b a b c", ["a b c a b", "c c b a"]), ("b c d", ["a b c d", "d e a b"])] * 3
    unblocked = score(sample)
    monkeypatch.setattr(ngrams_module, "_BLOCK", 3)
    monkeypatch.setattr("captune.metrics.rouge._BLOCK", 3)
    monkeypatch.setattr("captune.metrics.encoding._BATCH", 1)
    assert score(sample).corpus == unblocked.corpus


def test_captions_of_any_length_take_the_same_subsequences() -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcdefgh"), size)) for size in (1, 63, 64, 65, 130, 511, 513, 700)]
    sample = [(prediction, texts) for prediction in texts]
    for (prediction, references), value in zip(sample, score(sample).image_scores["ROUGE-L"], strict=True):
        assert value == plain_rouge(prediction, references)
