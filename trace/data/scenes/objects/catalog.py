"""What can stand in a scene: categories with their parametric shapes, and colors.

A category is a row of `_SHAPES`: the function that builds it from primitive parts and its range of size. To add one,
add a row; everything else (names, questions, vocabulary) follows from the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from . import METAL, RGB, Floats, Vector, household, kitchen, toys
from .primitives import Part, darker, ground_axes, outline, rectangle_distance

# Far apart in hue and lightness, so that jitter and colored light do not make one color pass for another.
COLORS: dict[str, RGB] = {
    "red": (0.82, 0.07, 0.08), "green": (0.08, 0.58, 0.14), "blue": (0.08, 0.22, 0.85), "yellow": (0.95, 0.85, 0.08),
    "purple": (0.48, 0.10, 0.62), "orange": (0.98, 0.45, 0.03), "pink": (0.98, 0.52, 0.70),
    "turquoise": (0.10, 0.74, 0.72), "white": (0.94, 0.94, 0.93), "black": (0.06, 0.06, 0.07),
}  # fmt: skip
COLOR_JITTER = 0.04


@dataclass(frozen=True, slots=True)
class Category:
    """What all objects of a name share. It has one of `build`, `sculpt` (scaled; decides its own height) and `mesh`."""

    radius: tuple[float, float]  # range of the footprint's enclosing disc, metres
    slenderness: tuple[float, float] = (1.0, 1.0)  # range of height / radius
    build: Callable[[float, float, float, RGB], tuple[Part, ...]] | None = None  # of radius, height, shape, color
    sculpt: Callable[[float, RGB], list[Part]] | None = None  # of shape, color
    colors: tuple[str, ...] = ()  # that it has by nature; () is all
    mesh: tuple[int, Vector, tuple[float, float], float] | None = None  # number, offset, half sizes, height of an asset


def _box(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    angle = math.radians(33 + 24 * shape)
    half = (radius * math.cos(angle), radius * math.sin(angle), height / 2)
    return (Part("box", half, (0, 0, height / 2), rgb),)


def _can(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    rim = 0.06 * height
    return (
        Part("cylinder", (radius, height / 2 - rim, 0), (0, 0, height / 2), rgb),
        Part("cylinder", (0.9 * radius, rim / 2, 0), (0, 0, rim / 2), METAL),
        Part("cylinder", (0.9 * radius, rim / 2, 0), (0, 0, height - rim / 2), METAL),
    )


def _mug(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    reach = 0.52  # how far the handle stands out, in units of the body's radius
    body = radius / (1 + reach / 2)
    center = -reach * body / 2  # the enclosing disc's center is the origin
    thick = 0.14 * body
    outer, inner = center + body * (1 + reach) - thick, center + body
    low, high = 0.25 * height, 0.75 * height
    length, middle = (outer - inner) / 2 + 0.1 * body, (outer + inner) / 2 - 0.1 * body
    along_x = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
    return (
        Part("cylinder", (body, height / 2, 0), (center, 0, height / 2), rgb),
        Part("cylinder", (0.82 * body, 0.002, 0), (center, 0, height), darker(rgb, 0.35)),
        Part("capsule", (thick, (high - low) / 2, 0), (outer, 0, (low + high) / 2), rgb),
        Part("capsule", (thick, length, 0), (middle, 0, low), rgb, along_x),
        Part("capsule", (thick, length, 0), (middle, 0, high), rgb, along_x),
    )


def _bottle(radius: float, height: float, shape: float, rgb: RGB) -> tuple[Part, ...]:
    body = (0.52 + 0.1 * shape) * height
    neck, cap = 0.36 * radius, 0.07 * height
    return (
        Part("cylinder", (radius, body / 2, 0), (0, 0, body / 2), rgb),
        Part("ellipsoid", (radius, radius, 0.16 * height), (0, 0, body), rgb),
        Part("cylinder", (neck, (height - body - cap) / 2, 0), (0, 0, (height + body - cap) / 2), rgb),
        Part("cylinder", (1.2 * neck, cap / 2, 0), (0, 0, height - cap / 2), darker(rgb, 0.55)),
    )


# Shape, whose function names the category, smallest and largest radius, natural colors. Scenes depend on the order.
_SHAPES: tuple[tuple[Any, ...], ...] = (
    (kitchen.bowl, 0.075, 0.105), (kitchen.plate, 0.090, 0.120), (kitchen.pot, 0.090, 0.115),
    (kitchen.pan, 0.120, 0.150), (kitchen.kettle, 0.075, 0.095), (kitchen.teapot, 0.080, 0.105),
    (kitchen.jug, 0.060, 0.080), (kitchen.wine_glass, 0.038, 0.050), (kitchen.vase, 0.055, 0.075),
    (kitchen.candle, 0.050, 0.065), (kitchen.fork, 0.090, 0.110), (kitchen.spoon, 0.090, 0.110),
    (kitchen.spatula, 0.100, 0.125), (kitchen.cutting_board, 0.120, 0.150), (kitchen.bucket, 0.070, 0.095),
    (kitchen.crate, 0.100, 0.130), (kitchen.basket, 0.085, 0.110), (kitchen.drawer, 0.110, 0.135),
    (kitchen.toaster, 0.085, 0.105), (kitchen.salt_shaker, 0.036, 0.046),
    (kitchen.cake, 0.070, 0.095, "white", "pink", "yellow", "purple", "turquoise"),
    (kitchen.apple, 0.040, 0.052, "red", "green", "yellow"), (kitchen.pear, 0.042, 0.054, "green", "yellow"),
    (kitchen.banana, 0.085, 0.105, "yellow", "green"), (kitchen.carrot, 0.080, 0.100, "orange", "purple"),
    (kitchen.mushroom, 0.045, 0.060, "red", "orange", "purple"),
    (kitchen.cupcake, 0.042, 0.055, "pink", "white", "blue", "turquoise", "purple", "yellow"),
    (kitchen.donut, 0.050, 0.065, "pink", "blue", "purple", "turquoise", "red"),
    (kitchen.pumpkin, 0.055, 0.075, "orange", "white"), (kitchen.cactus, 0.050, 0.065, "green"),
    (kitchen.potted_plant, 0.070, 0.095, "green"), (kitchen.tree, 0.055, 0.075, "green", "white"),
    (household.hammer, 0.100, 0.130), (household.screwdriver, 0.090, 0.115), (household.wrench, 0.095, 0.115),
    (household.pair_of_scissors, 0.085, 0.105), (household.paintbrush, 0.090, 0.110),
    (household.dumbbell, 0.075, 0.100), (household.lamp, 0.070, 0.095), (household.bell, 0.045, 0.062),
    (household.hourglass, 0.042, 0.056), (household.padlock, 0.045, 0.062), (household.magnifying_glass, 0.085, 0.110),
    (household.flashlight, 0.075, 0.095), (household.alarm_clock, 0.052, 0.070), (household.iron, 0.085, 0.105),
    (household.roll_of_tape, 0.042, 0.056), (household.watering_can, 0.085, 0.110), (toys.toy_car, 0.070, 0.095),
    (toys.toy_truck, 0.085, 0.110), (toys.toy_train, 0.075, 0.100), (toys.toy_plane, 0.085, 0.115),
    (toys.toy_boat, 0.060, 0.080), (toys.rocket, 0.050, 0.065), (toys.toy_house, 0.070, 0.095),
    (toys.chair, 0.055, 0.075), (toys.stool, 0.055, 0.070), (toys.snowman, 0.050, 0.065, "white"),
    (toys.rubber_duck, 0.055, 0.075), (toys.teddy_bear, 0.055, 0.075), (toys.toy_robot, 0.050, 0.065),
    (toys.chess_pawn, 0.036, 0.048), (toys.bowling_pin, 0.036, 0.046), (toys.trophy, 0.055, 0.070),
    (toys.die, 0.040, 0.056), (toys.toy_brick, 0.060, 0.080), (toys.drum, 0.060, 0.080),
    (household.gift, 0.060, 0.085), (household.book, 0.105, 0.130), (household.laptop, 0.115, 0.140),
    (household.photo_camera, 0.058, 0.075), (household.radio, 0.075, 0.095), (household.hat, 0.080, 0.105),
    (toys.spinning_top, 0.042, 0.056), (household.chest, 0.075, 0.095), (household.lantern, 0.050, 0.065),
)  # fmt: skip

CATEGORIES: dict[str, Category] = {
    "box": Category((0.058, 0.084), (0.9, 1.5), _box),
    "ball": Category((0.046, 0.068), (2.0, 2.0), lambda r, h, shape, rgb: (Part("sphere", (r, r, r), (0, 0, r), rgb),)),
    "can": Category((0.042, 0.055), (2.4, 3.0), _can),
    "cone": Category((0.052, 0.074), (2.0, 3.0), lambda r, h, shape, rgb: (Part("cone", (r, r, h), (0, 0, 0), rgb),)),
    "mug": Category((0.058, 0.076), (1.5, 1.9), _mug),
    "bottle": Category((0.038, 0.050), (4.6, 5.8), _bottle),
} | {
    shape.__name__.replace("_", " "): Category((low, high), sculpt=shape, colors=tuple(colors))
    for shape, low, high, *colors in _SHAPES
}


@dataclass(frozen=True, slots=True)
class Body:
    """An object of a scene: what it is, how big, and where. Metres and radians.

    `position` is the center of the footprint's enclosing disc of `radius`; the foot is at the height `z`. `half`: half
    sizes of the footprint's rectangle where that is smaller than the disc. `support` is the number of what it stands
    on (`surfaces.Support`).
    """

    category: str
    color: str
    rgb: RGB
    radius: float
    height: float
    shape: float  # 0..1: a free proportion of the category
    position: tuple[float, float]
    yaw: float
    parts: tuple[Part, ...]
    half: tuple[float, float] | None = None
    z: float = 0.0
    support: int = 0
    finish: int = 0  # number of the material
    asset: int | None = None  # number of a mesh of the user's own

    @property
    def name(self) -> str:
        return f"{self.color} {self.category}".strip()

    @property
    def axes(self) -> Floats:
        return ground_axes(self.yaw)

    @property
    def reach(self) -> float:
        """Radius of a disc that holds the footprint as `distance` takes it, a rectangle's corners included."""
        return self.radius if self.half is None else math.hypot(*self.half)

    def extent(self, direction: Floats) -> Floats:
        """Half extent of the footprint along unit vectors [..., 2]."""
        if self.half is None:
            return np.full(direction.shape[:-1], self.radius)
        extent: Floats = np.abs(direction @ self.axes.T) @ np.array(self.half)
        return extent

    def distance(self, points: Floats) -> Floats:
        """Distance from points [..., 2] to the footprint; negative inside a disc, 0 inside a rectangle."""
        if self.half is not None:
            return rectangle_distance(points, self.position, self.yaw, self.half)
        distance: Floats = np.hypot(points[..., 0] - self.position[0], points[..., 1] - self.position[1]) - self.radius
        return distance


def make_body(
    name: str, category: Category, color: str, rgb: RGB, radius: float, height: float, shape: float,
    position: tuple[float, float], yaw: float,
) -> Body:  # fmt: skip
    """Build a body of this radius and, where the category leaves it open, this height."""
    asset, rectangle = None, None
    if category.build is not None:
        parts = category.build(radius, height, shape, rgb)
    else:
        if category.mesh is not None:
            asset, offset, half, height = category.mesh
            parts = (Part("mesh", (1.0, 1.0, 1.0), offset, rgb),)
        else:
            parts, half, height = _scaled_parts(category, shape, rgb, radius)
        if 4 * half[0] * half[1] < math.pi * radius**2:
            rectangle = half
    return Body(name, color, rgb, radius, height, shape, position, yaw, parts, rectangle, asset=asset)


def _scaled_parts(
    category: Category, shape: float, rgb: RGB, radius: float
) -> tuple[tuple[Part, ...], tuple[float, float], float]:
    """Parts scaled to a footprint's enclosing disc, above the origin; half sizes of the footprint and the height."""
    assert category.sculpt is not None
    parts = category.sculpt(shape, rgb)
    points = np.concatenate([outline(part) for part in parts])
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    factor = radius / float(np.hypot(points[:, 0] - middle[0], points[:, 1] - middle[1]).max())
    shift = (-float(middle[0]), -float(middle[1]), -float(low[2]))
    half_x, half_y, height = ((high - low) / (2, 2, 1) * factor).tolist()
    scaled = []
    for part in parts:
        x, y, z = ((value + move) * factor for value, move in zip(part.offset, shift, strict=True))
        a, b, c = (value * factor for value in part.size)
        scaled.append(replace(part, size=(a, b, c), offset=(x, y, z)))
    return tuple(scaled), (half_x, half_y), height


@lru_cache(maxsize=512)
def slenderness(category: Category) -> float:
    """Height / radius of a category that decides its own height, at its middle proportion."""
    if category.mesh is not None:
        return category.mesh[3] / category.radius[0]
    return _scaled_parts(category, 0.5, (0.5, 0.5, 0.5), 1.0)[2]


def sample_rgb(color: str, rng: np.random.Generator) -> RGB:
    red, green, blue = np.clip(np.array(COLORS[color]) + rng.uniform(-COLOR_JITTER, COLOR_JITTER, 3), 0, 1).tolist()
    return red, green, blue
