"""Fruit, vegetables, sweets and plants. Each function: a free proportion in [0, 1] and the named color -> parts."""

from __future__ import annotations

import math

from .primitives import (
    CREAM,
    LEAF,
    RGB,
    WOOD,
    Part,
    arc,
    ball,
    bar,
    box,
    cylinder,
    darker,
    dome,
    egg,
    lathe,
    ring,
    rod,
    turned,
)

TERRACOTTA: RGB = (0.70, 0.36, 0.22)


def apple(s: float, c: RGB) -> list[Part]:
    body = [(0, 0.5), (1.2, 0), (2.6, 0.6), (3.8, 2.6), (4.1, 4.4), (3.6, 6.2), (2.2, 7.2), (1.0, 7.1), (0, 6.2)]
    return [
        lathe(body, (0, 0, 0), c),
        rod((0, 0, 6.4), (0.5, 0, 8.4), 0.28, (0.35, 0.22, 0.12)),
        egg((1.5, 0.75, 0.18), (1.9, 0, 8.2), LEAF, turned(0, -20, 0)),
    ]


def pear(s: float, c: RGB) -> list[Part]:
    body = [(0, 0.3), (1.4, 0), (3.2, 1.0), (4.0, 3.2), (3.6, 5.4), (2.3, 7.6), (1.8, 9.4), (1.1, 10.4), (0, 10.6)]
    return [
        lathe(body, (0, 0, 0), c),
        rod((0, 0, 10.4), (0.7, 0, 12.4), 0.28, (0.35, 0.22, 0.12)),
        egg((1.7, 0.8, 0.18), (2.2, 0, 12.0), LEAF, turned(0, -25, 0)),
    ]


def banana(s: float, c: RGB) -> list[Part]:
    points = arc((0, -7.5 - s, 2.2), 9.5, 22, 158, 8, "xy")
    radii = (1.1, 1.7, 2.1, 2.2, 2.2, 2.1, 1.7, 1.1)
    curve = [rod((*a[:2], 2.2), (*b[:2], 2.2), r, c) for a, b, r in zip(points[:-1], points[1:], radii, strict=True)]
    (x0, y0, _), (x1, y1, _) = points[0], points[-1]
    return [
        *curve,
        rod((x0, y0, 2.2), (x0 + 1.2, y0 - 2.2, 2.4), 0.6, darker(c, 0.5)),
        ball(0.8, (x1 - 0.5, y1 - 0.8, 2.2), (0.25, 0.18, 0.08)),
    ]


def carrot(s: float, c: RGB) -> list[Part]:
    body = [(0, -8), (0.5, -7.8), (1.1, -4), (1.8, 1), (2.4, 5), (2.3, 6.2), (1.4, 6.9), (0, 7)]
    lie = turned(0, 90, 0)
    leaves = [
        rod((6.6, 0, 2.4), (11.5, y, z), 0.42, LEAF) for y, z in ((-2.4, 2.2), (-0.8, 3.6), (0.9, 3.2), (2.5, 2.4))
    ]
    rings = [ring(r, 0.12, (x, 0, 2.4), darker(c, 0.7), lie) for r, x in ((1.75, 0.5),)]
    return [lathe(body, (0, 0, 2.4), c, lie), *rings, *leaves]


def mushroom(s: float, c: RGB) -> list[Part]:
    cap = [(0, 0), (2.2, -0.2), (5.2, 0), (5.4, 0.5), *[(r * 0.98, z + 0.6) for r, z in dome(5.3, 4.0)][1:]]
    dots = []
    for turn, tilt in ((0, 35), (75, 55), (150, 35), (215, 60), (290, 40), (330, 70)):
        a, t = math.radians(turn), math.radians(tilt)
        dots.append(
            ball(
                0.75, (5.0 * math.cos(t) * math.cos(a), 5.0 * math.cos(t) * math.sin(a), 5.1 + 3.9 * math.sin(t)), CREAM
            )
        )
    stem = [(0, 0), (2.4, 0), (2.2, 0.5), (1.6, 2.5), (1.8, 5), (0, 5)]
    return [lathe(stem, (0, 0, 0), CREAM), lathe(cap, (0, 0, 4.6), c), *dots]


def cupcake(s: float, c: RGB) -> list[Part]:
    cup = [(0, 0), (2.8, 0), (4.0, 4.2), (0, 4.2)]
    cream = [
        (0, 0),
        (4.4, 0),
        (4.7, 0.9),
        (4.0, 1.9),
        (3.6, 2.0),
        (3.8, 2.6),
        (2.8, 3.7),
        (2.3, 3.8),
        (2.4, 4.3),
        (1.0, 5.6),
        (0, 5.9),
    ]
    return [
        lathe(cup, (0, 0, 0), TERRACOTTA),
        lathe(cream, (0, 0, 4.0), c),
        ball(0.95, (0, 0, 10.4), (0.75, 0.05, 0.1)),
    ]


def donut(s: float, c: RGB) -> list[Part]:
    sprinkles = []
    for k in range(7):
        a = 2 * math.pi * k / 7
        x, y = (4.6 + 0.8 * (-1) ** k) * math.cos(a), (4.6 + 0.8 * (-1) ** k) * math.sin(a)
        sprinkles.append(rod((x, y, 4.35), (x + 0.6 * math.sin(5 * a), y + 0.6 * math.cos(3 * a), 4.35), 0.22, CREAM))
    return [ring(4.6, 2.1, (0, 0, 2.1), (0.78, 0.55, 0.30)), ring(4.6, 1.95, (0, 0, 2.4), c), *sprinkles]


def pumpkin(s: float, c: RGB) -> list[Part]:
    lobes = []
    for k in range(8):
        a = 2 * math.pi * k / 8
        lobes.append(egg((3.6, 2.5, 3.9), (3.2 * math.cos(a), 3.2 * math.sin(a), 3.9), c, turned(0, 0, 45 * k)))
    return [*lobes, *(rod(p, q, 0.7, LEAF) for p, q in (((0, 0, 7.2), (0.3, 0, 8.6)), ((0.3, 0, 8.6), (1.3, 0, 9.6))))]


def ice_cream(s: float, c: RGB) -> list[Part]:
    stand = [
        (0, 0),
        (3.6, 0),
        (3.6, 0.5),
        (0.9, 1.1),
        (0.8, 3.0),
        (2.2, 4.4),
        (4.4, 8.0),
        (4.7, 8.2),
        (4.0, 8.0),
        (0, 7.6),
    ]
    return [
        lathe(stand, (0, 0, 0), (0.80, 0.84, 0.88)),
        ball(2.9, (1.5, 0.9, 9.0), c),
        ball(2.9, (-1.5, 0.9, 9.0), c),
        ball(2.9, (0, -1.5, 9.0), c),
        ball(2.8, (0, 0.1, 12.0), c),
        ball(0.9, (0, 0, 15.2), (0.75, 0.05, 0.1)),
        box(1.6, 0.4, 6, (2.8, 0.4, 13.5), WOOD, turned(0, 25, 0)),
    ]


def cactus(s: float, c: RGB) -> list[Part]:
    h = 13 + 3 * s
    return [
        *_flowerpot(),
        rod((0, 0, 6), (0, 0, h + 4), 2.3, c),
        rod((0, 0, 10), (4.2, 0, 10), 1.2, c),
        rod((4.2, 0, 10), (4.2, 0, 14), 1.2, c),
        rod((0, 0, 12.5), (-3.9, 0, 12.5), 1.1, c),
        rod((-3.9, 0, 12.5), (-3.9, 0, 16), 1.1, c),
        ball(0.9, (0, 0, h + 6.5), (0.95, 0.45, 0.65)),
    ]


def potted_plant(s: float, c: RGB) -> list[Part]:
    leaves = []
    for k in range(7):
        lean = 58 if k % 2 else 30
        a, t = 2 * math.pi * k / 7, math.radians(lean)
        x, y, z = 5.0 * math.sin(t) * math.cos(a), 5.0 * math.sin(t) * math.sin(a), 7.0 + 5.0 * math.cos(t)
        leaves.append(egg((0.5, 1.7, 5.2), (x, y, z), c if k % 2 else darker(c, 0.7), turned(0, lean, math.degrees(a))))
    return [*_flowerpot(), *leaves, egg((0.5, 1.6, 5.6), (0, 0, 12), c)]


def _flowerpot() -> list[Part]:
    wall = [(0, 0), (3.6, 0), (4.8, 5.4), (5.4, 5.4), (5.4, 7.0), (4.8, 7.0), (4.6, 6.2), (0, 6.2)]
    return [lathe(wall, (0, 0, 0), TERRACOTTA), cylinder(4.5, 0.2, (0, 0, 6.2), (0.22, 0.15, 0.10))]


def tree(s: float, c: RGB) -> list[Part]:
    cones = [lathe([(0, 0), (r, 0), (0, h)], (0, 0, z), c) for r, h, z in ((6.6, 7, 4), (5.3, 6.4, 8), (3.9, 6.4, 12))]
    return [bar((0, 0, 0), (0, 0, 4.2), 1.5, WOOD), *cones]
