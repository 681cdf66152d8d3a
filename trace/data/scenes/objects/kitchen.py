"""Shapes of kitchenware, food and plants.

One function a category: a free proportion `s` in [0, 1] and the color `c` of the object's name -> parts.
"""

from __future__ import annotations

import math

from . import CHERRY, CREAM, DARK, GLOW, LEAF, METAL, PAPER, RGB, STEEL, TERRACOTTA, WOOD
from .primitives import LYING, Part, arc, ball, bar, box, chain, cylinder, darker, dome, egg, lathe, ring, rod, turned

# The parts of an object are a table of numbers.
# fmt: off


def bowl(s: float, c: RGB) -> list[Part]:
    h = 5.5 + 2 * s
    profile = [(0, 0), (3.6, 0), (3.8, 0.5), (6.2, 0.4 * h), (7.6, 0.75 * h), (8, h), (7.6, h), (7.1, 0.75 * h),
               (5.6, 0.4 * h), (4.6, 1.0), (0, 0.9)]
    return [lathe(profile, (0, 0, 0), c), cylinder(4.6, 0.2, (0, 0, 0.9), darker(c, 0.8), role="interior")]


def plate(s: float, c: RGB) -> list[Part]:
    profile = [(0, 0), (6, 0), (6.3, 0.4), (10, 1.7), (10, 2.0), (9.7, 2.0), (6.6, 0.9), (0, 0.8)]
    return [lathe(profile, (0, 0, 0), c), ring(9.85, 0.14, (0, 0, 1.95), darker(c, 0.55)),
            cylinder(6.4, 0.12, (0, 0, 0.8), darker(c, 0.88), role="top")]


def pot(s: float, c: RGB) -> list[Part]:
    h = 8 + 3 * s
    wall = [(0, 0), (8, 0), (8.2, 0.3), (8.2, h), (8.5, h + 0.2), (7.8, h + 0.2), (7.7, h), (7.7, 0.8), (0, 0.7)]
    parts = [lathe(wall, (0, 0, 0), c), cylinder(7.6, 0.2, (0, 0, 0.8), darker(c, 0.5), role="interior")]
    for x, out in ((-8.2, -8.2 - 2.2), (8.2, 8.2 + 2.2)):
        parts += chain([(x, -2.2, h - 2), (out, -1.8, h - 1.6), (out, 1.8, h - 1.6), (x, 2.2, h - 2)], 0.55, DARK)
    return parts


def pan(s: float, c: RGB) -> list[Part]:
    wall = [(0, 0), (7.6, 0), (9.4, 3.0), (9.7, 3.1), (9.0, 3.1), (7.4, 0.6), (0, 0.6)]
    length = 13 + 4 * s
    return [lathe(wall, (0, 0, 0), c), cylinder(7.2, 0.2, (0, 0, 0.6), DARK, role="interior"),
            rod((9, 0, 2.4), (12, 0, 3.2), 0.6, STEEL),
            rod((12.5, 0, 3.3), (9 + length, 0, 4.2), 1.1, darker(c, 0.6))]


def kettle(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (8.4, 0), (8.8, 0.8), (8.4, 4.5), (6.6, 9), (4.4, 11), (4.2, 11.4), (0, 11.6)]
    return [lathe(body, (0, 0, 0), c), lathe([(0, 0), (4.4, 0), *dome(4.2, 1.6, 3)], (0, 0, 11.3), darker(c, 0.7)),
            ball(1.0, (0, 0, 13.6), DARK), bar((6, 0, 6.5), (11.5, 0, 11), 1.1, c),
            *chain(arc((0, 0, 10.5), 8.0 + s, 22, 158, 5), 0.75, DARK)]


def teapot(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (4, 0), (4.6, 0.8), (7.2, 3.2), (7.8, 5.8), (6.8, 8.4), (4.2, 10.2), (0, 10.4)]
    return [lathe(body, (0, 0, 0), c), lathe([(0, 0), (3.9, 0), *dome(3.8, 1.5, 3)], (0, 0, 10.1), darker(c, 0.72)),
            ball(0.95, (0, 0, 12.2), darker(c, 0.72)), *chain([(6, 0, 3.6), (9.5, 0, 5.4), (11.6, 0, 9.6)], 1.15, c),
            *chain(arc((-7.2, 0, 5.9), 3.6 + 0.6 * s, 80, 280, 5), 0.75, c)]


def jug(s: float, c: RGB) -> list[Part]:
    h = 17 + 4 * s
    body = [(0, 0), (4.6, 0), (5.8, 3), (6.2, 6), (5.2, 0.55 * h), (4.0, 0.75 * h), (4.6, h), (4.2, h), (3.6, 0.75 * h),
            (3.4, 0.7 * h), (0, 0.69 * h)]
    return [lathe(body, (0, 0, 0), c),
            box(3.6, 2.6, 0.7, (5.0, 0, h - 0.7), c, turn=(0.94, 0, -0.34, 0, 1, 0, 0.34, 0, 0.94)),
            *chain([(-3.8, 0, 0.86 * h), (-8.0, 0, 0.9 * h), (-8.6, 0, 0.6 * h), (-5.6, 0, 0.38 * h)], 0.75, c)]


def wine_glass(s: float, c: RGB) -> list[Part]:
    bowl_h, stem = 7 + s, 7.5
    profile = [(0, 0), (3.4, 0), (3.3, 0.4), (0.6, 1.0), (0.5, stem), (2.2, stem + 1.2), (3.9, stem + 3.6),
               (4.0, stem + 5), (3.3, stem + bowl_h), (3.0, stem + bowl_h), (3.6, stem + 5),
               (0, stem + 4.8)]
    return [lathe(profile, (0, 0, 0), c), cylinder(3.5, 0.15, (0, 0, stem + 5.0), darker(c, 0.5))]


def vase(s: float, c: RGB) -> list[Part]:
    h = 19 + 5 * s
    body = [(0, 0), (3.4, 0), (4.6, 0.12 * h), (6.6, 0.36 * h), (6.2, 0.5 * h), (3.2, 0.76 * h), (2.6, 0.84 * h),
            (3.0, 0.92 * h), (4.6, h), (4.1, h), (2.6, 0.92 * h), (2.2, 0.86 * h), (0, 0.85 * h)]
    return [lathe(body, (0, 0, 0), c), ring(6.55, 0.35, (0, 0, 0.38 * h), darker(c, 0.55)),
            ring(2.9, 0.3, (0, 0, 0.8 * h), darker(c, 0.55))]


def candle(s: float, c: RGB) -> list[Part]:
    h = 10 + 4 * s
    dish = [(0, 0), (4.6, 0), (6.2, 1.4), (6.4, 1.7), (5.9, 1.6), (4.4, 0.6), (0, 0.5)]
    return [lathe(dish, (0, 0, 0), STEEL), cylinder(2.5, h, (0, 0, 0.5), c),
            lathe([(0, 0), (2.5, 0), *dome(2.3, 0.5, 2)], (0, 0, h + 0.5), c),
            bar((0, 0, h + 0.5), (0, 0, h + 1.9), 0.18, DARK),
            lathe([(0, 0), (0.75, 0.9), (0.6, 1.6), (0, 3.4)], (0, 0, h + 1.4), GLOW)]


def fork(s: float, c: RGB) -> list[Part]:
    return [rod((-11, 0, 0.75), (-1, 0, 0.75), 0.95, c), rod((-1, 0, 0.8), (3.4, 0, 1.0), 0.5, METAL),
            egg((1.6, 1.9, 0.4), (4.4, 0, 0.9), METAL),
            *(rod((5.4, y, 0.9), (11, y, 0.5), 0.32, METAL) for y in (-1.5, -0.5, 0.5, 1.5))]


def spoon(s: float, c: RGB) -> list[Part]:
    return [rod((-12, 0, 0.9), (-1.5, 0, 0.9), 0.95, c), rod((-1.5, 0, 0.9), (6, 0, 1.0), 0.5, METAL),
            egg((3.6, 2.5, 0.9), (9, 0, 1.0), METAL), egg((2.7, 1.75, 0.5), (9, 0, 1.55), STEEL)]


def spatula(s: float, c: RGB) -> list[Part]:
    return [rod((-13, 0, 1.2), (-3, 0, 1.2), 1.1, c), rod((-3, 0, 1.2), (6, 0, 0.7), 0.5, c),
            box(8, 6.6, 0.6, (9.5, 0, 0), c), *(box(5.4, 0.7, 0.1, (9.5, y, 0.62), STEEL) for y in (-1.8, 0, 1.8))]


def cutting_board(s: float, c: RGB) -> list[Part]:
    return [box(22, 15, 1.6, (0, 0, 0), c, role="top"), box(5.5, 4.4, 1.6, (13.5, 0, 0), c),
            cylinder(2.2, 1.6, (16.2, 0, 0), c), cylinder(1.0, 0.1, (16.0, 0, 1.6), DARK)]


def bucket(s: float, c: RGB) -> list[Part]:
    h = 12 + 2 * s
    wall = [(0, 0), (5.6, 0), (7.7, h - 0.8), (8.2, h - 0.6), (8.2, h), (7.4, h), (5.4, 0.9), (0, 0.8)]
    return [lathe(wall, (0, 0, 0), c), cylinder(5.3, 0.2, (0, 0, 0.85), darker(c, 0.55), role="interior"),
            *(ball(0.8, (0, y, h - 1.2), STEEL) for y in (7.8, -7.8)),
            *chain(arc((0, 0, h - 1.2), 7.9, 0, 180, 6, "yz"), 0.4, STEEL)]


def crate(s: float, c: RGB) -> list[Part]:
    w, d, h = 17.0, 13 + 3 * s, 8.5
    parts = [box(w, d, 0.8, (0, 0, 0), darker(c, 0.75), role="interior")]
    for z in (0.9, 3.6, 6.3):
        parts += [box(w, 0.7, 2.1, (0, y, z), c) for y in (-d / 2 + 0.35, d / 2 - 0.35)]
    for z in (1.2, 5.4):
        parts += [box(0.7, d - 1.4, 2.6, (x, 0, z), c) for x in (-w / 2 + 0.35, w / 2 - 0.35)]
    corners = [(x, y) for x in (-w / 2 + 1, w / 2 - 1) for y in (-d / 2 + 1, d / 2 - 1)]
    return parts + [box(0.9, 0.9, h, (x, y, 0), darker(c, 0.6)) for x, y in corners]


def basket(s: float, c: RGB) -> list[Part]:
    h = 6.5
    wall = [(0, 0), (7.0, 0), (8.4, h), (8.9, h + 0.3), (8.2, h + 0.5), (7.9, h), (6.8, 0.8), (0, 0.7)]
    return [lathe(wall, (0, 0, 0), c), cylinder(6.7, 0.2, (0, 0, 0.75), darker(c, 0.6), role="interior"),
            *(ring(7.3 + 0.32 * k, 0.38, (0, 0, 1.4 + 1.6 * k), darker(c, 0.7)) for k in (0, 2)),
            *chain(arc((0, 0, h), 8.3, 0, 180, 8, "yz"), 0.65, darker(c, 0.8))]


def drawer(s: float, c: RGB) -> list[Part]:
    w, d = 16 + 3 * s, 15.0
    return [box(w, d, 0.7, (0, 0, 0), WOOD, role="interior"), box(w, 0.8, 5, (0, d / 2 - 0.4, 0.7), c),
            *(box(0.8, d - 0.8, 5, (x, -0.4, 0.7), c) for x in (-w / 2 + 0.4, w / 2 - 0.4)),
            box(w + 2, 1.0, 7.2, (0, -d / 2 - 0.5, 0), c),
            bar((0, -d / 2 - 1, 3.6), (0, -d / 2 - 2.4, 3.6), 0.5, METAL), ball(1.1, (0, -d / 2 - 2.8, 3.6), METAL)]


def toaster(s: float, c: RGB) -> list[Part]:
    return [box(18, 10, 10, (0, 0, 1), c), box(16.5, 9.2, 1, (0, 0, 0), DARK),
            *(box(12, 1.5, 0.15, (0, y, 11), DARK) for y in (-1.9, 1.9)),
            *(box(9.5, 1.1, 3.0, (0, y, 10.6), (0.80, 0.56, 0.28)) for y in (-1.9, 1.9)),
            box(0.6, 2.4, 1.2, (9.4, 0, 7.5), DARK), box(0.5, 0.7, 6, (9.0, 0, 3.2), DARK)]


def salt_shaker(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (3.2, 0), (3.3, 0.6), (2.5, 5), (2.7, 8 + s), (2.5, 8.2 + s), (0, 8.2 + s)]
    top = 8.2 + s
    return [lathe(body, (0, 0, 0), c),
            lathe([(0, 0), (2.8, 0), (2.8, 0.9), *dome(2.7, 2.0, 4)[1:]], (0, 0, top), METAL),
            *(ball(0.28, (1.1 * x, 1.1 * y, top + 1.9), DARK) for x, y in ((0, 0.9), (0.8, -0.5), (-0.8, -0.5)))]


def cake(s: float, c: RGB) -> list[Part]:
    return [lathe([(0, 0), (8, 0), (8.2, 0.4), (8.2, 4.6), (7.6, 5.1), (0, 5.1)], (0, 0, 0), c),
            ring(8.0, 0.6, (0, 0, 5.0), CREAM),
            lathe([(0, 0), (5.3, 0), (5.4, 0.3), (5.4, 3.4), (4.9, 3.9), (0, 3.9)], (0, 0, 5.1), c),
            *(bar((x, y, 9), (x, y, 11.4), 0.32, PAPER) for x, y in ((2.4, 0), (-1.4, 2), (-1.4, -2))),
            *(egg((0.4, 0.4, 0.8), (x, y, 12.1), GLOW) for x, y in ((2.4, 0), (-1.4, 2), (-1.4, -2)))]


def apple(s: float, c: RGB) -> list[Part]:
    body = [(0, 0.5), (1.2, 0), (2.6, 0.6), (3.8, 2.6), (4.1, 4.4), (3.6, 6.2), (2.2, 7.2), (1.0, 7.1), (0, 6.2)]
    return [lathe(body, (0, 0, 0), c), rod((0, 0, 6.4), (0.5, 0, 8.4), 0.28, (0.35, 0.22, 0.12)),
            egg((1.5, 0.75, 0.18), (1.9, 0, 8.2), LEAF, turned(0, -20, 0))]


def pear(s: float, c: RGB) -> list[Part]:
    body = [(0, 0.3), (1.4, 0), (3.2, 1.0), (4.0, 3.2), (3.6, 5.4), (2.3, 7.6), (1.8, 9.4), (1.1, 10.4), (0, 10.6)]
    return [lathe(body, (0, 0, 0), c), rod((0, 0, 10.4), (0.7, 0, 12.4), 0.28, (0.35, 0.22, 0.12)),
            egg((1.7, 0.8, 0.18), (2.2, 0, 12.0), LEAF, turned(0, -25, 0))]


def banana(s: float, c: RGB) -> list[Part]:
    points = arc((0, -7.5 - s, 2.2), 9.5, 22, 158, 8, "xy")
    radii = (1.1, 1.7, 2.1, 2.2, 2.2, 2.1, 1.7, 1.1)
    (x0, y0, _), (x1, y1, _) = points[0], points[-1]
    return [*(rod((*a[:2], 2.2), (*b[:2], 2.2), r, c) for a, b, r in zip(points[:-1], points[1:], radii, strict=True)),
            rod((x0, y0, 2.2), (x0 + 1.2, y0 - 2.2, 2.4), 0.6, darker(c, 0.5)),
            ball(0.8, (x1 - 0.5, y1 - 0.8, 2.2), (0.25, 0.18, 0.08))]


def carrot(s: float, c: RGB) -> list[Part]:
    body = [(0, -8), (0.5, -7.8), (1.1, -4), (1.8, 1), (2.4, 5), (2.3, 6.2), (1.4, 6.9), (0, 7)]
    tips = ((-2.4, 2.2), (-0.8, 3.6), (0.9, 3.2), (2.5, 2.4))
    return [lathe(body, (0, 0, 2.4), c, LYING), ring(1.75, 0.12, (0.5, 0, 2.4), darker(c, 0.7), LYING),
            *(rod((6.6, 0, 2.4), (11.5, y, z), 0.42, LEAF) for y, z in tips)]


def mushroom(s: float, c: RGB) -> list[Part]:
    cap = [(0, 0), (2.2, -0.2), (5.2, 0), (5.4, 0.5), *[(r * 0.98, z + 0.6) for r, z in dome(5.3, 4.0)][1:]]
    dots = []
    for turn, tilt in ((0, 35), (75, 55), (150, 35), (215, 60), (290, 40), (330, 70)):
        a, t = math.radians(turn), math.radians(tilt)
        x, y, z = 5.0 * math.cos(t) * math.cos(a), 5.0 * math.cos(t) * math.sin(a), 5.1 + 3.9 * math.sin(t)
        dots.append(ball(0.75, (x, y, z), CREAM))
    stem = [(0, 0), (2.4, 0), (2.2, 0.5), (1.6, 2.5), (1.8, 5), (0, 5)]
    return [lathe(stem, (0, 0, 0), CREAM), lathe(cap, (0, 0, 4.6), c), *dots]


def cupcake(s: float, c: RGB) -> list[Part]:
    cream = [(0, 0), (4.4, 0), (4.7, 0.9), (4.0, 1.9), (3.6, 2.0), (3.8, 2.6), (2.8, 3.7), (2.3, 3.8), (2.4, 4.3),
             (1.0, 5.6), (0, 5.9)]
    return [lathe([(0, 0), (2.8, 0), (4.0, 4.2), (0, 4.2)], (0, 0, 0), TERRACOTTA), lathe(cream, (0, 0, 4.0), c),
            ball(0.95, (0, 0, 10.4), CHERRY)]


def donut(s: float, c: RGB) -> list[Part]:
    sprinkles = []
    for k in range(7):
        a = 2 * math.pi * k / 7
        x, y = (4.6 + 0.8 * (-1) ** k) * math.cos(a), (4.6 + 0.8 * (-1) ** k) * math.sin(a)
        sprinkles.append(rod((x, y, 4.35), (x + 0.6 * math.sin(5 * a), y + 0.6 * math.cos(3 * a), 4.35), 0.22, CREAM))
    return [ring(4.6, 2.1, (0, 0, 2.1), (0.78, 0.55, 0.30)), ring(4.6, 1.95, (0, 0, 2.4), c), *sprinkles]


def pumpkin(s: float, c: RGB) -> list[Part]:
    angles = [(2 * math.pi * k / 8, 45 * k) for k in range(8)]
    return [*(egg((3.6, 2.5, 3.9), (3.2 * math.cos(a), 3.2 * math.sin(a), 3.9), c, turned(0, 0, z)) for a, z in angles),
            *chain([(0, 0, 7.2), (0.3, 0, 8.6), (1.3, 0, 9.6)], 0.7, LEAF)]


def cactus(s: float, c: RGB) -> list[Part]:
    h = 13 + 3 * s
    return [*_flowerpot(), rod((0, 0, 6), (0, 0, h + 4), 2.3, c), rod((0, 0, 10), (4.2, 0, 10), 1.2, c),
            rod((4.2, 0, 10), (4.2, 0, 14), 1.2, c), rod((0, 0, 12.5), (-3.9, 0, 12.5), 1.1, c),
            rod((-3.9, 0, 12.5), (-3.9, 0, 16), 1.1, c), ball(0.9, (0, 0, h + 6.5), (0.95, 0.45, 0.65))]


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
    return [bar((0, 0, 0), (0, 0, 4.2), 1.5, WOOD),
            *(lathe([(0, 0), (r, 0), (0, h)], (0, 0, z), c)
              for r, h, z in ((6.6, 7, 4), (5.3, 6.4, 8), (3.9, 6.4, 12)))]
