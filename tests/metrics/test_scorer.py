"""What `Scorer` and `score_captions` take, what they refuse, and how the numbers travel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captune.errors import MetricInputError
from captune.metrics import DocumentFrequencies, Scorer, Scores, Signature, prompt_hash, ptb, score_captions
from captune.metrics.encoding import Encoder
from captune.metrics.tokenizers import tokenizer

REFERENCES = {
    "1": ["a dog runs on the grass", "the dog is running"],
    "2": ["two men sit on a bench", "men on a bench"],
    "3": ["a woman rides a bike", "a lady on a red bike"],
}
PREDICTIONS = {"1": "a dog runs", "2": "two men on a bench", "3": "a red bike"}


def refused(predictions: Any, references: Any, **options: Any) -> str:
    with pytest.raises(MetricInputError) as caught:
        score_captions(predictions, references, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_names_and_scale() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert list(scores.corpus) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L"]
    assert list(scores.per_image) == ["1", "2", "3"]
    assert scores.per_image["2"].keys() == scores.corpus.keys()
    assert 0 < scores.corpus["BLEU-4"] < 1 < scores.corpus["CIDEr"] < 10
    assert str(scores).endswith(scores.signature)


def test_only_the_requested_metrics() -> None:
    assert list(score_captions(PREDICTIONS, REFERENCES, ["rouge-l"]).corpus) == ["ROUGE-L"]
    assert list(score_captions(PREDICTIONS, REFERENCES, ["bleu"]).corpus) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]


def test_cider_is_cider_d_and_has_both_names() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES, ["cider", "cider-d"])
    assert scores.corpus["CIDEr"] == scores.corpus["CIDEr-D"]
    assert "cider:D,df=corpus" in scores.signature


def test_integer_and_text_ids_are_the_same_image_and_answers_keep_the_references_ids() -> None:
    by_number = {int(image): captions for image, captions in REFERENCES.items()}
    scores = score_captions(PREDICTIONS, by_number)
    assert list(scores.per_image) == [1, 2, 3]
    assert scores.corpus == score_captions(PREDICTIONS, REFERENCES).corpus


def test_order_of_predictions_does_not_matter() -> None:
    turned = dict(reversed(PREDICTIONS.items()))
    assert score_captions(turned, REFERENCES).per_image == score_captions(PREDICTIONS, REFERENCES).per_image


def test_missing_predictions_are_an_error_unless_they_are_allowed() -> None:
    some = {image: PREDICTIONS[image] for image in ("1", "3")}
    assert "1 of 3 images have no prediction: '2'" in refused(some, REFERENCES)
    alone = score_captions(some, REFERENCES, subset=True)
    two = {image: REFERENCES[image] for image in some}
    assert alone.corpus == score_captions(some, two).corpus
    assert Scorer(REFERENCES).score(some, subset=True).corpus == alone.corpus
    assert "n:2|" in alone.signature


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ({}, REFERENCES, "no predictions"),
        (PREDICTIONS, {}, "no references"),
        (PREDICTIONS | {"4": "x"}, REFERENCES, "without references: '4'"),
        (PREDICTIONS, REFERENCES | {"3": []}, "no references for image '3'"),
        (PREDICTIONS, REFERENCES | {"3": "a dog"}, "'3' are a str"),
        (PREDICTIONS, REFERENCES | {"3": [None]}, "'3' has a NoneType"),
        (PREDICTIONS | {"3": ["a dog"]}, REFERENCES, "'3' is a list"),
        (PREDICTIONS | {"3": None}, REFERENCES, "'3' is a NoneType"),
        (PREDICTIONS | {3: "a dog"}, REFERENCES, "twice"),
        ({1.5: "a dog"}, REFERENCES, "1.5 (float)"),
        ({True: "a dog"}, REFERENCES, "True (bool)"),
        (["a dog"], REFERENCES, "predictions are a list"),
        (PREDICTIONS, ["a dog"], "references are a list"),
        ({"1": ""}, {"1": [""]}, "CIDEr of one image"),
        ({"1": "", "2": ""}, {"1": [""], "2": ["."]}, "no reference has a word"),
    ],
)
def test_wrong_input_is_one_sentence(predictions: Any, references: Any, words: str) -> None:
    assert words in refused(predictions, references)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["blue"]}, "'blue'"),
        ({"metrics": "bleu"}, "list of names"),
        ({"metrics": []}, "list of names"),
        ({"compat": "java"}, "'java'"),
        ({"tokenize": "spacy"}, "'spacy'"),
        ({"jobs": 0}, "jobs is 0"),
        ({"data": "a|b"}, "'data'"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], words: str) -> None:
    assert words in refused(PREDICTIONS, REFERENCES, **options)


def test_empty_captions_score_nothing_and_are_no_error() -> None:
    scores = score_captions(PREDICTIONS | {"3": ""}, REFERENCES)
    assert set(scores.per_image["3"].values()) == {0.0}


def test_signature_names_all_that_matters_and_reads_back() -> None:
    scores = score_captions(
        PREDICTIONS,
        REFERENCES | {"3": REFERENCES["3"] * 2},
        data="flickr30k",
        split="test",
        prompt="Describe this image.",
        decoding="beam5",
        protocol="slides",
        leak=True,
    )
    signature = Signature.parse(scores.signature)
    assert signature == scores.details
    assert scores.signature.startswith("data:flickr30k|split:test|n:3|refs:2-4|tok:ptb3.4.1|cider:D,df=corpus|")
    assert f"|prompt:{prompt_hash('Describe this image.')}|dec:beam5|proto:slides|v:" in scores.signature
    assert scores.signature.endswith("|LEAK")
    plain = score_captions(PREDICTIONS, REFERENCES, compat="coco-caption")
    assert "tok:ptb3.4.1+call|" in plain.signature
    assert "refs: 2-4 and 2" in signature.differences(plain.details)
    with pytest.raises(MetricInputError, match="no signature"):
        Signature.parse("BLEU 0.3")


def test_scores_survive_json() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES)
    again = Scores.from_dict(json.loads(json.dumps(scores.to_dict())))
    assert again.corpus == scores.corpus
    assert again.per_image == scores.per_image
    assert again.signature == scores.signature
    with pytest.raises(MetricInputError, match="corpus only"):
        Scores.from_dict(scores.to_dict(images=False))
    with pytest.raises(MetricInputError, match="no record"):
        Scores.from_dict({})


def test_older_records_of_clipscore_are_read() -> None:
    record = score_captions(PREDICTIONS, REFERENCES, ["rouge-l"]).to_dict()
    record["statistics"] |= {"clipscore": [[0.5], [0.7], [0.9]], "refclipscore": [[0.6], [0.6], [0.9]]}
    scores = Scores.from_dict(json.loads(json.dumps(record)))
    assert scores.corpus["CLIPScore"] == pytest.approx(0.7)
    assert scores.per_image["3"]["RefCLIPScore"] == 0.9
    record["statistics"]["elsewhere"] = record["statistics"]["rouge-l"]
    with pytest.raises(MetricInputError, match="unknown metrics elsewhere"):
        Scores.from_dict(record)


def test_document_frequencies_of_a_corpus_give_one_image_a_cider(tmp_path: Path) -> None:
    counted = DocumentFrequencies.from_references(REFERENCES, "toy")
    counted.save(tmp_path / "toy.npz")
    loaded = DocumentFrequencies.load(tmp_path / "toy.npz")
    complete = score_captions(PREDICTIONS, REFERENCES)
    for image in REFERENCES:
        one = score_captions({image: PREDICTIONS[image]}, {image: REFERENCES[image]}, document_frequencies=loaded)
        assert one.per_image[image] == complete.per_image[image]
        assert "cider:D,df=toy(3)" in one.signature


def test_document_frequencies_know_words_of_other_corpora() -> None:
    counted = DocumentFrequencies.from_references(REFERENCES, "toy")
    elsewhere = {"9": ["zebras graze on a bench", "a zebra"], "8": ["two men sit"]}
    scores = score_captions({"9": "zebras on a bench", "8": "men sit"}, elsewhere, document_frequencies=counted)
    assert 0 < scores.corpus["CIDEr"] < 10


def test_broken_document_frequencies_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MetricInputError, match="there is no file"):
        DocumentFrequencies.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(MetricInputError, match="holds no document frequencies"):
        DocumentFrequencies.load(tmp_path / "text.npz")
    with pytest.raises(MetricInputError, match="need a name"):
        DocumentFrequencies.from_references(REFERENCES, "a|b")


@pytest.mark.parametrize("odd", ["", "x\u2028y."])
def test_a_call_in_batches_has_the_tokens_of_the_complete_call(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.metrics.encoding._BATCH", 2)
    captions = ["letter p.", "A man .", "letter p.", "", " ", "The dog", "i'll", "U.S.", odd, "the end of p."] * 2
    encoder = Encoder(tokenizer("ptb"))
    rows, words = encoder.encode_call(captions), encoder.vocabulary
    encoded = [[words[token] for token in rows.row(index)] for index in range(len(captions))]
    assert encoded == ptb.tokenize_call(captions)
    assert encoded != [ptb.tokenize(caption) for caption in captions]


def test_every_public_name_is_there() -> None:
    import captune.metrics

    assert all(getattr(captune.metrics, name) is not None for name in captune.metrics.__all__)
    with pytest.raises(AttributeError, match="'blue'"):
        captune.metrics.blue  # noqa: B018


def test_importing_brings_numpy_at_most() -> None:
    code = (
        "import sys; import captune.metrics; assert 'numpy' not in sys.modules, 'numpy';"
        "from captune.metrics import score_captions;"
        "score_captions({'1': 'a dog', '2': 'a man'}, {'1': ['A dog.'], '2': ['A man.']});"
        "heavy = {'torch', 'transformers', 'pydantic', 'rich', 'PIL', 'typer', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
