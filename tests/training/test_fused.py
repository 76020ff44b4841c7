"""Fused norms and rotations are those of transformers, by value and by gradient, and go away again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from tiny import SIZES, tiny_minigpt4
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from captune.config import OptimizationsConfig
from captune.model import MiniGPT4
from captune.training.loss import Objective
from captune.training.optimizations import FusedLayers, normed, rotated
from captune.training.samples import TrainingSample

SAMPLES = [
    TrainingSample(0, ("a dog runs", "two dogs run on the grass")),
    TrainingSample(1, ("a red car",)),
]
# How many norms and kinds of rotation of two layers do what these do: Gemma adds one to its weights, Cohere and GPT-J
# turn neighbours, GPT-2 has neither, Qwen 3 also has norms of queries and keys.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({}, 6),
    "mistral": ({"num_key_value_heads": 2}, 6),
    "qwen3": ({"num_key_value_heads": 2, "head_dim": 8}, 10),
    "phi3": ({"pad_token_id": 0}, 6),
    "gemma": ({"num_key_value_heads": 1, "head_dim": 8}, 1),
    "gpt_neox": ({}, 1),
    "cohere": ({"logit_scale": 0.25}, 0),
    "gptj": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}, 0),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}, 0),
}


class Operations(TorchDispatchMode):
    """Counts what is run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def family(name: str) -> MiniGPT4:
    return tiny_minigpt4(AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name][0]}))


def gradient(objective: Objective) -> tuple[torch.Tensor, int]:
    """Of the projection, and the operations that it took."""
    model = objective.model
    features = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(1))
    with Operations() as operations:
        loss = objective.loss(SAMPLES, features)
        (found,) = torch.autograd.grad(loss, model.projection.weight)
    return found, operations.count


def test_gradients_are_those_of_the_formulas() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    others = torch.randn(2, 1, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    # A model may scale them, and then the halves need not be the same.
    cosines, sines = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: normed(x, weight, 1e-5), (states,))
    assert torch.autograd.gradcheck(lambda q, k: rotated(q, k, cosines, sines), (states, others))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_has_of_its_own_stays(name: str) -> None:
    model = family(name)
    fused = FusedLayers(model.llm)
    assert fused.count == FAMILIES[name][1]
    objective = Objective(model, "Describe this image.", OptimizationsConfig())
    whole = objective.on(model)
    whole.fused = None
    found, fewer = gradient(objective)
    wanted, operations = gradient(whole)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    if name in {"llama", "mistral", "qwen3", "phi3"}:
        assert fewer < operations


def test_everything_is_put_back() -> None:
    from transformers.models.llama import modeling_llama

    model = family("llama")
    own = modeling_llama.apply_rotary_pos_emb
    fused = FusedLayers(model.llm)
    with suppress(ZeroDivisionError), fused.in_use():
        assert modeling_llama.apply_rotary_pos_emb is not own
        assert "forward" in vars(model.llm.model.norm)
        raise ZeroDivisionError
    assert modeling_llama.apply_rotary_pos_emb is own
    assert "forward" not in vars(model.llm.model.norm)


def test_other_formats_between_the_layers_are_left_to_the_family() -> None:
    from transformers.models.llama import modeling_llama

    model = family("llama")
    norm, states = model.llm.model.norm, torch.randn(3, 32).bfloat16()
    angles = torch.randn(1, 3, 4).repeat(1, 1, 2)
    heads = torch.randn(1, 2, 3, 8).bfloat16()

    def said() -> list[torch.Tensor]:
        turned = modeling_llama.apply_rotary_pos_emb(heads, heads, angles.cos(), angles.sin())
        return [norm(states), *turned]

    wanted = said()
    with FusedLayers(model.llm).in_use():
        found = said()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_only_frozen_layers_in_float32() -> None:
    model = family("llama")
    model.llm.model.norm.weight.requires_grad_()
    assert FusedLayers(model.llm).count == 5
    assert FusedLayers(model.llm.to(torch.bfloat16)).count == 0


def test_a_switch_turns_it_off_and_checkpointing_does() -> None:
    model = family("llama")
    assert Objective(model, "x", OptimizationsConfig()).fused is not None
    assert Objective(model, "x", OptimizationsConfig(compile=False)).fused is None
    model.checkpoint_activations(True)
    assert Objective(model, "x", OptimizationsConfig()).fused is None
