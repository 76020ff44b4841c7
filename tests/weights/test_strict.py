"""No model is loaded whose files do not hold exactly its tensors, whichever way it is loaded and stored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioner_models import MODELS, save, tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from captune.captioner import Captioner
from captune.cli import app, call, run
from captune.errors import InputError, WeightsError
from captune.hub import resolve_model
from captune.metrics.external.clipscore import ClipScorer
from captune.model import MiniGPT4, load_config_and_processor
from captune.model.build import build_model, with_vision_encoder
from captune.model.language_model import embedding_width, language_config, load_language_model
from captune.model.loading import locate_model
from captune.model.official_layout import read_pth
from captune.model.tokenizer import load_tokenizer
from captune.weights.strict import load_strictly, read_config

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 13476838912\n"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8}

State = dict[str, Tensor]
Load = Callable[[Path], Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=264)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Load, str]]:
    """Folder of each kind of model, the way it is loaded, and a matrix that it has."""
    root = tmp_path_factory.mktemp("models")
    vision = {**SMALL, **PICTURE}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            vision_config=vision,
            text_config={**SMALL, "vocab_size": 264, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            projection_dim=8,
        )
    ).save_pretrained(root / "clip")
    tokenizer().save_pretrained(root / "clip")
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
    (root / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    CLIPVisionModel(CLIPVisionConfig(**vision)).save_pretrained(root / "tower")
    SiglipModel(SiglipConfig(vision_config=vision, text_config={**SMALL, "vocab_size": 64})).save_pretrained(
        root / "siglip"
    )
    save("blip2", root / "blip2")
    save("llava", root / "llava")
    build_model(llm=llama, vision=root / "tower", dtype=torch.float32, aligned=True).save_pretrained(root / "captune")

    def tower(folder: Path) -> Any:
        return with_vision_encoder(folder, llama, torch.float32)

    return {
        "captioner": (root / "llava", Captioner.from_pretrained, "self_attn.q_proj.weight"),
        "captune model": (root / "captune", MiniGPT4.from_pretrained, "projection.weight"),
        "language model": (llama, lambda folder: load_language_model(folder, dtype=torch.float32), "q_proj.weight"),
        "CLIP tower": (root / "tower", tower, "mlp.fc1.weight"),
        "half of a SigLIP": (root / "siglip", tower, "vision_model.encoder.layers.0.mlp.fc1.weight"),
        "BLIP-2 tower": (root / "blip2", tower, "vision_model.encoder.layers.0.mlp.fc1.weight"),
        "BLIP-2 Q-Former": (root / "blip2", tower, "qformer.encoder.layer.0.attention.attention.query.weight"),
        "CLIPScore": (root / "clip", lambda folder: ClipScorer.from_pretrained(str(folder)), "fc1.weight"),
    }


def wrapped(state: State, key: str) -> None:
    for name in list(state):
        state["module." + name] = state.pop(name)


def renamed(state: State, key: str) -> None:
    state["module." + key] = state.pop(key)


def missing(state: State, key: str) -> None:
    del state[key]


def extra(state: State, key: str) -> None:
    state[key.replace(".weight", ".weights")] = state[key].clone()


def other_shape(state: State, key: str) -> None:
    state[key] = state[key][:-1].clone()


def not_a_number(state: State, key: str) -> None:
    state[key] = state[key].clone()
    state[key][0, 0] = torch.nan


FAULTS = {
    wrapped: r"lack \d+ of its \d+ tensors .*'module\.",
    renamed: r"lack 1 of its .* tensors \('.*hold 1 that it does not have \('.*wrapper put 'module\.' into the names",
    missing: r"lack 1 of its \d+ tensors \('",
    extra: r"hold 1 that it does not have \('.*weights'\)",
    other_shape: r"hold 1 of another shape \('.*instead of",
    not_a_number: r"holds NaN or infinity in '",
}
KINDS = (
    "captioner",
    "captune model",
    "language model",
    "CLIP tower",
    "half of a SigLIP",
    "BLIP-2 tower",
    "BLIP-2 Q-Former",
    "CLIPScore",
)


def changed(source: Path, folder: Path, part: str, fault: Callable[[State, str], None] | None, stored: str) -> Path:
    """A copy of a model with a fault, stored as one file of safetensors, as several, or as torch.save does."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    if fault is not None:
        fault(state, next(key for key in sorted(state) if part in key))
    (folder / "model.safetensors").unlink()
    if stored == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = sorted(state)
    shards = [names] if stored == "one file" else [names[::2], names[1::2]]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: state[name].contiguous() for name in shard}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__))
def test_what_does_not_fit_is_refused(
    models: dict[str, tuple[Path, Load, str]], kind: str, fault: Callable[[State, str], None], tmp_path: Path
) -> None:
    source, load, part = models[kind]
    with pytest.raises(InputError, match=FAULTS[fault]) as refused:
        load(changed(source, tmp_path / "model", part, fault, "one file"))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value), "the model is named"


@pytest.mark.parametrize("stored", ["one file", "shards", "bin"])
def test_one_tensor_under_two_names(models: dict[str, tuple[Path, Load, str]], stored: str, tmp_path: Path) -> None:
    """The library would take one of them and say nothing of the other."""

    def twice(state: State, key: str) -> None:
        assert key.startswith("language_model.model.")
        state["model.language_model." + key.removeprefix("language_model.model.")] = state[key] + 1

    source, load, part = models["captioner"]
    with pytest.raises(
        WeightsError, match=r"'language_model\.model\..*' and 'model\.language.*are one tensor of the model"
    ):
        load(changed(source, tmp_path / "model", part, twice, stored))


def test_one_tensor_in_two_shards(llama: Path, tmp_path: Path) -> None:
    """The library would take the last one."""
    folder = changed(llama, tmp_path / "model", "", None, "shards")
    first, second = sorted(folder.glob("model-*.safetensors"))
    state, name = load_file(second), min(load_file(first))
    save_file({**state, name: load_file(first)[name] + 1}, second, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{first.name} and {second.name} both hold '{name}'"):
        load_language_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("listed", [{}, {"a": 3}, {"a": None}])
def test_an_index_that_names_no_files(llama: Path, listed: dict[str, Any], tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "model", "", None, "shards")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    with pytest.raises(WeightsError, match=r"index\.json lists no weight files"):
        load_language_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("stored", ["one file", "bin"])
def test_whole_numbers_for_weights(llama: Path, stored: str, tmp_path: Path) -> None:
    """The library would cast them, and the scales that belong to them are not there."""

    def rounded(state: State, key: str) -> None:
        state[key] = (state[key] * 100).to(torch.int8)

    folder = changed(llama, tmp_path / "model", "q_proj.weight", rounded, stored)
    with pytest.raises(WeightsError, match=r"hold 'model\..*q_proj\.weight' as integers"):
        load_language_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "[1", "[]"])
def test_broken_settings_are_named(llama: Path, name: str, text: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / name).write_text(text)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read: .*; copy it again"):
        locate_model(str(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("vocab_size", "x"), ("hidden_size", 17), ("dtype", "float99"), ("hidden_act", "nope")]
)
def test_a_wrong_value_in_a_configuration(llama: Path, name: str, value: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(WeightsError, match=r"configuration of .* holds a value that is wrong: .*; copy its config"):
        embedding_width(language_config(folder))


def test_a_part_that_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip", "vision_config": 3}')
    with pytest.raises(WeightsError, match="holds a value that is wrong"):
        read_config(AutoConfig.from_pretrained, tmp_path)


def test_a_page_under_the_name_of_weights(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a text and no file of torch\.save"):
        load_language_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["one file", "shards", "bin"])
def test_every_way_to_store_a_model(
    models: dict[str, tuple[Path, Load, str]], kind: str, stored: str, tmp_path: Path
) -> None:
    source, load, part = models[kind]
    assert load(changed(source, tmp_path / "whole", part, None, stored)) is not None
    with pytest.raises(InputError, match=r"wrapper put 'module\.' into the names"):
        load(changed(source, tmp_path / "renamed", part, renamed, stored))


def test_numbers_that_a_format_cannot_hold(llama: Path, tmp_path: Path) -> None:
    def large(state: State, key: str) -> None:
        state[key] = state[key] + 1e6

    folder = changed(llama, tmp_path / "model", "q_proj.weight", large, "one file")
    load_language_model(folder, dtype=torch.bfloat16)
    with pytest.raises(WeightsError, match="float16 overflows"):
        load_language_model(folder, dtype=torch.float16)


def test_a_library_that_is_not_installed() -> None:
    def from_pretrained(path: str, **options: Any) -> Any:
        raise ImportError("\nTimmWrapperModel requires the timm library\nbut it was not found.")

    with pytest.raises(
        InputError, match=r"The model x needs a library that is not installed: TimmWrapper.* but it was"
    ):
        load_strictly(from_pretrained, "x", "The model x")


@pytest.mark.parametrize("layers", [1, 3])
def test_another_number_of_layers(llama: Path, layers: int, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(WeightsError, match=r"layers\..*may belong to a model of another size"):
        load_language_model(folder, dtype=torch.float32)


def test_what_the_library_computes_may_be_in_old_files(llama: Path, tmp_path: Path) -> None:
    """Buffers that earlier releases saved, and weights that are tied, are no fault."""
    old = Path(shutil.copytree(llama, tmp_path / "llama"))
    state = load_file(old / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(state, old / "model.safetensors", metadata={"format": "pt"})
    load_language_model(old, dtype=torch.float32)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=64))
    gpt2.save_pretrained(tmp_path / "gpt2")
    state = load_file(tmp_path / "gpt2" / "model.safetensors")
    assert "lm_head.weight" not in state
    state |= {"transformer.h.0.attn.bias": torch.ones(1), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state, tmp_path / "gpt2" / "model.safetensors", metadata={"format": "pt"})
    load_language_model(tmp_path / "gpt2", dtype=torch.float32)


def test_weights_that_are_never_filled() -> None:
    def from_pretrained(path: str, **options: Any) -> Any:
        with torch.device("meta"):
            model = torch.nn.Linear(2, 2)
        return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    with pytest.raises(WeightsError, match="The model x has no values for 'weight'"):
        load_strictly(from_pretrained, "x", "The model x")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "preprocessor_config.json"])
def test_pointers_are_named(models: dict[str, tuple[Path, Load, str]], file: str, tmp_path: Path) -> None:
    for kind in ("captioner", "CLIPScore"):
        source, load, _ = models[kind]
        folder = Path(shutil.copytree(source, tmp_path / kind))
        (folder / file).write_text(POINTER)
        with pytest.raises(InputError, match=rf"{file} is a git-lfs pointer.*git lfs pull"):
            load(folder)


def test_pointers_of_every_kind(models: dict[str, tuple[Path, Load, str]], llama: Path, tmp_path: Path) -> None:
    def copy(source: Path, name: str, *pointers: str) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / name))
        for pointer in pointers:
            (folder / pointer).write_text(POINTER)
        return folder

    blip2, load, part = models["BLIP-2 tower"]
    pointer = "is a git-lfs pointer"
    with pytest.raises(WeightsError, match=pointer):
        load(copy(blip2, "index", "model.safetensors.index.json"))
    shards = changed(blip2, tmp_path / "shards", part, None, "shards")
    (shards / "model-00002-of-00002.safetensors").write_text(POINTER)
    with pytest.raises(WeightsError, match=rf"model-00002-of-00002\.safetensors {pointer}"):
        load(shards)
    (shards / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"has no model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json lists"
    ):
        load(shards)
    stored = changed(llama, tmp_path / "bin", "q_proj", None, "bin")
    (stored / "pytorch_model.bin").write_text(POINTER)
    with pytest.raises(WeightsError, match=rf"pytorch_model\.bin {pointer}"):
        load_language_model(stored, dtype=torch.float32)
    for read in (language_config, load_tokenizer, locate_model):
        with pytest.raises(WeightsError, match=rf"tokenizer_config\.json {pointer}"):
            read(str(copy(llama, read.__name__, "tokenizer_config.json")))
    vocabulary = copy(llama, "vocabulary", "tokenizer.model")
    (vocabulary / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=rf"tokenizer\.model {pointer}"):
        load_tokenizer(vocabulary)
    (tmp_path / "eva.pth").write_text(POINTER)
    with pytest.raises(WeightsError, match=rf"eva\.pth {pointer}"):
        read_pth(tmp_path / "eva.pth")
    # A file that is not read may be a pointer.
    assert load_language_model(copy(llama, "unread", "pytorch_model.bin"), dtype=torch.float32) is not None


def test_cut_off_and_of_another_kind(models: dict[str, tuple[Path, Load, str]], tmp_path: Path) -> None:
    source, load, _ = models["captioner"]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for broken, reason in (
        (content[:-100], "is cut off"),
        (content[:20], "is no complete safetensors file"),
        (b"", "is no complete safetensors file"),
        (b"\xff" * 100, "is no complete safetensors file"),
        (b"<html>404</html>", "is no complete safetensors file"),
    ):
        file.write_bytes(broken)
        with pytest.raises(WeightsError, match=rf"model\.safetensors {reason}"):
            load(folder)


class Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["captioner", "captune model", "language model", "CLIP tower", "CLIPScore"])
def test_code_in_weights_is_not_run(models: dict[str, tuple[Path, Load, str]], kind: str, tmp_path: Path) -> None:
    source, load, _ = models[kind]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    torch.save({"x": Code(tmp_path / "ran")}, tmp_path / "code.bin")
    shutil.copy(tmp_path / "code.bin", folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors is no complete safetensors file \(it is a file of torch"):
        load(folder)
    (folder / "model.safetensors").unlink()
    shutil.copy(tmp_path / "code.bin", folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="opening them could run code; they were not opened"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_leftover_adapter_next_to_weights(models: dict[str, tuple[Path, Load, str]], tmp_path: Path) -> None:
    source, load, _ = models["captioner"]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"a model and an adapter's adapter_config\.json in one folder"):
        load(folder)


def test_another_kind_of_model(
    models: dict[str, tuple[Path, Load, str]], llama: Path, toy_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llava, _, _ = models["captioner"]
    with pytest.raises(WeightsError, match="is a llava; expected a causal language model"):
        language_config(llava)
    with pytest.raises(WeightsError, match="is of the kind 'llava'; expected a captune model"):
        load_config_and_processor(resolve_model(str(llava)))
    assert run(lambda: call(app, ["check", str(toy_data / "manifest.jsonl"), "--model", str(llama)])) == 2
    assert "is a llama, which does not caption images" in capsys.readouterr().err


def test_a_broken_tokenizer(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(WeightsError, match=r"The tokenizer in .* is broken"):
        load_tokenizer(folder)


def test_the_command_ends_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save("blip2", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    renamed(state, next(key for key in state if key.endswith("fc1.weight")))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    assert run(lambda: call(app, ["caption", str(folder), str(tmp_path / "image.png")])) == 2
    assert "wrapper put 'module.' into the names" in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_complete_models_are_not_refused(name: str, tmp_path: Path) -> None:
    assert Captioner.from_pretrained(save(name, tmp_path)) is not None
