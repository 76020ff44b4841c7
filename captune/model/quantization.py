"""A language model in fewer bits, and how far that bends the gradient that tuning follows.

Only the language model is quantised; tower, Q-Former and projection stay as they are. It is never the default: it
saves memory, not time, and the gradient of the projection passes through every quantised layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
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
"""Below this a quantised model is not worth training: steps lead elsewhere."""


def quantization_config(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """transformers' configuration of a format.

    Args:
        name: one of `FORMATS`.
        dtype: in which a 4-bit layer computes.

    Returns:
        What `MiniGPT4.from_pretrained(..., quantization_config=...)` and `load_official` take.

    Raises:
        ConfigError: there is no such format.
        MissingExtraError: its library is not installed.
    """
    if name not in FORMATS:
        raise ConfigError(f"There is no quantization '{name}'; expected one of: {', '.join(FORMATS)}.")
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
    """How far a gradient is from another one.

    Attributes:
        cosine: of the angle between them; 1 is the same direction.
        relative_difference: length of their difference over the length of the reference.
    """

    cosine: float
    relative_difference: float

    def __str__(self) -> str:
        """One line for the log."""
        return f"gradient cosine {self.cosine:.4f}, relative difference {self.relative_difference:.2%}"

    def check(self, name: str) -> None:
        """Refuse a format that leads elsewhere.

        Args:
            name: of the format, for the message.

        Raises:
            WeightsError: the cosine is below 0.9, or no number.
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
    """How far the gradient of a quantised model is from that of the model as it was.

    The two models need not be in memory together: take the reference's first, let go of it, load the quantised one.
    """
    cosine = torch.cosine_similarity(gradient.flatten(), reference.flatten(), dim=0)
    difference = (gradient - reference).norm() / reference.norm()
    return GradientDeviation(float(cosine), float(difference))


def skip_modules(config: Any, names: list[str]) -> Any:
    """A copy of a quantization configuration that does not quantize the named modules.

    Args:
        config: of transformers.
        names: of modules, such as `projection`.
    """
    config = copy.deepcopy(config)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(config, field):
            setattr(config, field, sorted({*(getattr(config, field) or []), *names}))
    return config
