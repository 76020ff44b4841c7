"""`scores.json` is read strictly and written so that it reads back the same."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.cli.report_output import run_as_json
from captune.errors import InputError, ToolError
from captune.report import (
    CheckpointScores,
    RunScores,
    analyse,
    markdown_table,
    read_scores,
    write_report,
    write_scores,
)
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


def failed(run: RunScores, index: int) -> RunScores:
    """The run with a row that was not scored."""
    row = run.checkpoints[index]
    rows = list(run.checkpoints)
    rows[index] = CheckpointScores(
        name=row.name, epoch=row.epoch, corpus=dict.fromkeys(row.corpus, math.nan), error="No space left on device."
    )
    return dataclasses.replace(run, checkpoints=tuple(rows))


@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_row_that_was_not_scored_says_so_and_changes_nothing_else(
    index: int, make_run: Any, slides: Any, tmp_path: Path
) -> None:
    run = failed(make_run(slides, half_width=0.01), index)
    name = run.checkpoints[index].name
    assert scores_from_json(scores_to_json(run)) == run
    others = dataclasses.replace(run, checkpoints=run.checkpoints[:index] + run.checkpoints[index + 1 :])
    assert run.scored == others
    assert analyse(run) == analyse(others)
    write_scores(run, tmp_path)
    write_report(tmp_path, chart_formats=("svg",))
    assert f"| {name} **not scored** | nan |" in (tmp_path / "table.md").read_text()
    assert f"{name} (\\textbf{{not scored}})" in (tmp_path / "table.tex").read_text()
    for file in ("table.md", "analysis.md", "report.html"):
        assert f"{name} was not scored: No space left on device." in (tmp_path / file).read_text()
    assert markdown_table(others).splitlines()[-1] == markdown_table(run).splitlines()[-1], "one signature"
    assert run_as_json(run, analyse(run))["checkpoints"][index]["error"] == "No space left on device."


def test_a_page_of_rows_of_which_none_was_scored(make_run: Any, tmp_path: Path) -> None:
    run = make_run({"CIDEr": (0.1, 0.2), "BLEU-4": (0.1, 0.2)})
    write_scores(failed(failed(run, 0), 1), tmp_path)
    write_report(tmp_path, chart_formats=("png",))
    assert (tmp_path / "report.html").read_text().count("No space left on device") >= 4


def test_old_files_have_no_thinking_texts(make_run: Any) -> None:
    run = make_run({"CIDEr": (0.1, 0.2)})
    assert '"thinking"' not in scores_to_json(run)
    assert run.checkpoints[0].thinking_counts == {}
    rows = (dataclasses.replace(run.checkpoints[0], thinking={"1": "removed", "2": "unclosed"}), run.checkpoints[1])
    counted = dataclasses.replace(run, checkpoints=rows)
    assert scores_from_json(scores_to_json(counted)) == counted
    assert rows[0].thinking_counts == {"thinking": 2, "unclosed": 1}
    with pytest.raises(InputError, match="thinking"):
        scores_from_json(scores_to_json(counted).replace('"removed"', '"lost"'))
