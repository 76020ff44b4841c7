"""Compiled layers for steps in which every row is fed one token.

Letters: N rows, H heads, W columns of a slot, D width of a head.

A GPU spends such a step on moving bytes: weights, keys and values. The compiler makes one kernel of each chain of small
operations, and attention is written so that it is such a chain too: with one query a row its products are no matrix
products, and a kernel made for long rows spends most of its work on queries that are not there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from captune.decoding.backoff import is_out_of_memory
from captune.decoding.packed import attention
from captune.errors import ConfigError
from captune.model.compiled import CompiledLayers

__all__ = ["CompiledForward"]

logger = logging.getLogger(__name__)

_NAME = "captune_newest"


class _Newest:
    """One layer's slots, to which each row brings one token: stands for a cache of all layers.

    Args:
        layer: of a `SlotCache` after `SlotCache.extend`.
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values
        self.rows, self.columns = layer.newest

    def update(self, keys: Tensor, values: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        """Write (N, H, 1, D) states into the slots (N, H, W, D) and give these."""
        self.keys[self.rows, :, self.columns] = keys[:, :, 0]
        self.values[self.rows, :, self.columns] = values[:, :, 0]
        return self.keys, self.values


class CompiledForward:
    """Calls a model through its layers, compiled for the one shape that it is fed; where that fails, as it is.

    Args:
        llm: a causal language model.
        backend: of `torch.compile`.
    """

    def __init__(self, llm: Any, backend: str = "inductor") -> None:
        self._llm = llm
        self._layers: CompiledLayers | None = None
        try:
            self._layers = CompiledLayers(llm, _Newest, dynamic=False, backend=backend)
        except (ConfigError, ImportError, RuntimeError) as error:
            self._give_up(error)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output; the arguments are those of its `forward`."""
        if self._layers is not None:
            before = self._llm.config._attn_implementation
            try:
                with self._layers.in_use(), attention(self._llm.config, _NAME if before == "sdpa" else before):
                    return self._llm(**inputs)
            except Exception as error:  # what a compiler, its back end or a driver may raise has no common type
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self._give_up(error)
        return self._llm(**inputs)

    def _give_up(self, error: Exception) -> None:
        why = " ".join(str(error).split())[:200]
        logger.warning("decoding goes on without torch.compile, which failed: %s", why)
        self._layers = None


def _attend(
    module: Any,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function for one query a row, in sums of products.

    Args:
        module: a layer's attention.
        query: (N, H, 1, D).
        keys: (N, G, W, D); H is a multiple of G.
        values: (N, G, W, D).
        mask: (N, 1, 1, W) bool.
        scaling: of the scores.
        settings: handed on.

    Returns:
        (N, 1, H, D).
    """
    if query.shape[1] != keys.shape[1]:
        # Heads that share keys make a matrix product again.
        kernel: Callable[..., tuple[Tensor, None]] = AttentionInterface()["sdpa"]
        return kernel(module, query, keys, values, mask, scaling=scaling, **settings)
    scores = (query.float() * keys.float()).sum(dim=3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    weights = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(dim=2)
    found = (weights.unsqueeze(3) * values.float()).sum(dim=2)
    return found.to(query.dtype).unsqueeze(1), None


AttentionInterface.register(_NAME, _attend)
