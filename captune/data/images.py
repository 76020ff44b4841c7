"""Image files in, RGB pixels out: the pixels of the original MiniGPT-4, and a sentence for every bad file.

What is exact: the original reads every image with `Image.open(path).convert("RGB")`, so CMYK, palette, grey
and alpha images look here as they look there (alpha is dropped, not blended), of an animation the first frame
is taken, and the rotation that a camera noted in EXIF is ignored unless it is asked for.
What differs on purpose: grey images of 16 bits are scaled to 8 bits (the original clips them to white), and
files that Pillow would hand to an interpreter (EPS, WMF) are refused.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from captune.errors import DataError

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "check_image",
    "decode_image",
    "load_image",
    "reduced_image",
    "to_pixels",
]

PathLike: TypeAlias = str | os.PathLike[str]

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
"""Mean of red, green and blue in CLIP's training images, on the scale 0-1 (`BlipImageProcessor`)."""

CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
"""Standard deviation to `CLIP_MEAN`."""

# (3, 256): what each of the 256 values of a channel becomes; looking up is faster than computing, and equal.
_NORMALISED = (np.arange(256, dtype=np.float32) / np.float32(255) - CLIP_MEAN[:, None]) / CLIP_STD[:, None]

MAX_PIXELS = 89_478_485
"""Larger images are refused: a small file can unfold into gigabytes. Equals Pillow's own warning limit."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm"}
)
"""Endings, in lower case, of files taken for images where a folder is listed."""

_INTERPRETED = frozenset({"EPS", "WMF"})
_MACHINE_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def load_image(path: PathLike, *, exif: bool = False) -> Image.Image:
    """Read an image file as the original does.

    Args:
        path: the file.
        exif: turn the image upright as its EXIF data say; the original does not.

    Returns:
        the image in mode RGB, fully decoded.

    Raises:
        DataError: no such file, not a file, not an image, truncated, broken or too large; names the file.
    """
    with _open_file(path) as stream:
        return decode_image(stream, str(path), exif=exif)


def decode_image(stream: IO[bytes], name: str, *, exif: bool = False) -> Image.Image:
    """Read an image from an open binary stream (a tar member, an upload); see `load_image`.

    Args:
        stream: seekable, at its start.
        name: what error messages call it.
        exif: turn the image upright as its EXIF data say.

    Returns:
        the image in mode RGB, fully decoded.

    Raises:
        DataError: not an image, truncated, broken or too large.
    """
    image, _ = _decode(stream, name)
    try:
        return _to_rgb(ImageOps.exif_transpose(image) if exif else image)
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(name, error) from error


def check_image(path: PathLike) -> tuple[int, int]:
    """Decode a whole image file for its errors only.

    A JPEG is decoded at an eighth of its size: every byte is read, in less than half of the time.

    Args:
        path: the file.

    Returns:
        width and height in pixels, as stored.

    Raises:
        DataError: as in `load_image`.
    """
    with _open_file(path) as stream:
        return _decode(stream, str(path), draft=1)[1]


def reduced_image(stream: IO[bytes], name: str, least: int) -> Image.Image:
    """Read an image for a purpose that needs few pixels: a JPEG is decoded at an eighth, quarter or half of its size.

    Args:
        stream: seekable, at its start.
        name: what error messages call it.
        least: pixels on a side that are enough; other formats, and smaller images, come in their own size.

    Returns:
        the image in mode RGB.

    Raises:
        DataError: as in `load_image`.
    """
    image, _ = _decode(stream, name, draft=least)
    try:
        return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(name, error) from error


def to_pixels(image: Image.Image, size: int) -> NDArray[np.float32]:
    """The original's deterministic image transform (`Blip2ImageEvalProcessor`).

    Bicubic resize to a square without keeping the aspect ratio, scale to 0-1, subtract CLIP's mean and divide
    by its standard deviation, in float32 and in this order, so that the result is bit-equal to torchvision's
    `Resize((S, S), BICUBIC)`, `ToTensor`, `Normalize` on a Pillow image.

    Args:
        image: any mode; converted to RGB as `load_image` does.
        size: the side S of the square in pixels.

    Returns:
        (3, S, S) float32, contiguous.
    """
    square = np.asarray(_to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
    pixels = np.empty((3, size, size), dtype=np.float32)
    for channel in range(3):
        np.take(_NORMALISED[channel], square[..., channel], out=pixels[channel], mode="clip")
    return pixels


def _open_file(path: PathLike) -> IO[bytes]:
    """Open a regular file for reading; a pipe or device in its place would block for ever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot read the image '{path}': {reason.lower()}.") from error
    what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise DataError(f"cannot read the image '{path}': it is {what}.")


def _decode(stream: IO[bytes], name: str, *, draft: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Load the first frame and its stored size; a JPEG comes out up to eight times smaller, `draft` pixels at least."""
    try:
        image = Image.open(stream)
        width, height = image.size
        if image.format in _INTERPRETED:
            raise DataError(f"the image '{name}' is of type {image.format}, which is not read; make it a PNG.")
        if width * height > MAX_PIXELS:
            raise _too_large(name, f"{width} x {height} pixels")
        if draft is not None and image.format == "JPEG":
            image.draft(image.mode, (draft, draft))
        image.load()
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, f"more than {MAX_PIXELS} pixels") from error
    except OSError as error:
        if error.errno in _MACHINE_FAULTS:
            raise
        raise _undecodable(name, error) from error
    except Exception as error:  # on broken files Pillow's decoders raise nearly anything
        raise _undecodable(name, error) from error
    return image, (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB as `Image.convert` makes it, but for grey images deeper than 8 bits, which are scaled."""
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max() > 255:
            values >>= 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):
        # The same colours as in one step, without Pillow's warning about transparency in bytes.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _undecodable(name: str, error: Exception) -> DataError:
    """One sentence for a file that no decoder could read to its end."""
    if Path(name).is_file() and Path(name).stat().st_size == 0:
        return DataError(f"cannot decode the image '{name}': the file is empty.")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"cannot decode the image '{name}': it is no image file that Pillow knows.")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"cannot decode the image '{name}': {reason}.")


def _too_large(name: str, size: str) -> DataError:
    return DataError(f"the image '{name}' has {size}, and the limit is {MAX_PIXELS}; make it smaller.")
