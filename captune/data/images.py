"""Decode image files to RGB pixels: the one decoder of every command, with a sentence for every bad file.

Images come upright, as the camera noted in EXIF, unless the caller requests them as stored. The original MiniGPT-4
reads every image with `Image.open(path).convert("RGB")`, which ignores that rotation. The formats are in
`captune.data.image_formats`.

8-bit images become RGB as Pillow's `convert("RGB")` makes them, to the bit: CMYK, palette and grey are converted, alpha
is dropped and not blended, of an animation the first frame is taken. Values of more bits are scaled and never clipped:

- Colours of 16 bits keep their high byte; Pillow itself reads them so.
- Grey of more than 8 bits keeps the high 8 of its bits: 12 where a TIFF declares 12 or no value is above 4095, else 16.
  Where no value is above 255, the values are 8-bit ones already. Beyond 65535, the range of the values is stretched.
- Grey of floating point is taken for 0-1 where no value is above 1, for 0-255 where none is above 255; otherwise, or
  with values below 0, the range of the values is stretched. What is no number is black.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterable
from typing import IO, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from captune.common import first_line
from captune.data.image_formats import open_image
from captune.errors import DataError

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "ImageInput",
    "as_list",
    "check_image",
    "decode_image",
    "has_rotation",
    "image_size",
    "is_turned",
    "load_image",
    "read_image",
    "reduced_image",
    "to_pixels",
    "to_rgb",
    "upright",
]

PathLike: TypeAlias = str | os.PathLike[str]

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""An image: a path, the bytes of a file, a Pillow image, or (H, W, 3) or (H, W) uint8 values."""

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
"""Mean of red, green and blue in CLIP's training images, on the scale 0-1 (`BlipImageProcessor`)."""

CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
"""Standard deviation to `CLIP_MEAN`."""

# (3, 256): what each of the 256 values of a channel becomes; looking up is faster than computing, and equal.
_NORMALISED = (np.arange(256, dtype=np.float32) / np.float32(255) - CLIP_MEAN[:, None]) / CLIP_STD[:, None]

_PNG_NOTES = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_URL = re.compile(r"(https?|s3|gs|ftp|data|file):", re.IGNORECASE)
_MACHINE_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_image(image: ImageInput, name: str = "", *, exif: bool = True) -> Image.Image:
    """An image in any form, in mode RGB.

    Args:
        image: a path, the bytes of a file, a Pillow image, or an array.
        name: what error messages call it; by default its path.
        exif: rotate it upright by its EXIF data; the original MiniGPT-4 does not.

    Returns:
        the image in mode RGB, fully decoded.

    Raises:
        DataError: it cannot be read; the message says why.
    """
    if isinstance(image, bytes):
        return decode_image(io.BytesIO(image), name or "bytes", exif=exif)
    if isinstance(image, Image.Image):
        return _finished(image, name or "Pillow image", exif)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            raise DataError(
                f"An image array has shape {image.shape} and type {image.dtype}; expected (height, width, 3) uint8."
            )
        return Image.fromarray(image).convert("RGB")
    if not isinstance(image, (str, os.PathLike)):
        raise DataError(
            f"An image is a {type(image).__name__}; expected a path, the bytes of a file, a Pillow image, or an array "
            "of uint8."
        )
    return load_image(image, exif=exif)


def as_list(images: Any) -> tuple[list[Any], bool]:
    """Images as a list, and whether only one was given."""
    is_one = isinstance(images, (str, bytes, os.PathLike, Image.Image))
    is_one = is_one or (isinstance(images, np.ndarray) and images.ndim < 4) or not isinstance(images, Iterable)
    return ([images] if is_one else list(images)), is_one


def load_image(path: PathLike, *, exif: bool = True) -> Image.Image:
    """Read an image file.

    Args:
        path: the file.
        exif: rotate the image upright by its EXIF data; the original does not.

    Returns:
        the image in mode RGB, fully decoded.

    Raises:
        DataError: no such file, not a file, not an image, truncated, broken or too large; names the file.
    """
    with _open_file(path) as stream:
        return decode_image(stream, str(path), exif=exif)


def decode_image(stream: IO[bytes], name: str, *, exif: bool = True) -> Image.Image:
    """Read an image from an open binary stream (a tar member, an upload); see `load_image`.

    Args:
        stream: seekable, at its start.
        name: what error messages call it.
        exif: rotate the image upright by its EXIF data.

    Returns:
        the image in mode RGB, fully decoded.

    Raises:
        DataError: not an image, truncated, broken or too large.
    """
    return _finished(_decode(stream, name)[0], name, exif)


def check_image(path: PathLike) -> tuple[int, int]:
    """Decode a complete image file for its errors only.

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


def reduced_image(stream: IO[bytes], name: str, least: int, *, exif: bool = True) -> Image.Image:
    """Read an image for a purpose that needs few pixels: a JPEG is decoded at an eighth, quarter or half of its size.

    Args:
        stream: seekable, at its start.
        name: what error messages call it.
        least: pixels on a side that are enough; other formats, and smaller images, keep their size.
        exif: rotate the image upright by its EXIF data.

    Returns:
        the image in mode RGB.

    Raises:
        DataError: as in `load_image`.
    """
    return _finished(_decode(stream, name, draft=least)[0], name, exif)


def image_size(stream: IO[bytes], name: str, *, most_pixels: int | None = None) -> tuple[int, int]:
    """Width and height by the header alone, after the limits that are checked before decoding.

    Args:
        stream: seekable, at its start.
        name: what error messages call it.
        most_pixels: the limit, by default that of decoding.

    Raises:
        ImageTooLargeError: it has more pixels.
        DataError: it is no image that is read, or its header is broken.
    """
    try:
        return open_image(stream, name, most_pixels=most_pixels).size
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on broken headers Pillow's readers raise nearly anything
        raise _undecodable(stream, name, error) from error


def has_rotation(path: PathLike) -> bool:
    """Whether EXIF notes a rotation or reflection of an image file; False for one that cannot be read."""
    try:
        with _open_file(path) as stream:
            image = open_image(stream, str(path))
            if image.format in ("TIFF", "HEIF"):
                return False  # their readers turn them in any case
            if image.format == "PNG":
                # Pillow decodes a complete PNG to see whether EXIF data follow the pixels.
                stream.seek(0)
                data = stream.read()
                if not any(mark in data for mark in _PNG_NOTES):
                    return False
            return is_turned(image)
    except MemoryError:
        raise
    except Exception:  # decoding the file reports what is wrong with it
        return False


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
    square = np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BICUBIC))
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
        if _URL.match(str(path)):
            raise DataError(f"'{path}' is a URL, and captune reads files; download the image first.") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot read the image '{path}': {reason.lower()}.") from error
    what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise DataError(f"cannot read the image '{path}': it is {what}.")


def _decode(stream: IO[bytes], name: str, *, draft: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Load the first frame and its stored size; a JPEG comes out up to eight times smaller, `draft` pixels at least."""
    try:
        image = open_image(stream, name)
        size = image.size
        if draft is not None and image.format in ("JPEG", "MPO"):
            image.draft(image.mode, (draft, draft))
        image.load()
    except (DataError, MemoryError):
        raise
    except OSError as error:
        if error.errno in _MACHINE_FAULTS:
            raise
        raise _undecodable(stream, name, error) from error
    except Exception as error:  # on broken files Pillow's decoders raise nearly anything
        raise _undecodable(stream, name, error) from error
    return image, size


def _finished(image: Image.Image, name: str, exif: bool) -> Image.Image:
    """A loaded image in mode RGB, upright if that is requested."""
    try:
        rgb = to_rgb(image)
        # The mode first: its conversion looks at tags that a turned copy no longer has.
        return upright(image, rgb) if exif else rgb
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(None, name, error) from error


def _undecodable(stream: IO[bytes] | None, name: str, error: Exception) -> DataError:
    """One sentence for a file that no decoder could read to its end."""
    if stream is not None and not stream.closed and stream.seek(0, io.SEEK_END) == 0:
        return DataError(f"cannot decode the image '{name}': the file is empty.")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"cannot decode the image '{name}': it is no image file that captune reads.")
    return DataError(f"cannot decode the image '{name}': {first_line(error)}.")


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
    """Pixels of an image, rotated upright by its EXIF data.

    Args:
        stored: the image as it was opened, which knows its EXIF data.
        pixels: of that image.
    """
    turn = _turn(stored)
    return pixels if turn is None else pixels.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # on damaged EXIF data Pillow's readers raise nearly anything; the pixels are intact
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None
