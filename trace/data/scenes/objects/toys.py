"""Shapes of toys, one function each: of a free proportion `s` in [0, 1] and the color `c` of the object's name."""

from __future__ import annotations

import math

from . import BEAK, CREAM, DARK, GLASS, GLOW, METAL, PAPER, RGB, ROOF, STEEL, WOOD
from .primitives import LYING, Part, ball, bar, box, cylinder, darker, egg, lathe, ring, rod, turned

# The parts of an object are a table of numbers.
# fmt: off


def _wheels(xs: tuple[float, ...], y: float, radius: float, rgb: RGB = DARK) -> list[Part]:
    spans = [(x, side * (y - 0.7), side * (y + 0.7)) for x in xs for side in (-1, 1)]
    return [bar((x, start, radius), (x, end, radius), radius, rgb) for x, start, end in spans]


def toy_car(s: float, c: RGB) -> list[Part]:
    return [box(16, 7.4, 3.2, (0, 0, 1.4), c), box(8 + s, 6.6, 2.8, (-0.8, 0, 4.6), GLASS),
            box(7.2 + s, 6.8, 0.7, (-0.8, 0, 7.2), c), *_wheels((-5, 5), 3.4, 1.9),
            *(ball(0.7, (8, y, 3.2), GLOW) for y in (2.4, -2.4))]


def toy_truck(s: float, c: RGB) -> list[Part]:
    return [box(20, 7, 1.4, (0, 0, 1.6), DARK), box(12.5, 8, 7 + 2 * s, (-3.4, 0, 3), PAPER),
            box(5.6, 7.8, 7, (6.8, 0, 2.6), c), box(0.4, 6.4, 2.6, (9.6, 0, 6), GLASS),
            box(12.7, 8.2, 1.6, (-3.4, 0, 5), c), box(12.7, 8.2, 0.5, (-3.4, 0, 3 + 7 + 2 * s - 0.4), c),
            *_wheels((-7, -2, 6.5), 3.4, 1.8)]


def toy_train(s: float, c: RGB) -> list[Part]:
    return [box(18, 6.4, 1.6, (0, 0, 1.8), DARK), bar((-2, 0, 6), (8.6, 0, 6), 2.9, c),
            box(6, 7, 8.4, (-5.8, 0, 3.2), c), box(7.2, 8, 0.8, (-5.8, 0, 11.6), DARK),
            box(6.2, 4, 2.6, (-5.8, 0, 7.8), GLASS),
            lathe([(0, 0), (0.9, 0), (1.0, 2.2), (1.8, 3.8), (1.4, 4), (0, 4)], (6, 0, 8.4), DARK),
            ball(1.1, (2, 0, 9), GLOW), *_wheels((-6, 0, 6), 3, 2.0, darker(c, 0.45))]


def toy_plane(s: float, c: RGB) -> list[Part]:
    hull = [(0, -10), (0.8, -9.6), (2.2, -2), (2.5, 3), (2.2, 6.4), (1.2, 8), (0, 8.4)]
    return [lathe(hull, (0, 0, 4.2), c, LYING), box(4.6, 22 + 2 * s, 0.6, (1.6, 0, 3.4), c),
            box(2.6, 8.4, 0.5, (-8.4, 0, 4.6), c), box(2.8, 0.5, 4.2, (-8.6, 0, 4.8), c),
            egg((2.2, 1.3, 1.3), (3, 0, 6.2), GLASS), box(0.3, 1.0, 6.6, (8.7, 0, 4.2), DARK, turned(35, 0, 0)),
            ball(0.8, (8.6, 0, 4.2), METAL), *(ball(1.2, (3.4, y, 1.2), DARK) for y in (2.6, -2.6))]


def toy_boat(s: float, c: RGB) -> list[Part]:
    h = 14 + 3 * s
    return [box(10, 6.4, 3.2, (-1, 0, 0), c), box(4.6, 4.6, 3.2, (4, 0, 1.6), c, turned(0, 0, 45)),
            box(10.2, 6.8, 0.6, (-1, 0, 3.2), WOOD), bar((0, 0, 3), (0, 0, h + 4), 0.4, WOOD),
            box(0.3, 6.2, h - 3, (0.5, 2.8, 5), c), box(0.3, 4.4, h - 7, (0.4, -2.6, 5), PAPER),
            box(0.3, 2.4, 1.4, (0.3, 1.2, h + 2.2), c)]


def rocket(s: float, c: RGB) -> list[Part]:
    fins = [(3.8 * math.cos(math.radians(z)), 3.8 * math.sin(math.radians(z)), z) for z in (0, 120, 240)]
    return [lathe([(0, 2), (2.6, 2), (3.3, 5), (3.6, 9), (3.2, 13), (0, 13)], (0, 0, 0), c),
            lathe([(0, 0), (3.2, 0), (2.5, 2.6), (1.2, 5), (0, 6.2 + s)], (0, 0, 13), c),
            ring(3.5, 0.4, (0, 0, 6), PAPER),
            *(box(4.6, 0.6, 6.6, (x, y, 3.3), darker(c, 0.75), turned(0, 0, z)) for x, y, z in fins),
            bar((0, -3.7, 10), (0, -3.2, 10), 1.4, GLASS), bar((0, 3.2, 10), (0, 3.7, 10), 1.4, GLASS)]


def toy_house(s: float, c: RGB) -> list[Part]:
    h = 8 + s
    return [box(12, 10, h, (0, 0, 0), c), box(8.4, 10, 8.4, (0, 0, h), c, turned(0, 45, 0)),
            box(10, 12, 0.9, (3.6, 0, h + 2.7), ROOF, turned(0, 45, 0)),
            box(10, 12, 0.9, (-3.6, 0, h + 2.7), ROOF, turned(0, -45, 0)), box(2.6, 0.4, 4.6, (-2.4, -5, 0), CREAM),
            box(2.6, 0.4, 2.4, (2.6, -5, 3), GLASS), box(2, 2, 4.5, (3, 2, h + 3.4), darker(ROOF, 0.7)),
            *(box(0.3, 4.6, 2.4, (x, 0, 3.4), GLASS) for x in (6, -6))]


def chair(s: float, c: RGB) -> list[Part]:
    return [*(box(1.1, 1.1, 7.5, (x, y, 0), c) for x in (-4.2, 4.2) for y in (-4.2, 4.2)),
            box(10, 10, 1.2, (0, 0, 7.5), c), *(box(1.1, 1.1, 9 + s, (-4.4, y, 8.5), c) for y in (-4.2, 4.2)),
            box(0.9, 9.4, 2.6, (-4.4, 0, 15 + s), c), box(0.9, 9.4, 1.4, (-4.4, 0, 11.4), c)]


def stool(s: float, c: RGB) -> list[Part]:
    h = 9 + 2 * s
    seat = [(0, 0), (5.8, 0), (6.2, 0.4), (6.2, 1.3), (5.8, 1.6), (0, 1.6)]
    corners = [(x, y) for x in (-1, 1) for y in (-1, 1)]
    return [*(rod((4.8 * x, 4.8 * y, 0.7), (3.2 * x, 3.2 * y, h), 0.7, darker(c, 0.7)) for x, y in corners),
            lathe(seat, (0, 0, h), c), cylinder(5.6, 0.1, (0, 0, h + 1.55), c, role="top")]


def snowman(s: float, c: RGB) -> list[Part]:
    return [ball(4.4, (0, 0, 4.2), c), ball(3.3, (0, 0, 10), c), ball(2.5, (0, 0, 14.4), c),
            lathe([(0, 0), (3.4, 0), (3.4, 0.5), (2.2, 0.6), (2.1, 3.2), (0, 3.2)], (0, 0, 16.2), DARK),
            bar((0, -2.2, 14.4), (0, -4.6, 14.2), 0.5, BEAK),
            *(ball(0.4, (x, -2.2, 15.2), DARK) for x in (-0.9, 0.9)),
            *(rod((3 * x, 0, 10.4), (6.6 * x, 0, 12.6), 0.35, WOOD) for x in (1, -1))]


def rubber_duck(s: float, c: RGB) -> list[Part]:
    return [egg((6.2, 4.6, 3.9), (0, 0, 3.6), c), ball(3.2 + 0.3 * s, (3.6, 0, 9), c),
            egg((1.9, 1.7, 0.7), (7.2, 0, 8.6), BEAK),
            *(egg((3.4, 1.0, 2.2), (-0.8, y, 4.6), darker(c, 0.85)) for y in (4.2, -4.2)),
            egg((2.2, 1.9, 1.3), (-5.8, 0, 6.0), c, turned(0, 35, 0)),
            *(ball(0.55, (5.8, y, 10.1), DARK) for y in (1.7, -1.7)), cylinder(3.2, 0.3, (0, 0, 0), c)]


def teddy_bear(s: float, c: RGB) -> list[Part]:
    light = (min(1.0, c[0] * 0.5 + 0.5), min(1.0, c[1] * 0.5 + 0.45), min(1.0, c[2] * 0.5 + 0.4))
    return [egg((4.1, 3.6, 4.8), (0, 0, 4.9), c), ball(3.6, (0, 0, 11.8), c),
            *(egg((1.7, 3.0, 1.6), (x, -3.2, 1.7), c) for x in (-3.9, 3.9)),
            *(egg((1.4, 1.5, 3.0), (4.4 * x, -1.0, 6.6), c, turned(-35, 30 * x, 0)) for x in (-1, 1)),
            *(ball(1.5, (2.9 * x, 0, 14.6), c) for x in (-1, 1)), egg((1.7, 1.4, 1.3), (0, -3.2, 11.1), light),
            ball(0.55, (0, -4.5, 11.5), DARK), *(ball(0.45, (x, -3.2, 12.7), DARK) for x in (-1.4, 1.4))]


def toy_robot(s: float, c: RGB) -> list[Part]:
    return [*(box(2.6, 3.4, 4.2, (x, 0, 0), STEEL) for x in (-2.2, 2.2)), box(8.6, 5.6, 7.6, (0, 0, 4.2), c),
            *(box(1.5, 2.2, 6, (x, 0, 5.2), STEEL) for x in (-5.2, 5.2)), box(6, 4.6, 4.8 + s, (0, 0, 12.4), c),
            box(5.6, 0.3, 2.2, (0, -2.4, 14), DARK), *(ball(0.75, (x, -2.5, 15.1), GLOW) for x in (-1.4, 1.4)),
            bar((0, 0, 17), (0, 0, 20), 0.25, STEEL), ball(0.75, (0, 0, 20.4), GLOW)]


def chess_pawn(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (4.2, 0), (4.3, 1.2), (3.4, 2.2), (3.5, 2.9), (2.2, 4.2), (1.5, 8), (1.6, 9.4), (2.9, 9.9),
            (2.9, 10.5), (1.6, 10.9), (0, 11)]
    return [lathe(body, (0, 0, 0), c), ball(2.6 + 0.2 * s, (0, 0, 12.8), c),
            ring(4.1, 0.4, (0, 0, 0.6), darker(c, 0.7))]


def bowling_pin(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (2.2, 0), (2.5, 0.6), (4.0, 6), (4.2, 8), (3.4, 11.6), (1.9, 15), (1.8, 16.4), (2.3, 18.2),
            (2.4, 19.4), (1.8, 21), (0, 21.8)]
    return [lathe(body, (0, 0, 0), c), ring(1.75, 0.35, (0, 0, 15.2), PAPER), ring(1.75, 0.35, (0, 0, 16.6), PAPER)]


def trophy(s: float, c: RGB) -> list[Part]:
    cup = [(0, 0), (1.0, 0), (0.9, 3), (2.2, 4), (4.6, 7.2), (5.0, 11.5), (5.4, 12), (4.7, 12), (4.2, 8), (0, 6.4)]
    return [box(7, 7, 3.4, (0, 0, 0), (0.25, 0.17, 0.12)), lathe(cup, (0, 0, 3.4), c),
            *(ring(2.3, 0.5, (5.2 * x, 0, 13), c, turned(90)) for x in (-1, 1)),
            box(4, 0.2, 1.6, (0, -3.5, 0.9), METAL)]


def die(s: float, c: RGB) -> list[Part]:
    dot = DARK if sum(c) > 1.6 else PAPER
    return [box(8, 8, 8, (0, 0, 0), c),
            *(cylinder(0.85, 0.1, (x, y, 8), dot) for x in (-1.9, 1.9) for y in (-1.9, 1.9)),
            cylinder(0.85, 0.1, (0, 0, 8), dot),
            *(bar((x, -4.1, 4 + z), (x, 4.1, 4 + z), 0.85, dot) for x, z in ((-1.9, -1.9), (0, 0), (1.9, 1.9))),
            *(bar((-4.1, y, 4 + z), (4.1, y, 4 + z), 0.85, dot) for y, z in ((-1.9, 1.9), (1.9, -1.9)))]


def toy_brick(s: float, c: RGB) -> list[Part]:
    return [box(15.4, 7.8, 5.6, (0, 0, 0), c),
            *(cylinder(1.5, 1.2, (x, y, 5.6), c) for x in (-5.7, -1.9, 1.9, 5.7) for y in (-1.9, 1.9))]


def drum(s: float, c: RGB) -> list[Part]:
    h = 8 + 2 * s
    return [cylinder(6.3, h, (0, 0, 0), c), ring(6.4, 0.6, (0, 0, 0.7), METAL),
            ring(6.4, 0.6, (0, 0, h - 0.7), METAL), cylinder(5.9, 0.15, (0, 0, h), CREAM, role="top"),
            *(rod((x, y, 1.4), (x, y, h - 1.4), 0.35, PAPER) for x, y in ((0, -6.4), (0, 6.4), (-6.4, 0), (6.4, 0)))]


def spinning_top(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (0.6, 0.2), (1.2, 1.4), (4.4, 4.0), (5.4, 5.4), (5.2, 6.2), (2.2, 7.0), (0, 7.1)]
    return [lathe([(0, 0), (3.0, 0), (3.0, 0.3), (1.3, 0.5), (1.1, 1.2), (0, 1.2)], (0, 0, 0), DARK),
            lathe(body, (0, 0, 0.6), c), ring(5.2, 0.45, (0, 0, 6.0), PAPER),
            bar((0, 0, 7.2), (0, 0, 10.8), 0.6, WOOD), ball(1.0, (0, 0, 11), WOOD)]
