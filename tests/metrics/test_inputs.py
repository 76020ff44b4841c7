"""Which images are scored, and what is reported about the others."""

from __future__ import annotations

import re

import pytest

from captune.errors import MetricInputError
from captune.metrics.caption_files import PredictionFile, ReferenceFile
from captune.metrics.inputs import align, caption_warnings, match_stems

REFERENCES = ReferenceFile({"1": ["a dog"], "2": ["a cat"], "3": ["a bus"]}, source="refs.json")


def predictions(*images: str, **more: tuple[str, ...] | bool) -> PredictionFile:
    return PredictionFile(dict.fromkeys(images, "a dog"), source="preds.json", **more)  # type: ignore[arg-type]


def test_the_references_order_is_kept() -> None:
    aligned = align(predictions("3", "1", "2"), REFERENCES)
    assert list(aligned.predictions) == list(aligned.references) == ["1", "2", "3"]
    assert aligned.warnings == ()


def test_a_gap_is_an_error_unless_it_is_meant() -> None:
    with pytest.raises(MetricInputError, match=r"2 of 3 images have no prediction in preds.json.*'2', '3'.*--subset"):
        align(predictions("1"), REFERENCES)
    aligned = align(predictions("1"), REFERENCES, subset=True)
    assert list(aligned.references) == ["1"]
    assert "2 of 3 images have no prediction and are left out" in aligned.warnings[0]


def test_ids_are_joined_by_stem() -> None:
    file = PredictionFile(
        {"2": "b", "x/1.JPG": "a", "y\\3.png": "c", "9.5": "d"}, {"x/1.JPG": False}, repeated=("x/1.JPG",)
    )
    joined = match_stems(file, REFERENCES)
    assert joined.captions == {"2": "b", "1": "a", "3": "c", "9.5": "d"}
    assert (joined.finished, joined.repeated) == ({"1": False}, ("1",))
    exact = predictions("3", "1", "2")
    assert match_stems(exact, REFERENCES) is exact
    references = ReferenceFile({"a/IMG_1.jpg": ["a"], "b.c": ["b"]}, source="refs.json")
    assert set(match_stems(predictions("IMG_1", "b.c.webp"), references).captions) == {"a/IMG_1.jpg", "b.c"}
    # An id that is equal as text is matched before stems.
    assert match_stems(predictions("1", "1.jpg", "2", "3"), REFERENCES).captions.keys() == {"1", "1.jpg", "2", "3"}


@pytest.mark.parametrize(
    ("images", "references", "sentence"),
    [
        (("a/1.jpg", "b/1.jpg", "2"), REFERENCES, "'a/1.jpg' and 'b/1.jpg' of preds.json have the same stem '1'"),
        (("1", "x"), ReferenceFile({"1.jpg": ["a"], "1.png": ["b"]}, source="r.json"), "'1.jpg' and '1.png' of r.json"),
    ],
)
def test_ambiguous_stems_are_named(images: tuple[str, ...], references: ReferenceFile, sentence: str) -> None:
    with pytest.raises(MetricInputError, match=f"Stems are ambiguous: {re.escape(sentence)}"):
        match_stems(predictions(*images), references)
    # Two ids that no reference has are not ambiguous.
    assert match_stems(predictions("1", "2", "3", "x/9.jpg", "y/9.jpg"), REFERENCES).captions


def test_the_refusal_suggests_stems_when_they_would_do() -> None:
    with pytest.raises(MetricInputError, match=r"may be the same image.*; --match stem joins them without folder"):
        align(predictions("1.jpg", "2.jpg", "3.jpg"), REFERENCES)
    for images in (("001", "2", "3"), ("1.jpg", "2.jpg"), ("a/1.jpg", "b/1.jpg", "2", "3")):
        with pytest.raises(MetricInputError) as refused:
            align(predictions(*images), REFERENCES)
        assert "--match" not in str(refused.value)


def test_an_extra_prediction_is_left_out_and_reported() -> None:
    aligned = align(predictions("1", "2", "3", "4"), REFERENCES)
    assert "4" not in aligned.predictions
    assert "1 prediction of preds.json belongs to an image without references and was left out" in aligned.warnings[0]


def test_an_image_without_references_needs_no_prediction() -> None:
    references = ReferenceFile({"1": ["a dog"], "2": []}, source="refs.json")
    assert align(predictions("1"), references).warnings == ()
    assert "left out" in align(predictions("1", "2"), references).warnings[0]


@pytest.mark.parametrize("odd", ["001", "1.jpg", "COCO_val2014_000000000001", "images/1.png", "1.0", "X\\1.HEIC"])
def test_ids_that_nearly_match_are_explained(odd: str) -> None:
    with pytest.raises(MetricInputError, match="may be the same image"):
        align(predictions(odd, "2", "3"), REFERENCES)


@pytest.mark.parametrize("subset", [True, False])
def test_letters_in_another_unicode_form_are_explained(subset: bool) -> None:
    composed, decomposed = "caf\u00e9.jpg", "cafe\u0301.jpg"
    references = ReferenceFile({composed: ["a"], "2": ["b"], "\u00f1.jpg": ["c"]}, source="refs.json")
    words = r"differ only in how \u00e9 is written \(Unicode NFC and NFD\), and so may 1 other pair"
    if subset:
        assert re.search(words, align(predictions(decomposed, "2", "n\u0303.jpg"), references, subset=True).warnings[0])
    else:
        with pytest.raises(MetricInputError, match=words):
            align(predictions(decomposed, "2", "n\u0303.jpg"), references)


def test_case_is_explained_where_some_ids_fit() -> None:
    references = ReferenceFile({"a.jpg": ["a"], "b.jpg": ["b"]}, source="refs.json")
    with pytest.raises(MetricInputError, match=r"'A\.JPG' and 'a\.jpg' may be the same image"):
        align(predictions("A.JPG", "b.jpg"), references)


def test_lines_belong_to_lines() -> None:
    lines = ReferenceFile({"1": ["a"], "2": ["b"]}, source="refs.txt", by_line=True)
    assert align(predictions("1", "2", by_line=True), lines).warnings == ()
    with pytest.raises(MetricInputError, match=r"preds\.json has 1 lines and refs\.txt 2"):
        align(predictions("1", by_line=True), lines, subset=True)
    with pytest.raises(MetricInputError, match=r"refs\.txt has captions without ids.* preds\.json has ids"):
        align(predictions("1", "2"), lines)
    with pytest.raises(MetricInputError, match=r"preds\.json has captions without ids.* refs\.json has ids"):
        align(predictions("1", "2", "3", by_line=True), REFERENCES)


def test_nothing_in_common() -> None:
    with pytest.raises(MetricInputError, match=r"No id of preds\.json is in refs\.json"):
        align(predictions("a", "b"), REFERENCES, subset=True)


def test_splits_are_hinted_at() -> None:
    references = ReferenceFile({"1": ["a"], "2": ["b"]}, splits={"train": 1, "test": 1}, source="m.jsonl")
    with pytest.raises(MetricInputError, match=r"holds the splits train \(1\), test \(1\), of which --split"):
        align(predictions("1"), references)


def test_repeated_predictions_are_reported() -> None:
    aligned = align(predictions("1", "2", "3", repeated=("2",)), REFERENCES)
    assert "1 image occurs more than once" in aligned.warnings[0]


def test_empty_captions_are_reported() -> None:
    (warning,) = caption_warnings({"1": "a dog", "2": " "}, {"1": ["a dog"], "2": ["a cat"]})
    assert "1 caption is empty and scores 0, for example of '2'" in warning


@pytest.mark.parametrize(("words", "how"), [(40, "longer"), (1, "shorter")])
def test_a_length_far_from_the_references_shows_three(words: int, how: str) -> None:
    images = [str(number) for number in range(10)]
    references = {image: ["one two three four five"] for image in images}
    (warning,) = caption_warnings({image: f"word{image} " * words for image in images}, references)
    assert f"that much {how}" in warning
    assert len(warning.split("\n")) == 4
    assert max(map(len, warning.split("\n"))) < 200


def test_an_ordinary_length_is_not_mentioned() -> None:
    assert caption_warnings({"1": "a dog runs fast"}, {"1": ["a dog", "a dog runs in the long grass"]}) == []


def test_hostile_samples_stay_on_their_line() -> None:
    (warning,) = caption_warnings({"1": "x \x1b[31m\n\r\u2028y " * 50}, {"1": ["a dog"]})
    assert len(warning.splitlines()) == 2
    assert "\x1b" not in warning
