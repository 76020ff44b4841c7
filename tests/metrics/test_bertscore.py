"""BERTScore of the package on a small random BERT, against its formula in numpy."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune import cli
from captune.errors import MetricInputError, MissingExtraError
from captune.metrics import METRICS, ScoringOptions, confidence_intervals, paired_bootstrap, score_captions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a dog cat runs red barn the is on . big small road two men sit sky".split()  # noqa: SIM905
CAPTIONS = ["a dog runs on the road .", "two men sit", "the sky is red", "", "a big red barn . " * 12, "cat"]
REFERENCES = [
    ["the dog runs .", "a big dog is on the road"],
    ["two men sit on a barn ."],
    ["the sky", "red", "a red sky is big ."],
    ["a cat"],
    ["a big red barn is on the road ."],
    ["cat", "the cat ."],
]
LAYER = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tiny bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def expected(folder: Path, layer: int, *, idf: bool) -> np.ndarray[Any, Any]:
    """Precision, recall and F1 of each caption, the maxima over the references."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def encode(text: str) -> tuple[list[int], np.ndarray[Any, Any]]:
        tokens = tokenizer(text, truncation=True, max_length=32)["input_ids"]
        with torch.no_grad():
            states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0].double().numpy()
        return tokens, states / np.linalg.norm(states, axis=1, keepdims=True)

    texts = [text for group in REFERENCES for text in group]
    counts = Counter(token for text in texts for token in set(encode(text)[0]))
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id)

    def weight(token: int) -> float:
        return math.log((len(texts) + 1) / (counts[token] + 1)) if idf else float(token not in special)

    def share(tokens: list[int], closest: np.ndarray[Any, Any]) -> float:
        weights = np.array([weight(token) for token in tokens])
        return float((weights * closest).sum() / weights.sum())

    rows = []
    for caption, references in zip(CAPTIONS, REFERENCES, strict=True):
        scores = [(0.0, 0.0, 0.0)]
        for reference in references if caption else ():
            (ours, x), (others, y) = encode(caption), encode(reference)
            similarity = x @ y.T
            precision, recall = share(ours, similarity.max(axis=1)), share(others, similarity.max(axis=0))
            scores.append((precision, recall, 2 * precision * recall / (precision + recall)))
        rows.append(np.max(scores[1:] or scores, axis=0))
    return np.array(rows)


def scored(folder: Path, captions: list[str] = CAPTIONS, **options: Any) -> Any:
    pytest.importorskip("bert_score", reason="needs the extra 'bertscore'")
    return score_captions(
        {str(row): caption for row, caption in enumerate(captions)},
        {str(row): group for row, group in enumerate(REFERENCES)},
        ["bertscore"],
        bertscore=str(folder),
        **{"bertscore_layer": LAYER, **options},
    )


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("idf", [False, True])
def test_it_equals_its_formula(folder: Path, layer: int, idf: bool) -> None:
    scores = scored(folder, bertscore_layer=layer, bertscore_idf=idf)
    values = expected(folder, layer, idf=idf)
    for column, name in enumerate(("BERTScore-P", "BERTScore-R", "BERTScore")):
        np.testing.assert_allclose(scores.image_scores[name], values[:, column], atol=2e-6)
        assert scores.corpus[name] == pytest.approx(values[:, column].mean(), abs=2e-6)
    assert scores.corpus["BERTScore"] > 0.1
    weights = "references" if idf else "no"
    assert f"|bertscore:{folder.name},L{layer},idf={weights},rescale=no,bert-score0.3.13|" in scores.signature


def test_intervals_tests_and_the_share_beyond_the_limit(folder: Path) -> None:
    scores = scored(folder)
    assert confidence_intervals(scores, resamples=20)["BERTScore"].low <= scores.corpus["BERTScore"]
    assert paired_bootstrap(scored(folder, ["sky"] * 6), scores, resamples=20)["BERTScore-R"].is_tested
    lengths = [2 + len(caption.split()) for caption in CAPTIONS]
    share = (lengths[4] - 32) / sum(lengths)
    assert scores.notes == (
        f"BERTScore reads 32 tokens of a text: 1 of 6 captions is longer, and {share:.1%} of their text is not scored.",
    )
    assert scored(folder, ["sky"] * 6).notes == ()


def test_truncated_references_are_counted(folder: Path) -> None:
    from captune.metrics.external.bertscore import BertScorer

    model = transformers.AutoModel.from_pretrained(folder)
    scorer = BertScorer(model, transformers.AutoTokenizer.from_pretrained(folder), name="tiny", layer=LAYER)
    long = "a big red barn . " * 12  # 62 tokens with the special ones
    note = scorer.truncation_note(["a dog", long, long], "references")
    assert note == (
        "BERTScore reads 32 tokens of a text: 2 of 3 references are longer, and 46.9% of their text is not scored."
    )
    assert scorer.truncation_note(["a dog"], "references") == ""
    pytest.importorskip("bert_score", reason="needs the extra 'bertscore'")
    references = {"1": [long], "2": ["cat", long]}
    scores = score_captions(
        {"1": "a dog", "2": "cat"}, references, ["bertscore"], bertscore=str(folder), bertscore_layer=LAYER
    )
    assert [note.split(": ")[1].split(",")[0] for note in scores.notes] == ["2 of 3 references are longer"]


def test_a_perfect_caption_and_one_without_text(folder: Path) -> None:
    scores = scored(folder, ["the dog runs .", " ", "red", "", "x", "cat"])
    assert scores.image_scores["BERTScore"][[0, 2, 5]] == pytest.approx(1, abs=1e-6)
    assert scores.image_scores["BERTScore"][[1, 3]].tolist() == [0, 0]


def test_rescaling_by_a_published_baseline(folder: Path, tmp_path: Path) -> None:
    """A folder that is named like a published model has its layer and its baseline."""
    package = pytest.importorskip("bert_score", reason="needs the extra 'bertscore'")
    copy = tmp_path / "distilbert-base-uncased"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    lines = (Path(package.__file__).parent / "rescale_baseline/en/distilbert-base-uncased.tsv").read_text().splitlines()
    number, *values = lines[1 + LAYER].split(",")
    assert number == str(LAYER)
    baseline = np.array([float(value) for value in values])
    scores = scored(copy, bertscore_rescale="en")
    raw = expected(folder, LAYER, idf=False)
    rescaled = (raw - baseline) / (1 - baseline)
    np.testing.assert_allclose(scores.image_scores["BERTScore"], rescaled[:, 2], atol=1e-4)
    assert "distilbert-base-uncased,L2,idf=no,rescale=en," in scores.signature


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bertscore_layer": None}, "the published table has no layer for"),
        ({"bertscore_layer": 4}, "has layers 0 to 3"),
        ({"bertscore_rescale": "en"}, "no baseline for layer 2 of"),
        ({"bertscore_rescale": "xx"}, "no baseline for the language 'xx'; there are cs, de, en,"),
    ],
)
def test_wrong_options_are_one_sentence(folder: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MetricInputError, match=sentence) as caught:
        scored(folder, **options)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_used_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bert_score", reason="needs the extra 'bertscore'")
    with pytest.raises(MetricInputError, match="no such folder"):
        METRICS["bertscore"].check_requirements(ScoringOptions(metrics=("bertscore",), bertscore=str(tmp_path / "no")))
    with pytest.raises(MetricInputError, match="cannot be loaded"):
        scored(tmp_path)
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["embeddings.word_embeddings.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MetricInputError, match=r"no weights for embeddings.word_embeddings.weight and 0 others"):
        scored(tmp_path)


def test_the_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.metrics.external import bertscore

    monkeypatch.setattr(bertscore, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"BERTScore.*pip install 'captune\[bertscore\]'"):
        METRICS["bertscore"].check_requirements(ScoringOptions(metrics=("bertscore",)))


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bert_score", reason="needs the extra 'bertscore'")
    (tmp_path / "r.json").write_text(json.dumps({str(row): group for row, group in enumerate(REFERENCES)}))
    (tmp_path / "p.json").write_text(json.dumps({str(row): caption or "sky" for row, caption in enumerate(CAPTIONS)}))
    options = ["-r", tmp_path / "r.json", "-p", tmp_path / "p.json", "--metrics", "bertscore", "--bertscore", folder]
    options += ["--bertscore-layer", "2", "--bertscore-idf", "--json", "--confidence"]
    assert cli.run(lambda: cli.call(cli.app, ["score", *map(str, options)])) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["scores"]) == {"BERTScore", "BERTScore-P", "BERTScore-R"}
    assert answer["scales"]["BERTScore"] == "0-1"
    assert ",L2,idf=references," in answer["signature"]
    assert answer["intervals"]["BERTScore"]["low"] <= answer["scores"]["BERTScore"]
    assert cli.run(lambda: cli.call(cli.app, ["score", *map(str, options[:8])])) == 2
    assert "give it with --bertscore-layer N" in capsys.readouterr().err
