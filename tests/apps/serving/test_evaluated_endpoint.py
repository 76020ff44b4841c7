"""`captune evaluate` of a model behind `captune serve`: the captions of the same model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vision_families import save_family

from captune.cli import app, call, run
from captune.report import read_scores


@pytest.mark.parametrize("kind", ["llava", "run"])
def test_captions_of_the_endpoint_are_those_of_the_model(
    kind: str,
    start_server: Any,
    served_run: Path,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("captune.report.write.draw_chart", lambda *_args, **_settings: {})
    monkeypatch.delenv("CAPTUNE_API_KEY", raising=False)
    model = str(served_run if kind == "run" else save_family(kind, tmp_path / kind))
    process, line = start_server("serve", model, "--port", 0)
    address = f"endpoint={line.strip()}/v1" + ("#epoch1" if kind == "run" else "")
    local = f"{model}@epoch1" if kind == "run" else model
    words = ["evaluate", local, address, "--data", str(toy_data / "manifest.jsonl"), "--out", str(tmp_path / "out")]
    code = run(lambda: call(app, [*words, "evaluate.max_new_tokens=12"]))
    process.terminate()
    assert code == 0
    here, there = read_scores(tmp_path / "out").checkpoints
    assert there.name == "endpoint"
    assert dict(there.captions) == dict(here.captions)
    assert len(set(here.captions.values())) > 1
    assert dict(there.corpus) == dict(here.corpus)
    assert there.unfinished == here.unfinished
    assert there.signature == here.signature.replace("|v:", "|source:endpoint|v:")
