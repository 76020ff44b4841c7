"""Pixels of any kind to RGB of 8 bits, one way for every command.

8-bit images become RGB as Pillow's `convert("RGB")` makes them, to the bit. Values of more bits are scaled and never
clipped:

- Colours of 16 bits keep their high byte; Pillow itself reads them so.
- Grey of more than 8 bits keeps the high 8 of its bits: 12 where a TIFF says 12 or no value is above 4095, else 16.
  Where no value is above 255, the values are 8-bit ones already. Beyond 65535, the range of the values is stretched.
- Grey of floating point is taken for 0-1 where no value is above 1, for 0-255 where none is above 255; otherwise, or
  with values below 0, the range of the values is stretched. What is no number is black.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["is_turned", "to_rgb", "upright"]

_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of a TIFF


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in mode RGB; see the module for the rules."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        return _grey(_from_floats(np.asarray(image, np.float64)))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey(_from_integers(np.asarray(image).astype(np.int64), image))
    if image.mode in ("P", "PA", "RGBa"):
        # The same colours as in one step, without Pillow's warning about transparency in bytes.
        return image.convert("RGBA").convert("RGB")
    if image.mode == "La":
        return image.convert("LA").convert("RGB")
    return image.convert("RGB")


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def _from_integers(values: NDArray[np.int64], image: Image.Image) -> NDArray[Any]:
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == 0 and image.mode != "I":
        values = 0xFFFF - values  # 0 is white; Pillow turns that over for 8 bits only
    most = int(values.max())
    twelve = tags.get(_BITS_PER_SAMPLE) == (12,)
    if most > 0xFFFF:
        return _stretched(values.astype(np.float64))
    if not twelve and most <= 0xFF:
        return values
    return values >> (4 if twelve or most <= 0xFFF else 8)


def _from_floats(values: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.0)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    if low < 0 or high > 255:
        return np.where(finite, _stretched(values, low, high), 0.0)
    rounded: NDArray[np.float64] = np.rint(values * (255.0 if high <= 1 else 1.0))
    return rounded


def _stretched(values: NDArray[np.float64], low: float | None = None, high: float | None = None) -> NDArray[np.float64]:
    """Values with their range brought to 0-255."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high <= low:
        return np.zeros_like(values)
    # Halves, since the difference of two floats may be beyond the largest one.
    share = (values / 2 - low / 2) / (high / 2 - low / 2)
    rounded: NDArray[np.float64] = np.rint(share * 255.0)
    return rounded


def is_turned(image: Image.Image) -> bool:
    """Whether the camera noted in EXIF that the image is stored turned or mirrored."""
    return _turn(image) is not None


def upright(stored: Image.Image, pixels: Image.Image) -> Image.Image:
    """Pixels of an image as EXIF says that it was taken.

    Args:
        stored: the image as it was opened, which knows its EXIF data.
        pixels: of that image.
    """
    turn = _turn(stored)
    return pixels if turn is None else pixels.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # on damaged EXIF data Pillow's readers raise nearly anything; the pixels are whole
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None
