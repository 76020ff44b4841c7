"""The frozen part's output, computed once per image.

Everything in front of the projection is frozen and the transform has no randomness, so an image's features never
change in a run: training and evaluation read them from here and never run the towers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captune.data.images import load_image, to_pixels
from captune.model import MiniGPT4

__all__ = ["encode_images"]


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
