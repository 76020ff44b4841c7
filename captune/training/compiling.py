"""Compiled layers for training: which runs have them, and what they read of the text in front of the image.

Only packed training passes are compiled: captioning and plain rows, with which the probe compares, are not.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.config import TrainConfig
from captune.errors import ConfigError
from captune.model import MiniGPT4
from captune.model.compiled import CompiledLayers

__all__ = ["compile_layers", "is_compile_error", "wanted_layers"]

logger = logging.getLogger(__name__)


class _Prefix:
    """What one layer has of the text in front of the rows: stands for a cache of all layers.

    Args:
        layer: of a cache; its keys and values are (B, H, C, W).
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        """The layer's own keys and values behind these; which layer it is is not looked at."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def compile_layers(model: MiniGPT4, backend: str = "inductor") -> CompiledLayers:
    """The layers compiled for rows of any number and length.

    Args:
        model: on its device, with all that its layers will have.
        backend: of `torch.compile`.

    Raises:
        ConfigError: the layers do not stand in one list.
    """
    return CompiledLayers(model.llm, _Prefix, dynamic=True, backend=backend)


def wanted_layers(model: MiniGPT4, config: TrainConfig, *, divided: bool = False) -> CompiledLayers | None:
    """The layers compiled as a configuration asks for it, None where it does not or they cannot be.

    Args:
        model: on its device.
        config: of the training.
        divided: whether the layers are divided among processes.
    """
    asked = config.fast.compile
    on_gpu = model.projection.weight.device.type == "cuda"
    if asked is False or (asked == "auto" and not on_gpu):
        return None
    reasons = {
        "train.fast.target_logits is off": not config.fast.target_logits,
        "train.gradient_checkpointing computes them twice": config.gradient_checkpointing,
        "train.shard divides them": divided,
        "the language model is quantized": getattr(model.llm, "is_quantized", False),
    }
    for reason, holds in reasons.items():
        if holds:
            logger.warning("the language model's layers are not compiled, since %s", reason)
            return None
    try:
        return compile_layers(model)
    except (ConfigError, ImportError, RuntimeError) as error:
        why = error_text(error)
        logger.warning("the language model's layers are not compiled: %s", why)
        return None


def is_compile_error(error: BaseException) -> bool:
    """Whether an error is the compiler's and not the model's."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
