"""Things of a desk and of a room. Each function: a free proportion in [0, 1] and the color of the name -> parts."""

from __future__ import annotations

from .primitives import (
    CREAM,
    DARK,
    GLOW,
    METAL,
    PAPER,
    RGB,
    STEEL,
    Part,
    ball,
    bar,
    box,
    cylinder,
    darker,
    egg,
    lathe,
    ring,
    rod,
    turned,
)

GLASS: RGB = (0.55, 0.72, 0.82)


def gift(s: float, c: RGB) -> list[Part]:
    w, d, h = 11 + 2 * s, 10.0, 8.0
    bow = [egg((2.4, 1.3, 0.9), (1.9 * x, 0, h + 1.3), PAPER, turned(0, -25 * x, 0)) for x in (-1, 1)]
    return [
        box(w, d, h, (0, 0, 0), c),
        box(w + 0.2, 1.7, h + 0.2, (0, 0, 0), PAPER),
        box(1.7, d + 0.2, h + 0.2, (0, 0, 0), PAPER),
        *bow,
        ball(0.9, (0, 0, h + 1), PAPER),
    ]


def book(s: float, c: RGB) -> list[Part]:
    w, d, h = 14 + 2 * s, 20.0, 2.4 + s
    return [
        box(w, d, 0.35, (0, 0, 0), c),
        box(w - 1.0, d - 0.9, h - 0.7, (0.1, 0, 0.35), PAPER),
        box(0.4, d, h, (-w / 2, 0, 0), c),
        box(w, d, 0.35, (0, 0, h - 0.35), c, role="top"),
        box(0.1, d * 0.5, 0.02, (w / 2 - 3, 0, h), PAPER, role="print"),
        box(w * 0.55, 0.8, 0.02, (0, d * 0.25, h), PAPER, role="print"),
        box(w * 0.4, 0.8, 0.02, (0, d * 0.17, h), PAPER, role="print"),
    ]


def laptop(s: float, c: RGB) -> list[Part]:
    keys = [box(17, 1.2, 0.1, (-0.2, y, 1.2), DARK) for y in (-0.6, 1.2, 3.0, 4.8)]
    return [
        box(21, 14.5, 1.2, (0, 0, 0), c),
        *keys,
        box(5.5, 3.2, 0.1, (0, -4.6, 1.2), darker(c, 0.6)),
        box(21, 13.6, 0.8, (0, 9.6, 7.3), c, turned(72, 0, 0)),
        box(19.2, 11.6, 0.2, (0, 9.15, 7.3), (0.15, 0.2, 0.32), turned(72, 0, 0)),
    ]


def camera(s: float, c: RGB) -> list[Part]:
    face = turned(90, 0, 0)
    lens = [(0, 0), (3.4, 0), (3.4, 3), (3.8, 3.2), (3.8, 4.6), (3.0, 4.6), (2.8, 3.4), (0, 3)]
    return [
        box(14, 5, 8.6, (0, 0, 0), c),
        box(5, 4.4, 1.8, (0, 0, 8.6), c),
        lathe(lens, (0, -2.4, 4.2), DARK, face),
        bar((0, -5.2, 4.2), (0, -5.6, 4.2), 2.5, GLASS),
        cylinder(1.1, 0.9, (-4.8, 0, 8.6), METAL),
        cylinder(1.4, 1.1, (4.6, 0, 8.6), DARK),
        box(2.4, 0.3, 1.2, (4.6, -2.5, 6.6), PAPER),
    ]


def radio(s: float, c: RGB) -> list[Part]:
    lines = [box(6.5, 0.2, 0.4, (-3.6, -3.05, 2 + 1.2 * k), STEEL) for k in range(5)]
    return [
        box(18, 6, 10 + s, (0, 0, 0), c),
        bar((-3.6, -2.6, 4.6), (-3.6, -3.02, 4.6), 3.6, DARK),
        *lines,
        bar((4.6, -2.8, 6.6), (4.6, -3.8, 6.6), 1.7, METAL),
        box(6, 0.2, 1.6, (4.6, -3.05, 1.8), CREAM),
        rod((7, 1.5, 10 + s), (11.5, 1.5, 19 + s), 0.28, METAL),
        rod((-6, 0, 11.4 + s), (4, 0, 11.4 + s), 0.5, DARK),
    ]


def hat(s: float, c: RGB) -> list[Part]:
    body = [
        (0, 0),
        (9.6, 0),
        (9.8, 0.3),
        (9.4, 0.7),
        (5.6, 0.9),
        (5.2, 1.3),
        (4.9, 5.8),
        (4.2, 6.8 + s),
        (2.0, 7.0 + s),
        (0, 6.4 + s),
    ]
    return [
        lathe(body, (0, 0, 0), c),
        lathe([(5.5, 0), (5.2, 1.8), (0, 1.8)], (0, 0, 1.0), DARK),
        egg((0.5, 1.6, 2.4), (5.2, 0, 3.6), PAPER),
    ]


def chest(s: float, c: RGB) -> list[Part]:
    w, d = 15 + s, 10.0
    lid = turned(0, 90, 0)
    return [
        box(w, d, 6, (0, 0, 0), c),
        lathe([(0, -w / 2), (d / 2, -w / 2), (d / 2, w / 2), (0, w / 2)], (0, 0, 6), c, lid),
        *(box(1.4, d + 0.4, 6.2, (x, 0, 0), (0.72, 0.58, 0.25)) for x in (-w / 2 + 2, w / 2 - 2)),
        *(ring(d / 2, 0.5, (x, 0, 6), (0.72, 0.58, 0.25), lid) for x in (-w / 2 + 2,)),
        box(2.6, 0.8, 2.8, (0, -d / 2 - 0.3, 4.4), (0.80, 0.68, 0.30)),
        box(w + 0.2, d + 0.3, 0.5, (0, 0, 5.8), DARK),
    ]


def lantern(s: float, c: RGB) -> list[Part]:
    posts = [box(0.8, 0.8, 9, (x, y, 1.4), c) for x in (-3.4, 3.4) for y in (-3.4, 3.4)]
    return [
        box(8.8, 8.8, 1.4, (0, 0, 0), c),
        *posts,
        cylinder(1.7, 5, (0, 0, 1.4), CREAM),
        egg((0.6, 0.6, 1.3), (0, 0, 7.4), GLOW),
        lathe([(0, 0), (5.8, 0), (5.8, 0.5), (2.0, 4), (1.2, 5), (0, 5)], (0, 0, 10.4), c),
        ring(1.7, 0.35, (0, 0, 16.6), c, turned(90, 0, 0)),
    ]
