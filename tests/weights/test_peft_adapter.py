"""Adapters of peft on their base models: every tensor has its place, and the captions are not the base model's."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioner_models import save
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import reference_captions
from torch import Tensor
from transformers import AutoModelForImageTextToText

from captune.captioner import Captioner, MiniGPT4Backend, TransformersBackend
from captune.decoding import DecodingOptions
from captune.errors import WeightsError
from captune.hub import locate_model
from captune.model import MiniGPT4
from captune.model.language_model import language_config
from captune.weights.peft_adapter import attach_adapter, find_adapter, read_adapter

KINDS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "DoRA and rslora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True, "use_rslora": True},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "multi_modal_projector"]},
    "regex and patterns": {
        "target_modules": r"model\.language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.up_proj)",
        "rank_pattern": {r"model\.language_model\.layers\.0\.self_attn\.q_proj": 2},
        "alpha_pattern": {"v_proj": 40},
    },
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "bias": {"target_modules": ["q_proj"], "bias": "lora_only"},
}
BEFORE = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
"""Paths of LLaVA's modules in the transformers of today and in 4.49."""
PREFIX = "base_model.model."
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 13476838912\n"

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llava", tmp_path_factory.mktemp("base") / "llava")


def base_model(base: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()


def make(base: Path, folder: Path, kind: str = "list", model: Any = None) -> Path:
    """An adapter with tensors that are not zero, as `save_pretrained` of peft leaves it."""
    torch.manual_seed(0)
    tuned = get_peft_model(base_model(base) if model is None else model, LoraConfig(r=4, lora_alpha=8, **KINDS[kind]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    tuned.save_pretrained(folder, save_embedding_layers=kind == "embeddings")
    return folder


def changed(adapter: Path, folder: Path, change: Callable[[State], None], **settings: Any) -> Path:
    """A copy of an adapter with other tensors or settings."""
    shutil.copytree(adapter, folder)
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def nothing(state: State) -> None:
    """Change nothing."""


def old_name(name: str) -> str:
    for new, old in BEFORE:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def old_layout(state: State) -> None:
    """Name tensors as the transformers of their time named the modules."""
    for name in list(state):
        state[PREFIX + old_name(name.removeprefix(PREFIX))] = state.pop(name)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(base, tmp_path_factory.mktemp("adapter") / "adapter")


@torch.inference_mode()
def scores(model: Any) -> Tensor:
    """Scores of a text and of a picture."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[5, 6, 7, *[model.config.image_token_id] * 16, 8, 9, 10]])
    pixels = torch.randn(1, 3, 32, 32, generator=generator)
    logits: Tensor = model(input_ids=ids, pixel_values=pixels).logits
    return logits


def loaded(base: Path, folder: Path) -> Any:
    model = base_model(base)
    attach_adapter(model, folder, read_adapter(folder))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_peft(base: Path, kind: str, tmp_path: Path) -> None:
    folder = make(base, tmp_path / "adapter", kind)
    expected = scores(PeftModel.from_pretrained(base_model(base), str(folder)).eval().base_model.model)
    computed = scores(loaded(base, folder))
    assert torch.equal(computed, expected)
    assert not torch.equal(computed, scores(base_model(base)))


@pytest.mark.parametrize("kind", ["list", "all-linear", "DoRA and rslora", "modules_to_save", "regex and patterns"])
def test_paths_of_an_earlier_transformers(base: Path, kind: str, tmp_path: Path) -> None:
    folder = make(base, tmp_path / "adapter", kind)
    settings = json.loads((folder / "adapter_config.json").read_text())
    targets = settings["target_modules"]
    if isinstance(targets, str):
        targets = re.sub(r"model\\.language_model", r"language_model\\.model", targets)
    pattern = {key.replace(r"model\.language_model", r"language_model\.model"): 2 for key in settings["rank_pattern"]}
    old = changed(folder, tmp_path / "old", old_layout, target_modules=targets, rank_pattern=pattern)
    assert torch.equal(scores(loaded(base, old)), scores(loaded(base, folder)))


def first(state: State, part: str = "lora_B") -> str:
    return next(name for name in sorted(state) if part in name)


def missing(state: State) -> None:
    del state[first(state)]


def extra(state: State) -> None:
    state[first(state).replace("q_proj", "k_proj")] = state[first(state)].clone()


def other_shape(state: State) -> None:
    state[first(state)] = state[first(state)][:-1].clone()


def wrapped(state: State) -> None:
    for name in list(state):
        state[name.replace(PREFIX, f"{PREFIX}module.")] = state.pop(name)


def another_model(state: State) -> None:
    for name in list(state):
        state[name.replace("language_model", "text_tower")] = state.pop(name)


def not_a_number(state: State) -> None:
    state[first(state)][0, 0] = torch.nan


def untrained(state: State) -> None:
    for name in state:
        if "lora_B" in name:
            state[name].zero_()


def without_effect(state: State) -> None:
    for name in state:
        if "lora_A" in name:
            state[name].zero_()


FAULTS: dict[Callable[[State], None], str] = {
    missing: r"does not fit its base model: its files lack 1 of its \d+ tensors \('base_model.*q_proj.lora_B",
    extra: r"hold 1 that it does not have \('base_model.*k_proj",
    other_shape: r"hold 1 of another shape \('.*\(31, 4\) instead of \(32, 4\)",
    wrapped: r"a wrapper put 'module\.' into the names",
    another_model: r"hold \d+ that it does not have \('base_model\.model\.model\.text_tower",
    not_a_number: "holds NaN or infinity in",
    untrained: "changes nothing: all of its 'lora_B' are zero",
    without_effect: "changes no score of its base model",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.__name__))
def test_what_does_not_fit_is_refused(adapter: Path, fault: Callable[[State], None], tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path / "adapter", fault)
    with pytest.raises(WeightsError, match=FAULTS[fault]) as refused:
        Captioner.from_pretrained(folder)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"r": 8}, r"of another shape"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"lack \d+ of its"),
        ({"target_modules": ["q_proj"]}, r"hold \d+ that it does not have"),
        ({"target_modules": ["nothing"]}, "does not fit its base model: .*nothing"),
        ({"modules_to_save": ["lm_head"]}, r"lack 1 of its .*lm_head"),
        ({"peft_type": "UNHEARD_OF"}, r"adapter_config\.json cannot be used"),
        ({"base_model_name_or_path": None}, "names no base model"),
        (
            {"base_model_name_or_path": "/absent/model"},
            r"on the model /absent/model, and there is no such folder",
        ),
        (
            {"base_model_name_or_path": "nobody/has-this"},
            r"on the model nobody/has-this, which cannot be loaded: .*there is no such folder here, and no connection",
        ),
    ],
)
def test_settings_that_do_not_fit(
    adapter: Path, settings: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captune.hub.detect_offline", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=sentence):
        Captioner.from_pretrained(changed(adapter, tmp_path / "adapter", nothing, **settings))


def test_files_that_are_none(base: Path, adapter: Path, tmp_path: Path) -> None:
    def copy(name: str, file: str, content: bytes) -> Path:
        folder = Path(shutil.copytree(adapter, tmp_path / name))
        (folder / file).write_bytes(content)
        return folder

    weights = (adapter / "adapter_model.safetensors").read_bytes()
    for number, (file, content, sentence) in enumerate(
        (
            ("adapter_model.safetensors", POINTER.encode(), "is a git-lfs pointer"),
            ("adapter_config.json", POINTER.encode(), "is a git-lfs pointer"),
            ("adapter_config.json", b"{", "cannot be read"),
            ("adapter_config.json", b"[]", "cannot be read"),
            ("adapter_model.safetensors", weights[:-50], "is cut off"),
        )
    ):
        with pytest.raises(WeightsError, match=sentence):
            Captioner.from_pretrained(copy(str(number), file, content))
    both = copy("both", "non_lora_state_dict.bin", b"")
    with pytest.raises(WeightsError, match=r"non_lora_state_dict\.bin, trained weights outside of the adapter"):
        Captioner.from_pretrained(both)
    bare = copy("bare", "README.md", b"")
    (bare / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no adapter_model\.safetensors or adapter_model\.bin"):
        Captioner.from_pretrained(bare)


class Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_torch_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")
    assert torch.equal(scores(loaded(base, folder)), scores(loaded(base, adapter)))
    torch.save({**state, "x": Code(tmp_path / "ran")}, folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match="opening it could run code; it was not opened"):
        Captioner.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_a_prompt_adapter(base: Path, tmp_path: Path) -> None:
    model = base_model(base)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32, num_layers=2, num_attention_heads=4
    )
    config.base_model_name_or_path = str(base)
    config.save_pretrained(tmp_path)
    save_file({"prompt_embeddings": torch.ones(2, 32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="PROMPT_TUNING adapter, which changes no weights"):
        attach_adapter(model, tmp_path, read_adapter(tmp_path))


def test_captions_of_an_adapter(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved with its base model, and called from elsewhere: its own captions, fingerprint and processor."""
    moved = Path(shutil.copytree(base, tmp_path / "models" / "base"))
    folder = changed(adapter, tmp_path / "models" / "adapter", nothing, base_model_name_or_path="../base")
    monkeypatch.chdir(tmp_path)
    picture = Image.linear_gradient("L").convert("RGB")
    options = DecodingOptions(max_new_tokens=8)
    captioner, plain = Captioner.from_pretrained("models/adapter"), Captioner.from_pretrained(moved)
    assert isinstance(captioner.backend, TransformersBackend)
    assert captioner.name == "models/adapter"
    assert captioner(picture, None, options) != plain(picture, None, options)

    def nudged(state: State) -> None:
        state[first(state)][7, 1] += 1e-3

    other = Captioner.from_pretrained(changed(folder, tmp_path / "models" / "other", nudged))
    assert len({captioner.fingerprint, plain.fingerprint, other.fingerprint}) == 3
    plain.backend.processor.chat_template = "{{ 'other' }}<image>"
    plain.backend.processor.save_pretrained(folder)
    assert Captioner.from_pretrained(folder).backend.prompt("What?") == "other<image>"
    (folder / "config.json").write_text("{}")
    assert find_adapter(folder) == folder, "a configuration alone makes no complete model"
    shutil.copy(moved / "model.safetensors", folder)
    assert find_adapter(folder) is None


def test_adapters_of_adapters_and_in_other_places(adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path / "second", nothing, base_model_name_or_path=str(adapter))
    with pytest.raises(WeightsError, match="is an adapter itself"):
        Captioner.from_pretrained(folder)
    with pytest.raises(WeightsError, match="is a peft adapter, but a complete model"):
        language_config(adapter)


def test_an_adapter_on_the_hub(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hub ids, out of the hub's cache."""
    commit = "a" * 40
    named = changed(adapter, tmp_path / "named", nothing, base_model_name_or_path="user/base")
    for name, folder in (("base", base), ("adapter", named)):
        cached = tmp_path / "hub" / f"models--user--{name}"
        shutil.copytree(folder, cached / "snapshots" / commit)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_adapter("user/base") is None
    assert Captioner.from_pretrained("user/adapter").fingerprint == Captioner.from_pretrained(adapter).fingerprint


def test_the_revision_of_a_base_model(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that names a revision of its base model on the hub gets that one."""
    settings = {"base_model_name_or_path": "user/model", "revision": "v2"}
    base, folder = (
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"],
        changed(adapter, tmp_path / "adapter", nothing, **settings),
    )
    called = []
    monkeypatch.setattr("captune.hub.detect_offline", lambda: False)
    monkeypatch.setattr(
        "captune.captioner.loading.snapshot_download", lambda name, revision: called.append((name, revision)) or base
    )
    assert Captioner.from_pretrained(folder).fingerprint == Captioner.from_pretrained(adapter).fingerprint
    assert called == [("user/model", "v2")]


def test_an_adapter_of_a_minigpt4(tmp_path: Path) -> None:
    toy = MiniGPT4.from_pretrained(locate_model("toy"), dtype=torch.float32)
    folder = make(tmp_path, tmp_path / "adapter", "list", toy)
    picture = Image.linear_gradient("L").convert("RGB")
    captioner, plain = Captioner.from_pretrained(folder, dtype="float32"), Captioner.from_pretrained("toy")
    assert isinstance(captioner.backend, MiniGPT4Backend)
    assert captioner(picture) != plain(picture)
    assert captioner.fingerprint.startswith(plain.fingerprint)
    assert captioner.fingerprint != plain.fingerprint
    reference = PeftModel.from_pretrained(MiniGPT4.from_pretrained(locate_model("toy"), dtype=torch.float32), folder)
    assert [captioner(picture)] == reference_captions(reference.eval().base_model.model, picture, max_new_tokens=40)
    idle = changed(folder, tmp_path / "idle", without_effect)
    with pytest.raises(WeightsError, match="changes no score of its base model"):
        Captioner.from_pretrained(idle)
