"""Fingerprints of weights: short hashes that identify models.

Frozen weights are sampled, which is fast at 13 GB. Trained weights are hashed completely, since a few training steps
change little.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "TensorFingerprint",
    "combine_fingerprints",
    "frozen_fingerprint",
    "full_hash",
    "quantized_names",
    "sampled_hash",
    "tensor_fingerprints",
]

_SAMPLES = 64
"""Smallest number of sampled values of a tensor."""
_HEX_DIGITS = 16


class TensorFingerprint(NamedTuple):
    """The fingerprint of one tensor.

    Attributes:
        name: of the tensor.
        content: its shape and a sample of its values, in bfloat16, so that the same weights in another float format
            have the same fingerprint.
    """

    name: str
    content: bytes


def tensor_fingerprints(tensors: Iterable[tuple[str, Tensor]]) -> tuple[TensorFingerprint, ...]:
    """Fingerprints of named tensors."""
    return tuple(TensorFingerprint(name, _content(tensor)) for name, tensor in tensors)


def combine_fingerprints(fingerprints: Iterable[TensorFingerprint]) -> str:
    """Fingerprint of a model, 16 hexadecimal digits, independent of the order of its tensors."""
    digest = hashlib.sha256()
    for name, content in sorted(fingerprints):
        digest.update(name.encode() + content)
    return digest.hexdigest()[:_HEX_DIGITS]


def frozen_fingerprint(model: nn.Module, without: Collection[str] = ()) -> str:
    """Fingerprint of the frozen parameters of a transformers model, quantized ones excepted.

    It does not depend on the names of modules, which releases of transformers and wrappers such as LoRA change.

    Args:
        model: the model.
        without: patterns of `quantized_names` of another copy of the model; these parameters are left out as well.
    """
    frozen = ((name, p) for name, p in _frozen_parameters(model) if _is_plain(p) and _pattern(name) not in without)
    return combine_fingerprints(tensor_fingerprints((name.rpartition(".")[2], p) for name, p in frozen))


def quantized_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the quantized parameters of a model, with * for the numbers of layers."""
    return tuple(sorted({_pattern(name) for name, p in _frozen_parameters(model) if not _is_plain(p)}))


def _frozen_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point()


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name.replace(".base_layer.", "."))


def full_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of every bit of named tensors in float32, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:_HEX_DIGITS]


def sampled_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, shapes and a sample of the values of named tensors, 16 hexadecimal digits."""
    return full_hash((f"{name}{tuple(tensor.shape)}", _sample(tensor)) for name, tensor in tensors)


def _sample(tensor: Tensor) -> Tensor:
    try:
        flat = tensor.detach().reshape(-1)
    except NotImplementedError:
        # torchao's weights have no views.
        flat = tensor.detach().dequantize().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES)]


def _content(tensor: Tensor) -> bytes:
    shape = f"{tuple(tensor.shape)}".encode()
    if type(tensor) not in (Tensor, nn.Parameter):
        # Only its library can read the values of a quantized weight.
        return shape + type(tensor).__name__.encode()
    if not tensor.is_floating_point() or tensor.is_meta:
        return shape
    sample = _sample(tensor)[:_SAMPLES]
    return shape + bytes(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
