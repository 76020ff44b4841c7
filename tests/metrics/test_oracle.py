"""Scores against recorded outputs of pycocoevalcap: corpus and every image, edge cases included."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.errors import MetricInputError
from captune.metrics import Scorer, ScoringOptions, score_captions

NAMES = {
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
}
SOURCES = ["abstract48S", "coco_fakecap", "coco_val2017", "flickr30k_test2016", "flickr8k"]

# Tokens that pycocoevalcap 1.2 scored; the values are its output.
REFERENCES = {
    "a": [
        "a dog runs across the grass",
        "a brown dog is running on green grass",
        "the dog runs outside",
        "a dog in a field",
    ],
    "b": [
        "two men sit on a bench",
        "two people are sitting on a park bench",
        "men sitting down",
        "a pair of men on a bench",
    ],
    "c": ["a woman rides a red bicycle", "a lady on a bike", "woman cycling down the street", "a cyclist in red"],
}
PREDICTIONS = {"a": "a dog runs on grass", "b": "two men on a bench", "c": "a woman on a bike"}


def test_known_values_of_the_original() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES, tokenize="none")
    assert scores.corpus == {
        "BLEU-1": 0.9355069849068837,
        "BLEU-2": 0.8101728143403952,
        "BLEU-3": 0.6486443152057437,
        "BLEU-4": 0.45418094352872596,
        "CIDEr": pytest.approx(2.1150011811956624, abs=1e-14),
        "ROUGE-L": pytest.approx(0.8033235581622679, abs=1e-15),
    }
    assert scores.per_image["a"]["BLEU-4"] == 9.55442791706741e-05


def _read(path: Path) -> Any:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _assert_equal(scores: Any, expected: dict[str, Any], case: str) -> None:
    for key, name in NAMES.items():
        if key in expected["corpus"]:
            assert scores.corpus[name] == pytest.approx(expected["corpus"][key], rel=0, abs=1e-9), (case, name)
            np.testing.assert_allclose(
                scores.image_scores[name], expected["per_image"][key], rtol=0, atol=1e-9, err_msg=f"{case} {name}"
            )


@pytest.mark.parametrize("source", SOURCES)
def test_every_recorded_system(shared: Path, source: str) -> None:
    recorded = _read(shared / "captions" / "oracle" / f"metrics_{source}.dev.json.gz")
    ids = recorded["ids"]
    references = recorded["refs"]
    if isinstance(references, list):
        references = dict(zip(ids, references, strict=True))
    scorer = Scorer(references, ScoringOptions(compat="coco-caption"))
    for name, case in recorded["cases"].items():
        predictions = case["preds"]
        if isinstance(predictions, list):
            predictions = dict(zip(ids, predictions, strict=True))
        captions = {image: text[0] if isinstance(text, list) else text for image, text in predictions.items()}
        _assert_equal(scorer.score(captions), case, f"{source}: {name}")


@pytest.mark.parametrize("recorded", ["coco_fakecap", "flickr30k_test2016"])
def test_alone_in_the_call_changes_no_score_of_ordinary_captions(shared: Path, recorded: str) -> None:
    data = _read(shared / "captions" / "oracle" / f"metrics_{recorded}.dev.json.gz")
    case = data["cases"].get("fakecap") or data["cases"]["human"]
    references = data["refs"] if isinstance(data["refs"], dict) else dict(zip(data["ids"], data["refs"], strict=True))
    predictions = case["preds"]
    if isinstance(predictions, list):
        predictions = dict(zip(data["ids"], predictions, strict=True))
    captions = {image: text[0] if isinstance(text, list) else text for image, text in predictions.items()}
    scores = score_captions(captions, references)
    assert scores.corpus["CIDEr"] == pytest.approx(case["corpus"]["CIDEr"], abs=1e-3)


def _edge_cases(shared: Path) -> list[dict[str, Any]]:
    return list(_read(shared / "captions" / "oracle" / "metrics_edge.json.gz"))


def _metrics_with_an_answer(case: dict[str, Any]) -> tuple[str, ...]:
    """What can be scored: a single image and a corpus without words have no CIDEr."""
    undefined = len(case["gts"]) == 1 or "CIDEr" not in case["corpus"]
    return ("bleu", "rouge-l") if undefined else ("bleu", "cider", "rouge-l")


def test_edge_cases_with_an_answer(shared: Path) -> None:
    cases = [case for case in _edge_cases(shared) if case["corpus"] and case["gts"]]
    assert len(cases) > 25
    for case in cases:
        predictions = {image: captions[0] for image, captions in case["res_tok"].items()}
        metrics = _metrics_with_an_answer(case)
        scores = score_captions(predictions, case["gts_tok"], metrics, tokenize="none")
        if "cider" not in metrics:
            case["corpus"].pop("CIDEr", None)
        _assert_equal(scores, case, case["name"])


def test_edge_cases_from_raw_captions(shared: Path) -> None:
    for case in _edge_cases(shared):
        if case["corpus"] and case["gts"] and not case["tokenized_input"]:
            predictions = {image: captions[0] for image, captions in case["res"].items()}
            metrics = _metrics_with_an_answer(case)
            scores = score_captions(predictions, case["gts"], metrics, compat="coco-caption")
            if "cider" not in metrics:
                case["corpus"].pop("CIDEr", None)
            _assert_equal(scores, case, case["name"])


def test_edge_cases_where_the_original_gives_a_bare_error_get_one_sentence(shared: Path) -> None:
    cases = [case for case in _edge_cases(shared) if not case["corpus"] or not case["gts"]]
    assert cases
    for case in cases:
        # The original takes lists of one prediction; two or none is what some of these cases try.
        predictions = {image: texts[0] if len(texts) == 1 else texts for image, texts in case["res"].items()}
        if case["name"] == "int vs str ids":
            assert score_captions({int(image): text for image, text in predictions.items()}, case["gts"]).corpus
            continue
        with pytest.raises(MetricInputError) as caught:
            score_captions(predictions, case["gts"], tokenize="none")
        assert str(caught.value)
        assert "\n" not in str(caught.value)


def test_one_image_has_no_cider_and_the_sentence_says_so(shared: Path) -> None:
    case = next(case for case in _edge_cases(shared) if case["name"] == "one image")
    with pytest.raises(MetricInputError, match="CIDEr of one image"):
        score_captions({image: texts[0] for image, texts in case["res"].items()}, case["gts"])


def test_the_same_predictions_on_java_tokens_are_equal_to_the_last_digit(shared: Path) -> None:
    case = next(case for case in _edge_cases(shared) if case["name"] == "three images")
    predictions = {image: texts[0] for image, texts in case["res_tok"].items()}
    scores = score_captions(predictions, case["gts_tok"], tokenize="none")
    for key, name in NAMES.items():
        assert scores.image_scores[name].tolist() == case["per_image"][key]
