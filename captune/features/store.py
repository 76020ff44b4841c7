"""Features of images on disk, looked up by the content of the images.

    STORE/<identity>/header.json             what made the features: towers, transform, number format
    STORE/<identity>/shard-*.safetensors     features and content ids of about a thousand images each

An image is identified by a hash of its bytes, so a renamed or copied file is recognized, and a changed one is not.
Another tower or transform has another identity and a separate folder; nothing has to be deleted to be valid. Any number
of runs and processes may read and add at once: each writes its shards, and an image that is stored twice is read once.

A shard is written under a hidden name, synced and renamed, so it is complete or absent, and carries a hash of its
content. Reading maps the file into memory; a feature is read from the disk when it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
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

from captune.data import HASH_BYTES, atomic_file, prefetch_map
from captune.errors import DataError
from captune.features.identity import TowerIdentity
from captune.weights import SAFETENSORS_DTYPES, parse_header

__all__ = ["FeatureStore", "Shard", "StoredFeatures", "open_shard", "write_shard"]

logger = logging.getLogger(__name__)

_HASH = "sha256"


class Shard:
    """An open shard.

    Attributes:
        path: its file.
        ids: (N, 16) uint8, the content ids of its images.
        features: (N, Q, F), memory-mapped.
    """

    def __init__(self, path: Path, ids: NDArray[np.uint8], features: Tensor, written: str | None) -> None:
        self.path, self.ids, self.features = path, ids, features
        self._written = written

    def is_intact(self) -> bool:
        """Whether ids and features are those that were written; reads all of them. True where there is no hash."""
        return self._written is None or self._written == _hash(self.ids, self.features)


def write_shard(folder: Path, ids: Sequence[bytes], features: Tensor) -> Path:
    """Write a shard under a new name, completely or not at all.

    Args:
        folder: of the store.
        ids: N content ids.
        features: (N, Q, F) on the CPU.

    Returns:
        Its file.
    """
    id_tensor = torch.from_numpy(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, HASH_BYTES).copy())
    path = folder / f"shard-{uuid.uuid4().hex[:16]}.safetensors"
    with atomic_file(path, "wb") as stream:
        features = features.contiguous()
        metadata = {_HASH: _hash(id_tensor.numpy(), features)}
        stream.write(save({"features": features, "ids": id_tensor}, metadata))
    return path


def _hash(ids: NDArray[np.uint8], features: Tensor) -> str:
    """SHA-256 of a shard's content."""
    digest = hashlib.sha256()
    values: Any
    for values in (np.ascontiguousarray(ids), features.reshape(-1).view(torch.uint8).numpy()):
        digest.update(values)
    return digest.hexdigest()


def open_shard(path: Path, tokens: int, width: int, dtype: torch.dtype) -> Shard:
    """Memory-map a shard.

    Args:
        path: its file.
        tokens: Q, which its features must have.
        width: F, which they must have.
        dtype: which they must have.

    Raises:
        ValueError: it is no complete shard of such features.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        header = parse_header(file, size)
        # A private map: torch requires writable memory, and what is written does not reach the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    features, ids = header.tensors["features"], header.tensors["ids"]
    if header.end != size:
        raise ValueError(f"it has {size:,} bytes and should have {header.end:,}")
    count = ids["shape"][0]
    if features["shape"] != [count, tokens, width] or SAFETENSORS_DTYPES.get(features["dtype"]) != dtype:
        raise ValueError(f"it holds {features['dtype']} features of shape {features['shape']}")
    start = header.start + features["data_offsets"][0]
    values = torch.frombuffer(mapped, dtype=dtype, count=count * tokens * width, offset=start)
    numbers = np.frombuffer(mapped, np.uint8, count * HASH_BYTES, header.start + ids["data_offsets"][0])
    # Shards of older versions have no hash.
    written = header.metadata.get(_HASH)
    return Shard(path, numbers.reshape(count, HASH_BYTES).copy(), values.view(count, tokens, width), written)


class StoredFeatures:
    """Features of N images in a fixed order, read from disk when they are indexed.

    Args:
        shards: the open shards.
        shard_of: (N,) the shard of each image.
        row_of: (N,) its row in that shard.
    """

    def __init__(self, shards: Sequence[Shard], shard_of: NDArray[np.int64], row_of: NDArray[np.int64]) -> None:
        self._shards, self._shard_of, self._row_of = shards, shard_of, row_of

    def __len__(self) -> int:
        return len(self._shard_of)

    def __getitem__(self, rows: slice | Sequence[int]) -> Tensor:
        """Copies of some images' features, (B, Q, F) on the CPU.

        Raises:
            DataError: some are not finite; names the shard.
        """
        indices = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        images = [self._shards[self._shard_of[index]].features[int(self._row_of[index])] for index in indices]
        features = torch.stack(images)
        # One NaN or infinity makes the sum non-finite, and a sum takes less time than a test of each number.
        if not features.sum(dtype=torch.float32).isfinite() and not features.isfinite().all():
            bad = next(index for index, image in zip(indices, images, strict=True) if not image.isfinite().all())
            raise DataError(
                f"'{self._shards[self._shard_of[bad]].path}' holds features that are not numbers; remove this file to "
                "have them computed again."
            )
        return features

    def every(self, step: int, first: int = 0) -> StoredFeatures:
        """Every `step`-th image, beginning with image `first`."""
        return StoredFeatures(self._shards, self._shard_of[first::step], self._row_of[first::step])


class FeatureStore:
    """The features of one pair of towers and transform.

    Args:
        root: folder of all stores.
        identity: of towers and transform.
    """

    def __init__(self, root: Path, identity: TowerIdentity) -> None:
        self.identity = identity
        self.folder = root / identity.key
        self._shards: list[Shard] = []
        self._opened: set[str] = set()
        self._keys = np.zeros(0, _KEY)
        self._locations = np.zeros((0, 2), np.int64)

    def refresh(self) -> None:
        """Open the shards that any process added since; one that is incomplete is skipped with a warning."""
        new = []
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name in self._opened:
                continue
            self._opened.add(path.name)
            try:
                new.append(open_shard(path, self.identity.tokens, self.identity.width, self.identity.dtype))
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s is no complete shard and is skipped: %s", path, error)
        if new:
            self._index([*self._shards, *new])

    def _index(self, shards: list[Shard]) -> None:
        """Index the images of these shards."""
        self._shards = shards
        keys, locations = [np.zeros(0, _KEY)], [np.zeros((0, 2), np.int64)]
        for number, shard in enumerate(shards):
            keys.append(_keys(shard.ids))
            locations.append(np.column_stack((np.full(len(shard.ids), number), np.arange(len(shard.ids)))))
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._locations = np.concatenate(locations)[first]

    @property
    def is_empty(self) -> bool:
        """Whether it holds no features."""
        return not self._shards

    def used(self, contents: Sequence[bytes]) -> list[str]:
        """Names of the shards with these images' features."""
        rows = self._find(contents)
        return [self._shards[number].path.name for number in np.unique(self._locations[rows[rows >= 0], 0]).tolist()]

    def damaged(self, names: Sequence[str]) -> list[str]:
        """Those of the named shards whose content is not what was written; each is read completely."""
        shards = {shard.path.name: shard for shard in self._shards}
        return [name for name, intact in prefetch_map(names, lambda name: shards[name].is_intact()) if not intact]

    def exclude(self, names: Sequence[str]) -> None:
        """Ignore some shards, with a warning; their files stay."""
        for name in names:
            logger.warning(
                "%s is damaged: its content is not what was written. It is ignored, and its images are encoded "
                "again; remove it to free its space.",
                self.folder / name,
            )
        if names:
            self._index([shard for shard in self._shards if shard.path.name not in names])

    def __contains__(self, content: bytes) -> bool:
        return bool(self._find([content])[0] >= 0)

    def missing(self, contents: Sequence[bytes]) -> list[int]:
        """Indices of the images without features; of images with the same content only the first."""
        rows = self._find(contents)
        first = {content: index for index, content in reversed(list(enumerate(contents)))}
        return [index for index in np.flatnonzero(rows < 0).tolist() if first[contents[index]] == index]

    def add(self, contents: Sequence[bytes], features: Tensor) -> None:
        """Write features (N, Q, F) of N images as one shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        header = self.folder / "header.json"
        if not header.exists():
            with atomic_file(header, "w") as stream:
                stream.write(json.dumps(self.identity.describe(), indent=2) + "\n")
        write_shard(self.folder, contents, features)

    def read(self, contents: Sequence[bytes]) -> StoredFeatures:
        """The features of N images, in this order.

        Raises:
            KeyError: those of some image are missing.
        """
        rows = self._find(contents)
        if len(rows) and rows.min() < 0:
            raise KeyError(contents[int(np.argmin(rows))].hex())
        return StoredFeatures(self._shards, self._locations[rows, 0], self._locations[rows, 1])

    def _find(self, contents: Sequence[bytes]) -> NDArray[np.int64]:
        """The index of each image among the keys, or -1."""
        keys = _keys(np.frombuffer(b"".join(contents), np.uint8).reshape(-1, HASH_BYTES))
        if not len(self._keys):
            return np.full(len(keys), -1)
        index = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[index] == keys, index, -1)


_KEY = np.dtype([("high", np.uint64), ("low", np.uint64)])


def _keys(ids: NDArray[np.uint8]) -> NDArray[np.void]:
    """Content ids (N, 16) as sortable numbers, (N,)."""
    return np.ascontiguousarray(ids).view(_KEY).reshape(-1)
