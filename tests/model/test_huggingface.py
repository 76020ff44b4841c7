"""Hugging Face manners: save, load, push; adapters that know what they belong to; fewer bits; recomputation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import reference_captions
from transformers import AutoConfig, AutoModel

from captune.config import ModelConfig
from captune.errors import ConfigError, ToolError, WeightsError
from captune.model import MiniGPT4, MiniGPT4Config, MiniGPT4Processor
from captune.model.checkpoint import load_trained, save_trained
from captune.model.loading import load_pretrained, load_quantized
from captune.model.lora import attach_lora
from captune.model.quantization import (
    FORMATS,
    GradientDeviation,
    compare_gradients,
    projection_gradient,
    quantization_config,
)
from captune.run_checkpoints import CheckpointRecord, read_record

from .conftest import OfficialFiles, load

PICTURE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


@pytest.fixture
def model(official_files: OfficialFiles) -> MiniGPT4:
    return load(official_files)


def logits(model: MiniGPT4) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**model.processor(PICTURE, "What is this?", "A dog.")).logits
    return output


def save_adapter(model: MiniGPT4, folder: Path, base: Path) -> CheckpointRecord:
    folder.mkdir()
    record = CheckpointRecord(
        model=str(base),
        frozen=model.frozen_fingerprint(),
        instruction="Who is there?",
        conversation=model.config.conversation,
        stop_symbol="###",
        manifest_hash="0123",
        epoch=0,
        step=10,
        seed=1,
        captune="0",
        lora=model.config.lora,
    )
    save_trained(folder, model.trained_state(), record)
    return record


@pytest.mark.parametrize("with_lora", [False, True])
def test_round_trip(model: MiniGPT4, tmp_path: Path, with_lora: bool) -> None:
    if with_lora:
        attach_lora(model, rank=2, alpha=4)
        for _, parameter in model.trained_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    again = MiniGPT4.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert [name for name, _ in again.trained_parameters()] == [name for name, _ in model.trained_parameters()]
    assert reference_captions(again, PICTURE, max_new_tokens=4) == reference_captions(model, PICTURE, max_new_tokens=4)
    assert {file.suffix for file in tmp_path.iterdir()} >= {".json", ".safetensors", ".md"}
    assert again.frozen_fingerprint() == model.frozen_fingerprint()
    assert MiniGPT4Processor.from_pretrained(tmp_path).layout.prompt("a") == model.processor.layout.prompt("a")


def test_auto_classes_know_it(model: MiniGPT4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MiniGPT4Config)
    assert isinstance(AutoModel.from_pretrained(tmp_path), MiniGPT4)


def test_dtype_and_device_map(model: MiniGPT4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    half = MiniGPT4.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert reference_captions(half, PICTURE, max_new_tokens=4)
    # Values are compared in bfloat16, so that an adapter trained with one format fits the other.
    assert half.frozen_fingerprint() == model.frozen_fingerprint()


def test_card(model: MiniGPT4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, metrics={"CIDEr": 0.5}, signature="captune|data:flickr30k|split:test")
    card = (tmp_path / "README.md").read_text()
    assert "| CIDEr | 0.5000 |" in card
    assert "captune|data:flickr30k|split:test" in card
    assert '"###Human: {} ###Assistant: "' in card
    model.save_pretrained(tmp_path, metrics={"CIDEr": 0.5})
    assert "CIDEr" not in (tmp_path / "README.md").read_text()


def test_push_to_hub(model: MiniGPT4, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for the hub: every file of the model reaches it in one commit."""
    uploaded: dict[str, Any] = {}

    def create_repo(repo_id: str, **settings: Any) -> SimpleNamespace:
        uploaded["settings"] = settings
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload(*, repo_id: str, folder_path: Path, **settings: Any) -> SimpleNamespace:
        uploaded[repo_id] = {file.name for file in folder_path.iterdir()}
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit")

    monkeypatch.setattr("huggingface_hub.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    assert model.push_to_hub("tiny", private=True) == "hub/me/tiny/commit"
    assert uploaded["me/tiny"] >= {"config.json", "model.safetensors", "tokenizer.model", "README.md"}
    assert uploaded["settings"]["private"] is True

    def refuse(repo_id: str, **settings: Any) -> None:
        raise OSError("no way there")

    monkeypatch.setattr("huggingface_hub.create_repo", refuse)
    with pytest.raises(ToolError, match="The hub refused tiny: no way there"):
        model.push_to_hub("tiny")


@pytest.mark.parametrize("with_lora", [False, True])
def test_adapter_brings_its_model(model: MiniGPT4, tmp_path: Path, with_lora: bool) -> None:
    base = tmp_path / "base"
    model.save_pretrained(base)
    if with_lora:
        attach_lora(model, rank=2, alpha=6)
    for _, parameter in model.trained_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    record = save_adapter(model, tmp_path / "epoch-000", base)
    tuned = load_pretrained(tmp_path / "epoch-000")
    assert torch.equal(logits(tuned), logits(model))
    assert tuned.processor.instruction == "Who is there?"
    assert read_record(tmp_path / "epoch-000") == record
    base.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match="with --base, or base= in Python"):
        load_pretrained(tmp_path / "epoch-000")
    moved = load_pretrained(tmp_path / "epoch-000", base_model=tmp_path / "moved")
    assert torch.equal(logits(moved), logits(model))


def test_adapter_of_another_model_is_refused(model: MiniGPT4, tmp_path: Path) -> None:
    save_adapter(model, tmp_path / "epoch-000", tmp_path)
    with torch.no_grad():
        model.llm.lm_head.weight.mul_(1.5)
    with pytest.raises(WeightsError, match="was trained on the frozen parts") as caught:
        load_trained(model, tmp_path / "epoch-000")
    assert "\n" not in str(caught.value)


def test_only_what_is_trained_leaves_eval_mode(model: MiniGPT4) -> None:
    attach_lora(model, rank=2, dropout=0.5)
    model.train()
    active = {name for name, module in model.named_modules() if module.training and name}
    assert {name for name in active if ".lora_dropout" in name}
    assert all(".lora_dropout" in name or name == "projection" for name in active)


def test_recomputed_activations_change_nothing(model: MiniGPT4) -> None:
    batch = dict(model.processor([PICTURE] * 2, "What is this?", ["A dog runs.", "Two girls."]))

    plain = projection_gradient(model.train(), batch)
    model.checkpoint_activations()
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.llm.model.layers)
    calls = []
    hook = model.llm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    recomputed = projection_gradient(model.train(), batch)
    hook.remove()
    assert len(calls) == 2
    torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("name", FORMATS)
def test_fewer_bits(model: MiniGPT4, tmp_path: Path, name: str) -> None:
    """The language model alone is quantised, and the start-up check sees how far gradients deviate."""
    if name == "torchao-int4":
        pytest.skip("torchao's int4 kernels need a GPU")
    pytest.importorskip("torchao" if "torchao" in name else "bitsandbytes")
    model.save_pretrained(tmp_path)
    batch = model.processor(PICTURE, "What is this?", "A dog runs along the beach.")
    reference = projection_gradient(model, batch)
    small = MiniGPT4.from_pretrained(tmp_path, quantization_config=quantization_config(name, torch.float32))
    gate = type(small.llm.model.layers[0].mlp.gate_proj.weight)
    assert gate.__name__ not in ("Parameter", "Tensor")
    assert type(small.projection.weight) is torch.nn.Parameter
    assert type(small.vision.encoder.layers[0].mlp.fc1.weight) is torch.nn.Parameter
    deviation = compare_gradients(projection_gradient(small, batch), reference)
    # Four bits are coarse for layers 32 wide.
    assert (0.8 if name == "nf4" else 0.99) < deviation.cosine <= 1.0001
    assert 0 < deviation.relative_difference < (0.6 if name == "nf4" else 0.1)
    # An adapter knows a quantised model again.
    again = MiniGPT4.from_pretrained(tmp_path, quantization_config=quantization_config(name, torch.float32))
    assert again.frozen_fingerprint() == small.frozen_fingerprint() != model.frozen_fingerprint()
    if name != "nf4":  # on a CPU, bitsandbytes generates with layers of at least 64 inputs only
        assert reference_captions(small, PICTURE, max_new_tokens=3)


def test_start_up_check(model: MiniGPT4, tmp_path: Path) -> None:
    """The check compares with the model as it was, and leaves the quantised one ready."""
    pytest.importorskip("bitsandbytes")
    model.save_pretrained(tmp_path)
    batch = dict(model.processor(PICTURE, "What is this?", "A dog runs along the beach."))
    with torch.no_grad():
        batch["features"] = model.encode_features(batch.pop("pixel_values"))
    config, device = ModelConfig(path=str(tmp_path), dtype="float32", quantization="int8"), torch.device("cpu")
    small, deviation = load_quantized(config, device, batch, recompute=True)
    assert 0.99 < deviation.cosine <= 1.0001
    assert small.projection.weight.dtype == torch.float32
    assert not small.training
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in small.llm.model.layers)


def test_deviation() -> None:
    gradient = torch.tensor([[3.0, 4.0]])
    assert compare_gradients(gradient, gradient) == GradientDeviation(pytest.approx(1.0), 0.0)
    turned = compare_gradients(torch.tensor([[-4.0, 3.0]]), gradient)
    assert turned.cosine == pytest.approx(0.0, abs=1e-6)
    assert str(turned) == "gradient cosine 0.0000, relative difference 141.42%"
    with pytest.raises(WeightsError, match="train with another format"):
        turned.check("nf4")
    with pytest.raises(WeightsError, match="cosine of nan"):
        GradientDeviation(float("nan"), 0.0).check("nf4")
    with pytest.raises(ConfigError, match="expected one of: int8"):
        quantization_config("int3")


def test_records_of_older_checkpoints(model: MiniGPT4, tmp_path: Path) -> None:
    """A record written before LoRA was noted in it is still read."""
    record = save_adapter(model, tmp_path / "a", tmp_path)
    path = tmp_path / "a" / "checkpoint.json"
    content = json.loads(path.read_text())
    del content["lora"]
    path.write_text(json.dumps(content))
    assert read_record(tmp_path / "a") == record


def test_an_adapter_on_the_hub(model: MiniGPT4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id may name a checkpoint; its two files are fetched, and the model that it names is loaded."""
    model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    fetched: list[str] = []

    def fetch_file(name: str, file: str, **settings: Any) -> Path | None:
        assert name == "somebody/adapter"
        fetched.append(file)
        path = tmp_path / "adapter" / file
        return path if path.exists() else None

    monkeypatch.setattr("captune.model.checkpoint.fetch_file", fetch_file)
    tuned = load_pretrained("somebody/adapter", revision="v1")
    assert torch.equal(tuned.projection.weight, model.projection.weight)
    assert set(fetched) == {"checkpoint.json", "config.json", "trained.safetensors"}
