"""Whether two image files show the same picture: they are aligned and compared patch by patch.

Hashes that agree only make a pair worth looking at; drawings, screenshots and photographs of one series share their
hashes without being copies.

The alignment takes Gauss-Newton steps over a scale and a shift along each axis (Lucas and Kanade, 1981), from coarse to
fine; resizing and cutting margins off change a picture in that way.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captune.data.images import reduced_image
from captune.data.leaks.fingerprints import FULL_IMAGE, Box

__all__ = [
    "LARGEST_DIFFERENCE",
    "LEAST_STRUCTURE",
    "Alignment",
    "Likeness",
    "Pixels",
    "Thumbnail",
    "align",
    "between",
    "compare",
    "inside",
    "moved",
    "positions",
    "read_thumbnail",
    "resized",
]

Pixels: TypeAlias = NDArray[np.float32]
"""(S, S) or (S, S, 3) float32."""

Alignment: TypeAlias = NDArray[np.float64]
"""(4,) scale and shift along x, then along y, from coordinates in one picture to those in the other; the edges are -1
and 1."""

_LEVELS = (24, 48, 96)  # sides at which pictures are aligned, coarse to fine
_STEPS = 6  # Gauss-Newton steps at each of them
_LEAST_ALIGNED = 0.25  # below, there is nothing to align


def between(view_of_one: Box, view_of_other: Box) -> Alignment:
    """Scale and shift along x, then along y, from coordinates (-1 to 1) in one picture to those in the other."""
    parts = []
    for low, high in ((0, 2), (1, 3)):
        first, last = view_of_one[low], view_of_one[high]
        other_first, other_last = view_of_other[low], view_of_other[high]
        scale = (other_last - other_first) / (last - first)
        middle, other_middle = first + last - 1, other_first + other_last - 1
        parts += [scale, other_middle - scale * middle]
    return np.array(parts)


def align(one: Pixels, other: Pixels, start: Alignment) -> Alignment | None:
    """The alignment that makes the grey pictures most alike, from coarse to fine; None where there is none."""
    alignment = start
    for level in _LEVELS:
        side = min(level, len(one))
        first, second = resized(one, side), resized(other, side)
        along_y, along_x = np.gradient(second, axis=0), np.gradient(second, axis=1)
        for _ in range(_STEPS):
            horizontal, vertical = positions(alignment, side)
            overlap = np.outer(inside(vertical), inside(horizontal))
            if overlap.mean() < _LEAST_ALIGNED:
                return None
            there, slope_x, slope_y = (moved(part, horizontal, vertical) for part in (second, along_x, along_y))
            centres = _centres(side)
            # A unit of coordinates is half a side.
            slopes = np.stack([slope_x * centres, slope_x, slope_y * centres[:, None], slope_y]) * (side / 2)
            slopes = (slopes * overlap).reshape(4, -1)
            residual = ((first - there) * overlap).reshape(-1)
            normal = slopes @ slopes.T
            normal[np.diag_indices(4)] += 1e-3 * np.trace(normal) / 4 + 1e-6
            step = np.linalg.solve(normal, slopes @ residual)
            alignment = alignment + np.clip(step, -0.1, 0.1)
            if np.abs(step).max() < 0.2 / side:
                break
    return alignment


def positions(alignment: Alignment, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The position of each column and each row of one picture in the other, in its pixels."""
    centres, half = _centres(side), side / 2
    columns = (alignment[0] * centres + alignment[1] + 1) * half - 0.5
    return columns, (alignment[2] * centres + alignment[3] + 1) * half - 0.5


def _centres(side: int) -> NDArray[np.float64]:
    """Coordinates of the middles of pixels; -1 and 1 are the edges of the picture."""
    return (2 * np.arange(side) + 1) / side - 1


def inside(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions are in the picture, with a tolerance of half a pixel."""
    return (places > -0.5) & (places < len(places) - 0.5)


def moved(picture: Pixels, horizontal: NDArray[np.float64], vertical: NDArray[np.float64]) -> Pixels:
    """A picture read between its pixels at the crossings of rows and columns."""
    return _between_pixels(_between_pixels(picture, vertical, 0), horizontal, 1)


def _between_pixels(picture: Pixels, places: NDArray[np.float64], axis: int) -> Pixels:
    clipped = places.clip(0, picture.shape[axis] - 1)
    low = np.minimum(clipped.astype(np.int64), picture.shape[axis] - 2)
    shape = [1] * picture.ndim
    shape[axis] = -1
    share = (clipped - low).astype(np.float32).reshape(shape)
    read: Pixels = picture.take(low, axis) * (1 - share) + picture.take(low + 1, axis) * share
    return read


def resized(picture: Pixels, side: int) -> Pixels:
    """A picture with fewer pixels, by averages over areas."""
    if len(picture) == side:
        return picture
    if picture.ndim == 2:
        return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))
    channels = [resized(np.ascontiguousarray(picture[..., channel]), side) for channel in range(3)]
    return np.stack(channels, axis=2)


Thumbnail: TypeAlias = NDArray[np.float32]
"""(S, S, 3) float32, brightness and two of colour (YCbCr) on the scale 0-255, whatever the proportions of the image."""

LARGEST_DIFFERENCE = 6.25
"""Up to which `Likeness.difference` two pictures may be the same; chosen with benchmarks/leaks.py."""

LEAST_STRUCTURE = 0.56
"""From which `Likeness.structure` on two pictures may be the same; chosen with benchmarks/leaks.py."""

_SIDE = 96  # pixels; fewer where an image has fewer
_LEAST_SIDE = 32
_TOLERANCE = 10.0  # grey levels that encoding may change a pixel by
_NOISE = 20.0  # squared grey levels of a patch that encoding may make up
_LEAST_OVERLAP = 0.55  # of both pictures: a tenth cut from all four sides leaves 0.64


class Likeness(NamedTuple):
    """How alike two pictures are where they are least alike.

    Attributes:
        difference: mean difference of the most different of 64 patches in grey levels of pictures of 96 pixels, beyond
            what a shift by a pixel and encoding explain; catches other colours and things that are there or not.
        structure: the mean agreement of brightness in the least alike tenth of 36 patches, -1 to 1, where flat ones
            count as 1 (contrast and structure of SSIM, Wang and others 2004); catches thin lines in other positions.
    """

    difference: float
    structure: float

    @property
    def is_same(self) -> bool:
        """Whether they show the same picture."""
        return self.difference <= LARGEST_DIFFERENCE and self.structure >= LEAST_STRUCTURE


def read_thumbnail(path: str) -> Thumbnail:
    """A picture as it is compared.

    Raises:
        DataError: the file is no image.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        image = reduced_image(file, path, 2 * _SIDE)
    side = max(_LEAST_SIDE, min(_SIDE, 3 * min(image.size) // 4))
    small = image.resize((side, side), Image.Resampling.BOX).convert("YCbCr")
    return np.asarray(small, np.float32)


def compare(
    one: Thumbnail, other: Thumbnail, *, view_of_one: Box = FULL_IMAGE, view_of_other: Box = FULL_IMAGE
) -> Likeness:
    """Align two pictures and compare every patch.

    Args:
        one: a picture.
        other: another one.
        view_of_one: the part of it that `view_of_other` is believed to show; where the alignment begins.
        view_of_other: see there.

    Returns:
        how alike they are; infinitely different where they do not overlap enough.
    """
    side = min(len(one), len(other))
    one, other = resized(one, side), resized(other, side)
    alignment = align(one[..., 0], other[..., 0], between(view_of_one, view_of_other))
    if alignment is None:
        return Likeness(float("inf"), -1.0)
    horizontal, vertical = positions(alignment, side)
    # The overlap as a share of `one`, and of `other`.
    overlap = inside(horizontal).mean() * inside(vertical).mean()
    if overlap * min(1.0, alignment[0] * alignment[2]) < _LEAST_OVERLAP:
        return Likeness(float("inf"), -1.0)
    # Reading between pixels smooths a little; smoothing both more leaves no difference of that.
    one, there = _smoothed(one), moved(_smoothed(other), horizontal, vertical)
    rows, columns = _inner(vertical), _inner(horizontal)
    beyond = np.maximum(_outside(one, there), _outside(there, one))[rows][:, columns]
    # In fewer pixels, encoding and cuts change more of each.
    difference = float(_patch_means(beyond, side // 8).max()) * side / _SIDE
    return Likeness(difference, _structure(one[rows][:, columns, 0], there[rows][:, columns, 0], side // 6))


def _inner(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions are well within both pictures: a cut goes through pixels, and edges have one neighbour less."""
    well = (places > 1) & (places < len(places) - 2)
    well[:2] = well[-2:] = False
    return well


def _structure(one: NDArray[np.float32], other: NDArray[np.float32], size: int) -> float:
    """How well brightness agrees in the least alike tenth of the patches."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    mean, other_mean = _patch_means(first, size), _patch_means(second, size)
    variance = _patch_means(first * first, size) - mean * mean
    other_variance = _patch_means(second * second, size) - other_mean * other_mean
    shared = _patch_means(first * second, size) - mean * other_mean
    agreement = np.sort(((2 * shared + _NOISE) / (variance + other_variance + _NOISE)).ravel())
    return float(agreement[: max(1, len(agreement) // 10)].mean())


def _smoothed(picture: Thumbnail) -> Thumbnail:
    """A picture with each pixel averaged with its neighbours, with the weights 1, 2, 1 along each axis."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smoothed: Thumbnail = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return smoothed


def _outside(picture: Thumbnail, other: Thumbnail) -> NDArray[np.float32]:
    """(S, S) how far a pixel is from all within one pixel of its position in the other picture."""
    padded = np.pad(other, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2], padded[1:-1], padded[2:]
    low, high = np.minimum.reduce(rows), np.maximum.reduce(rows)
    low = np.minimum.reduce((low[:, :-2], low[:, 1:-1], low[:, 2:]))
    high = np.maximum.reduce((high[:, :-2], high[:, 1:-1], high[:, 2:]))
    beyond: NDArray[np.float32] = np.maximum(low - picture, picture - high).max(axis=2)
    beyond -= _TOLERANCE
    return beyond.clip(0)


def _patch_means(values: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """The mean of each square of `size` pixels; the squares overlap by half, and the last ones touch the edge."""
    height, width = values.shape
    tall, wide = min(size, height), min(size, width)
    sums = np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    step = max(1, size // 2)
    top = np.append(np.arange(0, height - tall, step), height - tall)[:, None]
    left = np.append(np.arange(0, width - wide, step), width - wide)[None, :]
    bottom, right = top + tall, left + wide
    means: NDArray[np.float64] = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    means /= tall * wide
    return means
