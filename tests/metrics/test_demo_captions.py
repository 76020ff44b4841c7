"""The demo's captions, with the numbers that pycocoevalcap 1.2 and its Java tokenizer gave for them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from captune.metrics import score_captions

RECORDED = json.loads(gzip.decompress((Path(__file__).parent / "data" / "demo_captions.json.gz").read_bytes()))


@pytest.mark.parametrize("system", RECORDED["systems"])
def test_the_demos_scores_equal_pycocoevalcap(system: str) -> None:
    recorded = RECORDED["systems"][system]
    scores = score_captions(recorded["captions"], RECORDED["references"])
    assert set(scores.corpus) == set(recorded["corpus"])
    for name, value in recorded["corpus"].items():
        assert scores.corpus[name] == pytest.approx(value, abs=1e-9), name
