"""Norms and rotary positions of frozen float32 layers as one operation each, with its gradient by formula.

transformers writes a root-mean-square norm as five passes over the states and a rotation as eight, and autograd walks
back through each of them. By formula both take a third of that. A compiler finds the same and more; this is for where
layers are not compiled. What is replaced is first held to the original, so that a family's own kind of norm or rotation
stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captune.errors import ConfigError
from captune.model.language_model import decoder_layers, is_divided
from captune.model.layer_call import replaced_forward

__all__ = ["FusedLayers", "normed", "rotated"]

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
        if llm.dtype != torch.float32 or is_divided(llm):
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
    with replaced_forward(module) as (_, own):

        def forward(states: Tensor) -> Any:
            # In other formats, which a quantized model may have between its layers, rounding has an order of its own.
            return normed(states, weight, epsilon) if states.dtype == torch.float32 else own(states)

        module.forward = forward
        yield


@contextmanager
def _fused_rotation(family: Any) -> Iterator[None]:
    own = getattr(family, _ROTARY)

    def turned(queries: Tensor, keys: Tensor, cosines: Tensor, sines: Tensor, *args: Any, **given: Any) -> Any:
        # Families that turn a part of each head do it here or before; what is not as it was tried is left to them.
        as_tried = (
            not (args or given)
            and cosines.ndim == 3
            and cosines.shape[-1] == queries.shape[-1] == keys.shape[-1]
            and queries.dtype == keys.dtype == torch.float32
        )
        turn = rotated if as_tried else own
        return turn(queries, keys, cosines, sines, *args, **given)

    setattr(family, _ROTARY, turned)
    try:
        yield
    finally:
        setattr(family, _ROTARY, own)


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


def _alike(wanted: Callable[..., tuple[Tensor, ...]], found: Callable[..., tuple[Tensor, ...]], states: Tensor) -> bool:
    """Whether two functions of states agree, their gradients too."""
    # Another direction than the states' own, along which a norm does not change.
    weights = states.roll(1, dims=-1)
    given = []
    for function in (wanted, found):
        x = states.clone().requires_grad_()
        try:
            said = function(x)
            (gradient,) = torch.autograd.grad(torch.stack([(one * weights).sum() for one in said]).sum(), x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        given.append([*(one.detach() for one in said), gradient])
    return len(given[0]) == len(given[1]) and all(
        one.shape == other.shape and float((one - other).abs().max()) <= _EXACT * float(one.abs().max())
        for one, other in zip(*given, strict=True)
    )
