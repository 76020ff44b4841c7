"""Men, women, boys and girls in action."""

from __future__ import annotations

from captune.toy.pen import COLORS, INK, Color, Pen, Point
from captune.toy.scenes import Layout, Subject

__all__ = ["draw_person"]

SKINS: tuple[Color, ...] = ((246, 208, 170), (208, 152, 108), (138, 92, 62))
HAIRS: tuple[Color, ...] = ((60, 40, 30), (112, 70, 36), (30, 28, 32))
TROUSERS: Color = (70, 78, 104)

# action -> ((hand behind, hand in front), (foot behind, foot in front)), shoulders at (±3.5, 24), hips at (±2, 15).
_POSES: dict[str, tuple[tuple[Point, Point], tuple[Point, Point]]] = {
    "stand": (((-6, 14), (6, 14)), ((-2.6, 0.8), (2.6, 0.8))),
    "run": (((-8.5, 18), (9, 22)), ((-9, 3.5), (7.5, 1))),
    "jump": (((-8, 33), (8, 33)), ((-6.5, 6), (6.5, 6))),
    "wave": (((-6, 14), (9, 34)), ((-2.6, 0.8), (2.6, 0.8))),
    "kick": (((-8, 20), (7, 19)), ((-3, 0.8), (9.5, 5))),
    "umbrella": (((-6, 14), (7, 24)), ((-2.6, 0.8), (2.6, 0.8))),
    "balloon": (((-6, 14), (7, 25)), ((-2.6, 0.8), (2.6, 0.8))),
    "bike": (((7, 20), (8, 20)), ((-1, 4), (4, 5.5))),
    "ride": (((6, 17), (7, 17)), ((2, 3), (3, 3))),
}
_KNEES: dict[str, tuple[Point, Point]] = {
    "run": ((-3, 8), (6, 9)),
    "jump": ((-7, 12), (7, 12)),
    "kick": ((-2.6, 8), (4.5, 9)),
    "bike": ((4, 12), (5, 13)),
    "ride": ((4, 10), (5, 10)),
}


def draw_person(pen: Pen, subject: Subject, layout: Layout) -> None:
    """Draw one person in an action, with its ball, umbrella, balloon or bike.

    Args:
        pen: at the point between the feet.
        subject: kind, colour of the clothes, action, colour of the ball, umbrella, balloon or bike.
        layout: skin and hair.
    """
    child = subject.kind in ("boy", "girl")
    action = subject.action
    figure = pen.moved(scale=1.06 if child else 1.45)
    prop = COLORS.get(subject.prop_color, INK)
    if action == "jump":
        pen.oval(0, 0, 9, 1.6, (90, 90, 90), outline=0)
        figure = figure.moved(0, 9)
    elif action == "bike":
        _draw_bike(figure.moved(0, 0, 1.05), prop)
        figure = figure.moved(-3, 8)
    elif action == "kick":
        figure.moved(14.5, 5).oval(0, 0, 5.5, 5.5, prop)
    elif action == "balloon":
        figure.line(((7, 25), (9, 35)), 0.8, INK, 0)
        figure.oval(9.5, 41, 6, 7, prop)
    _draw_body(figure, subject, layout, child)
    if action == "umbrella":
        _draw_umbrella(figure, prop)


def _draw_body(pen: Pen, subject: Subject, layout: Layout, child: bool) -> None:
    skin, hair, clothes = SKINS[layout.skin], HAIRS[layout.hair], COLORS[subject.color]
    female = subject.kind in ("woman", "girl")
    hands, feet = _POSES[subject.action]
    knees = _KNEES.get(subject.action)
    head_y, head = (31.5, 5.6) if child else (30.5, 4.3)
    if female:
        _draw_long_hair(pen, head_y, head, hair, child)
    for index, hip in enumerate((-2.0, 2.0)):
        path = ((hip, 14), knees[index], feet[index]) if knees else ((hip, 14), feet[index])
        pen.line(path, 2.6, TROUSERS if subject.kind == "man" else skin)
    if subject.kind == "boy":
        pen.shape(((-4.4, 15), (4.4, 15), (5.2, 9.5), (-5.2, 9.5)), TROUSERS)
    pen.line(((-3.6, 23.5), hands[0]), 2.2, skin)
    if female:
        pen.shape(((-3.6, 25.5), (3.6, 25.5), (8, 9), (-8, 9)), clothes)
    else:
        pen.shape(((-4.6, 25.5), (4.6, 25.5), (4.2, 13), (-4.2, 13)), clothes)
    for side, hand in zip((-3.8, 3.8), hands, strict=True):
        # The upper half of the arm is sleeve.
        elbow = ((side + hand[0]) / 2, (24 + hand[1]) / 2)
        pen.line(((side, 24), hand), 2.2, skin)
        pen.line(((side, 24), elbow), 2.6, clothes)
    pen.oval(0, head_y, head, head, skin)
    pen.shape(_cap(head_y, head), hair, 0)
    pen.oval(head * 0.45, head_y - 0.2, 0.7, 0.7, INK, outline=0)


def _cap(head_y: float, head: float) -> tuple[Point, ...]:
    """Short hair: the upper part of the head, a little more of it behind."""
    r = head + 0.7
    return (
        (-r, head_y - 0.5), (-r * 0.92, head_y + r * 0.5), (-r * 0.5, head_y + r * 0.95), (0, head_y + r * 1.08),
        (r * 0.5, head_y + r * 0.95), (r * 0.92, head_y + r * 0.5), (r * 0.3, head_y + r * 0.5),
        (-r * 0.4, head_y + r * 0.3),
    )  # fmt: skip


def _draw_long_hair(pen: Pen, head_y: float, head: float, hair: Color, child: bool) -> None:
    if child:
        for side in (-1, 1):
            pen.oval(side * (head + 2), head_y + 1.5, 2.8, 2.8, hair)
    pen.shape(
        ((-head - 1, head_y + 2), (head + 0.6, head_y + 2), (head + 1.4, head_y - 9), (-head - 2, head_y - 9)), hair
    )


def _draw_bike(pen: Pen, paint: Color) -> None:
    for x in (-9.5, 10.5):
        pen.oval(x, 6, 6.2, 6.2, INK, outline=0)
        pen.oval(x, 6, 4.6, 4.6, (206, 210, 214), outline=0)
    frame: tuple[Point, ...] = ((-9.5, 6), (-4, 14), (7, 14), (1, 6), (-9.5, 6))
    pen.line(frame, 2.2, paint, 0.4)
    pen.line(((1, 6), (-4, 14)), 2.2, paint, 0.4)
    pen.line(((10.5, 6), (6.5, 18)), 2.2, paint, 0.4)


def _draw_umbrella(pen: Pen, paint: Color) -> None:
    pen.line(((7, 24), (7, 41)), 1.0, INK, 0)
    pen.shape(
        ((-9, 38), (-7, 43), (-2, 47.5), (5, 49), (12, 47.5), (17, 43), (19, 38), (12, 39.5), (5, 38), (-2, 39.5)),
        paint,
    )
