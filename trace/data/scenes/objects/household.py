"""Shapes of household objects, one function each: of a free proportion `s` in [0, 1] and the color `c` of its name."""

from __future__ import annotations

from . import BRASS, CREAM, DARK, GLASS, GLOW, METAL, PAPER, RGB, STEEL, WOOD
from .primitives import LYING, Part, arc, ball, bar, box, chain, cylinder, darker, dome, egg, lathe, ring, rod, turned

# The parts of an object are a table of numbers.
# fmt: off


def hammer(s: float, c: RGB) -> list[Part]:
    grip = 15 + 3 * s
    return [rod((-grip + 2, 0, 1.6), (-2, 0, 1.6), 1.5, c), rod((-3, 0, 1.6), (4, 0, 1.6), 0.8, WOOD),
            box(2.6, 6.4, 2.6, (5.2, 0, 0.3), STEEL), bar((5.2, -3, 1.6), (5.2, -5.4, 1.6), 1.7, STEEL),
            box(2.2, 4.2, 0.9, (5.2, 4.6, 1.4), STEEL, turned(22, 0, 0))]


def screwdriver(s: float, c: RGB) -> list[Part]:
    grip = [(0, -6), (1.5, -5.8), (2.1, -4.5), (1.8, -1), (2.0, 3), (1.2, 4.4), (0.7, 5), (0, 5)]
    return [lathe(grip, (-6, 0, 2.1), c, LYING), ring(1.95, 0.25, (-9, 0, 2.1), darker(c, 0.5), LYING),
            bar((-1.2, 0, 2.1), (9 + 2 * s, 0, 2.1), 0.55, METAL),
            box(1.8, 1.5, 0.45, (9.6 + 2 * s, 0, 2.1), STEEL, turned(0, 1, 0))]


def wrench(s: float, c: RGB) -> list[Part]:
    parts = [box(17, 2.6, 1.1, (0, 0, 0.2), c)]
    for side in (-1, 1):
        x = 9.5 * side
        for angle in (60, 110, 160, 200, 250, 300):
            turn = angle if side > 0 else 180 - angle
            (px, py, _), (qx, qy, _) = arc((x, 0, 0), 2.6, turn - 24, turn + 24, 1, "xy")
            parts.append(rod((px, py, 0.85), (qx, qy, 0.85), 0.85, c))
    return parts


def pair_of_scissors(s: float, c: RGB) -> list[Part]:
    parts = []
    for side, z in ((1, 0.5), (-1, 1.1)):
        parts.append(box(12.5, 1.5, 0.35, (5.4, 1.3 * side, z), METAL, turned(0, 0, 11 * side)))
        parts.append(rod((-1, -0.6 * side, z), (-4.2, -2.0 * side, z), 0.6, c))
        parts.append(ring(2.6, 0.75, (-6.8, -3.3 * side, 0.9), c))
    return [*parts, cylinder(0.7, 0.6, (0, 0, 1.2), DARK)]


def paintbrush(s: float, c: RGB) -> list[Part]:
    grip = [(0, -8), (0.7, -7.6), (0.9, -4), (1.5, 2), (1.3, 4), (0, 4)]
    return [lathe(grip, (-4, 0, 1.5), c, LYING), box(3.6, 4.4, 1.8, (1.5, 0, 0.6), METAL),
            box(5.0, 4.6, 1.4, (5.6, 0, 0.8), (0.30, 0.22, 0.15)), box(0.6, 4.6, 1.2, (8.2, 0, 0.9), CREAM)]


def dumbbell(s: float, c: RGB) -> list[Part]:
    w = 4.2 + s
    weight = [(0, -2.4), (w - 1, -2.4), (w, -1.4), (w, 1.4), (w - 1, 2.4), (0, 2.4)]
    return [*(lathe(weight, (x, 0, w), c, LYING) for x in (-7, 7)), bar((-5, 0, w), (5, 0, w), 1.3, STEEL),
            cylinder(0.1, 0.1, (0, 0, w), STEEL)]


def lamp(s: float, c: RGB) -> list[Part]:
    h = 15 + 4 * s
    return [lathe([(0, 0), (5, 0), (5, 0.8), (3, 1.6), (0.7, 2.2), (0.6, h), (0, h)], (0, 0, 0), STEEL),
            ball(2.0, (0, 0, h - 1), GLOW), lathe([(7.2, 0), (4.2, 8.4), (3.9, 8.4), (6.8, 0.2)], (0, 0, h - 3.2), c),
            cylinder(4.0, 0.1, (0, 0, h + 5.1), c), ball(0.6, (0, 0, h + 5.5), STEEL)]


def bell(s: float, c: RGB) -> list[Part]:
    body = [(0, 0.6), (5.2, 0.2), (5.8, 0), (5.9, 0.5), (4.6, 2.4), (3.7, 5.5), (3.2, 7.6), (1.8, 9.0), (0, 9.3)]
    grip = [(0, 0), (0.8, 0), (0.9, 1.2), (1.6, 4), (1.3, 6.2), (0, 7)]
    return [lathe(body, (0, 0, 0), c), ring(5.0, 0.35, (0, 0, 1.7), darker(c, 0.6)), lathe(grip, (0, 0, 9.1), WOOD)]


def hourglass(s: float, c: RGB) -> list[Part]:
    glass = [(0, 0), (3.4, 0), (3.5, 2.6), (2.4, 5.2), (0.6, 7), (2.4, 8.8), (3.5, 11.4), (3.4, 14), (0, 14)]
    return [cylinder(5, 1.5, (0, 0, 0), c), cylinder(5, 1.5, (0, 0, 15.2), c),
            lathe(glass, (0, 0, 1.3), (0.85, 0.90, 0.92)),
            lathe([(0, 0), (3.6, 0), (3.6, 1.6), (0, 3.4)], (0, 0, 1.5), (0.85, 0.68, 0.35)),
            *(bar((x, y, 1), (x, y, 16), 0.5, c) for x, y in ((4, 0), (-2, 3.5), (-2, -3.5)))]


def padlock(s: float, c: RGB) -> list[Part]:
    return [box(9, 4, 8, (0, 0, 0), c),
            *chain([(-2.9, 0, 8), *arc((0, 0, 10.5), 2.9, 180, 0, 5), (2.9, 0, 8)], 0.75, METAL),
            cylinder(0.1, 0.1, (0, 0, 1), c), bar((0, -2.1, 4.4), (0, 2.1, 4.4), 1.0, DARK),
            box(0.8, 4.2, 2.4, (0, 0, 2), DARK)]


def magnifying_glass(s: float, c: RGB) -> list[Part]:
    return [ring(5.2, 0.75, (6, 0, 0.9), c), cylinder(4.8, 0.5, (6, 0, 0.6), (0.80, 0.90, 0.96)),
            rod((0.3, 0, 0.9), (-1.6, 0, 0.9), 0.55, METAL), rod((-2.4, 0, 1.0), (-10 - s, 0, 1.0), 1.0, c)]


def flashlight(s: float, c: RGB) -> list[Part]:
    body = [(0, -9), (2.2, -9), (2.4, -8.4), (2.2, -8), (2.2, 3), (3.6, 6), (3.8, 6.4), (3.8, 8.4), (3.4, 8.4),
            (3.2, 7.6), (0, 7)]
    return [lathe(body, (0, 0, 3.8), c, LYING), bar((7.3, 0, 3.8), (7.7, 0, 3.8), 3.1, GLOW),
            box(3.2, 1.4, 0.8, (-1, 0, 5.8), DARK), ring(2.25, 0.3, (-6, 0, 3.8), darker(c, 0.5), LYING),
            egg((0.5, 2.0, 1.0), (6.8, 0, 1.0), darker(c, 0.5)), egg((0.5, 2.0, 1.0), (-8.4, 0, 1.4), darker(c, 0.5))]


def alarm_clock(s: float, c: RGB) -> list[Part]:
    bell = [(0, 0), (2.3, 0), *dome(2.2, 1.8, 3)[1:]]
    return [lathe([(0, -2.2), (5.4, -2.2), (5.8, -1.6), (5.8, 1.6), (5.4, 2.2), (0, 2.2)], (0, 0, 6.2), c, turned(90)),
            bar((0, -2.4, 6.2), (0, 2.25, 6.2), 4.7, PAPER),
            *(lathe(bell, (3.4 * x, 0, 10.2), METAL, turned(0, 28 * x, 0)) for x in (-1, 1)),
            box(0.6, 0.3, 3.4, (0, -2.5, 6.2), DARK), box(2.6, 0.3, 0.6, (1.1, -2.5, 6.0), DARK),
            *(rod((3 * x, 0, 1.6), (4.2 * x, 0, 0.5), 0.5, STEEL) for x in (-1, 1))]


def iron(s: float, c: RGB) -> list[Part]:
    return [box(12, 8.4, 0.9, (-2, 0, 0), STEEL), egg((8, 4.2, 0.45), (4, 0, 0.45), STEEL),
            box(10.5, 7.4, 3.0, (-2, 0, 0.9), c), egg((6.5, 3.7, 3.0), (3.6, 0, 0.9), c),
            egg((7, 3.4, 2.6), (-1, 0, 3.6), c),
            *chain([(4.5, 0, 4.2), (2.5, 0, 8.4), (-5.5, 0, 8.8), (-7, 0, 3.0)], 1.05, DARK),
            ball(0.9, (5.2, 0, 4.0), PAPER)]


def roll_of_tape(s: float, c: RGB) -> list[Part]:
    return [lathe([(2.9, 0), (5.4, 0), (5.4, 3.4), (2.9, 3.4), (2.9, 0)], (0, 0, 0), c),
            lathe([(2.5, 0), (3.0, 0), (3.0, 3.6), (2.5, 3.6), (2.5, 0)], (0, 0, 0), CREAM),
            box(0.25, 3.4, 3.2, (5.45, 1.6, 0.1), darker(c, 0.85))]


def watering_can(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (6.2, 0), (6.4, 0.5), (5.8, 10), (4.6, 11), (4.2, 10.8), (0, 10.4)]
    rose = [(0, 0), (1.0, 0), (2.6, 2.0), (2.6, 2.4), (0, 2.6)]
    return [lathe(body, (0, 0, 0), c), bar((5.4, 0, 2.4), (13, 0, 11.4), 0.9, c),
            lathe(rose, (12.4, 0, 10.6), darker(c, 0.6), turned(0, 40, 0)),
            *chain(arc((-5.4, 0, 6.4), 4.4, 70, 290, 5), 0.65, darker(c, 0.7)),
            rod((6.0, 0, 10.5), (9.4, 0, 7.0), 0.35, c)]


def gift(s: float, c: RGB) -> list[Part]:
    w, d, h = 11 + 2 * s, 10.0, 8.0
    return [box(w, d, h, (0, 0, 0), c), box(w + 0.2, 1.7, h + 0.2, (0, 0, 0), PAPER),
            box(1.7, d + 0.2, h + 0.2, (0, 0, 0), PAPER),
            *(egg((2.4, 1.3, 0.9), (1.9 * x, 0, h + 1.3), PAPER, turned(0, -25 * x, 0)) for x in (-1, 1)),
            ball(0.9, (0, 0, h + 1), PAPER)]


def book(s: float, c: RGB) -> list[Part]:
    w, d, h = 14 + 2 * s, 20.0, 2.4 + s
    return [box(w, d, 0.35, (0, 0, 0), c), box(w - 1.0, d - 0.9, h - 0.7, (0.1, 0, 0.35), PAPER),
            box(0.4, d, h, (-w / 2, 0, 0), c), box(w, d, 0.35, (0, 0, h - 0.35), c, role="top"),
            box(0.1, d * 0.5, 0.02, (w / 2 - 3, 0, h), PAPER, role="print"),
            box(w * 0.55, 0.8, 0.02, (0, d * 0.25, h), PAPER, role="print"),
            box(w * 0.4, 0.8, 0.02, (0, d * 0.17, h), PAPER, role="print")]


def laptop(s: float, c: RGB) -> list[Part]:
    return [box(21, 14.5, 1.2, (0, 0, 0), c),
            *(box(17, 1.2, 0.1, (-0.2, y, 1.2), DARK) for y in (-0.6, 1.2, 3.0, 4.8)),
            box(5.5, 3.2, 0.1, (0, -4.6, 1.2), darker(c, 0.6)),
            box(21, 13.6, 0.8, (0, 9.6, 7.3), c, turned(72, 0, 0)),
            box(19.2, 11.6, 0.2, (0, 9.15, 7.3), (0.15, 0.2, 0.32), turned(72, 0, 0))]


def photo_camera(s: float, c: RGB) -> list[Part]:
    lens = [(0, 0), (3.4, 0), (3.4, 3), (3.8, 3.2), (3.8, 4.6), (3.0, 4.6), (2.8, 3.4), (0, 3)]
    return [box(14, 5, 8.6, (0, 0, 0), c), box(5, 4.4, 1.8, (0, 0, 8.6), c),
            lathe(lens, (0, -2.4, 4.2), DARK, turned(90)), bar((0, -5.2, 4.2), (0, -5.6, 4.2), 2.5, GLASS),
            cylinder(1.1, 0.9, (-4.8, 0, 8.6), METAL), cylinder(1.4, 1.1, (4.6, 0, 8.6), DARK),
            box(2.4, 0.3, 1.2, (4.6, -2.5, 6.6), PAPER)]


def radio(s: float, c: RGB) -> list[Part]:
    return [box(18, 6, 10 + s, (0, 0, 0), c), bar((-3.6, -2.6, 4.6), (-3.6, -3.02, 4.6), 3.6, DARK),
            *(box(6.5, 0.2, 0.4, (-3.6, -3.05, 2 + 1.2 * k), STEEL) for k in range(5)),
            bar((4.6, -2.8, 6.6), (4.6, -3.8, 6.6), 1.7, METAL), box(6, 0.2, 1.6, (4.6, -3.05, 1.8), CREAM),
            rod((7, 1.5, 10 + s), (11.5, 1.5, 19 + s), 0.28, METAL),
            rod((-6, 0, 11.4 + s), (4, 0, 11.4 + s), 0.5, DARK)]


def hat(s: float, c: RGB) -> list[Part]:
    body = [(0, 0), (9.6, 0), (9.8, 0.3), (9.4, 0.7), (5.6, 0.9), (5.2, 1.3), (4.9, 5.8), (4.2, 6.8 + s),
            (2.0, 7.0 + s), (0, 6.4 + s)]
    return [lathe(body, (0, 0, 0), c), lathe([(5.5, 0), (5.2, 1.8), (0, 1.8)], (0, 0, 1.0), DARK),
            egg((0.5, 1.6, 2.4), (5.2, 0, 3.6), PAPER)]


def chest(s: float, c: RGB) -> list[Part]:
    w, d = 15 + s, 10.0
    return [box(w, d, 6, (0, 0, 0), c),
            lathe([(0, -w / 2), (d / 2, -w / 2), (d / 2, w / 2), (0, w / 2)], (0, 0, 6), c, LYING),
            *(box(1.4, d + 0.4, 6.2, (x, 0, 0), BRASS) for x in (-w / 2 + 2, w / 2 - 2)),
            ring(d / 2, 0.5, (-w / 2 + 2, 0, 6), BRASS, LYING),
            box(2.6, 0.8, 2.8, (0, -d / 2 - 0.3, 4.4), (0.80, 0.68, 0.30)),
            box(w + 0.2, d + 0.3, 0.5, (0, 0, 5.8), DARK)]


def lantern(s: float, c: RGB) -> list[Part]:
    return [box(8.8, 8.8, 1.4, (0, 0, 0), c),
            *(box(0.8, 0.8, 9, (x, y, 1.4), c) for x in (-3.4, 3.4) for y in (-3.4, 3.4)),
            cylinder(1.7, 5, (0, 0, 1.4), CREAM), egg((0.6, 0.6, 1.3), (0, 0, 7.4), GLOW),
            lathe([(0, 0), (5.8, 0), (5.8, 0.5), (2.0, 4), (1.2, 5), (0, 5)], (0, 0, 10.4), c),
            ring(1.7, 0.35, (0, 0, 16.6), c, turned(90))]
