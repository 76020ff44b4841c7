"""What is kept of an image file to find it again: a digest of its bytes and perceptual hashes of views of it.

The hash is pHash of ImageHash (64 bits, from the lowest frequencies of a cosine transform): re-encoding and resizing
change a few bits, cutting a margin off changes many. So each image is hashed as a whole and as the views that are left
when margins are cut; a cut copy agrees with one of the views of the whole.
Source: https://github.com/JohannesBuchner/imagehash
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from captune.data.images import reduced_image
from captune.data.leaks.hamming import Hashes
from captune.errors import DataError, MissingExtraError

__all__ = ["VIEWS", "WHOLE", "Box", "Fingerprint", "fingerprint", "view_hashes"]

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_SPANS = ((0.0, 1.0), (0.05, 0.95), (0.0, 0.9), (0.1, 1.0), (0.1, 0.9))
VIEWS: tuple[Box, ...] = tuple((left, top, right, bottom) for left, right in _SPANS for top, bottom in _SPANS)
"""The whole image, then what is left when up to a tenth is cut from each side; V = 25."""

_SIDE = 64  # pixels to which an image is reduced before its views are hashed


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is known of one image file.

    Attributes:
        digest: BLAKE2b of the file's bytes, 16 bytes.
        hashes: (V,) uint64, pHash of each of `VIEWS`; None where the file cannot be decoded.
    """

    digest: bytes
    hashes: Hashes | None


def fingerprint(path: str) -> Fingerprint | None:
    """Read a file once for its digest and hashes.

    Returns:
        the fingerprint, or None where the file cannot be read.

    Raises:
        MissingExtraError: ImageHash is not installed.
    """
    try:
        if not os.path.isfile(path):  # a pipe would block for ever
            return None
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError):
        return None
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        image = reduced_image(io.BytesIO(data), path, 2 * _SIDE)
    except DataError:
        return Fingerprint(digest, None)
    return Fingerprint(digest, view_hashes(image))


def view_hashes(image: Image.Image) -> Hashes:
    """The hashes of the views of an image.

    Returns:
        (V,) uint64 in the order of `VIEWS`.

    Raises:
        MissingExtraError: ImageHash is not installed.
    """
    try:
        import imagehash
    except ModuleNotFoundError as error:
        raise MissingExtraError("the leak guard", "data") from error
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    hashes = np.empty(len(VIEWS), np.uint64)
    for place, box in enumerate(VIEWS):
        left, top, right, bottom = (share * _SIDE for share in box)
        view = small.resize((32, 32), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        bits = imagehash.phash(view).hash
        hashes[place] = np.packbits(bits.reshape(-1)).view(">u8")[0]
    return hashes
