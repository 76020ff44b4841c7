"""Predicted bytes: against what is counted on real tensors, and against figures measured at true widths."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from captune.errors import ConfigError
from captune.model import MiniGPT4, MiniGPT4Config
from captune.model.loading import load_config_and_processor
from captune.model.memory import (
    QUANTIZED,
    GenerationLoad,
    MemoryEstimate,
    ModelSize,
    TrainingLoad,
    generation_memory,
    measure_model,
    saved_bytes,
    training_memory,
)
from captune.model.quantization import FORMATS
from captune.training.memory_plan import Planner, measure_memory

CLOSE = 0.1
MIDDLE = LlamaConfig(
    vocab_size=4000, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
WAYS = {
    "packed": [],
    "one row a caption": ["train.debug.shared_prefix=false"],
    "plain": [
        "train.debug.shared_prefix=false",
        "train.debug.constant_prefix=false",
        "train.debug.target_logits=false",
    ],
}
VICUNA = {
    "7B": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
    "13B": LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
}


def part(estimate: MemoryEstimate, name: str) -> float:
    """Gigabytes of one part."""
    return next(part.bytes for part in estimate.parts if part.name == name) / 1e9


@cache
def vicuna(name: str, quantization: str | None = None) -> ModelSize:
    config = MiniGPT4Config(text_config=VICUNA[name], qformer_config={})
    return measure_model(config, torch.bfloat16, quantization)


def measured_parts(
    make_config: Callable[..., Any], text_config: LlamaConfig | None, way: list[str]
) -> dict[str, float]:
    config = make_config("vicuna", "evaluate.batch_size=3", "evaluate.max_new_tokens=9", *way)
    model_config, processor = load_config_and_processor(config.model)
    if text_config is not None:
        model_config.text_config = text_config
    torch.manual_seed(0)
    model = MiniGPT4(model_config)
    model.processor = processor
    planner = Planner(config, model_config, processor, torch.device("cpu"))
    return {entry.name: entry.ratio for entry in measure_memory(config, model.eval(), planner)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", ["toy", "middle"])
def test_predicted_is_what_is_counted(make_config: Callable[..., Any], size: str, way: str) -> None:
    ratios = measured_parts(make_config, MIDDLE if size == "middle" else None, WAYS[way])
    assert len(ratios) == 5
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(1, abs=CLOSE if name == "kept for the backward pass" else 1e-9), name


def test_lora_is_counted(folder: Path) -> None:
    lora = {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    plain = MiniGPT4Config.from_pretrained(folder / "vicuna")
    adapted = MiniGPT4Config.from_pretrained(folder / "vicuna")
    adapted.lora = lora
    model = MiniGPT4(adapted)
    without, size = (measure_model(config, torch.float32) for config in (plain, adapted))
    values = sum(p.numel() for name, p in model.llm.named_parameters() if "lora_" in name)
    assert size.lora == values
    assert size.llm - without.llm == 4 * values
    embeddings = torch.randn(2, 24, 64, requires_grad=True)
    tensors = [*model.parameters(), *model.buffers()]
    mask = torch.ones(2, 1, 24, 24, dtype=torch.bool).tril()
    decoder = model.llm.get_decoder().eval()
    kept, _ = saved_bytes(lambda: decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False), tensors)
    assert size.layer(2, 24) * size.layers == pytest.approx(kept, rel=CLOSE)
    assert size.layer_bytes > without.layer_bytes
    load = TrainingLoad(rows=2, tokens=24, logit_positions=8, images=2)
    half = measure_model(adapted, torch.bfloat16)
    # Values in float32 have no master copy: gradient and two moments, against gradient, master and moments.
    for measured, bytes_of_a_value in ((size, 12), (half, 14)):
        parts = {part.name: part.bytes for part in training_memory(measured, load).parts}
        assert parts["LoRA"] == bytes_of_a_value * values


# Gigabytes (decimal), measured or computed once at true widths.
@pytest.mark.parametrize(
    ("name", "quantization", "weights"),
    [
        ("7B", None, 13.5),
        ("13B", None, 26.0),
        ("7B", "int8", 7.0),
        ("13B", "int8", 13.3),
        ("7B", "nf4", 3.9),
        ("13B", "nf4", 7.2),
    ],
)
def test_weights_at_true_size(name: str, quantization: str | None, weights: float) -> None:
    size = vicuna(name, quantization)
    assert size.llm / 1e9 == pytest.approx(weights, rel=0.01)
    assert size.towers / 1e9 == pytest.approx(2.4, rel=CLOSE)
    assert 4 * size.projection / 1e9 == pytest.approx(0.055, rel=0.2)


@pytest.mark.parametrize(("name", "kibibytes"), [("7B", 128.6), ("13B", 161.2)])
def test_kept_of_a_token_in_a_layer(name: str, kibibytes: float) -> None:
    assert vicuna(name).layer_bytes / 1024 == pytest.approx(kibibytes, rel=0.005)


@pytest.mark.parametrize(
    ("name", "rows", "tokens", "eager", "checkpointed"),
    [
        ("7B", 8, 66, 2.2, 0.14),
        ("7B", 32, 66, 8.9, 0.55),
        ("13B", 8, 66, 3.5, 0.22),
        ("13B", 32, 66, 14.0, 0.87),
        ("7B", 8, 108, 3.6, 0.23),
        ("7B", 32, 108, 14.6, 0.91),
        ("13B", 8, 108, 5.7, 0.35),
        ("13B", 32, 108, 22.8, 1.42),
    ],
)
def test_activations_at_true_size(name: str, rows: int, tokens: int, eager: float, checkpointed: float) -> None:
    load = TrainingLoad(rows, tokens, rows * 14, rows)
    memory = training_memory(vicuna(name), load)
    assert part(memory, "activations") == pytest.approx(eager, rel=CLOSE)
    states = training_memory(vicuna(name), load, checkpointing=True)
    assert part(states, "activations") == pytest.approx(checkpointed, rel=CLOSE)


@pytest.mark.parametrize(("positions", "gigabytes"), [(32 * 66, 0.68), (32 * 14, 0.14), (32 * 70, 0.72)])
def test_logits_at_true_size(positions: int, gigabytes: float) -> None:
    estimate = training_memory(vicuna("7B"), TrainingLoad(32, 66, positions, 32))
    both = part(estimate, "logits") + part(estimate, "log-probabilities")
    assert both == pytest.approx(gigabytes, rel=CLOSE)


@pytest.mark.parametrize(
    ("name", "rows", "tokens", "gigabytes"),
    [
        ("7B", 8, 84, 0.35),
        ("7B", 512, 84, 22.6),
        ("13B", 32, 84, 2.2),
        ("13B", 256, 84, 17.6),
        ("7B", 128, 232, 15.6),
        ("13B", 128, 232, 24.3),
    ],
)
def test_cache_at_true_size(name: str, rows: int, tokens: int, gigabytes: float) -> None:
    load = GenerationLoad(rows, tokens - 15, 16)
    assert load.cached_tokens == tokens
    assert part(generation_memory(vicuna(name), load), "KV cache") == pytest.approx(gigabytes, rel=CLOSE)


@pytest.mark.parametrize(
    ("name", "quantization", "images", "checkpointing", "gigabytes"),
    [
        ("7B", None, 8, False, 17.3),
        ("7B", None, 16, False, 21.1),
        ("7B", None, 32, True, 15.1),
        ("13B", "int8", 8, False, 19.2),
        ("13B", "nf4", 8, False, 13.1),
        ("7B", "int8", 8, False, 10.8),
        ("7B", "int8", 8, True, 7.4),
        ("7B", "nf4", 8, False, 7.7),
    ],
)
def test_complete_runs_at_true_size(
    name: str, quantization: str | None, images: int, checkpointing: bool, gigabytes: float
) -> None:
    load = TrainingLoad(images, 108, images * 70, images)
    estimate = training_memory(vicuna(name, quantization), load, checkpointing=checkpointing, towers=False)
    assert estimate.total / 1e9 == pytest.approx(gigabytes, rel=CLOSE)


def test_generation_at_true_size() -> None:
    load = GenerationLoad(128, 69, 16)
    assert generation_memory(vicuna("7B"), load, towers=False).total / 1e9 == pytest.approx(19.1, rel=CLOSE)


def test_every_quantization_that_can_be_loaded_is_known() -> None:
    assert set(QUANTIZED) == set(FORMATS)
    assert all(vicuna("7B", name).llm < 0.55 * vicuna("7B").llm for name in FORMATS)


def test_unknown_quantization() -> None:
    with pytest.raises(ConfigError, match="no quantization 'int3'"):
        measure_model(MiniGPT4Config(text_config=VICUNA["7B"]), torch.bfloat16, "int3")


def test_a_model_that_cannot_be_traced_is_one_sentence() -> None:
    from transformers import AutoConfig

    config = MiniGPT4Config(text_config=AutoConfig.for_model("bloom", hidden_size=64, n_layer=2, n_head=4))
    with pytest.raises(ConfigError, match="The memory of a 'bloom' layer cannot be traced"):
        measure_model(config, torch.float32)
