"""`captune.score` and `captune.compare`: captions of every form, and the numbers of `score_captions`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import captune
from captune.errors import ConfigError, MetricInputError
from captune.metrics import approximate_randomization, paired_bootstrap, score_captions

PREDICTIONS = {"1": "a dog runs", "2": "a cat sits on a mat", "3": "two birds fly over the sea"}
REFERENCES = {
    "1": ["a dog runs fast", "dog running"],
    "2": ["the cat sits down on the mat"],
    "3": ["two birds are flying over the sea", "birds over water"],
}
TEXTS, LISTS = list(PREDICTIONS.values()), list(REFERENCES.values())


def test_numbers_and_signature_are_those_of_score_captions() -> None:
    scores, expected = captune.score(PREDICTIONS, REFERENCES), score_captions(PREDICTIONS, REFERENCES)
    assert scores.to_dict() == expected.to_dict()


def frames() -> tuple[Any, Any]:
    rows = [(image, text) for image, texts in REFERENCES.items() for text in texts]
    return (
        pandas.DataFrame({"image_id": PREDICTIONS.keys(), "caption": TEXTS}),
        pandas.DataFrame(rows, columns=["image_id", "caption"]),
    )


@pytest.mark.parametrize(
    ("predictions", "references", "ids", "expected"),
    [
        (TEXTS, LISTS, None, (0, 1, 2)),
        (TEXTS, LISTS, ["1", "2", "3"], ("1", "2", "3")),
        (TEXTS, REFERENCES, ["1", "2", "3"], ("1", "2", "3")),
        (tuple(TEXTS), iter(LISTS), None, (0, 1, 2)),
        (np.array(TEXTS), LISTS, None, (0, 1, 2)),
        ({1: TEXTS[0], 2: TEXTS[1], 3: TEXTS[2]}, REFERENCES, None, ("1", "2", "3")),
        (pandas.Series(PREDICTIONS), pandas.Series(REFERENCES), None, ("1", "2", "3")),
        (pandas.Series(TEXTS), pandas.Series([np.array(texts) for texts in LISTS]), None, (0, 1, 2)),
        (*frames(), None, ("1", "2", "3")),
        (pandas.DataFrame({"caption": PREDICTIONS}), pandas.DataFrame({"captions": REFERENCES}), None, ("1", "2", "3")),
    ],
)
def test_every_form_of_captions(predictions: Any, references: Any, ids: Any, expected: tuple[Any, ...]) -> None:
    scores = captune.score(predictions, references, ids=ids)
    assert scores.ids == expected
    assert scores.corpus == score_captions(PREDICTIONS, REFERENCES).corpus


def test_one_reference_needs_no_list() -> None:
    texts = ["a dog runs fast", "the cat sits"]
    assert captune.score(TEXTS[:2], texts).corpus == captune.score(TEXTS[:2], [[text] for text in texts]).corpus


def test_files_and_mixtures_of_files_and_dictionaries(tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text(json.dumps(PREDICTIONS))
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES))
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    for number in (0, 1):
        (tmp_path / f"refs{number}.txt").write_text("\n".join(texts[-number] for texts in LISTS))
    expected = captune.score(PREDICTIONS, REFERENCES).corpus
    files = tmp_path / "predictions.json", tmp_path / "references.json"
    for predictions, references in (
        files,
        map(str, files),
        (files[0], REFERENCES),
        (PREDICTIONS, files[1]),
        (tmp_path / "lines.txt", LISTS),
    ):
        assert captune.score(predictions, references).corpus == expected
    several = captune.score(tmp_path / "lines.txt", [tmp_path / "refs0.txt", tmp_path / "refs1.txt"])
    assert several.details.refs == "2"


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((PREDICTIONS, LISTS), {}, "the references are a list without ids and the other captions have ids; give ids="),
        ((TEXTS[:1], LISTS), {}, "there are 1 predictions and 3 references; two lists have the captions of an image"),
        (("a dog", LISTS), {}, "the predictions are 'a dog', and there is no such file; give a dictionary from image"),
        (("missing.json", LISTS), {}, "There is no file 'missing.json'."),
        ((5, LISTS), {}, "the predictions are a int; give a dictionary"),
        ((TEXTS, LISTS), {"ids": [1, 2]}, "there are 2 ids and 3 predictions; give one for each"),
        ((TEXTS, LISTS), {"ids": [1, "1", 2]}, "an id occurs twice in ids"),
        ((PREDICTIONS, REFERENCES), {"ids": [1, 2, 3]}, "ids are given with dictionaries, which have ids"),
        ((PREDICTIONS, REFERENCES), {"split": "test"}, "split is 'test', which selects from a file"),
        ((PREDICTIONS, REFERENCES, "bleu4"), {}, "there is no metric 'bleu4'; did you mean 'bleu'? The metrics are"),
        ((PREDICTIONS, REFERENCES), {"tokeniser": "13a"}, "There is no option 'tokeniser'; did you mean 'tokenizer'?"),
        ((PREDICTIONS, REFERENCES), {"tokenizer": "x"}, "the tokenizer 'x' is not known; choose one of ptb,"),
        (({"1": "a dog"}, REFERENCES), {}, "2 of 3 images have no prediction: '2', '3'"),
        (({"1": "a dog"}, {"1": ["a dog"]}, ["cider"]), {}, "CIDEr of one image is undefined"),
        ((pandas.DataFrame({"x": TEXTS}), LISTS), {}, "the predictions are a DataFrame with the columns 'x'; call"),
        ((pandas.Series(["a", "b"], index=[1, 1]), LISTS), {}, "the predictions have image 1 twice; give one caption"),
    ],
)
def test_wrong_input_is_refused_by_a_sentence(
    arguments: tuple[Any, ...], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(MetricInputError) as caught:
        captune.score(*arguments, **options)
    assert str(caught.value).startswith(sentence)


def test_subset_scores_the_predicted_images_only() -> None:
    part = {"1": "a dog runs", "3": "two birds"}
    scores = captune.score(part, REFERENCES, subset=True)
    assert scores.corpus == score_captions(part, REFERENCES, subset=True).corpus


def test_one_metric_needs_no_list_and_case_does_not_matter() -> None:
    assert list(captune.score(PREDICTIONS, REFERENCES, "CIDEr").corpus) == ["CIDEr"]


def test_cider_of_one_image_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    scores = captune.score({"1": "a dog runs"}, {"1": ["a dog runs"]})
    assert "CIDEr" not in scores.corpus
    assert scores.corpus["ROUGE-L"] == 1
    assert "CIDEr of one image is undefined" in caplog.text


def test_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        captune.score({**PREDICTIONS, "1": ""}, REFERENCES)
    assert caplog.messages == ["1 caption is empty and scores 0, for example of '1'."]


def test_comparison_has_scores_and_tests_of_every_system() -> None:
    better = {image: texts[0] for image, texts in REFERENCES.items()}
    compared = captune.compare({"before": PREDICTIONS, "<b>after": better}, REFERENCES, trials=100, resamples=50)
    before, after = score_captions(PREDICTIONS, REFERENCES), score_captions(better, REFERENCES)
    assert compared.baseline == "before"
    assert compared.scores["<b>after"].corpus == after.corpus
    drawn, swapped = compared.tests["<b>after"]["CIDEr"]
    assert drawn == paired_bootstrap(after, before, 0.95, 50, 12345)["CIDEr"]
    assert swapped == approximate_randomization(after, before, 100, 12345)["CIDEr"]
    frame = compared.to_dataframe()
    assert frame.loc[("<b>after", "CIDEr"), "difference"] == after.corpus["CIDEr"] - before.corpus["CIDEr"]
    assert f"{before.corpus['CIDEr']:.4f}" in repr(compared)
    assert "&lt;b&gt;after" in compared._repr_html_()
    assert "<b>after" not in compared._repr_html_()


def test_comparison_of_files_names_systems_by_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(PREDICTIONS))
    compared = captune.compare([tmp_path / "a.json", tmp_path / "b.json"], REFERENCES, "bleu", trials=10, resamples=10)
    assert list(compared.scores) == ["a", "b"]
    with pytest.raises(MetricInputError, match="is given twice"):
        captune.compare([tmp_path / "a.json"] * 2, REFERENCES)
    with pytest.raises(MetricInputError, match="compare needs two systems at least"):
        captune.compare({"a": PREDICTIONS}, REFERENCES)


def test_comparison_of_subsets_uses_the_images_of_all_systems() -> None:
    one, other = {"1": "a dog", "2": "a cat"}, {"2": "a cat sits", "3": "birds"}
    compared = captune.compare(
        {"one": {**one, "3": "two birds"}, "other": other}, REFERENCES, "bleu", subset=True, trials=10, resamples=10
    )
    assert compared.scores["one"].ids == compared.scores["other"].ids == ("2", "3")


def test_files_are_joined_by_stem(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(
        '[{"image_id": "a/1.JPG", "caption": "a dog"}, {"image_id": "2.png", "caption": "a cat"}]'
    )
    (tmp_path / "r.jsonl").write_text(
        '{"id": "1", "image": "1.jpg", "captions": ["A dog."], "split": "test"}\n'
        '{"id": "2", "image": "2.jpg", "captions": ["A cat."], "split": "test"}\n'
    )
    files = tmp_path / "p.json", tmp_path / "r.jsonl"
    with pytest.raises(MetricInputError, match=r"match='stem' in Python"):
        captune.score(*files)
    assert captune.score(*files, "bleu", match="stem").corpus["BLEU-1"] == pytest.approx(1, abs=0.01)
    with pytest.raises(MetricInputError, match="is for two files"):
        captune.score({"1": "a dog", "2": "a cat"}, files[1], match="stem")
    with pytest.raises(MetricInputError, match="give 'exact' or 'stem'"):
        captune.score(*files, match="name")  # type: ignore[arg-type]


def test_a_name_is_no_backend() -> None:
    with pytest.raises(ConfigError, match=r"Captioner\.from_pretrained\('toy'\)"):
        captune.Captioner("toy")  # type: ignore[arg-type]
