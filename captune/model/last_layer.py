"""A language model's last layer, run in two parts: for what it reads of some tokens, and for what it says of others.

Of most tokens nobody looks at what the last layer says, only at its keys and values, to which the others attend. So it
is called for these first, and left as soon as it has handed their keys and values to its cache: attention and
feed-forward, four fifths of its work, are not computed. Then it is called for the tokens that are looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

from captune.model.language_model import decoder_layers

__all__ = ["KeysTaken", "LayerCall", "last_layer", "replaced_forward", "states_of", "with_states"]

_CACHES = ("past_key_values", "past_key_value", "layer_past")
"""How layers name the cache among their arguments."""


class KeysTaken(Exception):  # noqa: N818  # no error: it ends a forward whose rest nobody needs
    """A layer has handed over its keys and values; raised by its cache, or by what stands for that."""


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
        return next((self._arguments[name] for name in _CACHES if name in self._arguments), None)

    def part(self, tokens: slice | Tensor) -> LayerCall:
        """The same call for some of the S tokens; masks keep all of their columns."""
        length = self.states.shape[1]
        parts = [
            {name: _of(value, length, tokens) for name, value in g.items()} for g in (self._arguments, self._others)
        ]
        return LayerCall(self._forward, *parts)

    def read(self, cache: Any, **given: Any) -> None:
        """Run the layer until it hands keys and values to what stands for its cache.

        Raises:
            NotImplementedError: it does not.
        """
        with suppress(KeysTaken):
            self(cache, **given)
            raise NotImplementedError("the last layer takes no cache")

    def __call__(self, cache: Any, **given: Any) -> Any:
        """What the layer returns, with something else for its cache and other arguments."""
        arguments = {name: value for name, value in self._arguments.items() if name not in _CACHES}
        taken = next((name for name in _CACHES if name in self._accepted), _CACHES[0])
        return self._forward(**{**arguments, **self._others, taken: cache, **given})

    @property
    def _accepted(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._forward).parameters


def states_of(said: Any) -> Tensor:
    """The hidden states (B, S, D) among what a layer returns."""
    states: Tensor = said[0] if isinstance(said, tuple) else said
    return states


def with_states(said: Any, states: Tensor) -> Any:
    """What a layer returns, with other hidden states (B, S, D)."""
    return (states, *said[1:]) if isinstance(said, tuple) else states


@contextmanager
def last_layer(llm: Any, run: Callable[[LayerCall], Any]) -> Iterator[None]:
    """Within the block the last layer returns what `run` makes of its call.

    Args:
        llm: a causal language model.
        run: gives what a layer returns.

    Raises:
        ConfigError: the layers do not stand in one list.
    """
    with replaced_forward(decoder_layers(llm)[-1]) as (layer, own):
        signature = inspect.signature(own)
        rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

        def forward(*args: Any, **given: Any) -> Any:
            arguments = dict(signature.bind(*args, **given).arguments)
            return run(LayerCall(own, arguments, arguments.pop(rest, {})))

        layer.forward = forward
        yield


@contextmanager
def replaced_forward(layer: Any) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """A layer whose `forward` may be replaced within the block, and that `forward` as it was."""
    own = vars(layer).get("forward")
    try:
        yield layer, layer.forward
    finally:
        vars(layer).pop("forward", None)
        if own is not None:
            layer.forward = own


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
