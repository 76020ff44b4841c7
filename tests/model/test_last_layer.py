"""The last layer in two parts: the same states where they are looked at, and everything put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import SIZES, tiny_minigpt4
from torch import Tensor
from transformers import AutoConfig, DynamicCache

from captune.model.last_layer import KeysTaken, LayerCall, last_layer, states_of, with_states

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48},
    "falcon": {"new_decoder_architecture": False, "alibi": False},
}
READ = 7


class Kept:
    """Stands for a cache that is empty but for what the first call brings."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        if self.kept is None:
            self.kept = keys, values
            raise KeysTaken
        return torch.cat([self.kept[0], keys], dim=2), torch.cat([self.kept[1], values], dim=2)


def in_two(call: LayerCall) -> Any:
    kept = Kept()
    call.part(slice(None, READ)).read(kept)
    said = call.part(slice(READ, None))(kept)
    return with_states(said, torch.cat([call.states[:, :READ], states_of(said)], dim=1))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_states_that_are_looked_at_are_the_same(name: str) -> None:
    llm = tiny_minigpt4(AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name]})).llm
    embeddings = torch.randn(2, 12, 32)
    given = {
        "inputs_embeds": embeddings,
        "position_ids": torch.arange(12).expand(2, -1),
        "attention_mask": torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, -1, -1),
    }
    if llm.config._attn_implementation == "eager":
        given["attention_mask"] = torch.zeros(2, 1, 12, 12).masked_fill(~given["attention_mask"], -1e30)
    wanted = llm(**given, use_cache=False).logits
    with last_layer(llm, in_two):
        found = llm(**given, use_cache=False).logits
    torch.testing.assert_close(found[:, READ:], wanted[:, READ:], rtol=1e-4, atol=1e-4)
    assert (found[:, :READ] - wanted[:, :READ]).abs().max() > 1e-3, "the first are not computed, or nothing is tested"
    assert torch.equal(llm(**given, use_cache=False).logits, wanted)


def test_a_layer_that_takes_no_cache_is_told_from_one_that_does() -> None:
    class Plain(torch.nn.Module):
        def forward(self, states: Tensor, **given: Any) -> Tensor:
            return states

    class Model:
        config = AutoConfig.for_model("llama", num_hidden_layers=1)
        layers = torch.nn.ModuleList([Plain()])

        def get_decoder(self) -> torch.nn.Module:
            holder = torch.nn.Module()
            holder.layers = self.layers
            return holder

    model = Model()
    with last_layer(model, in_two), pytest.raises(NotImplementedError, match="takes no cache"):
        model.layers[0](torch.zeros(1, 12, 4))


def test_a_forward_that_somebody_has_put_there_is_put_back() -> None:
    llm = tiny_minigpt4().llm
    layer = llm.model.layers[-1]
    own = layer.forward

    def watched(hidden_states: Tensor, *args: Any, **given: Any) -> Any:
        return own(hidden_states, *args, **given)

    layer.forward = watched
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11, 12]])
    wanted = llm(ids, past_key_values=DynamicCache()).logits
    with last_layer(llm, in_two), pytest.raises(ValueError, match="stop here"):
        raise ValueError("stop here")
    assert layer.forward is watched
    assert torch.equal(llm(ids, past_key_values=DynamicCache()).logits, wanted)
