"""What is trained and what is not: parts, LoRA, dropout; and the longest captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from PIL import Image
from vision_families import FAMILIES, save_family

from captune.captioner import probe_images
from captune.config import LoraConfig, ModelConfig, parse_config
from captune.errors import ConfigError, DataError, WeightsError
from captune.hub import resolve_model
from captune.vlm import ImageTextModel, load_image_text_model

# Processors of the library make an array of a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
CAPTIONS = ["A red card.", "Two dogs run."]
LORA = LoraConfig(rank=2, targets=("all-linear",))

Load = Callable[..., ImageTextModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folders: dict[str, Path] = {}

    def loaded(name: str, **settings: Any) -> ImageTextModel:
        if name not in folders:
            folders[name] = save_family(name, tmp_path_factory.mktemp("family"))
        source = resolve_model(ModelConfig(path=str(folders[name]), **settings))
        return load_image_text_model(source, CPU, instruction=None if name == "florence2" else "What is it?")

    return loaded


def set_parts(model: ImageTextModel, parts: tuple[str, ...]) -> None:
    if "lora" in parts:
        model.add_lora(LORA, projector="projector" in parts)
    else:
        model.train_parts(language_model="language_model" in parts, vision_tower="vision_tower" in parts)


def losses(model: ImageTextModel, steps: int = 3) -> list[float]:
    """The losses of some steps of gradient descent, in training mode."""
    model.train()
    optimizer = torch.optim.Adam([parameter for _, parameter in model.trained_parameters()], lr=1e-3)
    values = []
    for _ in range(steps):
        loss = model.loss(probe_images()[0], CAPTIONS)
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return values


IS_TEXT = {
    "llava": ("model.language_model.", "lm_head."),
    "qwen2_5_vl": ("model.language_model.", "lm_head."),
    "instructblip": ("language_model.",),
    "florence2": ("model.language_model.", "lm_head."),
}
PROJECTOR = {"llava": ".multi_modal_projector.", "qwen2_5_vl": ".merger.", "instructblip": "language_projection."}


@pytest.mark.parametrize(
    "parts", [("language_model",), ("vision_tower",), ("language_model", "vision_tower"), ("lora", "projector")]
)
@pytest.mark.parametrize("name", IS_TEXT)
def test_parts_train_what_they_say(load: Load, name: str, parts: tuple[str, ...]) -> None:
    model = load(name)
    set_parts(model, parts)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    values = losses(model)
    assert values[-1] < values[0]
    changed = {key for key, value in model.model.state_dict().items() if not torch.equal(value, before[key])}
    is_text = {key: key.removeprefix("base_model.model.").startswith(IS_TEXT[name]) for key in before}
    if "lora" in parts:
        projector = PROJECTOR.get(name, ".multi_modal_projector.")
        assert all(".lora_" in key or projector in f".{key}" for key in changed)
        assert all(is_text[key] for key in changed if ".lora_" in key)
        assert any(".lora_" in key for key in changed)
        assert any(projector in f".{key}" for key in changed)
    else:
        assert {is_text[key] for key in changed} == {part == "language_model" for part in parts}
        trained = {key for key, _ in model.trained_parameters()}
        assert {
            key for key, _ in model.model.named_parameters() if is_text[key] == ("language_model" in parts)
        } <= trained
        assert len(changed) > 0.5 * len(trained)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"train": {"parts": ["lora", "language_model"]}}, "LoRA changes a part that is trained completely"),
        ({"train": {"parts": ["projector"]}}, "trained with LoRA only"),
        (
            {"train": {"parts": ["language_model"]}, "model": {"quantization": "nf4"}},
            "quantized weights are not trained",
        ),
        ({"train": {"parts": ["tower"]}}, "parts"),
    ],
)
def test_wrong_combinations_of_parts(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config(sections)


def test_lora_in_the_vision_tower_is_refused(load: Load) -> None:
    model = load("llava")
    settings = PeftLoraConfig(r=2, target_modules=["q_proj"])
    model.adapter = get_peft_model(model.model, settings)
    assert not model.find_features()
    with pytest.raises(WeightsError, match=r"LoRA in '.*vision_tower.*q_proj' .* changes the image features"):
        model.require_unadapted_features()
    with pytest.raises(WeightsError, match="LoRA finds no layers fc1 in the decoder"):
        load("llava").add_lora(LoraConfig(targets=("fc1",)))
    right = load("llava")
    right.add_lora(LORA, projector=True)
    right.find_features()
    right.require_unadapted_features()


def test_initial_lora_depends_on_the_seed_only(load: Load) -> None:
    """So that all processes begin with the same matrices, whatever else they have drawn."""
    states = []
    for drawn, seed in ((1, 5), (2, 5), (2, 6)):
        model = load("llava")
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        model.add_lora(LORA, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        states.append(torch.cat([value.flatten() for value in model.trained_state().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_tower_has_no_dropout_in_training(load: Load) -> None:
    model = load("llava")
    model.add_lora(LORA)
    for module in model.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    assert model.find_features()
    expected = model.encode(probe_images()[0]).tensors
    model.train()
    assert model.training
    assert all(torch.equal(*pair) for pair in zip(model.encode(probe_images()[0]).tensors, expected, strict=True))
    values = [model.loss(probe_images()[0], CAPTIONS).item() for _ in range(2)]
    assert values[0] == values[1]


def test_a_prompt_that_is_no_beginning_of_the_conversation_is_refused(load: Load) -> None:
    model = load("qwen2_5_vl")
    image, conversation = probe_images()[0], model.conversation
    conversation.check(image, "A dog.")
    complete = conversation.complete

    def changed(*arguments: Any) -> dict[str, Any]:
        made = complete(*arguments)
        return {**made, "input_ids": made["input_ids"].roll(1, dims=1)}

    conversation.complete = changed  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"the caption 'A dog\.' after another prompt"):
        conversation.check(image, "A dog.")
    template = "{% if not add_generation_prompt %}Today. {% endif %}"
    model.processor.chat_template = template + model.processor.chat_template
    with pytest.raises(WeightsError, match="is no beginning of a conversation"):
        ImageTextModel(model.model, model.processor, name="dated", instruction="What is it?").loss(image, ["A dog."])


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "qwen2_5_vl"])
def test_rows_are_those_of_the_documented_call(load: Load, name: str) -> None:
    """Token types among them: without these, image tokens of Gemma 3 and the prompt of PaliGemma are causal."""
    conversation, image = load(name).conversation, probe_images()[0]
    row = conversation.prompt(image).rows([conversation.target_ids("A dog.")], 0)
    documented = conversation.complete(image, "A dog.")
    assert row.keys() == documented.keys()
    assert "token_type_ids" in row or name == "qwen2_5_vl"
    # In ChatML a newline follows, and generation may end with another token than the turn does.
    length = min(made["input_ids"].shape[1] for made in (row, documented)) - 1
    assert length > conversation.prompt(image).length
    for key, value in row.items():
        columns = length if key in ("input_ids", "attention_mask") or "token_type" in key else None
        assert torch.equal(value[:, :columns], documented[key][:, :columns].to(value)), key


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "llava"])
def test_additive_masks_are_composed(load: Load, name: str) -> None:
    model = load(name)
    image = probe_images()[0]
    expected = model.loss(image, CAPTIONS)
    model.model.set_attn_implementation("eager")
    torch.testing.assert_close(model.loss(image, CAPTIONS), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.loss(image, CAPTIONS, packed=True), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "florence2"])
def test_captions_longer_than_the_positions_are_named(load: Load, name: str) -> None:
    model = load(name)
    image = probe_images()[0]
    before = 0 if name == "florence2" else model.conversation.prompt(image).length
    fitting = "A dog."
    model.conversation.max_positions = before + len(model.conversation.target_ids(fitting))
    model.find_features()
    model.loss(image, [fitting])
    features = model.encode(image)
    for packed in (False, True)[: 1 if model.decoder is None else 2]:
        model.loss(features, [fitting], packed=packed)
        with pytest.raises(DataError, match=r"The caption 'A doggy\.' has .* tokens .* not truncated"):
            model.loss(features, [fitting, "A doggy."], packed=packed)


def test_packed_rows_end_where_learned_positions_do(load: Load) -> None:
    model = load("blip-2 (OPT)")
    model.add_lora(LORA)
    model.find_features()
    caption = "A dog."
    text = model.model.config.get_text_config(decoder=True)
    image: Image.Image = probe_images()[0]
    used = model.conversation.prompt(image).length + len(model.conversation.target_ids(caption))
    embeddings: Any = model.decoder.module.embed_positions  # type: ignore[union-attr]
    # Those of OPT begin with two more.
    embeddings.weight = torch.nn.Parameter(embeddings.weight[: used + 2].detach().clone())
    text.max_position_embeddings = used
    short = ImageTextModel(model.model, model.processor, name="short", instruction="What is it?")
    packed = short.loss(image, [caption], packed=True)
    assert torch.isclose(packed, short.loss(image, [caption]))


def values_of(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter, also of a quantized one of torchao."""
    is_plain = type(parameter) in (torch.Tensor, torch.nn.Parameter) or not hasattr(parameter, "qdata")
    return parameter.detach().clone() if is_plain else parameter.detach().dequantize().clone()


@pytest.mark.parametrize("format", ["int8", "nf4", "torchao-int8"])
def test_lora_on_a_quantized_model(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao" if format.startswith("torchao") else "bitsandbytes")
    wide = FAMILIES["llava"]()
    # 4-bit weights come in blocks of 64, and bitsandbytes wants a multiple of 32 rows on a CPU.
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    wide.config["text_config"] = {**wide.config["text_config"], **sizes}
    monkeypatch.setitem(FAMILIES, "wide", lambda: wide)
    source = resolve_model(ModelConfig(path=str(save_family("wide", tmp_path)), quantization=format))
    model = load_image_text_model(source, CPU, instruction="What is it?")
    model.add_lora(LORA)
    # bitsandbytes changes the order of 4-bit weights in memory the first time.
    model.loss(probe_images()[0], CAPTIONS)
    frozen = {name: values_of(parameter) for name, parameter in model.model.named_parameters()}
    trained = {name for name, _ in model.trained_parameters()}
    values = losses(model, steps=5)
    assert values[-1] < values[0]
    for name, parameter in model.model.named_parameters():
        assert name in trained or torch.equal(values_of(parameter), frozen[name]), name
