"""Checkpoints of transformers models: peft's own format, read by peft and transformers, strictly by captune."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from captioner_models import save
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText
from tuned_models import LORA, load, perturb, record_of, scores, texts, tune

from captune.errors import WeightsError
from captune.hub import resolve_model
from captune.model import save_trained
from captune.run_checkpoints import read_record
from captune.vlm import ImageTextModel, load_adapter, load_image_text_model, save_adapter

WEIGHTS = "adapter_model.safetensors"
FAMILIES = ["llava", "qwen2_5_vl", "blip2"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of models, by family."""
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).is_dir() else save(family, root / family)


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_and_transformers_load_a_checkpoint_with_equal_scores_and_captions(
    bases: Callable[[str], Path], family: str, projector: bool, tmp_path: Path
) -> None:
    base = bases(family)
    tuned = tune(base, tmp_path / "tuned", projector=projector)
    expected, captions = scores(tuned), texts(tuned)
    assert not torch.equal(expected, scores(load(base)))

    loaded = load(base)
    record = load_adapter(loaded, tmp_path / "tuned")
    assert record == read_record(tmp_path / "tuned")
    assert torch.equal(scores(loaded), expected)
    assert loaded.trained_state().keys() == tuned.trained_state().keys()

    settings = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    plain = AutoModelForImageTextToText.from_pretrained(settings["base_model_name_or_path"]).eval()
    PeftModel.from_pretrained(plain, tmp_path / "tuned").eval()
    by_peft = ImageTextModel(plain, tuned.processor, name="peft", instruction="What is this?")
    assert torch.equal(scores(by_peft), expected)
    assert texts(by_peft) == captions

    # transformers itself loads adapters with newer releases of peft only.
    pytest.importorskip("peft.utils.transformers_weight_conversion")
    plain = AutoModelForImageTextToText.from_pretrained(base).eval()
    plain.load_adapter(str(tmp_path / "tuned"))
    by_transformers = ImageTextModel(plain.eval(), tuned.processor, name="transformers", instruction="What is this?")
    assert torch.equal(scores(by_transformers), expected)


def test_the_names_of_tensors_are_those_that_other_libraries_read(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tune(bases("llava"), tmp_path / "tuned", projector=True)
    with safe_open(tmp_path / "tuned" / WEIGHTS, "pt") as stored:
        names, metadata = set(stored.keys()), stored.metadata()
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.model.multi_modal_projector.linear_1.weight" in names
    assert all(name.startswith("base_model.model.") for name in names)
    assert metadata["format"] == "pt"
    assert "library_name: peft" in (tmp_path / "tuned" / "README.md").read_text()


def test_a_checkpoint_is_loaded_into_a_model_that_has_lora_already(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = tune(bases("llava"), tmp_path / "tuned", projector=True)
    model = load(bases("llava"))
    model.add_lora(LORA, projector=True, seed=7)
    adapter = model.adapter
    load_adapter(model, tmp_path / "tuned")
    assert model.adapter is adapter
    assert torch.equal(scores(model), scores(tuned))


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_complete_parts_are_stored_under_the_names_of_the_model(
    bases: Callable[[str], Path], part: str, tmp_path: Path
) -> None:
    base = bases("llava")
    tuned = load(base)
    tuned.train_parts(**{part: True})
    perturb(tuned)
    save_adapter(tmp_path, tuned, record_of(tuned, part))
    assert not (tmp_path / "adapter_config.json").exists()
    model = load(base)
    load_adapter(model, tmp_path)
    assert torch.equal(scores(model), scores(tuned))
    assert model.trained_state().keys() == tuned.trained_state().keys()
    again = load(base)
    again.train_parts(**{part: True})
    load_adapter(again, tmp_path)
    assert torch.equal(scores(again), scores(tuned))
    other = load(base)
    other.train_parts(language_model=part != "language_model", vision_tower=part != "vision_tower")
    with pytest.raises(WeightsError, match="does not fit the parts that this model trains"):
        load_adapter(other, tmp_path)


def changed(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a checkpoint and its hash."""
    file = folder / WEIGHTS
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    state = load_file(file)
    change(state)
    save_file(state, file, metadata=metadata)
    record = json.loads((folder / "checkpoint.json").read_text())
    record["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(record))


NAME = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def remove(state: dict[str, Tensor]) -> None:
    del state[NAME]


def rename(state: dict[str, Tensor]) -> None:
    state[NAME.replace("layers.0", "layers.9")] = state.pop(NAME)


def reshape(state: dict[str, Tensor]) -> None:
    state[NAME] = state[NAME][:2].contiguous()


def zero(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if ".lora_B." in name:
            tensor.zero_()


def spoil(state: dict[str, Tensor]) -> None:
    state[NAME][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "lack 1 of its 28 tensors"),
        (rename, "lack 1 .* and hold 1 that it does not have"),
        (reshape, "of another shape"),
        (zero, "changes nothing|changes no score"),
        (spoil, "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("attached", [False, True])
def test_other_tensors_are_refused(
    bases: Callable[[str], Path],
    change: Callable[[dict[str, Tensor]], None],
    message: str,
    attached: bool,
    tmp_path: Path,
) -> None:
    tune(bases("llava"), tmp_path / "tuned")
    changed(tmp_path / "tuned", change)
    model = load(bases("llava"))
    if attached:
        model.add_lora(LORA)
    with pytest.raises(WeightsError, match=message):
        load_adapter(model, tmp_path / "tuned")


def test_damage_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tune(bases("llava"), tmp_path / "tuned")
    data = bytearray((tmp_path / "tuned" / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "tuned" / WEIGHTS).write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        load_adapter(load(bases("llava")), tmp_path / "tuned")
    shutil.copytree(tmp_path / "tuned", tmp_path / "empty")
    (tmp_path / "empty" / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="missing or broken"):
        load_adapter(load(bases("llava")), tmp_path / "empty")


def test_another_base_model_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tune(bases("llava"), tmp_path / "tuned")
    other = AutoModelForImageTextToText.from_pretrained(bases("llava"))
    with torch.no_grad():
        other.get_parameter("model.language_model.layers.1.mlp.up_proj.weight").mul_(1.5)
    shutil.copytree(bases("llava"), tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsError, match="was trained on the frozen parts"):
        load_adapter(load(tmp_path / "other"), tmp_path / "tuned")
    with pytest.raises(WeightsError, match="was trained on the frozen parts"):
        load_adapter(load(bases("qwen2_5_vl")), tmp_path / "tuned")


def test_a_checkpoint_of_a_minigpt4_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = tune(bases("llava"), tmp_path / "tuned")
    record = replace(read_record(tmp_path / "tuned"), kind="minigpt4")
    save_trained(tmp_path / "tuned", tuned.trained_state(), record)
    with pytest.raises(WeightsError, match="and not of a transformers model"):
        load_adapter(load(bases("llava")), tmp_path / "tuned")


@pytest.mark.filterwarnings("ignore")
def test_lora_on_a_quantized_model_also_fits_the_model_without_quantization(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")

    def quantized() -> ImageTextModel:
        source = replace(resolve_model(str(bases("llava"))), quantization="int8")
        return load_image_text_model(source, torch.device("cpu"), instruction="What is this?")

    tuned = quantized()
    tuned.add_lora(LORA)
    perturb(tuned)
    save_adapter(tmp_path, tuned, record_of(tuned, "lora"))
    assert any("q_proj" in name for name in read_record(tmp_path).quantized)
    same = quantized()
    load_adapter(same, tmp_path)
    assert torch.equal(scores(same), scores(tuned))
    plain = load(bases("llava"))
    load_adapter(plain, tmp_path)
    assert (scores(plain) - scores(tuned)).abs().max() < 0.1 * scores(tuned).abs().max()
    with pytest.raises(WeightsError, match="was trained on the frozen parts"):
        load_adapter(load(bases("qwen2_5_vl")), tmp_path)
