"""Shards: files of a feature store, each with the features of many images.

A shard is a safetensors file with the content ids of its images, the tensors that its format packs their features into,
and a hash of both. It is written under a hidden name, synced and renamed, so it is complete or absent. Reading maps it
into memory; a feature is read from the disk when it is needed.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from captune.data import HASH_BYTES, atomic_file
from captune.weights import SAFETENSORS_DTYPES, parse_header

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Batch = TypeVar("Batch", default=Tensor)
else:
    from typing import TypeVar

    # The features of several images: a tensor, unless images have features of different shapes.
    Batch = TypeVar("Batch")

__all__ = ["Batch", "FixedShape", "Shard", "ShardFormat", "has_finite_values", "open_shard", "write_shard"]

_HASH = "sha256"
_IDS = "ids"


class ShardFormat(Protocol[Batch]):
    """How features of images become the tensors of a shard and are read again."""

    def pack(self, images: Batch) -> dict[str, Tensor]:
        """The tensors of a shard with the features of N images."""

    def open(self, tensors: Mapping[str, Tensor], count: int) -> Callable[[int], Any]:
        """The function that returns the features of one of a shard's `count` images, without a copy.

        Raises:
            ValueError: the tensors have other shapes or dtypes.
            KeyError: some are missing.
        """

    def batch(self, images: Sequence[Any]) -> Batch:
        """Copies of the features of images."""

    def is_finite(self, batch: Batch) -> bool:
        """Whether no value is a NaN or infinite."""


@dataclass(frozen=True)
class FixedShape:
    """Features of one shape: a shard has one tensor `features` (N, Q, F).

    Attributes:
        tokens: Q.
        width: F.
        dtype: of the features.
    """

    tokens: int
    width: int
    dtype: torch.dtype

    def pack(self, images: Tensor) -> dict[str, Tensor]:
        """See `ShardFormat`."""
        return {"features": images.contiguous()}

    def open(self, tensors: Mapping[str, Tensor], count: int) -> Callable[[int], Tensor]:
        """See `ShardFormat`."""
        features = tensors["features"]
        if features.shape != (count, self.tokens, self.width) or features.dtype != self.dtype:
            raise ValueError(f"it holds {features.dtype} features of shape {list(features.shape)}")
        return features.__getitem__

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """See `ShardFormat`."""
        return torch.stack(list(images))

    def is_finite(self, batch: Tensor) -> bool:
        """See `ShardFormat`."""
        return has_finite_values(batch)


def has_finite_values(values: Tensor) -> bool:
    """Whether no value is a NaN or infinite."""
    if not values.is_floating_point():
        return True
    # One NaN or infinity makes the sum non-finite, and a sum takes less time than a test of each number.
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


class Shard(Generic[Batch]):
    """An open shard.

    Attributes:
        path: its file.
        ids: (N, 16) uint8, the content ids of its images.
        image: returns the features of an image by its row; memory-mapped.
    """

    def __init__(
        self, path: Path, ids: NDArray[np.uint8], tensors: Mapping[str, Tensor], written: str | None, image: Any
    ) -> None:
        self.path, self.ids, self.image = path, ids, image
        self._tensors, self._written = tensors, written

    def is_intact(self) -> bool:
        """Whether ids and features are those that were written; reads all of them. True where there is no hash."""
        return self._written is None or self._written == _hash(self.ids, self._tensors)


def write_shard(folder: Path, ids: Sequence[bytes], features: Batch, form: ShardFormat[Batch]) -> Path:
    """Write a shard under a new name, completely or not at all.

    Args:
        folder: of the store.
        ids: N content ids.
        features: of the N images, on the CPU.
        form: packs them.

    Returns:
        Its file.
    """
    id_tensor = torch.from_numpy(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, HASH_BYTES).copy())
    tensors = form.pack(features)
    path = folder / f"shard-{uuid.uuid4().hex[:16]}.safetensors"
    with atomic_file(path, "wb") as stream:
        stream.write(save({**tensors, _IDS: id_tensor}, {_HASH: _hash(id_tensor.numpy(), tensors)}))
    return path


def _hash(ids: NDArray[np.uint8], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a shard's content."""
    digest = hashlib.sha256()
    values: Any
    for values in (
        np.ascontiguousarray(ids),
        *(tensors[name].reshape(-1).view(torch.uint8).numpy() for name in sorted(tensors)),
    ):
        digest.update(values)
    return digest.hexdigest()


def open_shard(path: Path, form: ShardFormat[Batch]) -> Shard[Batch]:
    """Memory-map a shard.

    Args:
        path: its file.
        form: of its features.

    Raises:
        ValueError: it is no complete shard of such features.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        header = parse_header(file, size)
        # A private map: torch requires writable memory, and what is written does not reach the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if header.end != size:
        raise ValueError(f"it has {size:,} bytes and should have {header.end:,}")
    tensors = {name: _mapped(mapped, entry, header.start) for name, entry in header.tensors.items()}
    ids = tensors.pop(_IDS)
    if ids.shape != (len(ids), HASH_BYTES) or ids.dtype != torch.uint8:
        raise ValueError(f"it holds {ids.dtype} ids of shape {list(ids.shape)}")
    image = form.open(tensors, len(ids))
    # Shards of older versions have no hash.
    return Shard(path, ids.numpy().copy(), tensors, header.metadata.get(_HASH), image)


def _mapped(buffer: mmap.mmap, entry: Any, start: int) -> Tensor:
    """A tensor of a safetensors file.

    Raises:
        ValueError: its entry in the header is inconsistent.
    """
    dtype, shape, (begin, end) = SAFETENSORS_DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if dtype is None or any(type(n) is not int or n < 0 for n in (begin, end, *shape)):
        raise ValueError(f"it holds a tensor of {entry['dtype']} and shape {shape}")
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise ValueError(f"it holds {end - begin:,} bytes for shape {shape}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start + begin).view(shape)
