"""Exact optimizations of packed rows: skip unused first- and last-layer work, fused float32 operations, torch.compile.

First layer: text embeddings are not trained, so the gradient through the queries, keys and values of text is unused.
The tokens up to the image's last one run first; then the text after it, detached from its embeddings, attends to their
keys and values. Last layer: of all prompt tokens but the last one only keys and values are used (see
`captune.model.layer_call`). Both require causal attention, as packed rows do.

Fused operations: transformers computes an RMS norm in five passes over the states and a rotation in eight, and autograd
differentiates each of them; a closed-form gradient takes a third of that. They apply to frozen float32 layers that are
not compiled, and each replacement is first compared with the original, so that a family's own kind of norm or rotation
stays as it is.

Only packed training passes are compiled: captioning and plain rows, which the equivalence check compares with, are not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captune.common import error_text
from captune.config import TrainConfig
from captune.errors import ConfigError
from captune.model import (
    IMAGE_SLOT,
    CompiledLayers,
    KVAccumulator,
    LayerCall,
    MiniGPT4,
    decoder_layers,
    hidden_states,
    is_sharded,
    patched_layer,
    replaced_forward,
    with_hidden_states,
)
from captune.training.packing import PackedBatch

__all__ = [
    "FusedLayers",
    "compile_if_enabled",
    "compile_layers",
    "is_compile_error",
    "normed",
    "rotated",
    "skip_unused_tokens",
]

logger = logging.getLogger(__name__)


@contextmanager
def skip_unused_tokens(llm: Any, batch: PackedBatch) -> Iterator[None]:
    """Within the block the first and the last layer do only what is read of them; for one forward over a batch.

    Args:
        llm: a causal language model.
        batch: packed rows.

    Raises:
        ConfigError: the layers do not stand in one list.
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
    """How many tokens of the rows, which share a prompt, end with the last one of the image; 0 without an image."""
    places = (batch.input_ids[0] == IMAGE_SLOT).nonzero()
    return int(places.max()) + 1 if len(places) else 0


def _trains_embeddings(llm: Any, layers: Any) -> bool:
    """Whether something outside of the layers is trained, so that text needs its gradient."""
    inside = {id(parameter) for parameter in layers.parameters()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in llm.parameters())


def _first_layer(seen: int, call: LayerCall) -> Any:
    """What the first layer returns; no gradient goes back to what is behind the first `seen` tokens."""
    cache = _cache_of(call, 0)
    columns = cache.length + seen
    first = call.select(slice(None, seen)).with_mask_columns(columns)(cache)
    rest = call.select(slice(seen, None)).detached()(cache)
    return with_hidden_states(rest, torch.cat([hidden_states(first), hidden_states(rest)], dim=1))


def _last_layer(unread: int, call: LayerCall) -> Any:
    """What the last layer returns, but that the first `unread` tokens' states are those it was given."""
    cache = _cache_of(call, -1)
    call.select(slice(None, unread)).fill_cache(cache)
    rest = call.select(slice(unread, None))(cache)
    return with_hidden_states(rest, torch.cat([call.states[:, :unread], hidden_states(rest)], dim=1))


def _cache_of(call: LayerCall, number: int) -> KVAccumulator:
    """What stands for the cache in one layer, with the text in front of the rows, where that is not in them."""
    return KVAccumulator(None if call.cache is None else call.cache.layers[number])


_ROTARY = "apply_rotary_pos_emb"
"""The function of a family's module that turns queries and keys."""
_EXACT = 1e-5
"""Largest difference, relative to the largest value, that rounding explains."""

Rotation = Callable[..., tuple[Tensor, Tensor]]
"""Queries and keys (B, H, S, W), cosines and sines (B, S, W); gives both turned."""


class _Norm(torch.autograd.Function):
    """x * weight / sqrt(mean(x ** 2) + epsilon) along the last dimension; no gradient to the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        scaled = gradient * weight
        along = torch.linalg.vecdot(scaled, x).unsqueeze(-1) * inverse.square() / -x.shape[-1]
        return scaled.addcmul_(x, along).mul_(inverse), None, None


class _Rotation(torch.autograd.Function):
    """Pairs (x[i], x[i + W / 2]) turned by an angle; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        first, second = sines.chunk(2, dim=-1)
        return _turned(x, cosines, first, second, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        first, second = sines.chunk(2, dim=-1)
        return _turned(gradient, cosines, second, first, -1), None, None


def _turned(x: Tensor, cosines: Tensor, of_second: Tensor, of_first: Tensor, sign: int) -> Tensor:
    """Both halves of x times their cosines, and each less or more than the other one times its sines."""
    half = x.shape[-1] // 2
    turned = x * cosines
    turned[..., :half].addcmul_(x[..., half:], of_second, value=-sign)
    turned[..., half:].addcmul_(x[..., :half], of_first, value=sign)
    return turned


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The root-mean-square norm of states (..., D) under a frozen weight (D)."""
    normed: Tensor = _Norm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


def rotated(queries: Tensor, keys: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with rotary positions, in transformers' order of the pairs.

    Args:
        queries: (B, H, S, W).
        keys: (B, K, S, W).
        cosines: (B, S, W), of no parameter.
        sines: the same.
    """
    angles = cosines.unsqueeze(1), sines.unsqueeze(1)
    return _Rotation.apply(queries, *angles), _Rotation.apply(keys, *angles)  # type: ignore[no-untyped-call]


class FusedLayers:
    """A language model's norms and rotations, fused within `in_use`, as they are outside of it.

    Args:
        llm: a causal language model on its device. In another format than float32, or with layers that are divided
            among processes or stand in no list, nothing is replaced.
    """

    def __init__(self, llm: Any) -> None:
        self._norms: list[tuple[nn.Module, float]] = []
        self._families: list[ModuleType] = []
        if llm.dtype != torch.float32 or is_sharded(llm):
            return
        try:
            layers = decoder_layers(llm)
        except ConfigError:
            return
        tried: dict[tuple[type, float], bool] = {}
        for module in llm.get_decoder().modules():
            epsilon = _epsilon(module)
            if epsilon is None:
                continue
            kind = type(module), epsilon
            if kind not in tried:
                tried[kind] = _is_plain_norm(module, epsilon)
            if tried[kind]:
                self._norms.append((module, epsilon))
        device = layers[0].parameters().__next__().device
        modules = {sys.modules[type(part).__module__] for layer in layers for part in layer.modules()}
        self._families = [module for module in modules if _turns_halves(getattr(module, _ROTARY, None), device)]

    @property
    def count(self) -> int:
        """How many norms and kinds of rotation are replaced."""
        return len(self._norms) + len(self._families)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block norms and rotations are the fused ones."""
        with ExitStack() as stack:
            for module, epsilon in self._norms:
                stack.enter_context(_fused_norm(module, epsilon))
            for family in self._families:
                stack.enter_context(_fused_rotation(family))
            yield


@contextmanager
def _fused_norm(module: nn.Module, epsilon: float) -> Iterator[None]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    with replaced_forward(module) as (_, original):

        def forward(states: Tensor) -> Any:
            # In other formats, which a quantized model may have between its layers, rounding has an order of its own.
            return normed(states, weight, epsilon) if states.dtype == torch.float32 else original(states)

        module.forward = forward
        yield


@contextmanager
def _fused_rotation(family: Any) -> Iterator[None]:
    original = getattr(family, _ROTARY)

    def turned(queries: Tensor, keys: Tensor, cosines: Tensor, sines: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Families that turn a part of each head do it here or before; what is not as it was tried is left to them.
        as_tried = (
            not (args or kwargs)
            and cosines.ndim == 3
            and cosines.shape[-1] == queries.shape[-1] == keys.shape[-1]
            and queries.dtype == keys.dtype == torch.float32
        )
        turn = rotated if as_tried else original
        return turn(queries, keys, cosines, sines, *args, **kwargs)

    setattr(family, _ROTARY, turned)
    try:
        yield
    finally:
        setattr(family, _ROTARY, original)


def _epsilon(module: nn.Module) -> float | None:
    """What a frozen root-mean-square norm in float32 adds to the mean square; None for any other module."""
    weights = dict(module.named_parameters())
    weight = weights.get("weight")
    if not type(module).__name__.endswith("RMSNorm") or len(weights) != 1 or weight is None:
        return None
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    fits = weight.ndim == 1 and weight.dtype == torch.float32 and not weight.requires_grad
    return epsilon if fits and isinstance(epsilon, float) else None


def _is_plain_norm(module: nn.Module, epsilon: float) -> bool:
    """Whether a norm does what `normed` does."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    states = _trial(3, len(weight), device=weight.device)
    return _alike(lambda x: (module(x),), lambda x: (normed(x, weight, epsilon),), states)


def _turns_halves(function: Rotation | None, device: torch.device) -> bool:
    """Whether a family's function does what `rotated` does."""
    if function is None:
        return False
    angles = _trial(2, 3, 4, device=device).repeat(1, 1, 2)
    cosines, sines = angles.cos(), angles.sin()
    states = _trial(2, 2, 3, 8, device=device)
    return _alike(lambda x: function(x, x, cosines, sines), lambda x: rotated(x, x, cosines, sines), states)


def _trial(*shape: int, device: torch.device) -> Tensor:
    """Numbers without a pattern, of a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _alike(first: Callable[..., tuple[Tensor, ...]], second: Callable[..., tuple[Tensor, ...]], states: Tensor) -> bool:
    """Whether two functions of states agree, their gradients too."""
    # Another direction than the states' own, along which a norm does not change.
    weights = states.roll(1, dims=-1)
    results = []
    for function in (first, second):
        x = states.clone().requires_grad_()
        try:
            outputs = function(x)
            (gradient,) = torch.autograd.grad(torch.stack([(one * weights).sum() for one in outputs]).sum(), x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        results.append([*(one.detach() for one in outputs), gradient])
    return len(results[0]) == len(results[1]) and all(
        one.shape == other.shape and float((one - other).abs().max()) <= _EXACT * float(one.abs().max())
        for one, other in zip(*results, strict=True)
    )


class _Prefix:
    """What one layer has of the text in front of the rows: stands for a cache of all layers.

    Args:
        layer: of a cache; its keys and values are (B, H, C, W).
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
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


def compile_if_enabled(model: MiniGPT4, config: TrainConfig, *, sharded: bool = False) -> CompiledLayers | None:
    """The layers compiled as a configuration asks for it, None where it does not or they cannot be.

    Args:
        model: on its device.
        config: of the training.
        sharded: whether the layers are sharded over the processes.
    """
    setting = config.optimizations.compile
    on_gpu = model.projection.weight.device.type == "cuda"
    if setting is False or (setting == "auto" and not on_gpu):
        return None
    reasons = {
        "train.optimizations.target_logits is off": not config.optimizations.target_logits,
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
        why = error_text(error)
        logger.warning("the language model's layers are not compiled: %s", why)
        return None


def is_compile_error(error: BaseException) -> bool:
    """Whether an error is the compiler's and not the model's."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
