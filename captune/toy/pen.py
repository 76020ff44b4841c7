"""A pen that draws outlined shapes in hundredths of the picture's width, upwards from the feet of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import ImageDraw

__all__ = ["COLORS", "INK", "Color", "Pen", "Point"]

Color = tuple[int, int, int]
Point = tuple[float, float]

INK: Color = (34, 30, 34)
COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "orange": (244, 138, 30),
    "yellow": (250, 220, 50),
    "green": (30, 130, 60),
    "blue": (40, 80, 210),
    "purple": (130, 60, 170),
    "pink": (246, 140, 190),
    "white": (250, 250, 250),
    "black": (58, 56, 62),
    "brown": (134, 84, 44),
    "gray": (150, 150, 154),
}


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws on a canvas relative to a point.

    Args:
        draw: the canvas.
        unit: pixels in one hundredth of the picture's width.
        x: origin of the figure, in hundredths from the left.
        y: the same, in hundredths from the top.
        mirrored: whether the x axis of the figure points to the left.
        scale: enlargement of the figure.
    """

    draw: ImageDraw.ImageDraw
    unit: float
    x: float = 0.0
    y: float = 0.0
    mirrored: bool = False
    scale: float = 1.0

    def at(self, x: float, y: float) -> Pen:
        """The same pen at a point of the picture."""
        return replace(self, x=x, y=y)

    def moved(self, dx: float = 0.0, dy: float = 0.0, scale: float = 1.0) -> Pen:
        """The pen moved in lengths of the figure (`dy` upwards), enlarged by `scale`."""
        x = self.x + (-dx if self.mirrored else dx) * self.scale
        return replace(self, x=x, y=self.y - dy * self.scale, scale=self.scale * scale)

    def turned(self, mirrored: bool) -> Pen:
        """The same pen, facing left if `mirrored`."""
        return replace(self, mirrored=mirrored)

    def _pixel(self, x: float, y: float) -> Point:
        across = -x if self.mirrored else x
        return (self.x + across * self.scale) * self.unit, (self.y - y * self.scale) * self.unit

    def area(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        """A rectangle without outline, in lengths of the picture (not of the figure)."""
        u = self.unit
        self.draw.rectangle((left * u, top * u, right * u - 1, bottom * u - 1), fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Color, outline: float = 0.7) -> None:
        """An ellipse around (x, y)."""
        for grow, color in ((outline, INK), (0.0, fill)):
            if grow or color is fill:
                cx, cy = self._pixel(x, y)
                wide, high = (rx * self.scale + grow) * self.unit, (ry * self.scale + grow) * self.unit
                self.draw.ellipse((cx - wide, cy - high, cx + wide, cy + high), fill=color)

    def shape(self, points: Sequence[Point], fill: Color, outline: float = 0.7) -> None:
        """A filled polygon."""
        pixels = [self._pixel(x, y) for x, y in points]
        if outline:
            self._path([*pixels, pixels[0]], 2 * outline * self.unit, INK)
        self.draw.polygon(pixels, fill=fill)

    def box(self, left: float, bottom: float, right: float, top: float, fill: Color, outline: float = 0.7) -> None:
        """A filled rectangle."""
        self.shape(((left, bottom), (right, bottom), (right, top), (left, top)), fill, outline)

    def line(self, points: Sequence[Point], width: float, fill: Color, outline: float = 0.5) -> None:
        """A stroke with round ends and joints."""
        pixels = [self._pixel(x, y) for x, y in points]
        if outline:
            self._path(pixels, (width * self.scale + 2 * outline) * self.unit, INK)
        self._path(pixels, width * self.scale * self.unit, fill)

    def _path(self, pixels: Sequence[Point], width: float, fill: Color) -> None:
        self.draw.line(list(pixels), fill=fill, width=max(1, round(width)))
        for px, py in pixels:
            self.draw.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=fill)
