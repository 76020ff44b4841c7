"""The picture of a scene: ground, sky, animals, vehicles, houses and trees; people are in `captune.toy.people`.

Everything is drawn at four times the size and reduced by a box filter, which is antialiasing enough and the same on
every machine. Lengths are hundredths of the picture's width, so one drawing serves every size. Every figure is drawn
with its feet at (0, 0) and looks to the right.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageDraw

from captune.toy.pen import COLORS, INK, Color, Pen
from captune.toy.people import draw_person
from captune.toy.scenes import FLYING, PEOPLE, Layout, Scene, Subject

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
SKIES: dict[str, Color] = {"sunny": (150, 208, 246), "cloudy": (176, 190, 204), "night": (46, 54, 118)}
GLASS: Color = (200, 228, 244)
TYRE: Color = (44, 42, 46)

# Width of one of them in a row, in hundredths of the picture's width.
_WIDTHS = {
    "man": 29, "woman": 29, "boy": 25, "girl": 25, "dog": 34, "cat": 32, "horse": 40, "sheep": 33, "bird": 34,
    "duck": 33, "car": 43, "bus": 60, "truck": 56, "boat": 32, "plane": 43, "ball": 26, "house": 46,
}  # fmt: skip

# Small things are drawn larger than life, so that an eye (or a patch of eight pixels) can distinguish them.
_SCALES = {"dog": 1.3, "cat": 1.35, "sheep": 1.35, "bird": 1.4, "duck": 1.4, "plane": 1.35, "ball": 1.15}


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
        _draw_sun(pen.at(88 if scene.layout.facing == "left" else 12, 12))
    elif scene.sky == "night":
        _draw_moon(pen.at(88 if scene.layout.facing == "left" else 12, 12))
    else:
        _draw_cloud(pen.at(22, 13))
        _draw_cloud(pen.at(74, 17))
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
    """Centre of the subject; the companion takes the other part of the picture."""
    if scene.companion is None or scene.subject.action == FLYING:
        return 50 + 2 * scene.layout.shift_x if scene.subject.count == 1 else 50 + scene.layout.shift_x
    towards = 1 if scene.companion.side == "left" else -1
    room = 15 if _width_of(scene.subject) * scene.subject.count > 40 else 20
    return 50 + towards * room + scene.layout.shift_x / 2


def _draw_companion(pen: Pen, scene: Scene) -> None:
    companion, subject = scene.companion, scene.subject
    if companion is None:
        return
    towards = -1 if companion.side == "left" else 1
    away = 12 if subject.action == FLYING else 30
    if _width_of(subject) * subject.count > 40 and subject.action != FLYING:
        away = 33
    # Far things are drawn higher in the picture, near ones (animals, balls, people) on the subject's ground.
    far = companion.kind in ("tree", "house", "car", "bench")
    feet = 78 if far else 88
    alike = Subject(companion.kind, 1, companion.color, "stand")
    facing = "left" if towards > 0 else "right"
    _draw_figure(
        pen.at(50 + towards * away, feet + scene.layout.shift_y / 2), alike, facing, scene.layout, companion.size
    )


def _draw_subject(pen: Pen, scene: Scene) -> None:
    subject, layout = scene.subject, scene.layout
    step = _width_of(subject)
    centre = _subject_centre(scene)
    feet = 87 + layout.shift_y
    if subject.action == FLYING:
        feet = 36 + layout.shift_y
    elif subject.kind == "house":
        feet = 78
    for index in range(subject.count):
        offset = index - (subject.count - 1) / 2
        # Neighbours are alternately a little nearer and farther.
        depth = 3 * (index % 2) if subject.count > 1 else 0
        _draw_figure(pen.at(centre + offset * step, feet + depth), subject, layout.facing, layout, "large")


def _width_of(subject: Subject) -> float:
    """The room one of the subject takes, in hundredths of the picture's width."""
    if subject.action == "ride":
        return 46
    if subject.action in ("bike", "kick"):
        return 36
    return _WIDTHS[subject.kind]


def _draw_figure(pen: Pen, subject: Subject, facing: str, layout: Layout, size: str) -> None:
    """Draw one item of the subject's kind at the position of the pen.

    Args:
        pen: at the feet of the figure.
        subject: kind, colour and action; its count is ignored.
        facing: "left" or "right".
        layout: the looks of people.
        size: "small" for the small kind of house.
    """
    pen = pen.turned(facing == "left")
    if subject.kind in PEOPLE:
        if subject.action == "ride":
            _draw_horse(pen, COLORS[subject.prop_color], "stand")
            draw_person(pen.moved(-2, 15, 0.8), subject, layout)
        else:
            draw_person(pen, subject, layout)
    elif subject.kind == "house":
        _draw_house(pen.moved(scale=0.68 if size == "small" else 1.15), COLORS[subject.color])
    elif subject.kind in ("tree", "bench"):
        _PLAIN[subject.kind](pen)
    else:
        draw = _COLORED[subject.kind]
        draw(pen.moved(scale=_SCALES.get(subject.kind, 1.0)), COLORS[subject.color], subject.action)


def _draw_sun(pen: Pen) -> None:
    """A sun with its centre at the pen."""
    pen.oval(0, 0, 8, 8, (255, 226, 70), outline=0)


def _draw_moon(pen: Pen) -> None:
    """A crescent moon with its centre at the pen."""
    pen.oval(0, 0, 7, 7, (246, 244, 214), outline=0)
    pen.oval(-3.5, 2, 6, 6, SKIES["night"], outline=0)


def _draw_cloud(pen: Pen) -> None:
    """A cloud with its centre at the pen."""
    for x, y, radius in ((-8, 0, 5), (0, 2, 7), (8, 0, 5)):
        pen.oval(x, y, radius, radius, (238, 240, 244), outline=0)


def _eye(pen: Pen, x: float, y: float, coat: Color) -> None:
    pen.oval(x, y, 0.9, 0.9, INK if sum(coat) > 300 else COLORS["white"], outline=0)


def _legs(pen: Pen, coat: Color, height: float, places: tuple[float, ...], action: str, width: float = 3) -> None:
    # Running legs swing out in pairs; the hind pair first in `places`.
    for index, x in enumerate(places):
        swing = 0.0
        if action in ("run", "jump"):
            swing = -5.0 if index < len(places) / 2 else 5.0
        pen.line(((x, height), (x + swing, 1.5 + (2 if action in ("run", "jump") and index % 2 else 0))), width, coat)


def _draw_dog(pen: Pen, coat: Color, action: str) -> None:
    if action == "jump":
        pen.oval(0, 0, 10, 1.6, (90, 90, 90), outline=0)
        pen = pen.moved(0, 11)
    if action == "sit":
        pen.line(((-7, 2), (-12, 5)), 2.4, coat)
        pen.shape(((-9, 0), (4, 0), (6, 14), (0, 18)), coat)
        pen.line(((4, 10), (5, 1)), 3, coat)
        pen = pen.moved(-4, 5)
    else:
        _legs(pen, coat, 8, (-8, -5.5, 5.5, 8), action)
        pen.line(((-9, 11), (-14, 17)), 2.4, coat)
        pen.oval(0, 10, 10.5, 4.6, coat)
    pen.oval(10, 16, 4.8, 4.4, coat)
    pen.line(((12, 15), (16, 14.4)), 3.4, coat)
    pen.line(((7.5, 18), (6.5, 12.5)), 2.6, coat)
    pen.oval(17.4, 15, 1.2, 1.2, INK, outline=0)
    _eye(pen, 11.5, 17, coat)


def _draw_cat(pen: Pen, coat: Color, action: str) -> None:
    if action == "sleep":
        pen.oval(0, 5, 11.5, 5.2, coat)
        pen.line(((-10, 3), (-3, 0.8), (4, 1)), 2.4, coat)
        head = pen.moved(9, 5)
    elif action == "sit":
        pen.line(((-5, 2), (-11, 3), (-13, 9)), 2.2, coat)
        pen.oval(0, 8, 6.4, 8.2, coat)
        head = pen.moved(2, 19)
    else:
        _legs(pen, coat, 7, (-7, -4.5, 4.5, 7), action, 2.4)
        pen.line(((-8, 9), (-13, 14), (-12, 21)), 2.2, coat)
        pen.oval(0, 9, 9, 4.2, coat)
        head = pen.moved(9, 14)
    for side in (-1, 1):
        head.shape(((side * 1, 3), (side * 5, 2.4), (side * 4.4, 8.4)), coat)
    head.oval(0, 0, 5.2, 4.8, coat)
    for side in (-1, 1):
        if action == "sleep":
            head.line(((side * 2 - 1, 0), (side * 2 + 1, 0)), 0.8, INK if sum(coat) > 300 else COLORS["white"], 0)
        else:
            _eye(head, side * 2, 0.8, coat)


def _draw_horse(pen: Pen, coat: Color, action: str) -> None:
    """A horse, with or without a rider (who is somebody else's business)."""
    mane: Color = (
        (70, 44, 26) if coat == COLORS["brown"] else (176, 170, 160) if coat == COLORS["white"] else (110, 104, 100)
    )
    _legs(pen, coat, 14, (-11, -8, 7, 10), action, 3.4)
    pen.line(((-13, 20), (-18, 16), (-18, 9)), 3, mane)
    pen.oval(0, 18, 14, 6.2, coat)
    pen.line(((10, 20), (16, 33)), 6.4, coat)
    pen.line(((16, 34), (22, 29)), 5, coat)
    pen.line(((9, 25), (13, 34)), 2.6, mane, 0)
    pen.shape(((14, 36), (17, 36), (15.5, 41)), coat)
    _eye(pen, 17, 34, coat)


def _draw_sheep(pen: Pen, coat: Color, action: str) -> None:
    face: Color = (70, 64, 66) if coat == COLORS["white"] else (196, 188, 180)
    _legs(pen, face, 6, (-6, -3.5, 4, 6.5), action, 2.2)
    for x, y in ((-8, 9), (-4, 6.5), (2, 6.5), (7, 9), (-6, 13), (0, 14.5), (6, 13)):
        pen.oval(x, y, 4.4, 4.4, coat)
    pen.oval(0, 10, 8.5, 5, coat, outline=0)
    pen.oval(11.5, 12.5, 3.4, 4.2, face)


def _draw_bird(pen: Pen, coat: Color, action: str) -> None:
    beak = COLORS["orange"]
    if action == "fly":
        pen.shape(((-8, 0), (-15, 3), (-14, -3)), coat)
        pen.oval(0, 0, 9, 4.4, coat)
        pen.shape(((8, 3.4), (14.5, 1.6), (8, 0)), beak)
        pen.oval(7, 2.4, 4, 3.8, coat)
        pen.shape(((-4, 2), (4, 2), (-5, 16)), coat)
        pen.shape(((-3, -2), (4, -2), (-2, -11)), coat)
        _eye(pen, 8, 3.4, coat)
        return
    for x in (-1.5, 1.5):
        pen.line(((x, 6), (x, 0.6)), 1, beak, 0.2)
    pen.shape(((-5, 9), (-14, 5), (-12, 11)), coat)
    pen.oval(0, 10, 7, 5.4, coat)
    pen.shape(((8, 19), (14, 16.5), (8, 15)), beak)
    pen.oval(5, 17, 4.2, 4.2, coat)
    pen.shape(((-5, 11), (3, 12), (-2, 6)), tuple(max(0, c - 50) for c in coat))  # type: ignore[arg-type]
    _eye(pen, 6.4, 18, coat)


def _draw_duck(pen: Pen, coat: Color, action: str) -> None:
    pen.shape(((-8, 6), (-15, 11), (-10, 1)), coat)
    pen.oval(0, 4, 11, 5.4, coat)
    pen.line(((7, 6), (8, 14)), 4, coat)
    pen.shape(((11, 17), (17, 14.4), (11, 13.4)), COLORS["orange"])
    pen.oval(8.6, 15.5, 4.4, 4.2, coat)
    _eye(pen, 9.8, 16.6, coat)
    pen.line(((-14, -1.5), (14, -1.5)), 1.6, (190, 222, 242), 0)


def _wheels(pen: Pen, places: tuple[float, ...], radius: float) -> None:
    for x in places:
        pen.oval(x, radius, radius, radius, TYRE)
        pen.oval(x, radius, radius * 0.42, radius * 0.42, COLORS["gray"], outline=0)


def _exhaust(pen: Pen, x: float, action: str) -> None:
    if action == "drive":
        for step, radius in enumerate((2.6, 3.4, 4.2)):
            pen.oval(x - 6 * step, 5 + 2.2 * step, radius, radius, (214, 214, 218), outline=0.3)


def _draw_car(pen: Pen, paint: Color, action: str) -> None:
    _exhaust(pen, -23, action)
    pen.shape(((-11, 13), (-7, 22), (6, 22), (11, 13)), paint)
    pen.shape(((-8, 14), (-5.4, 20), (-1, 20), (-1, 14)), GLASS, 0.3)
    pen.shape(((1, 14), (1, 20), (5, 20), (8, 14)), GLASS, 0.3)
    pen.box(-19, 4.5, 19, 13.5, paint)
    _wheels(pen, (-11, 11), 4.6)


def _draw_bus(pen: Pen, paint: Color, action: str) -> None:
    _exhaust(pen, -30, action)
    pen.box(-26, 5, 26, 32, paint)
    for left in (-23, -13, -3, 7):
        pen.box(left, 19, left + 7.5, 28, GLASS, 0.3)
    pen.box(18, 8, 23.5, 28, GLASS, 0.3)
    _wheels(pen, (-16, 13), 5.2)


def _draw_truck(pen: Pen, paint: Color, action: str) -> None:
    _exhaust(pen, -29, action)
    pen.box(-25, 7, 8, 31, (206, 204, 200))
    pen.shape(((9, 5), (25, 5), (25, 15), (20, 25), (9, 25)), paint)
    pen.shape(((12.5, 15), (22.5, 15), (18.8, 22), (12.5, 22)), GLASS, 0.3)
    pen.box(-25, 4.6, 25, 7.6, TYRE, 0)
    _wheels(pen, (-17, -6, 17), 4.8)


def _draw_boat(pen: Pen, paint: Color, action: str) -> None:
    pen.line(((0, 6), (0, 38)), 1.4, COLORS["brown"], 0.3)
    pen.shape(((1.5, 12), (1.5, 36), (14, 12)), COLORS["white"])
    pen.shape(((-1.5, 12), (-1.5, 30), (-10, 12)), COLORS["white"])
    pen.shape(((-16, 9), (17, 9), (11, 0), (-11, 0)), paint)
    pen.line(((-15, -1), (15, -1)), 1.6, (190, 222, 242), 0)


def _draw_plane(pen: Pen, paint: Color, action: str) -> None:
    pen.shape(((-13, 2), (-17, 12), (-12, 12), (-7, 3)), paint)
    pen.oval(0, 1, 16, 4.4, paint)
    pen.shape(((-1, 0), (6, 0), (-5, -11), (-9, -11)), paint)
    for x in (-5, 0, 5):
        pen.oval(x, 2.2, 1.1, 1.1, GLASS, outline=0.2)
    pen.shape(((10, 2), (14, 2), (12, 4.4), (10, 4.4)), GLASS, 0.2)


def _draw_ball(pen: Pen, paint: Color, action: str) -> None:
    pen.oval(0, 0.4, 8, 1.6, (80, 80, 84), outline=0)
    pen.oval(0, 8, 7.6, 7.6, paint)
    pen.oval(-2.4, 11, 1.8, 1.8, tuple(min(255, c + 70) for c in paint), outline=0)  # type: ignore[arg-type]


def _draw_house(pen: Pen, paint: Color) -> None:
    pen.box(8, 26, 12, 37, (120, 96, 90))
    pen.box(-16, 0, 16, 22, paint)
    pen.shape(((-20, 21), (20, 21), (0, 38)), (110, 62, 52))
    pen.box(-4, 0, 4, 12, (88, 60, 40), 0.4)
    for left in (-13, 7):
        pen.box(left, 9, left + 6, 16, GLASS, 0.4)


def _draw_tree(pen: Pen) -> None:
    pen.box(-2.4, 0, 2.4, 16, (110, 74, 44))
    for x, y, radius in ((-8, 24, 8.5), (8, 24, 8.5), (0, 34, 10)):
        pen.oval(x, y, radius, radius, (42, 122, 52))
    pen.oval(0, 27, 9, 8, (42, 122, 52), outline=0)


def _draw_bench(pen: Pen) -> None:
    wood: Color = (160, 104, 58)
    for x in (-10, 10):
        pen.line(((x, 14), (x, 0.6)), 1.8, (70, 66, 70), 0.2)
    for y in (6, 10.5, 14):
        pen.box(-13, y, 13, y + 2.2, wood, 0.4)


_COLORED: dict[str, Callable[[Pen, Color, str], None]] = {
    "dog": _draw_dog,
    "cat": _draw_cat,
    "horse": _draw_horse,
    "sheep": _draw_sheep,
    "bird": _draw_bird,
    "duck": _draw_duck,
    "car": _draw_car,
    "bus": _draw_bus,
    "truck": _draw_truck,
    "boat": _draw_boat,
    "plane": _draw_plane,
    "ball": _draw_ball,
}
_PLAIN: dict[str, Callable[[Pen], None]] = {"tree": _draw_tree, "bench": _draw_bench}
