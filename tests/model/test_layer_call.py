"""A layer in two parts: the same states where they are looked at, and everything put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import SIZES, tiny_minigpt4
from torch import Tensor
from transformers import AutoConfig, DynamicCache

from captune.model.language_model import decoder_layers
from captune.model.layer_call import KVAccumulator, LayerCall, hidden_states, patched_layer, with_hidden_states
from captune.transformers_compat import CACHE_ARGUMENT

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48},
    "falcon": {"new_decoder_architecture": False, "alibi": False},
}
READ = 7


def in_two(call: LayerCall) -> Any:
    """Keys and values of the first tokens, all of the others."""
    cache = KVAccumulator()
    call.select(slice(None, READ)).fill_cache(cache)
    assert cache.length == READ
    output = call.select(slice(READ, None))(cache)
    return with_hidden_states(output, torch.cat([call.states[:, :READ], hidden_states(output)], dim=1))


def one_by_one(call: LayerCall) -> Any:
    """All of the first tokens, which see themselves only, then all of the others, without a gradient to them."""
    cache = KVAccumulator()
    first = call.select(slice(None, READ)).with_mask_columns(READ)(cache)
    rest = call.select(slice(READ, None)).detached()(cache)
    return with_hidden_states(rest, torch.cat([hidden_states(first), hidden_states(rest)], dim=1))


def llm_inputs(llm: Any) -> dict[str, Tensor]:
    """Arguments for a forward over two rows of twelve tokens."""
    inputs = {
        "inputs_embeds": torch.randn(2, 12, 32),
        "position_ids": torch.arange(12).expand(2, -1),
        "attention_mask": torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, -1, -1),
    }
    if llm.config._attn_implementation == "eager":
        inputs["attention_mask"] = torch.zeros(2, 1, 12, 12).masked_fill(~inputs["attention_mask"], -1e30)
    return inputs


@pytest.mark.parametrize("name", FAMILIES)
def test_the_states_that_are_looked_at_are_the_same(name: str) -> None:
    llm = tiny_minigpt4(AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name]})).llm
    inputs = llm_inputs(llm)
    expected = llm(**inputs, use_cache=False).logits
    with patched_layer(decoder_layers(llm)[-1], in_two):
        logits = llm(**inputs, use_cache=False).logits
    torch.testing.assert_close(logits[:, READ:], expected[:, READ:], rtol=1e-4, atol=1e-4)
    assert (logits[:, :READ] - expected[:, :READ]).abs().max() > 1e-3, (
        "the first are not computed, or nothing is tested"
    )
    assert torch.equal(llm(**inputs, use_cache=False).logits, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_run_for_some_tokens_after_others_says_the_same_of_all(name: str) -> None:
    llm = tiny_minigpt4(AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name]})).llm
    inputs = llm_inputs(llm)
    embeddings = inputs["inputs_embeds"].requires_grad_()
    expected = llm(**inputs, use_cache=False).logits
    (gradient,) = torch.autograd.grad(expected.square().sum(), embeddings)
    with patched_layer(decoder_layers(llm)[0], one_by_one):
        logits = llm(**inputs, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    (part,) = torch.autograd.grad(logits.square().sum(), embeddings)
    torch.testing.assert_close(part[:, :READ], gradient[:, :READ], rtol=1e-3, atol=1e-3)
    assert part[:, READ:].abs().max() < 1e-30 < gradient[:, READ:].abs().max()


def test_a_layer_that_takes_no_cache_is_distinguished_from_one_that_does() -> None:
    class Plain(torch.nn.Module):
        def forward(self, states: Tensor, **kwargs: Any) -> Tensor:
            return states

    layer = Plain()
    with patched_layer(layer, in_two), pytest.raises(NotImplementedError, match="takes no cache"):
        layer(torch.zeros(1, 12, 4))
    with patched_layer(layer, one_by_one), pytest.raises(NotImplementedError, match="takes no mask"):
        layer(torch.zeros(1, 12, 4))


def test_a_forward_that_somebody_has_put_there_is_put_back() -> None:
    llm = tiny_minigpt4().llm
    layer = llm.model.layers[-1]
    original = layer.forward

    def watched(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(hidden_states, *args, **kwargs)

    layer.forward = watched
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11, 12]])
    expected = llm(ids, **{CACHE_ARGUMENT: DynamicCache()}).logits
    with patched_layer(decoder_layers(llm)[-1], in_two), pytest.raises(ValueError, match="stop here"):
        raise ValueError("stop here")
    assert layer.forward is watched
    assert torch.equal(llm(ids, **{CACHE_ARGUMENT: DynamicCache()}).logits, expected)
