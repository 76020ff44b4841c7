"""Prompts read in one forward with other rows' tokens change no caption, and save a forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import SIZES, tiny_minigpt4
from torch import Tensor
from transformers import AutoConfig

from captune.decoding import DecodingOptions, Request, generate_ids
from captune.decoding import engine as loop_module
from captune.decoding.capabilities import supports_mixed_batch, supports_sequence_ends
from captune.decoding.engine import DecodingEngine
from captune.decoding.kv_cache import MIXED_ATTENTION
from captune.decoding.options import StopRule, common_prefix
from captune.model import MiniGPT4
from captune.transformers_compat import use_attention

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 3, "length_penalty": 0.6},
    "penalty": {"repetition_penalty": 1.3},
}
PACKING: dict[str, Callable[[], Any]] = {
    "llama with shared heads": lambda: AutoConfig.for_model("llama", **SIZES, num_key_value_heads=2),
    "qwen3": lambda: AutoConfig.for_model("qwen3", **SIZES, num_key_value_heads=2, head_dim=8),
    "opt": lambda: AutoConfig.for_model("opt", **SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "gpt_neox": lambda: AutoConfig.for_model("gpt_neox", **SIZES),
    "phi": lambda: AutoConfig.for_model("phi", **SIZES),
    "cohere": lambda: AutoConfig.for_model("cohere", **SIZES, num_key_value_heads=2),
    "granite": lambda: AutoConfig.for_model("granite", **SIZES, num_key_value_heads=2, logits_scaling=2.0),
}


def mixed(model: MiniGPT4, features: Tensor) -> list[Request]:
    """Requests of other prompt lengths."""
    questions = itertools.cycle(("Say", "Describe it.", "What is this, and where?"))
    prompts = [model.processor.layout.prompt(next(questions)).ids for _ in features]
    return [Request(n, prompt, features[n : n + 1]) for n, prompt in enumerate(prompts)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", PACKING)
def test_captions_are_those_of_prompts_alone(
    family: str, way: str, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_minigpt4(PACKING[family](), scale=2.0)
    assert supports_mixed_batch(model.llm)
    assert supports_sequence_ends(model.llm)
    before = model.llm.config._attn_implementation
    requests = mixed(model, features)
    options = DecodingOptions(max_new_tokens=12, batch_size=4, **WAYS[way])
    packed = generate_ids(model, requests, options)
    assert model.llm.config._attn_implementation == before
    monkeypatch.setattr(loop_module, "supports_mixed_batch", lambda llm: False)
    assert generate_ids(model, requests, options) == packed


def test_the_last_layer_is_run_for_the_ends_of_prompts(model: MiniGPT4, features: Tensor) -> None:
    fed: dict[int, int] = {0: 0, 1: 0}

    def count(number: int) -> Callable[..., None]:
        def add(module: Any, args: Any, output: Tensor) -> None:
            fed[number] += output.shape[0] * output.shape[1]

        return add

    requests = mixed(model, features)
    options = DecodingOptions(max_new_tokens=6, batch_size=4)
    # What is tried out once, when a model is first used, is not counted.
    generate_ids(model, requests, options)
    handles = [layer.mlp.register_forward_hook(count(n)) for n, layer in enumerate(model.llm.model.layers)]
    rows = generate_ids(model, requests, options)
    for handle in handles:
        handle.remove()
    # The constant text once, and after every prompt and token the logits.
    assert fed[1] == len(common_prefix([request.prompt for request in requests])) + sum(map(len, rows))
    assert fed[0] > 2 * fed[1]


def test_a_model_that_cannot_is_detected() -> None:
    """MPT's layers do not pass on the positions of rows; eager attention does not read them."""
    mpt = AutoConfig.for_model("mpt", vocab_size=96, d_model=32, n_heads=4, n_layers=2, max_seq_len=256)
    assert not supports_mixed_batch(tiny_minigpt4(mpt).llm)
    eager = tiny_minigpt4().llm
    eager.set_attn_implementation("eager")
    assert not supports_mixed_batch(eager)


def test_a_model_whose_tokens_see_their_neighbours_is_detected() -> None:
    """A layer that mixes tokens outside of its attention would mix the rows of a pack."""
    model = tiny_minigpt4(scale=2.0)
    layer = model.llm.model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, output: output + output.roll(1, dims=1))
    assert not supports_mixed_batch(model.llm)


def test_prompts_take_no_separate_forward(model: MiniGPT4, features: Tensor) -> None:
    requests = mixed(model, features)
    longest = max(len(request.prompt) for request in requests)
    options = DecodingOptions(max_new_tokens=14, batch_size=4)
    loop = DecodingEngine(model, options, StopRule(model.processor), slots=4, longest_prompt=longest)
    forwards: list[tuple[int, ...]] = []
    handle = model.llm.register_forward_pre_hook(
        lambda module, args, kwargs: forwards.append(tuple(kwargs["inputs_embeds"].shape)), with_kwargs=True
    )
    waiting, steps, generated = list(requests), 0, {}
    try:
        while waiting or loop.active:
            if waiting and loop.has_capacity:
                coming, waiting = waiting[: loop.free], waiting[loop.free :]
                loop.admit(coming)
            generated.update({p.number: list(p.ids) for p in loop.step() if p.ended})
            steps += 1
    finally:
        handle.remove()
    assert len(forwards) == steps
    assert any(rows == 1 and tokens > longest for rows, tokens, _ in forwards)
    assert [generated[n] for n in range(len(requests))] == generate_ids(model, requests, options)


def test_the_attention_is_put_back_when_the_memory_runs_out(model: MiniGPT4) -> None:
    before = model.llm.config._attn_implementation

    def forward() -> None:
        assert model.llm.config._attn_implementation != before
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError), use_attention(model.llm.config, MIXED_ATTENTION):
        forward()
    assert model.llm.config._attn_implementation == before
