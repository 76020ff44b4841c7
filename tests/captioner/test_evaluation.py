"""A transformers model next to a tuned one: the same images, the same references, one table."""

from __future__ import annotations

from pathlib import Path

import pytest
from captioner_models import save

from captune.captioner import TransformersBackend
from captune.cli import app, call
from captune.cli import run as as_program
from captune.report import read_scores


@pytest.mark.parametrize("name", ["blip2", "qwen2_vl"])
def test_another_captioner_in_the_same_table(
    name: str, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = save(name, tmp_path / "models" / name)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output: {tmp_path / 'run'}\n"
        f"data: {{train: {toy_data / 'manifest.jsonl'}, features: {tmp_path / 'features'}}}\n"
        "evaluate: {max_new_tokens: 6}\n"
    )
    instructions: list[str | None] = []
    right = TransformersBackend.prompt

    def prompt(self: TransformersBackend, instruction: str | None = None) -> str | None:
        instructions.append(instruction)
        return right(self, instruction)

    monkeypatch.setattr(TransformersBackend, "prompt", prompt)
    command = ["evaluate", str(config), "--captioner", str(other)]
    assert as_program(lambda: call(app, command)) == 0
    assert f"models/{name}" in capfd.readouterr().out
    scores = read_scores(tmp_path / "run")
    assert [row.name for row in scores.checkpoints] == ["pretrained", f"models/{name}"]
    first, second = scores.checkpoints
    assert first.captions.keys() == second.captions.keys()
    assert first.corpus.keys() == second.corpus.keys()
    assert set(instructions) == ({None} if name == "blip2" else {"Describe this image in detail."})
    instructions.clear()
    assert as_program(lambda: call(app, command)) == 0
    assert instructions == [], "the second time, nothing is generated"
    assert read_scores(tmp_path / "run").checkpoints[1].captions == second.captions
