"""Quantization of the language model, and its effect on the gradient of the projection.

Vision encoder, Q-Former and projection are not quantized. Quantization is off by default: it saves memory, not time,
and the gradient of the projection passes through every quantized layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from captune.errors import ConfigError, MissingExtraError, WeightsError

__all__ = [
    "FORMATS",
    "GradientDeviation",
    "compare_gradients",
    "projection_gradient",
    "quantization_config",
    "skip_modules",
]

FORMATS = ("int8", "nf4", "torchao-int8", "torchao-int4", "torchao-fp8")
"""Names of the formats: two of bitsandbytes, three of torchao (weights only)."""

SMALLEST_COSINE = 0.9
"""Below this cosine the gradient of the quantized model is not usable for training."""


def quantization_config(name: str, dtype: torch.dtype = torch.bfloat16, *, skipped: Sequence[str] = ()) -> Any:
    """transformers' configuration of a format.

    Args:
        name: one of `FORMATS`.
        dtype: compute dtype of 4-bit layers.
        skipped: names of modules that are not quantized.

    Returns:
        What `MiniGPT4.from_pretrained(..., quantization_config=...)` and `load_official` take.

    Raises:
        ConfigError: there is no such format.
        MissingExtraError: its library is not installed.
    """
    if name not in FORMATS:
        raise ConfigError(f"There is no quantization '{name}'; expected one of: {', '.join(FORMATS)}.")
    if skipped:
        return skip_modules(quantization_config(name, dtype), list(skipped))
    try:
        if name == "int8":
            import bitsandbytes  # transformers' own check for it is a long traceback

            return BitsAndBytesConfig(load_in_8bit=True)
        if name == "nf4":
            import bitsandbytes  # noqa: F401

            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError as error:
        raise MissingExtraError(f"Quantization '{name}'", "quant") from error
    kinds = {
        "torchao-int8": Int8WeightOnlyConfig,
        "torchao-int4": Int4WeightOnlyConfig,
        "torchao-fp8": Float8WeightOnlyConfig,
    }
    return TorchAoConfig(kinds[name]())


@dataclass(frozen=True)
class GradientDeviation:
    """Deviation of a gradient from a reference.

    Attributes:
        cosine: cosine similarity.
        relative_difference: norm of the difference, relative to the reference.
    """

    cosine: float
    relative_difference: float

    def __str__(self) -> str:
        """One line for the log."""
        return f"gradient cosine {self.cosine:.4f}, relative difference {self.relative_difference:.2%}"

    def check(self, name: str) -> None:
        """Refuse a format whose gradient deviates too much.

        Args:
            name: of the format, for the message.

        Raises:
            WeightsError: the cosine is below 0.9 or NaN.
        """
        if not self.cosine >= SMALLEST_COSINE:
            raise WeightsError(
                f"With quantization '{name}' the gradient of the projection has a cosine of {self.cosine:.3f} to the "
                f"one without, below {SMALLEST_COSINE}; train with another format, or without."
            )


def projection_gradient(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Gradient of the projection's weight on a few rows, (D, Q-width) float32 on the CPU.

    Args:
        model: a `MiniGPT4` in any format; gradients accumulated so far are cleared.
        batch: keyword arguments of `MiniGPT4.forward`, labels included.
    """
    device = model.projection.weight.device
    model.zero_grad(set_to_none=True)
    loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
    loss.backward()
    gradient = model.projection.weight.grad
    assert gradient is not None
    copied: Tensor = gradient.detach().float().cpu()
    model.zero_grad(set_to_none=True)
    return copied


def compare_gradients(gradient: Tensor, reference: Tensor) -> GradientDeviation:
    """Compare the gradient of a quantized model with that of the model without quantization."""
    cosine = torch.cosine_similarity(gradient.flatten(), reference.flatten(), dim=0)
    difference = (gradient - reference).norm() / reference.norm()
    return GradientDeviation(float(cosine), float(difference))


def skip_modules(config: Any, names: list[str]) -> Any:
    """A copy of a quantization configuration that excludes modules.

    Args:
        config: of transformers.
        names: of modules, such as `projection`.
    """
    config = copy.deepcopy(config)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(config, field):
            setattr(config, field, sorted({*(getattr(config, field) or []), *names}))
    return config
