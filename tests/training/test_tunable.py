"""What a configuration says of the model reaches the training: LoRA, checkpointing, quantization, faults, parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captune.config import RunConfig, parse_config
from captune.data.manifest import read_manifest, resolve_image
from captune.errors import ConfigError, WeightsError
from captune.features import encode_images
from captune.model.checkpoint import read_record
from captune.model.loading import load_config_and_processor, load_model, load_pretrained
from captune.training import train
from captune.training.preparation import load_for_training

CPU = torch.device("cpu")


def settings(toy_data: Path, output: Path, **sections: dict[str, Any]) -> RunConfig:
    given: dict[str, Any] = {
        "output": str(output),
        "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 8, "evaluate_images": 4},
        "train": {"epochs": 1, "batch_size": 20, "warmup_steps": 1},
        "evaluate": {"max_new_tokens": 4},
    }
    return parse_config({**given, **{name: {**given.get(name, {}), **values} for name, values in sections.items()}})


def test_lora_is_trained_saved_and_loaded(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(toy_data, tmp_path / "run", train={"lora": {"rank": 2, "alpha": 4, "targets": ["q_proj"]}})
    train(config)
    folder = tmp_path / "run" / "checkpoints" / "epoch-000"
    assert read_record(folder).lora == {"r": 2, "alpha": 4.0, "targets": ["q_proj"], "dropout": 0.0}
    tuned = load_pretrained(folder)
    changed = [name for name, value in tuned.named_parameters() if ".lora_B." in name and bool(value.any())]
    assert changed


def test_lora_begins_alike(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(toy_data, tmp_path, train={"lora": {"rank": 2}})
    one, other = (
        dict(load_for_training(config.model, config.train, config.seed, CPU).trained_parameters()) for _ in range(2)
    )
    assert any(".lora_A." in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lora_dropout_is_the_same_after_a_resume(toy_data: Path, tmp_path: Path) -> None:
    """A step's draw follows from seed and step, so it does not matter what was drawn before."""
    pytest.importorskip("peft")
    lora = {"rank": 2, "dropout": 0.5}
    for name in ("a", "b"):
        torch.manual_seed(len(name) + ord(name))
        train(settings(toy_data, tmp_path / name, train={"lora": lora}))
    first, second = (
        (tmp_path / name / "checkpoints" / "epoch-000" / "trained.safetensors").read_bytes() for name in ("a", "b")
    )
    assert first == second


def test_gradient_checkpointing_changes_nothing(toy_data: Path, tmp_path: Path) -> None:
    weights = []
    for checkpointing in (False, True):
        output = tmp_path / str(checkpointing)
        train(settings(toy_data, output, train={"gradient_checkpointing": checkpointing}))
        folder = output / "checkpoints" / "epoch-000"
        weights.append(load_pretrained(folder).projection.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-8)
    config = settings(toy_data, tmp_path, train={"gradient_checkpointing": True})
    model = load_for_training(config.model, config.train, config.seed, CPU)
    assert all(layer.gradient_checkpointing for layer in model.llm.model.layers)


def test_quantization_is_checked_before_training(toy_data: Path, tmp_path: Path, caplog: Any) -> None:
    pytest.importorskip("bitsandbytes")
    config = settings(toy_data, tmp_path, model={"quantization": "int8"})
    image = read_manifest(config.data.train, "train")[0]
    features = encode_images(load_model(config.model, CPU), [resolve_image(config.data.train, image.image)]).clone()
    with caplog.at_level("INFO", logger="captune.model.loading"):
        model = load_for_training(config.model, config.train, config.seed, CPU, [image], features)
    assert type(model.llm.model.layers[0].mlp.gate_proj.weight).__name__ == "Int8Params"
    assert "quantization int8: gradient cosine" in caplog.text


def test_faults_are_for_slides_only(toy_data: Path, tmp_path: Path) -> None:
    faults = {"legacy_bugs": ["cut_stop_symbol"]}
    with pytest.raises(ConfigError, match="only protocol slides may"):
        settings(toy_data, tmp_path, model=faults)
    config = settings(toy_data, tmp_path, model=faults, evaluate={"protocol": "slides"})
    _, processor = load_config_and_processor(config.model)
    assert processor.layout.legacy_bugs.cut_stop_symbol
    model = load_for_training(config.model, config.train, config.seed, CPU)
    assert model.processor is not None
    assert model.processor.layout.legacy_bugs.cut_stop_symbol


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"llm": "somewhere"}, "model.llm and model.vision belong together"),
        ({"quantization": "int2"}, "model.quantization is 'int2'"),
    ],
)
def test_wrong_settings(toy_data: Path, tmp_path: Path, model: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settings(toy_data, tmp_path, model=model)


def test_a_file_of_a_tower_is_joined_by_convert(toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "eva_vit_g.pth").write_bytes(b"")
    config = settings(toy_data, tmp_path, model={"llm": "somewhere", "vision": str(tmp_path / "eva_vit_g.pth")})
    with pytest.raises(ConfigError, match="captune convert --llm somewhere --vision"):
        load_for_training(config.model, config.train, config.seed, CPU)


def test_lora_without_its_layers(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(toy_data, tmp_path, train={"lora": {"targets": ["no_such_layer"]}})
    with pytest.raises(WeightsError, match="no_such_layer"):
        load_for_training(config.model, config.train, config.seed, CPU)
