"""Images in any form as RGB, and as the square of pixels that MiniGPT-4 sees."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from captune.data.images import decode_image, load_image
from captune.errors import DataError

__all__ = ["as_list", "as_rgb", "name_of"]


def as_list(pictures: Any) -> tuple[list[Any], bool]:
    """Images as a list, and whether only one was given."""
    one = isinstance(pictures, (str, bytes, os.PathLike, Image.Image))
    one = one or (isinstance(pictures, np.ndarray) and pictures.ndim < 4)
    return ([pictures] if one else list(pictures)), one


def name_of(picture: Any, name: str = "") -> str:
    """What messages call an image."""
    if name:
        return name
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else "given"


def as_rgb(picture: Any, name: str = "", *, exif: bool = False) -> Image.Image:
    """An image in mode RGB.

    Args:
        picture: a path, the bytes of a file, a Pillow image, or an array.
        name: what messages call it.
        exif: turn it upright as its EXIF data say. The original MiniGPT-4 does not.

    Raises:
        DataError: it cannot be read; the message says why.
    """
    if isinstance(picture, bytes):
        if not picture:
            raise DataError(f"cannot decode the image '{name_of(picture, name)}': the file is empty.")
        return decode_image(io.BytesIO(picture), name_of(picture, name), exif=exif)
    if isinstance(picture, Image.Image):
        picture = ImageOps.exif_transpose(picture) if exif else picture
        if not picture.mode.startswith("I"):
            rgb: Image.Image = picture.convert("RGB")
            return rgb
        # Grey of more than 8 bits is scaled, as in a file; Pillow's own conversion clips it to white.
        file = io.BytesIO()
        picture.save(file, "tiff")
        file.seek(0)
        return decode_image(file, name_of(picture, name))
    if isinstance(picture, np.ndarray):
        return Image.fromarray(_checked(picture)).convert("RGB")
    return load_image(picture, exif=exif)


def _checked(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise DataError(
            f"An image array has shape {array.shape} and type {array.dtype}; expected (height, width, 3) uint8."
        )
    return array
