"""Laying one picture over another that is a part of it, or that it is a part of.

Gauss-Newton steps over a scale and a shift along each axis (Lucas and Kanade, 1981), from coarse to fine; that is what
resizing and cutting margins off do to a picture.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captune.data.leaks.fingerprints import Box

__all__ = ["Alignment", "Pixels", "align", "between", "inside", "moved", "positions", "resized"]

Pixels: TypeAlias = NDArray[np.float32]
"""(S, S) or (S, S, 3) float32."""

Alignment: TypeAlias = NDArray[np.float64]
"""(4,) scale and shift along x, then along y, from coordinates in one picture to those in the other; the edges are -1
and 1."""

_LEVELS = (24, 48, 96)  # sides at which pictures are aligned, coarse to fine
_STEPS = 6  # Gauss-Newton steps at each of them
_LEAST_OVERLAP = 0.25  # below, there is nothing to align


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
    found = start
    for level in _LEVELS:
        side = min(level, len(one))
        first, second = resized(one, side), resized(other, side)
        along_y, along_x = np.gradient(second, axis=0), np.gradient(second, axis=1)
        for _ in range(_STEPS):
            horizontal, vertical = positions(found, side)
            overlap = np.outer(inside(vertical), inside(horizontal))
            if overlap.mean() < _LEAST_OVERLAP:
                return None
            there, slope_x, slope_y = (moved(part, horizontal, vertical) for part in (second, along_x, along_y))
            place = _centres(side)
            # A unit of coordinates is half a side.
            slopes = np.stack([slope_x * place, slope_x, slope_y * place[:, None], slope_y]) * (side / 2)
            slopes = (slopes * overlap).reshape(4, -1)
            residual = ((first - there) * overlap).reshape(-1)
            normal = slopes @ slopes.T
            normal[np.diag_indices(4)] += 1e-3 * np.trace(normal) / 4 + 1e-6
            step = np.linalg.solve(normal, slopes @ residual)
            found = found + np.clip(step, -0.1, 0.1)
            if np.abs(step).max() < 0.2 / side:
                break
    return found


def positions(alignment: Alignment, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each column and each row of one picture lies in the other, in its pixels."""
    place, half = _centres(side), side / 2
    columns = (alignment[0] * place + alignment[1] + 1) * half - 0.5
    return columns, (alignment[2] * place + alignment[3] + 1) * half - 0.5


def _centres(side: int) -> NDArray[np.float64]:
    """Coordinates of the middles of pixels; -1 and 1 are the edges of the picture."""
    return (2 * np.arange(side) + 1) / side - 1


def inside(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which positions lie in the picture; half a pixel of doubt is granted."""
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
