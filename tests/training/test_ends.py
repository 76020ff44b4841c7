"""The first and the last layer compute less than all of packed rows, and nothing that is looked at changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import SIZES, tiny_minigpt4
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from captune.config import OptimizationsConfig
from captune.errors import ConfigError
from captune.model import MiniGPT4
from captune.training import optimizations
from captune.training.equivalence import check_packing
from captune.training.loss import Objective
from captune.training.sample_order import TrainingSample

INSTRUCTION = "Describe this image."
SAMPLES = [
    TrainingSample(0, ("a dog runs", "two dogs run on the grass", "a brown dog")),
    TrainingSample(1, ("a red car", "one car stands in front of a house")),
]


def features(model: MiniGPT4) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(len(SAMPLES), 4, 24, dtype=model.projection.weight.dtype)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def model_of(layers: int) -> MiniGPT4:
    return tiny_minigpt4(AutoConfig.for_model("llama", **{**SIZES, "num_hidden_layers": layers}))


def gradient(objective: Objective) -> tuple[torch.Tensor, int]:
    """Of the trained weights, and the FLOPs that it took."""
    model = objective.model
    with FlopCounterMode(display=False) as counted:
        loss = objective.loss(SAMPLES, features(model))
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in model.trained_parameters()])
    return torch.cat([one.reshape(-1) for one in gradients]), counted.get_total_flops()


def uncut(objective: Objective) -> Objective:
    other = objective.on(objective.model)
    other.skips_unused = False
    return other


@pytest.mark.parametrize("constant_prefix", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_less_is_computed_and_the_gradient_is_the_same(layers: int, constant_prefix: bool) -> None:
    objective = Objective(model_of(layers), INSTRUCTION, OptimizationsConfig(constant_prefix=constant_prefix))
    computed, flops = gradient(objective)
    expected, all_flops = gradient(uncut(objective))
    assert relative(computed, expected) < 1e-5
    assert flops < all_flops


def test_the_first_layer_saves_operations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(model_of(2), INSTRUCTION, OptimizationsConfig())
    _, flops = gradient(objective)
    monkeypatch.setattr(optimizations, "_image_end", lambda batch: 0)
    _, last_only = gradient(objective)
    assert flops < last_only


def test_text_keeps_its_gradient_where_its_embeddings_are_trained() -> None:
    model = model_of(2)
    words = model.llm.get_input_embeddings().weight.requires_grad_()
    objective = Objective(model, INSTRUCTION, OptimizationsConfig(constant_prefix=False))

    def of_words(one: Objective) -> torch.Tensor:
        return torch.autograd.grad(one.loss(SAMPLES, features(model)), words)[0]

    computed = of_words(objective)
    assert computed.abs().max() > 0
    assert relative(computed, of_words(uncut(objective))) < 1e-5


def test_layers_that_are_not_in_one_list_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(llm: Any) -> Any:
        raise ConfigError("they are not in one ModuleList")

    monkeypatch.setattr(optimizations, "decoder_layers", refuse)
    objective = Objective(model_of(2), INSTRUCTION, OptimizationsConfig())
    assert check_packing(objective, SAMPLES, features(objective.model)) is None
    assert objective.packed
    assert not objective.skips_unused
