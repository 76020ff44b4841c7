"""Features of images on disk, looked up by the content of the images.

    STORE/<identity>/header.json             what made the features: towers, transform, number format
    STORE/<identity>/shard-*.safetensors     features and content ids of about a thousand images each

An image is identified by a hash of its bytes, so a renamed or copied file is recognized, and a changed one is not.
Another tower or transform has another identity and a separate folder; nothing has to be deleted to be valid. Any number
of runs and processes may read and add at once: each writes its shards, and an image that is stored twice is read once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import NDArray

from captune.data import HASH_BYTES, atomic_file, prefetch_map
from captune.errors import DataError
from captune.features.shards import Batch, Shard, ShardFormat, open_shard, write_shard

__all__ = ["FeatureStore", "Identity", "StoredFeatures"]

logger = logging.getLogger(__name__)


class Identity(Protocol[Batch]):
    """What features depend on besides the image."""

    @property
    def key(self) -> str:
        """The folder's name."""

    @property
    def form(self) -> ShardFormat[Batch]:
        """How features are packed into shards."""

    def describe(self) -> Mapping[str, Any]:
        """Content of the store's header."""


class StoredFeatures(Generic[Batch]):
    """Features of N images in a fixed order, read from disk when they are indexed.

    Args:
        shards: the open shards.
        shard_of: (N,) the shard of each image.
        row_of: (N,) its row in that shard.
        form: of the shards.
    """

    def __init__(
        self,
        shards: Sequence[Shard[Batch]],
        shard_of: NDArray[np.int64],
        row_of: NDArray[np.int64],
        form: ShardFormat[Batch],
    ) -> None:
        self._shards, self._shard_of, self._row_of, self._form = shards, shard_of, row_of, form

    def __len__(self) -> int:
        return len(self._shard_of)

    def __getitem__(self, rows: slice | Sequence[int]) -> Batch:
        """Copies of B images' features on the CPU: a tensor (B, Q, F) if all images have one shape.

        Raises:
            DataError: some are not finite; names the shard.
        """
        indices = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        images = [self._shards[self._shard_of[index]].image(int(self._row_of[index])) for index in indices]
        batch = self._form.batch(images)
        if not self._form.is_finite(batch):
            single = (self._form.is_finite(self._form.batch([image])) for image in images)
            bad = next(index for index, is_finite in zip(indices, single, strict=True) if not is_finite)
            raise DataError(
                f"'{self._shards[self._shard_of[bad]].path}' holds features that are not numbers; remove this file to "
                "have them computed again."
            )
        return batch

    def every(self, step: int, first: int = 0) -> StoredFeatures[Batch]:
        """Every `step`-th image, beginning with image `first`."""
        return StoredFeatures(self._shards, self._shard_of[first::step], self._row_of[first::step], self._form)


class FeatureStore(Generic[Batch]):
    """The features of one pair of towers and transform.

    Args:
        root: folder of all stores.
        identity: of towers and transform.
    """

    def __init__(self, root: Path, identity: Identity[Batch]) -> None:
        self.identity = identity
        self.folder = root / identity.key
        self._shards: list[Shard[Batch]] = []
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
                new.append(open_shard(path, self.identity.form))
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s is no complete shard and is skipped: %s", path, error)
        if new:
            self._index([*self._shards, *new])

    def _index(self, shards: list[Shard[Batch]]) -> None:
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

    def add(self, contents: Sequence[bytes], features: Batch) -> None:
        """Write features of N images as one shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        header = self.folder / "header.json"
        if not header.exists():
            with atomic_file(header, "w") as stream:
                stream.write(json.dumps(self.identity.describe(), indent=2) + "\n")
        write_shard(self.folder, contents, features, self.identity.form)

    def read(self, contents: Sequence[bytes]) -> StoredFeatures[Batch]:
        """The features of N images, in this order.

        Raises:
            KeyError: those of some image are missing.
        """
        rows = self._find(contents)
        if len(rows) and rows.min() < 0:
            raise KeyError(contents[int(np.argmin(rows))].hex())
        return StoredFeatures(self._shards, self._locations[rows, 0], self._locations[rows, 1], self.identity.form)

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
