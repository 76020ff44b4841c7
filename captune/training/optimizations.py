"""Exact optimizations of packed rows: skip unused work in the first and last layer, torch.compile.

First layer: text embeddings are not trained, so the gradient through the queries, keys and values of text is unused.
The tokens up to the image's last one run first; then the text after it, detached from its embeddings, attends to their
keys and values. Last layer: of all prompt tokens but the last one only keys and values are used (see
`captune.model.layer_call`). Both require causal attention, as packed rows do.

Only packed training passes are compiled: captioning and plain rows, which the equivalence check compares with, are not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.config import TrainConfig
from captune.errors import ConfigError
from captune.model import (
    IMAGE_SLOT,
    CompiledLayers,
    KVAccumulator,
    LayerCall,
    MiniGPT4,
    PackedBatch,
    decoder_layers,
    hidden_states,
    patched_layer,
    with_hidden_states,
)

__all__ = [
    "compile_if_enabled",
    "compile_layers",
    "is_compile_error",
    "skip_unused_tokens",
]

logger = logging.getLogger(__name__)


@contextmanager
def skip_unused_tokens(llm: Any, batch: PackedBatch) -> Iterator[None]:
    """Context in which the first and last layer compute only what is used; for one forward pass of a batch.

    Args:
        llm: a causal language model.
        batch: packed rows.

    Raises:
        ConfigError: the layers are not in one list.
    """
    layers = decoder_layers(llm)
    seen, unread = _image_end(batch), int(batch.columns.min())
    with ExitStack() as stack:
        if unread:
            stack.enter_context(patched_layer(layers[-1], partial(_last_layer, unread)))
        if seen and len(layers) > 1 and not _trains_embeddings(llm, layers):
            stack.enter_context(patched_layer(layers[0], partial(_first_layer, seen)))
        yield


def _image_end(batch: PackedBatch) -> int:
    """Number of tokens up to the last image token, the same in all rows; 0 without an image."""
    columns = (batch.input_ids[0] == IMAGE_SLOT).nonzero()
    return int(columns.max()) + 1 if len(columns) else 0


def _trains_embeddings(llm: Any, layers: Any) -> bool:
    """Whether parameters outside the layers are trained, so that text needs a gradient."""
    inside = {id(parameter) for parameter in layers.parameters()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in llm.parameters())


def _first_layer(seen: int, call: LayerCall) -> Any:
    """Output of the first layer, without a gradient for inputs after the first `seen` tokens."""
    cache = _cache_of(call, 0)
    columns = cache.length + seen
    first = call.select(slice(None, seen)).with_mask_columns(columns)(cache)
    rest = call.select(slice(seen, None)).detached()(cache)
    return with_hidden_states(rest, torch.cat([hidden_states(first), hidden_states(rest)], dim=1))


def _last_layer(unread: int, call: LayerCall) -> Any:
    """Output of the last layer, in which the first `unread` states are its unchanged inputs."""
    cache = _cache_of(call, -1)
    call.select(slice(None, unread)).fill_cache(cache)
    rest = call.select(slice(unread, None))(cache)
    return with_hidden_states(rest, torch.cat([call.states[:, :unread], hidden_states(rest)], dim=1))


def _cache_of(call: LayerCall, number: int) -> KVAccumulator:
    """A cache for one layer, with the keys and values of the constant prefix if the rows lack it."""
    return KVAccumulator(None if call.cache is None else call.cache.layers[number])


class _Prefix:
    """Keys and values of the constant prefix in one layer, with the interface of a cache for all layers.

    Args:
        layer: of a cache; its keys and values are (B, H, C, W).
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values to those of the prefix; the layer index is ignored."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def compile_layers(model: MiniGPT4, backend: str = "inductor") -> CompiledLayers:
    """Compile the layers for any number of rows and any length.

    Args:
        model: on its device; its layers do not change afterwards.
        backend: of `torch.compile`.

    Raises:
        ConfigError: the layers are not in one list.
    """
    return CompiledLayers(model.llm, _Prefix, dynamic=True, backend=backend)


def compile_if_enabled(model: MiniGPT4, config: TrainConfig, *, sharded: bool = False) -> CompiledLayers | None:
    """Compile the layers if configured; None if not configured or not possible, which is logged.

    Args:
        model: on its device.
        config: of the training.
        sharded: whether the layers are sharded over the processes.
    """
    setting = config.enabled_optimizations.compile
    on_gpu = model.projection.weight.device.type == "cuda"
    if setting is False or (setting == "auto" and not on_gpu):
        return None
    reasons = {
        "train.debug.target_logits is off": not config.enabled_optimizations.target_logits,
        "train.gradient_checkpointing computes them twice": config.gradient_checkpointing,
        "train.sharding shards them": sharded,
        "the language model is quantized": getattr(model.llm, "is_quantized", False),
    }
    for reason, holds in reasons.items():
        if holds:
            logger.warning("the language model's layers are not compiled, since %s", reason)
            return None
    try:
        return compile_layers(model)
    except (ConfigError, ImportError, RuntimeError) as error:
        logger.warning("the language model's layers are not compiled: %s", error_text(error))
        return None


def is_compile_error(error: BaseException) -> bool:
    """Whether an error comes from the compiler and not from the model."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
