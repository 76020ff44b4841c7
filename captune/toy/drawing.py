"""The picture of a scene: ground, sky, and the figures in their places.

Everything is drawn at four times the size and reduced by a box filter, which is antialiasing enough and the same on
every machine. Lengths are hundredths of the picture's width, so one drawing serves every size.
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from captune.toy.figures import SKIES, draw_cloud, draw_figure, draw_moon, draw_sun, width_of
from captune.toy.pen import COLORS, Pen
from captune.toy.scenes import FLYING, Scene, Subject

__all__ = ["IMAGE_SIZE", "draw_scene"]

IMAGE_SIZE = 64
SUPERSAMPLING = 4

GROUNDS = {
    "grass": (96, 168, 72),
    "snow": (236, 240, 246),
    "beach": (232, 208, 148),
    "street": (120, 120, 126),
    "lake": (58, 128, 190),
}


def draw_scene(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """Draw a scene.

    Args:
        scene: what to draw.
        size: width and height of the picture, in pixels.

    Returns:
        An RGB image of `size` x `size` pixels, the same for equal arguments.
    """
    canvas = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING), SKIES[scene.sky])
    pen = Pen(ImageDraw.Draw(canvas), unit=size * SUPERSAMPLING / 100)
    _draw_backdrop(pen, scene)
    _draw_companion(pen, scene)
    _draw_subject(pen, scene)
    return canvas.reduce(SUPERSAMPLING)


def _draw_backdrop(pen: Pen, scene: Scene) -> None:
    horizon = scene.layout.horizon
    if scene.sky == "sunny":
        draw_sun(pen.at(88 if scene.layout.facing == "left" else 12, 12))
    elif scene.sky == "night":
        draw_moon(pen.at(88 if scene.layout.facing == "left" else 12, 12))
    else:
        draw_cloud(pen.at(22, 13))
        draw_cloud(pen.at(74, 17))
    pen.area(0, horizon, 100, 100, GROUNDS[scene.setting])
    if scene.setting == "beach":
        pen.area(0, horizon, 100, horizon + 9, GROUNDS["lake"])
        pen.area(0, horizon + 9, 100, horizon + 11, COLORS["white"])
    elif scene.setting == "street":
        pen.area(0, horizon, 100, horizon + 6, GROUNDS["grass"])
        for left in range(4, 100, 24):
            pen.area(left, 92, left + 13, 95, (238, 226, 150))
    elif scene.setting == "lake":
        for row, y in enumerate(range(horizon + 7, 100, 9)):
            for left in range(-8 + 11 * (row % 2), 100, 22):
                pen.area(left, y, left + 9, y + 1.5, (150, 200, 232))
    elif scene.setting == "grass":
        for row, y in enumerate(range(horizon + 6, 100, 10)):
            for left in range(2 + 9 * (row % 2), 100, 18):
                pen.area(left, y, left + 1.5, y + 4, (64, 132, 50))


def _subject_centre(scene: Scene) -> float:
    """Where the middle of the subject stands; the companion takes the other part of the picture."""
    if scene.companion is None or scene.subject.action == FLYING:
        return 50 + 2 * scene.layout.shift_x if scene.subject.count == 1 else 50 + scene.layout.shift_x
    towards = 1 if scene.companion.side == "left" else -1
    room = 15 if width_of(scene.subject) * scene.subject.count > 40 else 20
    return 50 + towards * room + scene.layout.shift_x / 2


def _draw_companion(pen: Pen, scene: Scene) -> None:
    companion, subject = scene.companion, scene.subject
    if companion is None:
        return
    towards = -1 if companion.side == "left" else 1
    away = 12 if subject.action == FLYING else 30
    if width_of(subject) * subject.count > 40 and subject.action != FLYING:
        away = 33
    # Far things stand higher in the picture, near ones (animals, balls, people) on the subject's own ground.
    far = companion.kind in ("tree", "house", "car", "bench")
    feet = 78 if far else 88
    alike = Subject(companion.kind, 1, companion.color, "stand")
    facing = "left" if towards > 0 else "right"
    draw_figure(
        pen.at(50 + towards * away, feet + scene.layout.shift_y / 2), alike, facing, scene.layout, companion.size
    )


def _draw_subject(pen: Pen, scene: Scene) -> None:
    subject, layout = scene.subject, scene.layout
    step = width_of(subject)
    centre = _subject_centre(scene)
    feet = 87 + layout.shift_y
    if subject.action == FLYING:
        feet = 36 + layout.shift_y
    elif subject.kind == "house":
        feet = 78
    for index in range(subject.count):
        place = index - (subject.count - 1) / 2
        # Neighbours stand a little before or behind one another, as people do.
        depth = 3 * (index % 2) if subject.count > 1 else 0
        draw_figure(pen.at(centre + place * step, feet + depth), subject, layout.facing, layout, "large")
