"""`scores.json` is read strictly and written so that it reads back the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.errors import InputError, ToolError
from captune.report import CheckpointScores, RunScores, read_scores, write_scores
from captune.report.scores_json import scores_from_json, scores_to_json


def _tree() -> dict[str, Any]:
    return {
        "format": 1,
        "data": "toy",
        "split": "test",
        "protocol": "karpathy",
        "images": 2,
        "checkpoints": [
            {
                "name": "pretrained",
                "epoch": None,
                "signature": "tok:ptb",
                "leak": None,
                "corpus": {"CIDEr": 0.7, "BLEU-1": 0.3},
                "per_image": {"1": {"CIDEr": 0.5}, "2": {"CIDEr": None}},
                "captions": {"1": "a dog", "2": ""},
                "intervals": {"CIDEr": [0.6, 0.8]},
                "p_values": {"CIDEr": {"pretrained": 0.001}},
            }
        ],
    }


def test_reads_every_field() -> None:
    run = scores_from_json(json.dumps(_tree()))
    row = run.checkpoints[0]
    assert (run.data, run.split, run.protocol, run.images) == ("toy", "test", "karpathy", 2)
    assert (row.name, row.epoch, row.signature, row.leak) == ("pretrained", None, "tok:ptb", None)
    assert row.corpus == {"CIDEr": 0.7, "BLEU-1": 0.3}
    assert row.captions == {"1": "a dog", "2": ""}
    assert math.isnan(row.per_image["2"]["CIDEr"])
    assert row.intervals == {"CIDEr": (0.6, 0.8)}
    assert row.p_values == {"CIDEr": {"pretrained": 0.001}}
    assert run.metrics == ("BLEU-1", "CIDEr")


BROKEN: list[tuple[Any, str]] = [
    (lambda t: t.pop("format"), "no field 'format'"),
    (lambda t: t.pop("split"), "no field 'split'"),
    (lambda t: t["checkpoints"][0].pop("captions"), "the key 'captions' is missing"),
    (lambda t: t.update(format=2), "format 2"),
    (lambda t: t.update(format=True), "format True"),
    (lambda t: t.update(images=0), "images is 0"),
    (lambda t: t.update(images=2.5), "images is 2.5"),
    (lambda t: t.update(data=7), "data is 7"),
    (lambda t: t.update(checkpoint=[]), "no key 'checkpoint'; did you mean 'checkpoints'"),
    (lambda t: t.update(checkpoints=[]), "checkpoints is an empty list, expected at least one checkpoint"),
    (lambda t: t.update(checkpoints={}), "expected a list"),
    (lambda t: t["checkpoints"].append("x"), "checkpoints[1] is 'x', expected an object"),
    (lambda t: t["checkpoints"].append(t["checkpoints"][0]), "two checkpoints called 'pretrained'"),
    (lambda t: t["checkpoints"][0].update(name=" "), "expected a text that is not empty"),
    (lambda t: t["checkpoints"][0].update(epoch=-1), "epoch is -1"),
    (lambda t: t["checkpoints"][0].update(epoch="0"), "epoch is '0'"),
    (lambda t: t["checkpoints"][0].update(leak=""), "leak is ''"),
    (lambda t: t["checkpoints"][0].update(corpus={}), "corpus is an empty object, expected at least 1"),
    (lambda t: t["checkpoints"][0].update(corpus=[0.1]), "corpus is a list of 1, expected an object"),
    (lambda t: t["checkpoints"][0]["corpus"].update(CIDEr="high"), "corpus.CIDEr is 'high'"),
    (lambda t: t["checkpoints"][0]["corpus"].update(CIDEr=True), "corpus.CIDEr is True"),
    (lambda t: t["checkpoints"][0]["corpus"].update(CIDEr=math.inf), "a number of at most 1e+09"),
    (lambda t: t["checkpoints"][0]["corpus"].update(CIDEr=10**400), "a number of at most 1e+09"),
    (lambda t: t["checkpoints"][0]["per_image"].update({"1": 3}), "per_image['1'] is 3"),
    (lambda t: t["checkpoints"][0]["captions"].update({"1": None}), "captions['1'] is null"),
    (lambda t: t["checkpoints"][0]["intervals"].update(CIDEr=[0.8, 0.6]), "low <= high"),
    (lambda t: t["checkpoints"][0]["intervals"].update(CIDEr=[0.8]), "low <= high"),
    (lambda t: t["checkpoints"][0]["intervals"].update(SPICE=[0.1, 0.2]), "may have only metrics of 'corpus'"),
    (lambda t: t["checkpoints"][0]["p_values"].update(CIDEr={"previous": 1.5}), "less than or equal to 1"),
    (lambda t: t["checkpoints"][0]["p_values"].update(CIDEr={"next": 0.5}), "'pretrained' or 'previous'"),
    (lambda t: t["checkpoints"][0].update(epochs=1), "no key 'checkpoints[0].epochs'; did you mean 'epoch'"),
]


@pytest.mark.parametrize(("damage", "expected"), BROKEN, ids=[expected for _, expected in BROKEN])
def test_a_broken_part_is_named_in_one_sentence(damage: Any, expected: str) -> None:
    tree = _tree()
    damage(tree)
    with pytest.raises(InputError) as caught:
        scores_from_json(json.dumps(tree), "run/scores.json")
    message = str(caught.value)
    assert expected in message
    assert message.startswith("run/scores.json")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1, "format": 1}', "[" * 100_000, '{"format": ' + "9" * 5000 + "}"]
)
def test_what_is_no_score_file_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        scores_from_json(text)
    assert "\n" not in str(caught.value)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give a run directory"):
        read_scores(tmp_path)
    (tmp_path / "scores.json").write_bytes(b'{"format": "\xff"}')
    with pytest.raises(InputError, match="not UTF-8"):
        read_scores(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_scores(tmp_path / "scores.json" / "below")


texts = st.text(st.characters(exclude_categories=())).map(lambda text: text)
numbers = st.floats(-1e9, 1e9) | st.just(math.nan)


@given(
    captions=st.dictionaries(texts, texts, max_size=4),
    corpus=st.dictionaries(texts, numbers, min_size=1, max_size=4),
    references=st.dictionaries(texts, st.lists(texts, max_size=3).map(tuple), max_size=3),
    leak=st.none() | texts.filter(str.strip),
)
def test_whatever_is_written_reads_back_the_same(
    captions: dict[str, str],
    corpus: dict[str, float],
    references: dict[str, tuple[str, ...]],
    leak: str | None,
) -> None:
    row = CheckpointScores(name="epoch0", epoch=0, corpus=corpus, captions=captions, leak=leak)
    run = RunScores(data="d", split="s", protocol="p", images=1, checkpoints=(row,), references=references)
    text = scores_to_json(run)
    again = scores_from_json(text.encode("utf-8", "backslashreplace").decode())
    assert scores_to_json(again) == text
    assert again.checkpoints[0].captions == captions
    assert again.references == references


def test_writing_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = scores_from_json(json.dumps(_tree()))
    write_scores(run, tmp_path)
    before = (tmp_path / "scores.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ToolError, match="cannot be written \\(No space left on device\\)"):
        write_scores(run, tmp_path)
    assert (tmp_path / "scores.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
