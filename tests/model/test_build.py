"""Any language model with any tower: the model's chat template and end of an answer, tied weights kept."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import reference_captions
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from captune.captioner import Captioner
from captune.cli import app, call, run
from captune.config import ModelConfig, load_config, parse_config
from captune.decoding import DecodingOptions
from captune.errors import ConfigError, WeightsError
from captune.model import CHAT_TEMPLATES, MiniGPT4
from captune.model.build import ALIGNMENT_CONFIG, build_model, config_and_processor_of_parts
from captune.model.chat_template import read_chat_template
from captune.model.loading import LANGUAGE, load_config_and_processor, load_model, load_pretrained
from captune.model.lora import attach_lora
from captune.run_checkpoints import read_record
from captune.training import train

from .conftest import TEXT, OfficialFiles
from .test_huggingface import PICTURE

ROLES = "{% for m in messages %}"
LLAMA3 = (
    "{{ bos_token }}" + ROLES + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN3 = (
    ROLES + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}" + ROLES + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}" + ROLES + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    ROLES + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[PreTrainedConfig, str | None, str, bool]] = {
    # name: configuration, chat template, stop symbol, whether a prompt begins with BOS
    "llama3": (LlamaConfig(**SMALL, tie_word_embeddings=True), LLAMA3, "<|eot_id|>", True),
    "qwen3": (Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True), QWEN3, "<|im_end|>", False),
    "mistral": (MistralConfig(**SMALL), MISTRAL, "<eos>", True),
    "gemma2": (Gemma2Config(**SMALL, head_dim=8), GEMMA, "<end_of_turn>", True),
    "phi3": (Phi3Config(**SMALL), PHI3, "<|end|>", False),
    "phi": (PhiConfig(**SMALL), None, "<eos>", True),
}
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>"]
SPECIAL += ["<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>"]
TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 10,
}


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def tokenizer_of(vocabulary: Tokenizer, template: str | None, **settings: Any) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | settings
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, chat_template=template, **special)


def write_language_model(name: str, vocabulary: Tokenizer, folder: Path) -> Path:
    """A tiny random language model of one family with its vocabulary."""
    config, template, _, _ = FAMILIES[name]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer_of(vocabulary, template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, vocabulary: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Name and folder of each language model in turn."""
    return request.param, write_language_model(request.param, vocabulary, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama3(vocabulary: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model("llama3", vocabulary, tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**TOWER)).save_pretrained(folder)
    return folder


def test_any_language_model(
    family: tuple[str, Path], siglip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, folder = family
    config, template, stop, bos = FAMILIES[name]
    with caplog.at_level(logging.WARNING):
        model = build_model(llm=folder, vision=siglip, dtype=torch.float32)
    assert "new and random" in caplog.text
    assert ALIGNMENT_CONFIG in caplog.text
    layout, tokenizer = model.processor.layout, model.processor.tokenizer
    assert layout.chat_template.stop_symbol == stop
    assert [name for name, _ in model.trained_parameters()] == ["projection.weight", "projection.bias"]

    # A training row is what the template itself makes, with the image put in, up to the stop symbol.
    question, answer = "What is this ?", "A dog runs."
    row = layout.sample(question, answer)
    if template is not None:
        turns = [{"role": "user", "content": f"<Img>|</Img> {question}"}, {"role": "assistant", "content": answer}]
        dialogue = tokenizer_of(layout.tokenizer._tokenizer.backend_tokenizer, template).apply_chat_template(
            turns, tokenize=False
        )
        left, right = dialogue[: dialogue.index(stop, dialogue.index(answer)) + len(stop)].split("|</Img>", 1)
        expected = [*tokenizer.encode(left), *[-1] * layout.image_tokens, *tokenizer.encode("</Img>" + right)]
        assert "".join(layout.decode([i for i in row.ids if i >= 0]).split()) == "".join(
            layout.decode([i for i in expected if i >= 0]).split()
        )
        assert row.ids[-1] == expected[-1]
        assert (row.ids[0] == 1) == (expected[0] == 1) == bos
    assert layout.prompt(question).ids == row.ids[: row.prompt_length]

    # The id that ends an answer ends decoding.
    assert row.ids[-1] == tokenizer.eos_id == SPECIAL.index(stop)
    model.save_pretrained(tmp_path)
    again = MiniGPT4.from_pretrained(tmp_path)
    batch = model.processor([PICTURE, PICTURE], question, [answer, "Two girls."])
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.processor.layout.sample(question, answer) == row
    tied = again.llm.get_output_embeddings().weight is again.llm.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings
    assert reference_captions(again, [PICTURE], question, max_new_tokens=4) == reference_captions(
        model, [PICTURE], question, max_new_tokens=4
    )


def test_lora_on_any_language_model(family: tuple[str, Path], siglip: Path) -> None:
    """One step on projection and LoRA lowers the loss; LoRA has the dtype of the layer that it adapts."""
    name, folder = family
    model = build_model(llm=folder, vision=siglip, dtype=torch.bfloat16)
    attach_lora(model, rank=4, alpha=8, targets=["qkv_proj"] if name == "phi3" else ["q_proj", "v_proj"])
    trained = dict(model.trained_parameters())
    assert {p.dtype for key, p in trained.items() if "lora" in key} == {torch.bfloat16}
    assert trained["projection.weight"].dtype == torch.float32
    batch = model.processor(PICTURE, "What is this ?", "A dog runs along the beach.")
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_a_stop_symbol_ends_decoding(family: tuple[str, Path], siglip: Path) -> None:
    """A model that says nothing but its stop symbol gives an empty caption after one token."""
    _, folder = family
    model = build_model(llm=folder, vision=siglip, dtype=torch.float32)
    stop = model.processor.layout.stop_ids[0]
    lengths = []

    def say_stop(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        lengths.append(output.shape[1])
        forced = torch.full_like(output, -100.0)
        forced[..., stop] = 100.0
        return forced

    model.llm.get_output_embeddings().register_forward_hook(say_stop)
    assert reference_captions(model, [PICTURE, PICTURE], max_new_tokens=8) == ["", ""]
    assert len(lengths) == 1


def test_siglip_sees_its_normalisation(llama3: Path, siglip: Path) -> None:
    """Pixels come normalised as CLIP's and reach the tower with mean and deviation of a half."""
    model = build_model(llm=llama3, vision=siglip, dtype=torch.float32)
    seen = []
    model.vision.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    pixels = model.processor.pixels(PICTURE)
    features = model.encode_features(pixels)
    restored = seen[0]["pixel_values"] * 0.5 + 0.5
    assert restored.min() >= -1e-6
    assert restored.max() <= 1 + 1e-6
    assert features.shape == (1, 1, 9 * 24)


def test_clip_and_the_official_tower(llama3: Path, official_files: OfficialFiles, tmp_path: Path) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(vision_config=TOWER, text_config=text)).save_pretrained(tmp_path / "clip")
    clip = build_model(llm=llama3, vision=tmp_path / "clip", dtype=torch.float32)
    assert clip.config.image_tokens == 1
    assert clip.encode_images(clip.processor.pixels([PICTURE] * 2)).shape == (2, 1, 32)
    eva = build_model(
        llm=llama3,
        vision=official_files.vision,
        qformer=official_files.qformer,
        vision_heads=4,
        qformer_heads=4,
        dtype=torch.float32,
        conversation="vicuna-v0",
    )
    assert eva.config.image_tokens == 6
    assert eva.processor.layout.chat_template == CHAT_TEMPLATES["vicuna-v0"]
    eva.save_pretrained(tmp_path / "eva")
    assert MiniGPT4.from_pretrained(tmp_path / "eva").config.wrapping is None


def test_what_cannot_be_built(llama3: Path, siglip: Path, official_files: OfficialFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of: vicuna-v0"):
        build_model(llm=llama3, vision=siglip, conversation="chatml")
    with pytest.raises(WeightsError, match=r"is a llama; expected eva_vit_g\.pth, or a SigLIP, CLIP or BLIP-2 model"):
        build_model(llm=llama3, vision=llama3)
    with pytest.raises(WeightsError, match=r"neither eva_vit_g\.pth nor a vision model"):
        build_model(llm=llama3, vision=tmp_path)
    with pytest.raises(WeightsError, match=r"belongs to eva_vit_g\.pth"):
        build_model(llm=llama3, vision=siglip, qformer=official_files.qformer)
    with pytest.raises(WeightsError, match=r"siglip_vision_model; expected a causal language model|cannot be loaded"):
        build_model(llm=siglip, vision=siglip)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('no') }}", "cannot be rendered"),
        ("{{ messages[0].content | upper | lower }}", "changes the texts of the messages"),
        ("{{ nothing }}", "changes the texts of the messages"),
    ],
)
def test_templates_that_cannot_be_used(vocabulary: Tokenizer, template: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_chat_template(tokenizer_of(vocabulary, template))


def test_no_template_and_no_end(vocabulary: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="neither a chat template nor an end-of-text token"):
        read_chat_template(tokenizer_of(vocabulary, None, eos_token=None))


def test_alignment_settings(repository: Path) -> None:
    config = load_config(repository / ALIGNMENT_CONFIG)
    assert config.train.batch_size * config.train.epochs * (config.train.steps_per_epoch or 0) == 256 * 20_000


def test_convert_makes_one_too(llama3: Path, siglip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", "--llm", llama3, "--vision", siglip, "--out", tmp_path / "model", "--dtype", "float32"]
    assert run(lambda: call(app, [str(argument) for argument in arguments])) == 0
    assert "stage 1" in capsys.readouterr().err
    assert reference_captions(MiniGPT4.from_pretrained(tmp_path / "model"), PICTURE, max_new_tokens=2)


def test_parts_in_a_configuration(llama3: Path, siglip: Path, toy_data: Path, tmp_path: Path) -> None:
    """A run may name a language model and a tower; its checkpoints record both, and load without it."""
    config = parse_config(
        {
            "output": str(tmp_path / "run"),
            "model": {"llm": str(llama3), "vision": str(siglip)},
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 6, "evaluate_images": 2},
            "train": {"epochs": 1, "batch_size": 10, "warmup_steps": 1, "learning_rate": 0.1},
            "evaluate": {"max_new_tokens": 3},
        }
    )
    train(config)
    folder = tmp_path / "run" / "checkpoints" / "epoch-000"
    record = read_record(folder)
    assert record.parts == {"llm": str(llama3), "vision": str(siglip)}
    tuned, new = load_pretrained(folder), build_model(llm=llama3, vision=siglip)
    assert not torch.equal(tuned.projection.weight, new.projection.weight)
    caption = reference_captions(tuned, PICTURE, max_new_tokens=3)
    assert [Captioner.from_pretrained(folder)(PICTURE, None, DecodingOptions(max_new_tokens=3))] == caption
    without_tower = load_model(ModelConfig(path=str(folder)), torch.device("cpu"), parts=LANGUAGE)
    assert torch.equal(without_tower.projection.weight, tuned.projection.weight)
    assert not list(without_tower.vision.parameters())
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    text = (moved / "checkpoint.json").read_text().replace(str(siglip), "/absent/tower")
    (moved / "checkpoint.json").write_text(text)
    with pytest.raises(WeightsError, match=r"moved was trained on .* vision encoder /absent/tower, which cannot be"):
        Captioner.from_pretrained(moved)
    preview = load_config_and_processor(config.model)[0]
    assert (preview.image_tokens, preview.feature_size) == (tuned.config.image_tokens, tuned.config.feature_size)
    assert preview.wrapping == tuned.config.wrapping


def test_the_tower_of_a_blip2_of_transformers(llama3: Path, tmp_path: Path) -> None:
    """Vision tower, Q-Former and queries come from a complete BLIP-2; features equal those of transformers."""
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_hidden_size": 16,
            "vocab_size": 10,
        },
        text_config=OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=10),
        num_query_tokens=5,
    )
    blip2 = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(blip2.query_tokens)
    blip2.save_pretrained(tmp_path / "blip2")
    model = build_model(llm=llama3, vision=tmp_path / "blip2", dtype=torch.float32)
    pixels = model.processor.pixels(PICTURE)
    with torch.no_grad():
        states = blip2.vision_model(pixel_values=pixels).last_hidden_state
        expected = blip2.qformer(
            query_embeds=blip2.query_tokens.expand(len(pixels), -1, -1), encoder_hidden_states=states
        ).last_hidden_state
        assert torch.equal(model.encode_features(pixels), expected)
    model.save_pretrained(tmp_path / "captioner")
    again = MiniGPT4.from_pretrained(tmp_path / "captioner")
    with torch.no_grad():
        assert torch.equal(again.encode_features(pixels), expected)
    preview = config_and_processor_of_parts(llama3, tmp_path / "blip2")[0]
    for name in ("vision_config", "qformer_config", "text_config"):
        assert getattr(preview, name).hidden_size == getattr(model.config, name).hidden_size
    assert (preview.image_tokens, preview.feature_size, preview.wrapping) == (5, 24, model.config.wrapping)
    weights = next((tmp_path / "blip2").glob("*.safetensors"))
    state = load_file(weights)
    del state["vision_model.post_layernorm.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vision_model\.post_layernorm\.weight"):
        build_model(llm=llama3, vision=tmp_path / "blip2")
