"""What can stand on a table: categories with their parametric shapes, and colors.

A category is a row of `CATEGORIES`: its ranges of size and the function that builds it from primitive parts. To add
one, add a row; everything else (names, questions, vocabulary) follows from the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RGB = tuple[float, float, float]
Vector = tuple[float, float, float]

# Far apart in hue and lightness, so that jitter and colored light do not make one color pass for another.
COLORS: dict[str, RGB] = {
    "red": (0.82, 0.07, 0.08),
    "green": (0.08, 0.58, 0.14),
    "blue": (0.08, 0.22, 0.85),
    "yellow": (0.95, 0.85, 0.08),
    "purple": (0.48, 0.10, 0.62),
    "orange": (0.98, 0.45, 0.03),
}
COLOR_JITTER = 0.04
METAL: RGB = (0.72, 0.72, 0.74)


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive of an object. `offset`: its center in the object's frame (origin: the footprint's center, z up)."""

    shape: str  # "box", "cylinder", "sphere", "capsule", "ellipsoid" or "cone"
    size: Vector  # MuJoCo's half sizes; for a cone (radius, radius, height)
    offset: Vector
    rgb: RGB
    axis: str = "z"  # direction of the long axis of cylinders and capsules


@dataclass(frozen=True, slots=True)
class Category:
    """`radius`: range of the footprint's enclosing disc in metres; `slenderness`: range of height / radius."""

    radius: tuple[float, float]
    slenderness: tuple[float, float]
    build: Callable[[float, float, float, RGB], tuple[Part, ...]]


def _darker(rgb: RGB, factor: float) -> RGB:
    return (rgb[0] * factor, rgb[1] * factor, rgb[2] * factor)


def _box(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    angle = math.radians(33 + 24 * shape)
    half = (radius * math.cos(angle), radius * math.sin(angle), height / 2)
    return (Part("box", half, (0, 0, height / 2), rgb),)


def _ball(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    return (Part("sphere", (radius, radius, radius), (0, 0, radius), rgb),)


def _can(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    rim = 0.06 * height
    return (
        Part("cylinder", (radius, height / 2 - rim, 0), (0, 0, height / 2), rgb),
        Part("cylinder", (0.9 * radius, rim / 2, 0), (0, 0, rim / 2), METAL),
        Part("cylinder", (0.9 * radius, rim / 2, 0), (0, 0, height - rim / 2), METAL),
    )


def _cone(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    return (Part("cone", (radius, radius, height), (0, 0, 0), rgb),)


def _mug(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
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
        Part("cylinder", (0.82 * body, 0.002, 0), (center, 0, height), _darker(rgb, 0.35)),
        Part("capsule", (thick, (high - low) / 2, 0), (outer, 0, (low + high) / 2), rgb),
        Part("capsule", (thick, rung[0], 0), (rung[1], 0, low), rgb, axis="x"),
        Part("capsule", (thick, rung[0], 0), (rung[1], 0, high), rgb, axis="x"),
    )


def _bottle(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    body = (0.52 + 0.1 * shape) * height
    neck = 0.36 * radius
    cap = 0.07 * height
    return (
        Part("cylinder", (radius, body / 2, 0), (0, 0, body / 2), rgb),
        Part("ellipsoid", (radius, radius, 0.16 * height), (0, 0, body), rgb),
        Part("cylinder", (neck, (height - body - cap) / 2, 0), (0, 0, (height + body - cap) / 2), rgb),
        Part("cylinder", (1.2 * neck, cap / 2, 0), (0, 0, height - cap / 2), _darker(rgb, 0.55)),
    )


CATEGORIES: dict[str, Category] = {
    "box": Category((0.058, 0.084), (0.9, 1.5), _box),
    "ball": Category((0.046, 0.068), (2.0, 2.0), _ball),
    "can": Category((0.042, 0.055), (2.4, 3.0), _can),
    "cone": Category((0.052, 0.074), (2.0, 3.0), _cone),
    "mug": Category((0.058, 0.076), (1.5, 1.9), _mug),
    "bottle": Category((0.038, 0.050), (4.6, 5.8), _bottle),
}


@dataclass(frozen=True, slots=True)
class Body:
    """An object that stands on the table: what it is, how big, and where. Metres and radians.

    `position` is the center of the footprint's enclosing disc of `radius`; the foot is at the surface's height.
    """

    category: str
    color: str
    rgb: RGB
    radius: float
    height: float
    shape: float  # 0..1: a free proportion of the category
    position: tuple[float, float]
    yaw: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.category}"

    def parts(self) -> tuple[Part, ...]:
        return CATEGORIES[self.category].build(self.radius, self.height, self.shape, self.rgb)


def sample_rgb(color: str, rng: np.random.Generator) -> RGB:
    jittered: NDArray[np.float64] = np.clip(np.array(COLORS[color]) + rng.uniform(-COLOR_JITTER, COLOR_JITTER, 3), 0, 1)
    return (float(jittered[0]), float(jittered[1]), float(jittered[2]))
