"""One call of a language model's layer, taken apart: run for some of its tokens, with something else for its cache.

Not everything that a layer computes is looked at. Of most tokens nobody reads what the last layer says, only its keys
and values, to which the others attend. So it is called for these first, and left as soon as it has handed their keys
and values to its cache: attention and feed-forward, four fifths of its work, are not computed. Then it is called for
the tokens that are looked at.
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


class StopAfterKV(Exception):  # noqa: N818  # no error: it ends a forward whose rest nobody needs
    """A layer has handed over its keys and values; raised by its cache, or by what stands for that."""


class KVAccumulator:
    """Stands for the cache in one layer: what a call brings stays there for the next.

    Args:
        layer: of a cache; its keys and values (B, H, C, W) come first.
    """

    def __init__(self, layer: Any = None) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None if layer is None else (layer.keys, layer.values)

    @property
    def length(self) -> int:
        """Tokens whose keys and values are there."""
        return 0 if self._kept is None else self._kept[0].shape[2]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, W) behind those that are there."""
        if self._kept is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self._kept, (keys, values), strict=True))
        self._kept = keys, values
        return keys, values


class _EarlyExitCache:
    """Stands for a cache in a layer that is left as soon as it has handed its keys and values over."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._cache.update(*args, **kwargs)
        raise StopAfterKV


class LayerCall:
    """One call of a layer.

    Args:
        forward: of the layer.
        arguments: by name; the hidden states (B, S, D) come first.
        others: arguments that the layer hands on.
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
        """The cache that it was given, or None."""
        return next((self._arguments[name] for name in CACHE_ARGUMENTS if name in self._arguments), None)

    def select(self, tokens: slice | Tensor) -> LayerCall:
        """The same call for some of the S tokens; masks keep all of their columns."""
        length = self.states.shape[1]
        parts = [
            {name: _of(value, length, tokens) for name, value in g.items()} for g in (self._arguments, self._others)
        ]
        return LayerCall(self._forward, *parts)

    def with_mask_columns(self, columns: int) -> LayerCall:
        """The same call with a mask (B, 1, S, K) that has its first columns only.

        Raises:
            NotImplementedError: the layer takes no such mask.
        """
        mask = self._arguments.get(_MASK)
        if not isinstance(mask, Tensor):
            raise NotImplementedError("the layer takes no mask")
        return LayerCall(self._forward, {**self._arguments, _MASK: mask[..., :columns]}, self._others)

    def detached(self) -> LayerCall:
        """The same call with hidden states that no gradient goes back to."""
        name = next(iter(self._arguments))
        return LayerCall(self._forward, {**self._arguments, name: self.states.detach()}, self._others)

    def fill_cache(self, cache: Any, **kwargs: Any) -> None:
        """Run the layer until it has handed keys and values to what stands for its cache, and no further.

        Raises:
            NotImplementedError: it does not.
        """
        with suppress(StopAfterKV):
            self(_EarlyExitCache(cache), **kwargs)
            raise NotImplementedError("the layer takes no cache")

    def __call__(self, cache: Any, **kwargs: Any) -> Any:
        """What the layer returns, with something else for its cache and other arguments."""
        arguments = {name: value for name, value in self._arguments.items() if name not in CACHE_ARGUMENTS}
        taken = next((name for name in CACHE_ARGUMENTS if name in self._accepted), CACHE_ARGUMENTS[0])
        return self._forward(**{**arguments, **self._others, taken: cache, **kwargs})

    @property
    def _accepted(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._forward).parameters


def hidden_states(output: Any) -> Tensor:
    """The hidden states (B, S, D) among what a layer returns."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_hidden_states(output: Any, states: Tensor) -> Any:
    """What a layer returns, with other hidden states (B, S, D)."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


@contextmanager
def patched_layer(layer: Any, run: Callable[[LayerCall], Any]) -> Iterator[None]:
    """Within the block a layer returns what `run` makes of its call.

    Args:
        layer: of a causal language model.
        run: gives what a layer returns.
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
    """A layer whose `forward` may be replaced within the block, and that `forward` as it was."""
    original = vars(layer).get("forward")
    try:
        yield layer, layer.forward
    finally:
        vars(layer).pop("forward", None)
        if original is not None:
            layer.forward = original


def _of(value: Any, length: int, tokens: slice | Tensor) -> Any:
    """The part of an argument that belongs to some of the tokens."""
    if type(value) in (tuple, list):  # a named tuple is told otherwise
        return type(value)(_of(one, length, tokens) for one in value)
    if isinstance(value, dict):
        return {name: _of(one, length, tokens) for name, one in value.items()}
    if not isinstance(value, Tensor):
        return value
    dimension = {1: 0, 4: 2}.get(value.ndim, 1)
    if value.ndim == 0 or value.shape[dimension] != length:
        return value
    return value[(slice(None),) * dimension + (tokens,)]


# A language model's layers compiled by `torch.compile`: fewer and larger kernels on a GPU, the same sums.


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
