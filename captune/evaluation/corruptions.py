"""Seeded image corruptions at five strengths, to measure the robustness of a model.

Strengths follow ImageNet-C (Hendrycks and Dietterich, ICLR 2019) where it has the corruption; lengths are shares of the
image, so that they mean the same at any size. Random numbers depend on image and kind, not on the strength: a stronger
corruption is more of the same.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

__all__ = ["CORRUPTIONS", "STRENGTHS", "corrupt"]

STRENGTHS: Final = (1, 2, 3, 4, 5)
"""From slight to severe."""

_BLUR = (0.01, 0.02, 0.03, 0.045, 0.06)  # standard deviation as a share of the shorter side
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation as a share of the range of grey levels
_QUALITY = (25, 18, 15, 10, 7)  # of JPEG
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added or subtracted, as a share of the range
_COVERED = (0.05, 0.1, 0.2, 0.35, 0.5)  # share of the area


def corrupt(image: Image.Image, kind: str, strength: int, *, image_id: str, seed: int = 0) -> Image.Image:
    """Corrupt an image.

    Args:
        image: mode RGB.
        kind: a key of `CORRUPTIONS`.
        strength: 1-5.
        image_id: with the seed it decides noise, positions and directions.
        seed: equal seeds give equal pixels.

    Returns:
        a new RGB image of the same size.

    Raises:
        ValueError: no such kind or strength.
    """
    if kind not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(f"there is no corruption {kind!r} of strength {strength!r}")
    digest = hashlib.sha256(f"{seed}/{kind}/{image_id}".encode("utf-8", "surrogatepass")).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return CORRUPTIONS[kind](image, strength - 1, random)


def _blur(image: Image.Image, strength: int, random: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(_BLUR[strength] * min(image.size)))


def _noise(image: Image.Image, strength: int, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noise = random.standard_normal(pixels.shape, np.float32)
    return _image(pixels + noise * (255 * _NOISE[strength]))


def _jpeg(image: Image.Image, strength: int, random: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY[strength])
    return Image.open(stream).convert("RGB")


def _brightness(image: Image.Image, strength: int, random: np.random.Generator) -> Image.Image:
    """Half of the images brighter, half of them darker."""
    direction = 1 if random.random() < 0.5 else -1
    return _image(np.asarray(image, np.float32) + direction * 255 * _BRIGHTNESS[strength])


def _occlusion(image: Image.Image, strength: int, random: np.random.Generator) -> Image.Image:
    """A grey rectangle of the image's proportions around a random point, moved inside the image."""
    width, height = image.size
    side = _COVERED[strength] ** 0.5
    covered = round(side * width), round(side * height)
    x, y = random.random(2)
    left = min(max(0, round(x * width - covered[0] / 2)), width - covered[0])
    top = min(max(0, round(y * height - covered[1] / 2)), height - covered[1])
    corrupted = image.copy()
    corrupted.paste((128, 128, 128), (left, top, left + covered[0], top + covered[1]))
    return corrupted


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


CORRUPTIONS: Final[dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "occlusion": _occlusion,
}
"""Each kind by name."""
