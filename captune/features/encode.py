"""Encoding of image files with the towers: in memory, or into the store shard by shard.

Everything before the projection is frozen and the transform has no randomness, so an image's features never change in a
run: training and evaluation compute them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captune.data import load_image, prefetch_map, to_pixels
from captune.errors import DataError
from captune.features.store import FeatureStore
from captune.model import MiniGPT4

__all__ = ["UnreadableImage", "encode_images", "encode_missing"]

SHARD = 1024
"""Images of a shard: about 50 MB of bfloat16 features, and at most what a killed run has to compute again."""

_OVERFLOW = "a weight of the vision tower is broken, or its number format overflows (try model.dtype=float32)"


class UnreadableImage(NamedTuple):
    """An image without features.

    Attributes:
        position: its index in the list of files.
        reason: why, with the file's name.
    """

    position: int
    reason: str


@torch.inference_mode()
def encode_missing(
    model: MiniGPT4,
    files: Sequence[Path],
    contents: Sequence[bytes],
    store: FeatureStore,
    missing: Sequence[int],
    *,
    batch_size: int = 32,
    exif_rotation: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[UnreadableImage]:
    """Compute and store features.

    Args:
        model: its towers run in their dtype, on their device.
        files: image files.
        contents: their content ids.
        store: receives the features.
        missing: indices of the files to encode.
        batch_size: images encoded at once.
        exif_rotation: apply the EXIF rotation of images.
        on_progress: called with the number of finished images.

    Returns:
        The images that cannot be decoded, and those with non-finite features, which are not stored.
    """
    unreadable: list[UnreadableImage] = []
    done = 0
    shard: list[tuple[bytes, Tensor]] = []

    def write() -> None:
        if shard:
            store.add([content for content, _ in shard], torch.stack([features for _, features in shard]))
            shard.clear()

    for indices, encoded, undecodable in _encoded_batches(model, files, missing, batch_size, exif_rotation):
        done += len(indices) + len(undecodable)
        unreadable += undecodable
        usable = encoded.flatten(1).isfinite().all(dim=1).tolist()
        for index, features, is_usable in zip(indices, encoded, usable, strict=True):
            if is_usable:
                shard.append((contents[index], features))
            else:
                reason = f"the features of '{files[index]}' are not numbers: {_OVERFLOW}."
                unreadable.append(UnreadableImage(index, reason))
        if on_progress is not None:
            on_progress(done)
        if len(shard) >= SHARD:
            write()
    write()
    return unreadable


@torch.inference_mode()
def encode_images(
    model: MiniGPT4,
    files: Sequence[Path],
    *,
    batch_size: int = 32,
    exif_rotation: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Compute features in memory.

    Args:
        model: its towers run in their dtype, on their device.
        files: N image files.
        batch_size: images encoded at once.
        exif_rotation: apply the EXIF rotation of images.
        on_progress: called with (done, N) after each batch.

    Returns:
        (N, Q, F) features on the CPU, in the order of `files`.

    Raises:
        DataError: an image cannot be read; names the file.
    """
    dtype = next(model.vision.parameters()).dtype
    features = torch.empty(len(files), model.config.image_tokens, model.config.feature_size, dtype=dtype)
    done = 0
    for _, encoded, undecodable in _encoded_batches(model, files, range(len(files)), batch_size, exif_rotation):
        if undecodable:
            raise DataError(undecodable[0].reason)
        features[done : done + len(encoded)] = encoded
        done += len(encoded)
        if on_progress is not None:
            on_progress(done, len(files))
    return features


def _encoded_batches(
    model: MiniGPT4, files: Sequence[Path], indices: Sequence[int], batch_size: int, exif_rotation: bool
) -> Iterator[tuple[list[int], Tensor, list[UnreadableImage]]]:
    """Encode files in order, in batches of images that can be decoded.

    Yields:
        B indices, their features (B, Q, F) on the CPU, and the images before them that cannot be decoded.
    """
    size = int(model.config.vision_config.image_size)
    batch: list[tuple[int, NDArray[np.float32]]] = []
    undecodable: list[UnreadableImage] = []

    def pixels_of(index: int) -> NDArray[np.float32] | DataError:
        try:
            return to_pixels(load_image(files[index], exif=exif_rotation), size)
        except DataError as error:
            return error

    def encoded() -> tuple[list[int], Tensor, list[UnreadableImage]]:
        features = model.encode_pixels([pixels for _, pixels in batch]).cpu()
        return [index for index, _ in batch], features, undecodable

    for index, pixels in prefetch_map(indices, pixels_of, ahead=2 * batch_size):
        if isinstance(pixels, DataError):
            undecodable.append(UnreadableImage(index, str(pixels)))
            continue
        batch.append((index, pixels))
        if len(batch) == batch_size:
            yield encoded()
            batch, undecodable = [], []
    if batch:
        yield encoded()
    elif undecodable:
        empty = torch.empty(
            0, model.config.image_tokens, model.config.feature_size, dtype=next(model.vision.parameters()).dtype
        )
        yield [], empty, undecodable
