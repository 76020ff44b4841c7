"""Hashes that tell models apart whose captions may differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["sampled_hash", "whole_hash"]

_SAMPLED = 64
"""Values of each tensor that are looked at: enough to tell two models apart, quick at 13 GB."""


def whole_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of every bit of some tensors, for what is trained: a few steps change little of it.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sampled_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, shapes and a spread of values, for large models that are used as they are.

    Returns:
        16 hexadecimal digits.
    """

    def spread(tensor: Tensor) -> Tensor:
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, flat.numel() // _SAMPLED)]

    return whole_hash((f"{name}{tuple(tensor.shape)}", spread(tensor)) for name, tensor in tensors)
