"""`captune convert`: there, and back to a file that the original code loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import reference_captions
from torch import nn

from captune.cli import app, call, run
from captune.model import MiniGPT4
from captune.model.lora import attach_lora

from .conftest import OfficialFiles, load
from .test_huggingface import PICTURE, save_adapter


def convert(*arguments: object) -> int:
    return run(lambda: call(app, ["convert", *map(str, arguments)]))


def sources(files: OfficialFiles) -> list[object]:
    heads = ["--vision-heads", 4, "--qformer-heads", 4]
    return ["--llm", files.llm, "--vision", files.vision, "--qformer", files.qformer, *heads]


class Original(nn.Module):
    """Of the original model what its checkpoints are loaded into, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.llama_proj = nn.Linear(16, 32)


def test_there_and_back(official_files: OfficialFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, back = tmp_path / "model", tmp_path / "back.pth"
    assert convert(*sources(official_files), "--checkpoint", official_files.checkpoint, "--out", folder) == 0
    assert capsys.readouterr().out.strip().endswith(str(folder))
    model, direct = MiniGPT4.from_pretrained(folder, dtype=torch.float32), load(official_files)
    for (name, parameter), (other, expected) in zip(model.named_parameters(), direct.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(parameter, expected), name
    assert reference_captions(model, PICTURE, max_new_tokens=4) == reference_captions(direct, PICTURE, max_new_tokens=4)
    assert convert("--to-official", folder, "--out", back) == 0
    # As the original does, but strictly.
    original = Original()
    original.load_state_dict(torch.load(back, map_location="cpu")["model"])
    assert torch.equal(original.llama_proj.weight, direct.projection.weight)
    again = load(official_files, checkpoint=back)
    assert torch.equal(again.projection.bias, direct.projection.bias)


def test_number_formats(official_files: OfficialFiles, tmp_path: Path) -> None:
    """By default that of every file: here a float16 language model with float32 towers."""
    from safetensors.torch import load_file

    arguments = [*sources(official_files), "--checkpoint", official_files.checkpoint]
    assert convert(*arguments, "--out", tmp_path / "a") == 0
    state = load_file(tmp_path / "a" / "model.safetensors")
    assert state["llm.lm_head.weight"].dtype == torch.float16
    assert state["query_tokens"].dtype == torch.float32
    assert convert(*arguments, "--out", tmp_path / "b", "--dtype", "bfloat16") == 0
    assert {t.dtype for t in load_file(tmp_path / "b" / "model.safetensors").values()} == {torch.bfloat16}


def test_adapter_with_lora_back(official_files: OfficialFiles, tmp_path: Path) -> None:
    """LoRA goes back under the names of peft 0.2, with its scale, and loads again."""
    v2 = {"qformer": None, "checkpoint": official_files.checkpoint_llama2}
    model = load(official_files, "minigpt_v2", **v2)
    model.save_pretrained(tmp_path / "base")
    attach_lora(model, rank=4, alpha=12)
    for _, parameter in model.trained_parameters():
        nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "epoch-000", tmp_path / "base")
    assert convert("--to-official", tmp_path / "epoch-000", "--out", tmp_path / "back.pth") == 0
    content = torch.load(tmp_path / "back.pth")
    assert content["config"]["model"] == {"arch": "minigpt_v2", "lora_r": 4, "lora_alpha": 12}
    assert "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight" in content["model"]
    again = load(official_files, "minigpt_v2", qformer=None, checkpoint=tmp_path / "back.pth")
    batch = model.processor(PICTURE, "What is this?", "A dog.")
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_overwrite_removes_neither_inputs_nor_folders_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llm").mkdir(parents=True)
    (tmp_path / "models" / "llm" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for out, sentence in (
        ("models/llm", "'models/llm' is read here"),
        ("models", "contains 'models/llm', which is read here"),
        ("photos", "without a model of captune"),
    ):
        assert convert("--out", out, "--llm", "models/llm", "--vision", "v.pth", "--overwrite") == 2
        assert sentence in capsys.readouterr().err
    assert (tmp_path / "models" / "llm" / "config.json").exists()
    assert (tmp_path / "photos" / "a.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x"], "Give --llm and --vision"),
        (["--out", "x", "--to-official", "nowhere/at/all"], "There is no model folder nowhere/at/all"),
        (["--out", "x", "--to-official", "a", "--llm", "b"], "takes one checkpoint or model and no other files"),
        (["--out", ".", "--llm", "a", "--vision", "b"], "exists already"),
        (["--out", "x", "--llm", "a", "--vision", "b.pth", "--checkpoint", "c"], "b.pth does not exist"),
    ],
)
def test_refusals(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(*arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("captune: ")
    assert sentence in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_original_code_does_not_know(
    official_files: OfficialFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(official_files)
    model.config.conversation = "own"
    model.save_pretrained(tmp_path / "model")
    assert convert("--to-official", tmp_path / "model", "--out", tmp_path / "back.pth") == 2
    assert "the original code has those of Vicuna, Llama-2 and MiniGPT-v2 only" in capsys.readouterr().err
    (tmp_path / "model" / "config.json").write_text("{}")
    assert convert("--to-official", tmp_path / "model", "--out", tmp_path / "back.pth") == 2
