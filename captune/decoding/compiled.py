"""Compiled layers for steps in which every row is fed one token.

Letters: N rows, H heads, W columns of a slot, D width of a head.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from captune.common import error_text
from captune.decoding.backoff import is_out_of_memory
from captune.errors import ConfigError
from captune.model.compiled import CompiledLayers

__all__ = ["CompiledForward"]

logger = logging.getLogger(__name__)


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
            try:
                with self._layers.in_use():
                    return self._llm(**inputs)
            except Exception as error:  # what a compiler, its back end or a driver may raise has no common type
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self._give_up(error)
        return self._llm(**inputs)

    def _give_up(self, error: Exception) -> None:
        why = error_text(error)
        logger.warning("decoding goes on without torch.compile, which failed: %s", why)
        self._layers = None
