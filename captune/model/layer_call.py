"""Calls of a decoder layer with some of its tokens or with another cache.

The outputs of the last layer are unused for most tokens; only their keys and values are needed, because other tokens
attend to them. For these tokens the layer runs until it has passed keys and values to its cache, which skips attention
and feed-forward, four fifths of the work. Then it runs for the tokens whose outputs are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from captune.model.language_model import decoder_layers
from captune.transformers_compat import CACHE_ARGUMENT, CACHE_ARGUMENTS

__all__ = [
    "CompiledLayers",
    "KVAccumulator",
    "LayerCall",
    "StopAfterKV",
    "hidden_states",
    "patched_layer",
    "replaced_forward",
    "with_hidden_states",
]

_MASK = "attention_mask"


class StopAfterKV(Exception):  # noqa: N818  # no error: it ends a forward pass early
    """Raised by a cache to end the forward pass of a layer that has passed its keys and values."""


class KVAccumulator:
    """A cache of one layer that keeps the keys and values of all calls.

    Args:
        layer: of another cache, with the first keys and values (B, H, C, W).
    """

    def __init__(self, layer: Any = None) -> None:
        self._stored: tuple[Tensor, Tensor] | None = None if layer is None else (layer.keys, layer.values)

    @property
    def length(self) -> int:
        """Number of stored tokens."""
        return 0 if self._stored is None else self._stored[0].shape[2]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, S, W), and return all."""
        if self._stored is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self._stored, (keys, values), strict=True))
        self._stored = keys, values
        return keys, values


class _EarlyExitCache:
    """A cache that ends the forward pass of a layer after its update."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._cache.update(*args, **kwargs)
        raise StopAfterKV


class LayerCall:
    """One call of a layer.

    Args:
        forward: of the layer.
        arguments: by name; the hidden states (B, S, D) are the first.
        others: further keyword arguments.
    """

    def __init__(self, forward: Callable[..., Any], arguments: dict[str, Any], others: dict[str, Any]) -> None:
        self._forward = forward
        self._arguments = arguments
        self._others = others

    @property
    def states(self) -> Tensor:
        """(B, S, D) hidden states."""
        states: Tensor = next(iter(self._arguments.values()))
        return states

    @property
    def cache(self) -> Any:
        """The cache argument, or None."""
        return next((self._arguments[name] for name in CACHE_ARGUMENTS if name in self._arguments), None)

    def select(self, tokens: slice | Tensor) -> LayerCall:
        """The same call for some of the S tokens; masks keep all columns."""
        length = self.states.shape[1]
        parts = [
            {name: _of(value, length, tokens) for name, value in g.items()} for g in (self._arguments, self._others)
        ]
        return LayerCall(self._forward, *parts)

    def with_mask_columns(self, columns: int) -> LayerCall:
        """The same call with the first columns of the mask (B, 1, S, K) only.

        Raises:
            NotImplementedError: the layer takes no such mask.
        """
        mask = self._arguments.get(_MASK)
        if not isinstance(mask, Tensor):
            raise NotImplementedError("the layer takes no mask")
        return LayerCall(self._forward, {**self._arguments, _MASK: mask[..., :columns]}, self._others)

    def detached(self) -> LayerCall:
        """The same call with detached hidden states."""
        name = next(iter(self._arguments))
        return LayerCall(self._forward, {**self._arguments, name: self.states.detach()}, self._others)

    def fill_cache(self, cache: Any, **kwargs: Any) -> None:
        """Run the layer until it has passed keys and values to a cache.

        Raises:
            NotImplementedError: it does not use the cache.
        """
        with suppress(StopAfterKV):
            self(_EarlyExitCache(cache), **kwargs)
            raise NotImplementedError("the layer takes no cache")

    def __call__(self, cache: Any, **kwargs: Any) -> Any:
        """Call the layer with another cache, and with further or other arguments."""
        arguments = {name: value for name, value in self._arguments.items() if name not in CACHE_ARGUMENTS}
        taken = next((name for name in CACHE_ARGUMENTS if name in self._accepted), CACHE_ARGUMENTS[0])
        return self._forward(**{**arguments, **self._others, taken: cache, **kwargs})

    @property
    def _accepted(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._forward).parameters


def hidden_states(output: Any) -> Tensor:
    """The hidden states (B, S, D) in the output of a layer."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_hidden_states(output: Any, states: Tensor) -> Any:
    """The output of a layer with other hidden states (B, S, D)."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


@contextmanager
def patched_layer(layer: Any, run: Callable[[LayerCall], Any]) -> Iterator[None]:
    """Replace the forward pass of a layer within the block.

    Args:
        layer: of a causal language model.
        run: returns the output of the layer for a call.
    """
    with replaced_forward(layer) as (layer, original):
        signature = inspect.signature(original)
        rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            return run(LayerCall(original, arguments, arguments.pop(rest, {})))

        layer.forward = forward
        yield


@contextmanager
def replaced_forward(layer: Any) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """The layer and its `forward`, which is restored after the block."""
    original = vars(layer).get("forward")
    try:
        yield layer, layer.forward
    finally:
        vars(layer).pop("forward", None)
        if original is not None:
            layer.forward = original


def _of(value: Any, length: int, tokens: slice | Tensor) -> Any:
    """The part of an argument for some of the tokens."""
    if type(value) in (tuple, list):  # a named tuple has another constructor
        return type(value)(_of(one, length, tokens) for one in value)
    if isinstance(value, dict):
        return {name: _of(one, length, tokens) for name, one in value.items()}
    if not isinstance(value, Tensor):
        return value
    dimension = {1: 0, 4: 2}.get(value.ndim, 1)
    if value.ndim == 0 or value.shape[dimension] != length:
        return value
    return value[(slice(None),) * dimension + (tokens,)]


# Layers compiled by `torch.compile`: fewer and larger kernels on a GPU.


class CompiledLayers:
    """Compiled layers of a language model, which are used within `in_use` only.

    Args:
        llm: a causal language model on its device, with LoRA attached and activation checkpointing set.
        stand_in: returns the object with `update` that replaces the cache in a layer, given the layer's cache.
        dynamic: compile one graph for all numbers of rows and tokens; otherwise one graph for each shape.
        backend: of `torch.compile`.

    Raises:
        ConfigError: the layers are not in one `ModuleList`.
    """

    def __init__(self, llm: Any, stand_in: Callable[[Any], Any], *, dynamic: bool, backend: str = "inductor") -> None:
        self._stand_in = stand_in
        self._layers: list[Any] = list(decoder_layers(llm))
        self._compiled = [torch.compile(layer.forward, dynamic=dynamic, backend=backend) for layer in self._layers]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Use the compiled layers within the block."""
        with ExitStack() as stack:
            for number, (layer, compiled) in enumerate(zip(self._layers, self._compiled, strict=True)):
                stack.enter_context(replaced_forward(layer))
                layer.forward = self._with_layer_cache(compiled, number)
            yield

    def _with_layer_cache(self, compiled: Any, number: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            cache = kwargs.get(CACHE_ARGUMENT)
            if cache is not None:
                kwargs[CACHE_ARGUMENT] = self._stand_in(cache.layers[number])
            return compiled(*args, **kwargs)

        return forward
