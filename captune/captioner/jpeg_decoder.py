"""Faster decoding of JPEG files with libjpeg-turbo, and torch's antialiased bicubic resize.

The decoded pixels equal Pillow's (the same library and settings); the resized ones differ by at most one grey level.
Pillow decodes all other files (CMYK, broken, another format) and reports their errors.
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

    def square(self, image: Any, size: int, *, exif: bool = True) -> NDArray[np.float32] | None:
        """(3, S, S) float32 pixels for MiniGPT-4, or None if Pillow has to decode the image.

        Args:
            image: a path or the bytes of a file; other images are Pillow's.
            size: S.
            exif: apply the EXIF rotation; Pillow decodes the images that have one.
        """
        rgb = self._rgb(_data(image), exif)
        if rgb is None:
            return None
        planes = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)
        resized = F.interpolate(planes, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        # Resizing to the same size is a copy, so this applies scale and mean only.
        return to_pixels(Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy()), size)

    def image(self, source: Any, *, exif: bool = True) -> Image.Image | None:
        """An RGB image, or None if Pillow has to decode it; see `square`."""
        rgb = self._rgb(_data(source), exif)
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


def _data(image: Any) -> bytes | None:
    """The bytes of a regular file; None for all other inputs."""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, (str, os.PathLike)):
        return None
    try:
        if not stat.S_ISREG(os.stat(image).st_mode):
            return None
        with open(image, "rb") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def _is_turned(data: bytes) -> bool:
    """Whether EXIF has a rotation."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return is_turned(image)
    except Exception:  # on broken headers Pillow raises nearly anything, and reports it when it decodes the image
        return True
