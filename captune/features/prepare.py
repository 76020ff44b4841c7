"""Preparation of features: read those of a list of image files from the store, after the missing ones are encoded."""

from __future__ import annotations

import gc
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic

import torch

from captune.config import ModelConfig
from captune.data import content_ids, folder_lock, load_image
from captune.distributed import DistributedContext
from captune.errors import DataError
from captune.features.encode import UnreadableImage, encode_missing
from captune.features.identity import tower_identity
from captune.features.shards import Batch
from captune.features.store import FeatureStore, StoredFeatures
from captune.hub import ResolvedModel, resolve_model
from captune.model import TOWERS, load_model

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Source = TypeVar("Source", default=StoredFeatures)
else:
    from typing import TypeVar

    Source = TypeVar("Source")

__all__ = [
    "StoredImages",
    "check_disk",
    "content_of",
    "features_of",
    "free_space",
    "readable_images",
    "stored_images",
]

logger = logging.getLogger(__name__)

FOLDER = "features"
_UNREADABLE = bytes(16)


@dataclass(frozen=True)
class StoredImages(Generic[Source]):
    """Features of the images that can be read.

    Attributes:
        features: of the N - U readable images, in their order: `StoredFeatures`, or a `PixelSource`.
        readable: their indices among the N files.
        unreadable: the U others, each with the reason.
        digest: hash of the content of all N files, in their order.
    """

    features: Source
    readable: tuple[int, ...]
    unreadable: tuple[UnreadableImage, ...]
    digest: str = ""

    def require_all(self, what: str) -> Source:
        """The features, where no image may be missing.

        Raises:
            DataError: some image is unreadable; names up to three.
        """
        if self.unreadable:
            reasons = " ".join(item.reason for item in self.unreadable[:3])
            raise DataError(f"{len(self.unreadable)} of the {what} cannot be read: {reasons}")
        return self.features


def features_of(
    config: ModelConfig | ResolvedModel,
    files: Sequence[Path],
    root: Path,
    group: DistributedContext,
    *,
    batch_size: int = 32,
    exif_rotation: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> StoredImages:
    """Features of image files, in their order; the towers are loaded only if features are missing.

    Args:
        config: the model of the towers.
        files: N image files.
        root: folder of all stores.
        group: the processes that divide the work.
        batch_size: images encoded at once.
        exif_rotation: apply the EXIF rotation of images.
        on_progress: called with (done, missing) while towers run.

    Raises:
        WeightsError: the model cannot be read.
        DataError: the store is not shared by all machines.
        OSError: the disk is full.
    """
    config = resolve_model(config)
    identity = tower_identity(config, group.device, root, exif_rotation=exif_rotation)
    store = FeatureStore(root, identity)

    def encode(contents: Sequence[bytes], missing: list[int]) -> list[UnreadableImage]:
        check_disk(store.folder, len(missing), identity.tokens * identity.width * identity.dtype.itemsize)
        if exif_rotation and (root / identity.as_stored.key).exists() and store.is_empty:
            logger.warning(
                "The features in %s were computed without the EXIF rotation of images, which is applied now; "
                "all images are encoded again (data.exif_rotation=false uses those features).",
                root,
            )
        return _encode(config, files, contents, store, missing, group, batch_size, exif_rotation, on_progress)

    return stored_images(store, files, root, group, encode)


def stored_images(
    store: FeatureStore[Batch],
    files: Sequence[Path],
    root: Path,
    group: DistributedContext,
    encode: Callable[[Sequence[bytes], list[int]], list[UnreadableImage]],
) -> StoredImages[StoredFeatures[Batch]]:
    """Features of image files from a store, after the missing ones are encoded.

    Args:
        store: of the features.
        files: N image files.
        root: folder of all stores.
        group: the processes that divide the work.
        encode: adds features to the store, with the files' content ids and the indices of the missing images of all
            processes; returns the images of all processes that have no features. One process at a time calls it.

    Raises:
        DataError: the store is not shared by all machines.
        OSError: the disk is full.
    """
    contents, unreadable = content_of(files, root, group)
    store.refresh()
    # One list for all processes: others may be adding to the same store right now.
    used = group.all_gather(store.used(contents))[0]
    store.exclude([name for names in group.all_gather(store.damaged(group.shard(used))) for name in names])
    without_content = {item.position for item in unreadable}

    def missing() -> list[int]:
        return group.all_gather([index for index in store.missing(contents) if index not in without_content])[0]

    if missing():
        # Two runs that need the same features compute them once: the second one waits and reads.
        with folder_lock(store.folder, "encoding images", wait=True):
            group.all_gather(None)
            store.refresh()
            if indices := missing():
                unreadable += encode(contents, indices)
                store.refresh()

    def read(readable: list[int]) -> StoredFeatures[Batch]:
        try:
            return store.read([contents[index] for index in readable])
        except KeyError as error:
            raise DataError(
                f"{store.folder} has no features of some images that another process made; set data.features to a "
                "folder that all machines share."
            ) from error

    return readable_images(contents, unreadable, read)


def content_of(
    files: Sequence[Path], root: Path, group: DistributedContext
) -> tuple[list[bytes], list[UnreadableImage]]:
    """Content ids of image files, and the files that cannot be read, whose ids are zeros.

    Args:
        files: N image files.
        root: folder of all stores, which caches the ids.
        group: the processes that divide the work.
    """
    hashes = group.gather(content_ids(group.shard(files), root), len(files))
    contents = [_UNREADABLE if isinstance(item, OSError) else item for item in hashes]
    bad = [UnreadableImage(n, _reason(files[n])) for n, item in enumerate(hashes) if isinstance(item, OSError)]
    return contents, bad


def readable_images(
    contents: Sequence[bytes], unreadable: Sequence[UnreadableImage], source: Callable[[list[int]], Source]
) -> StoredImages[Source]:
    """The images that can be read, without the unreadable ones and those with the same content.

    Args:
        contents: N content ids.
        unreadable: images that cannot be read.
        source: makes the features of images from their indices.
    """
    reason_of = {contents[item.position]: item.reason for item in unreadable}
    named = {n: reason_of[content] for n, content in enumerate(contents) if content in reason_of}
    named |= dict(reversed(unreadable))
    readable = [index for index in range(len(contents)) if index not in named]
    digest = hashlib.blake2b(b"".join(contents), digest_size=16).hexdigest()
    images = tuple(UnreadableImage(*item) for item in sorted(named.items()))
    return StoredImages(source(readable), tuple(readable), images, digest)


def _encode(
    config: ModelConfig | ResolvedModel,
    files: Sequence[Path],
    contents: Sequence[bytes],
    store: FeatureStore,
    missing: list[int],
    group: DistributedContext,
    batch_size: int,
    exif_rotation: bool,
    on_progress: Callable[[int, int], None] | None,
) -> list[UnreadableImage]:
    """Encode this process's shard of the missing images; the towers are released afterwards."""
    shard = group.shard(missing)
    unreadable: list[UnreadableImage] = []
    if shard:
        model = load_model(config, group.device, parts=TOWERS)

        def progress(done: int) -> None:
            if on_progress is not None:
                on_progress(done, len(shard))

        unreadable = encode_missing(
            model,
            files,
            contents,
            store,
            shard,
            batch_size=batch_size,
            exif_rotation=exif_rotation,
            on_progress=progress,
        )
        del model
        gc.collect()
        if group.device.type == "cuda":
            torch.cuda.empty_cache()
    return [item for items in group.all_gather(unreadable) for item in items]


def free_space(folder: Path) -> int:
    """Free bytes of a folder's disk; the folder may not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def check_disk(folder: Path, images: int, bytes_per_image: float) -> None:
    """Check that the disk of a store has room for the features of images.

    Raises:
        DataError: it has too little.
    """
    needed, free = images * bytes_per_image, free_space(folder)
    if needed > free:
        raise DataError(
            f"The features of {images:,} images take {needed / 1e9:.1f} GB, and the disk of {folder} has "
            f"{free / 1e9:.1f} GB free; set data.features to a folder with more room."
        )


def _reason(path: Path) -> str:
    """Why an image cannot be read: the error message of decoding."""
    try:
        load_image(path)
    except DataError as error:
        return str(error)
    return f"cannot read the image '{path}'."
