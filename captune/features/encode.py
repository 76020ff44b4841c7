"""Running the towers over image files: into memory, or into the store shard by shard.

Everything before the projection is frozen and the transform has no randomness, so an image's features never change in a
run: training and evaluation compute them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captune.data.images import load_image, to_pixels
from captune.data.prefetch import prefetch_map
from captune.errors import DataError
from captune.features.store import FeatureStore
from captune.model import MiniGPT4

__all__ = ["UnreadableImage", "encode_images", "encode_missing"]

SHARD = 1024
"""Images of a shard: about 50 MB of bfloat16 features, and what a killed run has to compute again at most."""


_OVERFLOW = "a weight of the vision tower is broken, or its number format overflows (try model.dtype=float32)"


class UnreadableImage(NamedTuple):
    """An image whose features cannot be made.

    Attributes:
        place: its place in the list of files.
        reason: why, with the file's name.
    """

    place: int
    reason: str


@torch.inference_mode()
def encode_missing(
    model: MiniGPT4,
    files: Sequence[Path],
    contents: Sequence[bytes],
    store: FeatureStore,
    places: Sequence[int],
    *,
    batch_size: int = 32,
    exif_rotation: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[UnreadableImage]:
    """Make and store features.

    Args:
        model: its towers are run in the dtype and on the device they have.
        files: image files.
        contents: their content ids.
        store: receives the features.
        places: which of the files.
        batch_size: images encoded at once.
        exif_rotation: turn images upright as their EXIF data say.
        on_progress: called with the number of images that are done.

    Returns:
        The images that cannot be decoded, and those whose features are not numbers: these are not stored.
    """
    weight = model.vision.parameters().__next__()
    size = int(model.config.vision_config.image_size)
    broken: list[UnreadableImage] = []
    done = 0
    shard: list[tuple[int, torch.Tensor]] = []
    waiting: list[tuple[int, NDArray[np.float32]]] = []

    def encode() -> None:
        if waiting:
            pixels = torch.from_numpy(np.stack([values for _, values in waiting])).to(weight.device, weight.dtype)
            encoded = model.encode_features(pixels).cpu()
            usable = encoded.flatten(1).isfinite().all(dim=1).tolist()
            for (place, _), features, is_usable in zip(waiting, encoded, usable, strict=True):
                if is_usable:
                    shard.append((place, features))
                else:
                    broken.append(
                        UnreadableImage(place, f"the features of '{files[place]}' are not numbers: {_OVERFLOW}.")
                    )
            waiting.clear()
            if on_progress is not None:
                on_progress(done)

    def write() -> None:
        if shard:
            store.add([contents[place] for place, _ in shard], torch.stack([features for _, features in shard]))
            shard.clear()

    def pixels_of(place: int) -> NDArray[np.float32] | DataError:
        try:
            return to_pixels(load_image(files[place], exif=exif_rotation), size)
        except DataError as error:
            return error

    for place, found in prefetch_map(places, pixels_of, ahead=2 * batch_size):
        done += 1
        if isinstance(found, DataError):
            broken.append(UnreadableImage(place, str(found)))
            continue
        waiting.append((place, found))
        if len(waiting) == batch_size:
            encode()
        if len(shard) >= SHARD:
            write()
    encode()
    write()
    return broken


@torch.inference_mode()
def encode_images(
    model: MiniGPT4,
    paths: Sequence[Path],
    *,
    batch_size: int = 32,
    workers: int = 2,
    exif_rotation: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of image files.

    Args:
        model: its towers are run in the dtype and on the device they have.
        paths: N files.
        batch_size: images encoded at once.
        workers: threads that decode images meanwhile.
        exif_rotation: turn images upright as their EXIF data say.
        on_progress: called with (done, N) after each batch.

    Returns:
        (N, Q, F) features on the CPU, in the order of `paths`.

    Raises:
        DataError: an image cannot be read; names the file.
    """
    weight = model.vision.embeddings.patch_embedding.weight
    features = torch.empty(len(paths), model.config.image_tokens, model.config.feature_size, dtype=weight.dtype)
    done = 0
    size = int(model.config.vision_config.image_size)
    for pixels in _pixel_batches(paths, size, batch_size, workers, exif_rotation):
        encoded = model.encode_features(pixels.to(weight.device, weight.dtype))
        features[done : done + len(encoded)] = encoded
        done += len(encoded)
        if on_progress is not None:
            on_progress(done, len(paths))
    return features


def _pixel_batches(
    paths: Sequence[Path], size: int, batch_size: int, workers: int, exif_rotation: bool
) -> Iterator[Tensor]:
    """Decoded batches in order; Pillow lets go of the interpreter while it decodes, so threads are enough."""

    def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return to_pixels(load_image(path, exif=exif_rotation), size)

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), batch_size):
            yield torch.from_numpy(np.stack(list(pool.map(pixels, paths[start : start + batch_size]))))
