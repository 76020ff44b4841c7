"""LoRA on the language model, with peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from captune.errors import MissingExtraError, WeightsError
from captune.model.official_layout import State

__all__ = ["add_lora", "attach_lora", "with_lora"]


def with_lora(llm: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Inject LoRA into a language model, in the dtype of its weights.

    The layers are replaced without peft's wrapper, so that the model keeps its class, names and tied weights. peft's
    default of float32 adapters makes autograd save float32 copies of every input, twice the memory; here the optimizer
    has float32 master weights instead.

    Args:
        llm: the language model.
        settings: `r`, `alpha`, `targets` and optionally `dropout`, as in the configuration.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("LoRA", "train") from error
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        target_modules=list(settings["targets"]),
        lora_dropout=settings.get("dropout", 0.0),
    )
    adapted: nn.Module = inject_adapter_in_model(config, llm)
    return adapted


def attach_lora(
    model: PreTrainedModel,
    *,
    rank: int = 64,
    alpha: float = 16.0,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    dropout: float = 0.0,
) -> None:
    """Add trainable LoRA to the language model of a model; the defaults are MiniGPT-v2's.

    Args:
        model: a `MiniGPT4`; its language model gets LoRA, and its configuration the settings.
        rank: of the matrices.
        alpha: their product is scaled by alpha / rank.
        targets: last part of the names of the linear layers that get LoRA.
        dropout: on LoRA's input; above 0, `shared_prefix` is inexact.

    Raises:
        WeightsError: the language model has LoRA already, or no such layers.
    """
    if model.config.lora is not None:
        raise WeightsError("The language model has LoRA already.")
    settings = {"r": rank, "alpha": alpha, "targets": list(targets), "dropout": dropout}
    try:
        model.llm = with_lora(model.llm, settings)
    except ValueError as error:
        raise WeightsError(f"LoRA finds no layers {', '.join(targets)} in the language model.") from error
    model.config.lora = settings
    model.freeze()


def add_lora(model: PreTrainedModel, state: State, alpha: float, file: str) -> None:
    """Load LoRA tensors of a file into a model.

    Args:
        model: a `MiniGPT4` without LoRA.
        state: tensors under their names in the language model.
        alpha: the product of a pair is scaled by alpha / rank.
        file: the file's name, for messages.

    Raises:
        WeightsError: the tensors do not fit the language model.
    """
    ranks = {tensor.shape[0] if ".lora_A." in key else tensor.shape[1] for key, tensor in state.items()}
    if len(ranks) != 1:
        raise WeightsError(f"{file}: the LoRA tensors have the ranks {sorted(ranks)}; expected one rank.")
    targets = sorted({key.split(".lora_")[0].rsplit(".", 1)[1] for key in state})
    attach_lora(model, rank=ranks.pop(), alpha=alpha, targets=targets)
    parameters = {key: parameter for key, parameter in model.llm.named_parameters() if ".lora_" in key}
    wrong = sorted(set(parameters) ^ set(state)) or [
        key for key, parameter in parameters.items() if parameter.shape != state[key].shape
    ]
    if wrong:
        raise WeightsError(f"{file}: the LoRA tensors do not fit this language model; see '{wrong[0]}'.")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(state[key])
