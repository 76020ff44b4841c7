"""One file of the store: the features of some images and the images' content ids, as safetensors.

A shard is written under a hidden name, synced and renamed, so it is whole or absent, and carries a hash of its content.
Reading maps the file into memory; a feature is read from the disk when it is needed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from captune.data.atomic import atomic_file
from captune.data.content_hash import HASH_BYTES
from captune.parsing import load_json

__all__ = ["Shard", "open_shard", "write_shard"]

_HASH = "sha256"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Shard:
    """A shard that lies open.

    Attributes:
        path: its file.
        ids: (N, 16) uint8, the content ids of its images.
        features: (N, Q, F), mapped and not loaded.
    """

    def __init__(self, path: Path, ids: NDArray[np.uint8], features: Tensor, written: str | None) -> None:
        self.path, self.ids, self.features = path, ids, features
        self._written = written

    def is_intact(self) -> bool:
        """Whether ids and features are those that were written; reads all of them. True where there is no hash."""
        return self._written is None or self._written == _hash(self.ids, self.features)


def write_shard(folder: Path, ids: Sequence[bytes], features: Tensor) -> Path:
    """Write a shard under a name of its own, whole or not at all.

    Args:
        folder: of the store.
        ids: N content ids.
        features: (N, Q, F) on the CPU.

    Returns:
        Its file.
    """
    numbers = torch.from_numpy(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, HASH_BYTES).copy())
    path = folder / f"shard-{uuid.uuid4().hex[:16]}.safetensors"
    with atomic_file(path, "wb") as stream:
        features = features.contiguous()
        metadata = {_HASH: _hash(numbers.numpy(), features)}
        stream.write(save({"features": features, "ids": numbers}, metadata))
    return path


def _hash(ids: NDArray[np.uint8], features: Tensor) -> str:
    """SHA-256 of a shard's content."""
    content: list[Any] = [np.ascontiguousarray(ids), features.reshape(-1).view(torch.uint8).numpy()]
    digest = hashlib.sha256()
    for part in content:
        digest.update(part)
    return digest.hexdigest()


def open_shard(path: Path, tokens: int, width: int, dtype: torch.dtype) -> Shard:
    """Map a shard.

    Args:
        path: its file.
        tokens: Q, which its features must have.
        width: F, which they must have.
        dtype: which they must have.

    Raises:
        ValueError: it is no whole shard of such features.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("its header is cut off")
        header = load_json(file.read(length))
        # A private map: torch wants memory it may write to, and nothing that is written reaches the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = 8 + length
    features, ids = header["features"], header["ids"]
    end = max(part["data_offsets"][1] for part in (features, ids))
    if begin + end != size:
        raise ValueError(f"it has {size:,} bytes and should have {begin + end:,}")
    count = ids["shape"][0]
    if features["shape"] != [count, tokens, width] or _DTYPES.get(features["dtype"]) != dtype:
        raise ValueError(f"it holds {features['dtype']} features of shape {features['shape']}")
    start = begin + features["data_offsets"][0]
    values = torch.frombuffer(mapped, dtype=dtype, count=count * tokens * width, offset=start)
    numbers = np.frombuffer(mapped, np.uint8, count * HASH_BYTES, begin + ids["data_offsets"][0])
    # Shards of older versions have no hash.
    written = header.get("__metadata__", {}).get(_HASH)
    return Shard(path, numbers.reshape(count, HASH_BYTES).copy(), values.view(count, tokens, width), written)
