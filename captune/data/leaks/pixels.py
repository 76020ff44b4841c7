"""Whether two image files show the same picture: they are laid over each other and compared pixel by pixel.

Hashes that agree only make a pair worth looking at; drawings, screenshots and photographs of one series share their
hashes without being copies. The two pictures are aligned by Gauss-Newton steps over a scale and a shift along each
axis (Lucas and Kanade, 1981), which is what resizing and cutting margins off do, and then every patch must agree.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captune.data.images import reduced_image
from captune.data.leaks.fingerprints import WHOLE, Box

__all__ = ["LARGEST_DIFFERENCE", "Thumbnail", "difference", "read_thumbnail"]

Thumbnail: TypeAlias = NDArray[np.float32]
"""(S, S, 3) float32, brightness and two of colour (YCbCr) on the scale 0-255, whatever the proportions of the image."""

LARGEST_DIFFERENCE = 6.25
"""Difference of the most different patch, in grey levels beyond what resampling explains, up to which two pictures are
the same; see benchmarks/leaks.py."""

_SIDE = 96  # pixels; fewer where an image has fewer
_LEAST_SIDE = 32
_LEVELS = (24, 48, 96)  # sides at which pictures are aligned, coarse to fine
_STEPS = 6  # Gauss-Newton steps at each of them
_PATCH = 8  # patches on a side
_TOLERANCE = 10.0  # grey levels that encoding may change a pixel by
_LEAST_OVERLAP = 0.55  # of both pictures: a tenth cut from all four sides leaves 0.64
_Alignment: TypeAlias = NDArray[np.float64]


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


def difference(one: Thumbnail, other: Thumbnail, *, view_of_one: Box = WHOLE, view_of_other: Box = WHOLE) -> float:
    """How different two pictures are where they differ most.

    Args:
        one: a picture.
        other: another one.
        view_of_one: the part of it that `view_of_other` is believed to show; where the alignment begins.
        view_of_other: see there.

    Returns:
        the mean difference of the most different patch in grey levels of pictures of 96 pixels, after alignment and
        beyond a tolerance; infinity where the pictures do not overlap enough.
    """
    side = min(len(one), len(other))
    one, other = _resized(one, side), _resized(other, side)
    start = _between(view_of_one, view_of_other)
    found = _aligned(one[..., 0], other[..., 0], start)
    if found is None:
        return float("inf")
    horizontal, vertical = _positions(found, side)
    columns, rows = _inside(horizontal), _inside(vertical)
    # The overlap as a share of `one`, and of `other`.
    overlap = columns.mean() * rows.mean()
    if overlap * min(1.0, found[0] * found[2]) < _LEAST_OVERLAP:
        return float("inf")
    # Reading between pixels smooths a little; smoothing both more leaves no difference of that.
    one, moved = _smoothed(one), _moved(_smoothed(other), horizontal, vertical)
    beyond = np.maximum(_outside(one, moved), _outside(moved, one))
    # In fewer pixels, encoding and cuts change more of each.
    return _largest_patch(beyond, _inner(vertical), _inner(horizontal)) * side / _SIDE


def _between(view_of_one: Box, view_of_other: Box) -> _Alignment:
    """Scale and shift along x, then along y, from coordinates (-1 to 1) in one picture to those in the other."""
    parts = []
    for low, high in ((0, 2), (1, 3)):
        first, last = view_of_one[low], view_of_one[high]
        other_first, other_last = view_of_other[low], view_of_other[high]
        scale = (other_last - other_first) / (last - first)
        middle, other_middle = first + last - 1, other_first + other_last - 1
        parts += [scale, other_middle - scale * middle]
    return np.array(parts)


def _aligned(one: NDArray[np.float32], other: NDArray[np.float32], start: _Alignment) -> _Alignment | None:
    """The alignment that makes the grey pictures most alike, from coarse to fine; None where there is none."""
    found = start
    for level in _LEVELS:
        side = min(level, len(one))
        first, second = _resized(one, side), _resized(other, side)
        along_y, along_x = np.gradient(second, axis=0), np.gradient(second, axis=1)
        for _ in range(_STEPS):
            horizontal, vertical = _positions(found, side)
            inside = np.outer(_inside(vertical), _inside(horizontal))
            if inside.mean() < _LEAST_OVERLAP / 2:
                return None
            moved, slope_x, slope_y = (_moved(part, horizontal, vertical) for part in (second, along_x, along_y))
            place = _centres(side)
            # A unit of coordinates is half a side.
            slopes = np.stack([slope_x * place, slope_x, slope_y * place[:, None], slope_y]) * (side / 2)
            slopes = (slopes * inside).reshape(4, -1)
            residual = ((first - moved) * inside).reshape(-1)
            normal = slopes @ slopes.T
            normal[np.diag_indices(4)] += 1e-3 * np.trace(normal) / 4 + 1e-6
            step = np.linalg.solve(normal, slopes @ residual)
            found = found + np.clip(step, -0.1, 0.1)
            if np.abs(step).max() < 0.2 / side:
                break
    return found


def _positions(alignment: _Alignment, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each column and each row of one picture lies in the other, in its pixels."""
    place, half = _centres(side), side / 2
    columns = (alignment[0] * place + alignment[1] + 1) * half - 0.5
    return columns, (alignment[2] * place + alignment[3] + 1) * half - 0.5


def _centres(side: int) -> NDArray[np.float64]:
    """Coordinates of the middles of pixels; -1 and 1 are the edges of the picture."""
    return (2 * np.arange(side) + 1) / side - 1


def _inside(positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions lie in the picture; half a pixel of doubt is granted."""
    return (positions > -0.5) & (positions < len(positions) - 0.5)


def _inner(positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions lie well within both pictures: a cut goes through pixels, and edges have one neighbour less."""
    inside = (positions > 1) & (positions < len(positions) - 2)
    inside[:2] = inside[-2:] = False
    return inside


def _moved(
    picture: NDArray[np.float32], horizontal: NDArray[np.float64], vertical: NDArray[np.float64]
) -> NDArray[np.float32]:
    """A picture read between its pixels at the crossings of rows and columns."""
    return _between_pixels(_between_pixels(picture, vertical, 0), horizontal, 1)


def _between_pixels(picture: NDArray[np.float32], positions: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    inside = positions.clip(0, picture.shape[axis] - 1)
    low = np.minimum(inside.astype(np.int64), picture.shape[axis] - 2)
    shape = [1] * picture.ndim
    shape[axis] = -1
    share = (inside - low).astype(np.float32).reshape(shape)
    between: NDArray[np.float32] = picture.take(low, axis) * (1 - share) + picture.take(low + 1, axis) * share
    return between


def _smoothed(picture: Thumbnail) -> Thumbnail:
    """A picture with each pixel averaged with its neighbours, with the weights 1, 2, 1 along each axis."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smoothed: Thumbnail = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return smoothed


def _outside(picture: Thumbnail, other: Thumbnail) -> NDArray[np.float32]:
    """(S, S) how far a pixel is from all that lies within one pixel of its place in the other picture."""
    padded = np.pad(other, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2], padded[1:-1], padded[2:]
    low, high = np.minimum.reduce(rows), np.maximum.reduce(rows)
    low = np.minimum.reduce((low[:, :-2], low[:, 1:-1], low[:, 2:]))
    high = np.maximum.reduce((high[:, :-2], high[:, 1:-1], high[:, 2:]))
    beyond: NDArray[np.float32] = np.maximum(low - picture, picture - high).max(axis=2)
    beyond -= _TOLERANCE
    return beyond.clip(0)


def _largest_patch(beyond: NDArray[np.float32], rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> float:
    """The mean of the patch with the largest mean; patches overlap by half."""
    kept = beyond[rows][:, columns]
    size = max(2, len(beyond) // _PATCH)
    sums = np.pad(kept.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    step = max(1, size // 2)
    last_row, last_column = max(1, kept.shape[0] - size + 1), max(1, kept.shape[1] - size + 1)
    top = np.append(np.arange(0, last_row, step), last_row - 1)[:, None]
    left = np.append(np.arange(0, last_column, step), last_column - 1)[None, :]
    bottom, right = np.minimum(top + size, kept.shape[0]), np.minimum(left + size, kept.shape[1])
    means = (sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / (
        (bottom - top) * (right - left)
    )
    return float(means.max())


def _resized(picture: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A picture with fewer pixels, by averages over areas."""
    if len(picture) == side:
        return picture
    if picture.ndim == 2:
        return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))
    channels = [_resized(np.ascontiguousarray(picture[..., channel]), side) for channel in range(3)]
    return np.stack(channels, axis=2)
