"""The six simple categories of the nano model's world, built from their measures: radius, height, a free proportion."""

from __future__ import annotations

import math

from .primitives import METAL, RGB, Part, darker


def box(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    angle = math.radians(33 + 24 * shape)
    half = (radius * math.cos(angle), radius * math.sin(angle), height / 2)
    return (Part("box", half, (0, 0, height / 2), rgb),)


def ball(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    return (Part("sphere", (radius, radius, radius), (0, 0, radius), rgb),)


def can(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    rim = 0.06 * height
    return (
        Part("cylinder", (radius, height / 2 - rim, 0), (0, 0, height / 2), rgb),
        Part("cylinder", (0.9 * radius, rim / 2, 0), (0, 0, rim / 2), METAL),
        Part("cylinder", (0.9 * radius, rim / 2, 0), (0, 0, height - rim / 2), METAL),
    )


def cone(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    return (Part("cone", (radius, radius, height), (0, 0, 0), rgb),)


def mug(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    reach = 0.52  # how far the handle stands out, in units of the body's radius
    body = radius / (1 + reach / 2)
    center = -reach * body / 2  # the enclosing disc's center is the origin
    thick = 0.14 * body
    outer = center + body * (1 + reach) - thick
    inner = center + body
    low, high = 0.25 * height, 0.75 * height
    rung = ((outer - inner) / 2 + 0.1 * body, (outer + inner) / 2 - 0.1 * body)
    return (
        Part("cylinder", (body, height / 2, 0), (center, 0, height / 2), rgb),
        Part("cylinder", (0.82 * body, 0.002, 0), (center, 0, height), darker(rgb, 0.35)),
        Part("capsule", (thick, (high - low) / 2, 0), (outer, 0, (low + high) / 2), rgb),
        Part("capsule", (thick, rung[0], 0), (rung[1], 0, low), rgb, axis="x"),
        Part("capsule", (thick, rung[0], 0), (rung[1], 0, high), rgb, axis="x"),
    )


def bottle(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    body = (0.52 + 0.1 * shape) * height
    neck = 0.36 * radius
    cap = 0.07 * height
    return (
        Part("cylinder", (radius, body / 2, 0), (0, 0, body / 2), rgb),
        Part("ellipsoid", (radius, radius, 0.16 * height), (0, 0, body), rgb),
        Part("cylinder", (neck, (height - body - cap) / 2, 0), (0, 0, (height + body - cap) / 2), rgb),
        Part("cylinder", (1.2 * neck, cap / 2, 0), (0, 0, height - cap / 2), darker(rgb, 0.55)),
    )
