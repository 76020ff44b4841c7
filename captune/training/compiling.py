"""The language model's layers compiled by `torch.compile`: fewer and larger kernels on a GPU, the same sums.

All layers of a language model are one function with other weights, so one compiled graph serves them all; it takes any
number of rows and tokens. What a layer reads of the text in front of the image is given to it as its own keys and
values, for a whole cache would make a graph of each layer. Only packed training passes are compiled: captioning and
plain rows, with which the probe compares, are not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from captune.config import TrainConfig
from captune.errors import ConfigError
from captune.model import MiniGPT4
from captune.model.language_model import decoder_layers

__all__ = ["CompiledLayers", "is_compile_error"]

logger = logging.getLogger(__name__)


class CompiledLayers:
    """A language model's layers, compiled within `in_use`, as they are outside of it.

    Args:
        model: on its device, with all that its layers will have.
        backend: of `torch.compile`.
    """

    def __init__(self, model: MiniGPT4, backend: str = "inductor") -> None:
        self._layers: list[Any] = list(decoder_layers(model.llm))
        self._compiled = [torch.compile(layer.forward, dynamic=True, backend=backend) for layer in self._layers]

    @classmethod
    def wanted(cls, model: MiniGPT4, config: TrainConfig, *, divided: bool = False) -> Self | None:
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
            return cls(model)
        except (ConfigError, ImportError, RuntimeError) as error:
            why = " ".join(str(error).split())[:160]
            logger.warning("the language model's layers are not compiled: %s", why)
            return None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block a forward goes through the compiled layers."""
        for number, (layer, compiled) in enumerate(zip(self._layers, self._compiled, strict=True)):
            layer.forward = _with_own_prefix(compiled, number)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward


class _Prefix:
    """What one layer has of the text in front of the rows: stands for a cache of all layers.

    Args:
        keys: (B, H, C, W).
        values: (B, H, C, W).
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        """The layer's own keys and values behind these; which layer it is is not looked at."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def _with_own_prefix(compiled: Any, number: int) -> Any:
    def forward(*args: Any, **given: Any) -> Any:
        cache = given.get("past_key_values")
        if cache is not None:
            given["past_key_values"] = _Prefix(cache.layers[number].keys, cache.layers[number].values)
        return compiled(*args, **given)

    return forward


def is_compile_error(error: BaseException) -> bool:
    """Whether an error is the compiler's and not the model's."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
