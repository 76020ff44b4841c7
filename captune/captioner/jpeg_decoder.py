"""Faster decoding of JPEG files: libjpeg-turbo, and torch's antialiased bicubic resize.

The decoded pixels are Pillow's to the bit (the same library, the same settings); the resize rounds otherwise, by at
most one grey level. Whatever is not a plain JPEG (CMYK, broken, another format) is left to Pillow, with its messages.
"""

from __future__ import annotations

import io
import os
import stat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from captune.data import MAX_PIXELS, is_turned, to_pixels, too_many_scans
from captune.errors import MissingExtraError

__all__ = ["TurboJpegDecoder"]

_COLOURS = ("Gray", "YCbCr", "RGB")


class TurboJpegDecoder:
    """Decodes JPEG files.

    Raises:
        MissingExtraError: simplejpeg is not installed.
    """

    def __init__(self) -> None:
        try:
            import simplejpeg
        except ImportError as error:
            raise MissingExtraError("--fast-decode", "bulk") from error
        self._jpeg: Any = simplejpeg

    def square(self, picture: Any, size: int, *, exif: bool = True) -> NDArray[np.float32] | None:
        """(3, S, S) float32 pixels as MiniGPT-4 sees them, or None for what Pillow has to read.

        Args:
            picture: a path or the bytes of a file; other pictures are Pillow's.
            size: S.
            exif: whether the image is to stand upright; turning it is left to Pillow.
        """
        rgb = self._rgb(_data(picture), exif)
        if rgb is None:
            return None
        planes = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
        resized = F.interpolate(planes, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        # At its own size Pillow copies; what is left to do is the scale and the mean.
        return to_pixels(Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy()), size)

    def image(self, picture: Any, *, exif: bool = True) -> Image.Image | None:
        """An RGB image, or None for what Pillow has to read or turn upright; see `square`."""
        rgb = self._rgb(_data(picture), exif)
        return None if rgb is None else Image.fromarray(rgb)

    def _rgb(self, data: bytes | None, exif: bool) -> NDArray[np.uint8] | None:
        if data is None or data[:2] != b"\xff\xd8":
            return None
        try:
            height, width, colours, _ = self._jpeg.decode_jpeg_header(data)
            if colours not in _COLOURS or height * width > MAX_PIXELS or too_many_scans(io.BytesIO(data)):
                return None
            if exif and _is_turned(data):
                return None
            rgb: NDArray[np.uint8] = self._jpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        except (ValueError, RuntimeError):
            return None
        return rgb


def _data(picture: Any) -> bytes | None:
    """The bytes of a file; None where there are none to be had."""
    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, (str, os.PathLike)):
        return None
    try:
        if not stat.S_ISREG(os.stat(picture).st_mode):
            return None
        with open(picture, "rb") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def _is_turned(data: bytes) -> bool:
    """Whether the camera noted that the image does not stand upright."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return is_turned(image)
    except Exception:  # on broken headers Pillow raises nearly anything; it then says itself what is wrong
        return True
