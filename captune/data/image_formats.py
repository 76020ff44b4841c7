"""Which image formats are opened, how a file is identified by its content, and limits that are checked before decoding.

Pillow knows forty formats, and hands some of them to other programs or libraries (EPS to Ghostscript, WMF to the
system). Only the formats of `FORMATS` are opened here, whatever the ending of a file's name is.
"""

from __future__ import annotations

import contextlib
import functools
import re
import struct
from typing import IO, Final

from PIL import Image, UnidentifiedImageError

from captune.errors import DataError, ImageTooLargeError

__all__ = [
    "FORMATS",
    "HEIF_EXTRA",
    "HEIF_SUFFIXES",
    "MAX_PIXELS",
    "MAX_SCANS",
    "image_suffixes",
    "is_image_name",
    "open_image",
    "too_many_scans",
]

FORMATS: Final = (
    "JPEG",  # with MPO, which Pillow opens as a JPEG
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "HEIF",
    "JPEG2000",
    "PPM",
    "PSD",
    "PCX",
    "SGI",
    "DIB",
    "TGA",  # has no signature, and is opened under its own endings only
)
"""Pillow's names of the formats that are opened, in the order in which they are tried."""

MAX_PIXELS = 89_478_485
"""Larger images are refused: a small file can unfold into gigabytes. Equals Pillow's own warning limit."""

MAX_SCANS = 100
"""JPEG files with more scans are refused: each one costs a pass over all pixels. Real files have at most about 20;
libtiff has the same limit."""

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Endings of files that need pillow-heif."""

HEIF_EXTRA = "pip install 'captune[heic]'"
"""What to do about them."""

_ALSO = frozenset({".mpo"})  # a JPEG with further pictures after the first
_VARIANT = re.compile(r"(\.[a-z0-9]+)[^a-z0-9.].+")  # .jpg_large, .jpg!d, .png:orig, .jpeg (1)
_TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_SCAN = b"\xff\xda"
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_PIECE = 1 << 20


@functools.cache
def _available() -> tuple[str, ...]:
    """The formats that the installed libraries can read."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Endings, in lower case, of files that are read as images where a folder or an archive is listed."""
    known = _available()
    registered = {ending for ending, name in Image.registered_extensions().items() if name in known}
    return frozenset(registered | _ALSO | (HEIF_SUFFIXES if "HEIF" in known else set()))


def is_image_name(name: str) -> bool:
    """Whether a file is read as an image by its ending, also one such as `.jpg_large` or `.png (1)`."""
    dot = name.rfind(".")
    ending = name[dot:].lower() if dot > max(name.rfind("/"), -1) else ""
    if ending in image_suffixes():
        return True
    variant = _VARIANT.fullmatch(ending)
    return variant is not None and variant[1] in image_suffixes()


def open_image(stream: IO[bytes], name: str, *, most_pixels: int | None = None) -> Image.Image:
    """Identify an image by its content and read its header; no pixel is decoded.

    Args:
        stream: seekable, at its start.
        name: what error messages call it.
        most_pixels: the limit; `MAX_PIXELS` by default.

    Returns:
        the image, not loaded; its `format` is one of `FORMATS` or MPO.

    Raises:
        ImageTooLargeError: it has more pixels than the limit.
        DataError: of another format, or a JPEG of too many scans.
        OSError, SyntaxError, ...: what Pillow raises on a broken header; `PIL.UnidentifiedImageError` on other files.
    """
    limit = MAX_PIXELS if most_pixels is None else most_pixels
    formats = tuple(known for known in _available() if known != "TGA" or name.lower().endswith(_TGA_SUFFIXES))
    try:
        image = Image.open(stream, formats=formats)
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(16)
        if reason := _not_opened(head):
            raise DataError(f"the image '{name}' {reason}") from None
        if kind := next((known for known in formats if _claims(known, head)), None):
            raise DataError(f"cannot decode the image '{name}': it begins as {kind} and is damaged.") from None
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, *_stored_size(stream, formats), limit) from error
    width, height = image.size
    if image.format == "TIFF":
        # A tile may be larger than its image, and is decoded completely.
        tags = getattr(image, "tag_v2", {})
        width, height = max(width, int(tags.get(322, 0))), max(height, int(tags.get(323, 0)))
    if width * height > limit:
        raise _too_large(name, width, height, limit)
    if image.format in ("JPEG", "MPO"):
        position = stream.tell()
        stream.seek(0)
        if scans := too_many_scans(stream):
            raise DataError(
                f"the image '{name}' is a JPEG of {scans:,} scans, and {MAX_SCANS} is the limit; save it again."
            )
        stream.seek(position)
    return image


def too_many_scans(stream: IO[bytes]) -> int:
    """The number of scans of a JPEG where it is above `MAX_SCANS`, else 0.

    Args:
        stream: at the start of the file.
    """
    marks, last = 0, b""
    while piece := stream.read(_PIECE):
        marks += (last + piece).count(_SCAN)
        last = piece[-1:]
    if marks <= MAX_SCANS:
        return 0
    # So many marks may also be data of other segments, or of what follows the image: count those that begin a scan.
    stream.seek(0)
    scans = _scans(stream.read())
    return scans if scans > MAX_SCANS else 0


def _scans(data: bytes) -> int:
    """Scans of a JPEG up to its end."""
    scans, at = 0, 2
    while match := _NEXT_MARKER.search(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):
            continue
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _not_opened(head: bytes) -> str | None:
    """Why a file that begins like this is not opened, as the rest of a sentence; None where it is unknown."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in _available():
        return f"is of type HEIF, which needs pillow-heif; install it with: {HEIF_EXTRA}"
    other = next((name for name in sorted(Image.OPEN) if name not in FORMATS and _claims(name, head)), None)
    return None if other is None else f"is of type {other}, which is not read; make it a PNG."


def _claims(name: str, head: bytes) -> bool:
    """Whether a format of Pillow claims a file that begins like this."""
    accept = Image.OPEN[name][1]
    try:
        return accept is not None and accept(head) is True
    except (IndexError, TypeError, ValueError, struct.error):
        return False


def _stored_size(stream: IO[bytes], formats: tuple[str, ...]) -> tuple[int, int]:
    """Width and height of an image that Pillow refused for its size; 0 where they are not known."""
    stream.seek(0)
    head = stream.read(16)
    for name in formats:
        if not _claims(name, head):
            continue
        stream.seek(0)
        # Pillow looks at the size after this class has read the header.
        with contextlib.suppress(Exception):
            size: tuple[int, int] = Image.OPEN[name][0](stream, "").size
            return size
    return 0, 0


def _too_large(name: str, width: int, height: int, limit: int) -> ImageTooLargeError:
    size = f"{width} x {height} pixels" if width else "more pixels than can be decoded"
    return ImageTooLargeError(f"the image '{name}' has {size}, and the limit is {limit:,}; make it smaller.")
