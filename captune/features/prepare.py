"""Preparation of features: read those of a list of image files from the store, after the missing ones are encoded."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from captune.config import ModelConfig, RunConfig
from captune.data import content_ids, folder_lock, load_image
from captune.distributed import DistributedContext
from captune.errors import DataError
from captune.features.encode import UnreadableImage, encode_missing
from captune.features.identity import tower_identity
from captune.features.store import FeatureStore, StoredFeatures
from captune.hub import ResolvedModel, resolve_model
from captune.model import TOWERS, load_model

__all__ = ["StoredImages", "features_of", "store_root"]

logger = logging.getLogger(__name__)

FOLDER = "features"
_UNREADABLE = bytes(16)


@dataclass(frozen=True)
class StoredImages:
    """Features of the images that can be read.

    Attributes:
        features: of the N - U readable images, in their order.
        readable: their indices among the N files.
        unreadable: the U others, each with the reason.
        digest: hash of the content of all N files, in their order.
    """

    features: StoredFeatures
    readable: tuple[int, ...]
    unreadable: tuple[UnreadableImage, ...]
    digest: str = ""

    def require_all(self, what: str) -> StoredFeatures:
        """The features, where no image may be missing.

        Raises:
            DataError: some image is unreadable; names up to three.
        """
        if self.unreadable:
            reasons = " ".join(item.reason for item in self.unreadable[:3])
            raise DataError(f"{len(self.unreadable)} of the {what} cannot be read: {reasons}")
        return self.features


def store_root(config: RunConfig) -> Path:
    """The folder of a run's features.

    As configured; by default next to the training manifest, or in the run's folder where that is read-only.
    """
    if config.data.features is not None:
        return config.data.features
    default = config.data.train.parent / FOLDER
    existing = next(folder for folder in (default, default.parent, Path()) if folder.is_dir())
    return default if os.access(existing, os.W_OK) else config.output / FOLDER


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
    hashes = group.gather(content_ids(group.shard(files), root), len(files))
    contents = [_UNREADABLE if isinstance(item, OSError) else item for item in hashes]
    unreadable = [UnreadableImage(n, _reason(files[n])) for n, item in enumerate(hashes) if isinstance(item, OSError)]
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
                _check_disk(store, len(indices))
                if exif_rotation and (root / identity.as_stored.key).exists() and store.is_empty:
                    logger.warning(
                        "The features in %s were computed without the EXIF rotation of images, which is applied now; "
                        "all images are encoded again (data.exif_rotation=false uses those features).",
                        root,
                    )
                unreadable += _encode(
                    config, files, contents, store, indices, group, batch_size, exif_rotation, on_progress
                )
                store.refresh()
    reason_of = {contents[item.position]: item.reason for item in unreadable}
    unreadable += [UnreadableImage(n, reason_of[content]) for n, content in enumerate(contents) if content in reason_of]
    reasons = dict(reversed(unreadable))
    readable = [index for index in range(len(files)) if index not in reasons]
    try:
        features = store.read([contents[index] for index in readable])
    except KeyError as error:
        raise DataError(
            f"{store.folder} has no features of some images that another process made; set data.features to a folder "
            "that all machines share."
        ) from error
    digest = hashlib.blake2b(b"".join(contents), digest_size=16).hexdigest()
    named = tuple(UnreadableImage(*item) for item in sorted(reasons.items()))
    return StoredImages(features, tuple(readable), named, digest)


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


def _check_disk(store: FeatureStore, images: int) -> None:
    """Check that the disk has room for the features.

    Raises:
        DataError: it has too little for so many images.
    """
    identity = store.identity
    needed = images * identity.tokens * identity.width * identity.dtype.itemsize
    existing = next(folder for folder in (store.folder, *store.folder.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"The features of {images:,} images take {needed / 1e9:.1f} GB, and the disk of {store.folder} has "
            f"{free / 1e9:.1f} GB free; set data.features to a folder with more room."
        )


def _reason(path: Path) -> str:
    """Why an image cannot be read: the error message of decoding."""
    try:
        load_image(path)
    except DataError as error:
        return str(error)
    return f"cannot read the image '{path}'."
