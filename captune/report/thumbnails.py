"""Small pictures of the evaluated images, kept in the run so that its page can be made without the data set.

    RUN/thumbnails/<image id>.jpg
    RUN/thumbnails/images.json     image id -> hash of the file that the picture was made of

A picture is used where its image is the one that was evaluated last, whatever other images had the same id before.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from captune.data import hash_file, image_size, reduced_image
from captune.errors import DataError
from captune.parsing import load_json
from captune.report.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["EMBEDDED_BYTES", "embedded_thumbnails", "thumbnail_path", "thumbnail_sources", "write_thumbnails"]

FOLDER = "thumbnails"
SOURCES = "images.json"

LONGEST_SIDE, QUALITY = 256, 78
"""Pixels and JPEG quality of the pictures in the run; the page makes them smaller when they are many."""

EMBEDDED_BYTES = 3_200_000
"""Size of all pictures of a page, as base64."""

_STEPS = ((256, 78), (224, 72), (192, 68), (160, 62), (128, 58), (112, 52), (96, 46), (80, 40), (64, 36), (48, 30))
"""Sides and qualities that the page tries, best first."""


def thumbnail_path(run_dir: str | Path, image: str) -> Path:
    """Where the thumbnail of an image is stored; every id makes a safe and unique file name."""
    run_dir = Path(run_dir)
    name = quote(image, safe="", errors="surrogatepass")
    if len(name) > 120 or name in (".", ".."):
        name = hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()
    return run_dir / FOLDER / f"{name}.jpg"


def thumbnail_sources(run_dir: str | Path) -> dict[str, str] | None:
    """Image id -> content hash of the file that was evaluated; None in runs of older versions."""
    run_dir = Path(run_dir)
    read = _read_sources(run_dir)
    return None if read is None else {image: source.partition(" ")[0] for image, source in read.items()}


def write_thumbnails(run_dir: str | Path, images: Mapping[str, str | Path], *, exif_rotation: bool = True) -> int:
    """Make the small pictures that are not there yet or are of other images; what cannot be read is left out.

    Args:
        run_dir: the run.
        images: image id -> its file.
        exif_rotation: turn them upright as their EXIF data say, as the model sees them.

    Returns:
        How many were made.

    Raises:
        ToolError: a picture cannot be written.
    """
    run_dir = Path(run_dir)
    known = _read_sources(run_dir)
    sources, made = dict(known or {}), 0
    for image, file in images.items():
        path = thumbnail_path(run_dir, image)
        try:
            source = hash_file(file).hex() + ("" if exif_rotation else " as stored")
            if sources.get(image) == source and path.exists():
                continue
            atomic_write(path, _small_picture(Path(file), exif_rotation))
            sources[image] = source
            made += 1
        except (OSError, DataError):
            # A picture that is there is of another image.
            sources.pop(image, None)
    if images and sources != known:
        atomic_write(run_dir / FOLDER / SOURCES, json.dumps(sources) + "\n")
    return made


def _read_sources(run_dir: Path) -> dict[str, str] | None:
    try:
        read = load_json((run_dir / FOLDER / SOURCES).read_bytes())
        return {str(image): str(source) for image, source in read.items()}
    except (OSError, ValueError, AttributeError):
        return None


def embedded_thumbnails(run_dir: Path, images: Iterable[str], budget: int = EMBEDDED_BYTES) -> dict[str, str]:
    """The small pictures of a run as base64, in the best size in which all of them stay within the budget.

    Args:
        run_dir: the run.
        images: ids of the images on the page.
        budget: bytes of all pictures.

    Returns:
        Image id -> base64 of a JPEG; images without a readable picture are absent, and so are the last ones when
        even the smallest size is too large.
    """
    evaluated = thumbnail_sources(run_dir)
    sources = {}
    for image in images if evaluated is None else (image for image in images if image in evaluated):
        with contextlib.suppress(OSError):
            sources[image] = thumbnail_path(run_dir, image).read_bytes()
    if not sources:
        return {}
    sample = list(sources.values())[:: max(1, len(sources) // 24)]
    side, quality = next(
        (step for step in _STEPS if _mean_size(sample, *step) * len(sources) * 4 / 3 <= 0.95 * budget), _STEPS[-1]
    )
    embedded, used = {}, 0
    for image, data in sources.items():
        with contextlib.suppress(OSError, DataError):
            text = base64.b64encode(_small(data, side, quality)).decode("ascii")
            used += len(text)
            if used > budget:
                break
            embedded[image] = text
    return embedded


def _mean_size(sample: Iterable[bytes], side: int, quality: int) -> float:
    """Mean bytes of sample pictures at one size."""
    sizes = []
    for data in sample:
        with contextlib.suppress(OSError, DataError):
            sizes.append(len(_small(data, side, quality)))
    return sum(sizes) / len(sizes) if sizes else 0.0


def _small_picture(file: Path, exif_rotation: bool) -> bytes:
    """An image file as a JPEG for the run."""
    with open(file, "rb") as stream:
        picture = reduced_image(stream, str(file), LONGEST_SIDE, exif=exif_rotation)
    return _encoded(picture, LONGEST_SIDE, QUALITY)


def _small(data: bytes, side: int, quality: int) -> bytes:
    """A picture of the run as an RGB JPEG no side of which is longer than `side` pixels."""
    if len(data) < 200 * side and max(image_size(io.BytesIO(data), "thumbnail")) <= side:
        return data
    return _encoded(reduced_image(io.BytesIO(data), "thumbnail", side), side, quality)


def _encoded(picture: Image, side: int, quality: int) -> bytes:
    from PIL.Image import Resampling

    picture.thumbnail((side, side), Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()
