"""A language model's layers compiled by `torch.compile`: fewer and larger kernels on a GPU, the same sums.

All layers of a language model are one function with other weights, so one compiled graph serves them all. What a layer
reads and writes of the cache is given to it as its own, for a whole cache would make a graph of each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from captune.model.language_model import decoder_layers
from captune.model.layer_call import replaced_forward
from captune.transformers_compat import CACHE_ARGUMENT

__all__ = ["CompiledLayers"]


class CompiledLayers:
    """A language model's layers, compiled within `in_use`, as they are outside of it.

    Args:
        llm: a causal language model on its device, with all that its layers will have.
        stand_in: given a layer's part of the cache, what stands for the cache in that layer: an object with `update`.
        dynamic: whether one graph takes any number of rows and tokens; otherwise each shape gets its own.
        backend: of `torch.compile`.

    Raises:
        ConfigError: the layers do not stand in one list.
    """

    def __init__(self, llm: Any, stand_in: Callable[[Any], Any], *, dynamic: bool, backend: str = "inductor") -> None:
        self._stand_in = stand_in
        self._layers: list[Any] = list(decoder_layers(llm))
        self._compiled = [torch.compile(layer.forward, dynamic=dynamic, backend=backend) for layer in self._layers]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block a forward goes through the compiled layers."""
        with ExitStack() as stack:
            for number, (layer, compiled) in enumerate(zip(self._layers, self._compiled, strict=True)):
                stack.enter_context(replaced_forward(layer))
                layer.forward = self._with_own_cache(compiled, number)
            yield

    def _with_own_cache(self, compiled: Any, number: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            cache = kwargs.get(CACHE_ARGUMENT)
            if cache is not None:
                kwargs[CACHE_ARGUMENT] = self._stand_in(cache.layers[number])
            return compiled(*args, **kwargs)

        return forward
