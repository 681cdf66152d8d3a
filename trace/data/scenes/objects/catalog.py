"""What can stand in a scene: categories with their parametric shapes, and colors.

A category is a row of `CATEGORIES`: its range of size and the function that builds it from primitive parts. To add
one, add a row; everything else (names, questions, vocabulary) follows from the table. `shapes/` holds the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import desk, food, kitchen, plain, tools, toys
from .primitives import RGB, Part, Vector, outline, scaled

__all__ = ["CATEGORIES", "COLORS", "PLAIN_CATEGORIES", "PLAIN_COLORS", "Body", "Category", "Part", "RGB", "Vector"]

# Far apart in hue and lightness, so that jitter and colored light do not make one color pass for another.
COLORS: dict[str, RGB] = {
    "red": (0.82, 0.07, 0.08),
    "green": (0.08, 0.58, 0.14),
    "blue": (0.08, 0.22, 0.85),
    "yellow": (0.95, 0.85, 0.08),
    "purple": (0.48, 0.10, 0.62),
    "orange": (0.98, 0.45, 0.03),
    "pink": (0.98, 0.52, 0.70),
    "turquoise": (0.10, 0.74, 0.72),
    "white": (0.94, 0.94, 0.93),
    "black": (0.06, 0.06, 0.07),
}
PLAIN_COLORS = ("red", "green", "blue", "yellow", "purple", "orange")  # of the nano model's words
COLOR_JITTER = 0.04


@dataclass(frozen=True, slots=True)
class Category:
    """`radius`: range of the footprint's enclosing disc in metres; `slenderness`: range of height / radius.

    `build` takes (radius, height, shape, rgb). A `sculpted` category has the height that its parts have; its builder
    takes (shape, rgb) alone and is scaled. `colors` restricts what has a color by nature.
    """

    radius: tuple[float, float]
    slenderness: tuple[float, float] = (1.0, 1.0)
    build: Callable[[float, float, float, RGB], tuple[Part, ...]] | None = None
    sculpt: Callable[[float, RGB], list[Part]] | None = None
    colors: tuple[str, ...] = ()
    mesh: tuple[int, Vector, tuple[float, float], float] | None = None  # number, offset, half sizes, height of an asset


def _made(sculpt: Callable[[float, RGB], list[Part]], low: float, high: float, *colors: str) -> Category:
    return Category((low, high), sculpt=sculpt, colors=colors)


CATEGORIES: dict[str, Category] = {
    "box": Category((0.058, 0.084), (0.9, 1.5), plain.box),
    "ball": Category((0.046, 0.068), (2.0, 2.0), plain.ball),
    "can": Category((0.042, 0.055), (2.4, 3.0), plain.can),
    "cone": Category((0.052, 0.074), (2.0, 3.0), plain.cone),
    "mug": Category((0.058, 0.076), (1.5, 1.9), plain.mug),
    "bottle": Category((0.038, 0.050), (4.6, 5.8), plain.bottle),
    "bowl": _made(kitchen.bowl, 0.075, 0.105),
    "plate": _made(kitchen.plate, 0.090, 0.120),
    "pot": _made(kitchen.pot, 0.090, 0.115),
    "pan": _made(kitchen.pan, 0.120, 0.150),
    "kettle": _made(kitchen.kettle, 0.075, 0.095),
    "teapot": _made(kitchen.teapot, 0.080, 0.105),
    "jug": _made(kitchen.jug, 0.060, 0.080),
    "wine glass": _made(kitchen.wine_glass, 0.038, 0.050),
    "vase": _made(kitchen.vase, 0.055, 0.075),
    "candle": _made(kitchen.candle, 0.050, 0.065),
    "fork": _made(kitchen.fork, 0.090, 0.110),
    "spoon": _made(kitchen.spoon, 0.090, 0.110),
    "spatula": _made(kitchen.spatula, 0.100, 0.125),
    "cutting board": _made(kitchen.cutting_board, 0.120, 0.150),
    "bucket": _made(kitchen.bucket, 0.070, 0.095),
    "crate": _made(kitchen.crate, 0.100, 0.130),
    "basket": _made(kitchen.basket, 0.085, 0.110),
    "drawer": _made(kitchen.drawer, 0.110, 0.135),
    "toaster": _made(kitchen.toaster, 0.085, 0.105),
    "salt shaker": _made(kitchen.salt_shaker, 0.036, 0.046),
    "cake": _made(kitchen.cake, 0.070, 0.095, "white", "pink", "yellow", "purple", "turquoise"),
    "apple": _made(food.apple, 0.040, 0.052, "red", "green", "yellow"),
    "pear": _made(food.pear, 0.042, 0.054, "green", "yellow"),
    "banana": _made(food.banana, 0.085, 0.105, "yellow", "green"),
    "carrot": _made(food.carrot, 0.080, 0.100, "orange", "purple"),
    "mushroom": _made(food.mushroom, 0.045, 0.060, "red", "orange", "purple"),
    "cupcake": _made(food.cupcake, 0.042, 0.055, "pink", "white", "blue", "turquoise", "purple", "yellow"),
    "donut": _made(food.donut, 0.050, 0.065, "pink", "blue", "purple", "turquoise", "red"),
    "pumpkin": _made(food.pumpkin, 0.055, 0.075, "orange", "white"),
    "cactus": _made(food.cactus, 0.050, 0.065, "green"),
    "potted plant": _made(food.potted_plant, 0.070, 0.095, "green"),
    "tree": _made(food.tree, 0.055, 0.075, "green", "white"),
    "hammer": _made(tools.hammer, 0.100, 0.130),
    "screwdriver": _made(tools.screwdriver, 0.090, 0.115),
    "wrench": _made(tools.wrench, 0.095, 0.115),
    "pair of scissors": _made(tools.scissors, 0.085, 0.105),
    "paintbrush": _made(tools.paintbrush, 0.090, 0.110),
    "dumbbell": _made(tools.dumbbell, 0.075, 0.100),
    "lamp": _made(tools.lamp, 0.070, 0.095),
    "bell": _made(tools.bell, 0.045, 0.062),
    "hourglass": _made(tools.hourglass, 0.042, 0.056),
    "padlock": _made(tools.padlock, 0.045, 0.062),
    "magnifying glass": _made(tools.magnifying_glass, 0.085, 0.110),
    "flashlight": _made(tools.flashlight, 0.075, 0.095),
    "alarm clock": _made(tools.alarm_clock, 0.052, 0.070),
    "iron": _made(tools.iron, 0.085, 0.105),
    "roll of tape": _made(tools.tape, 0.042, 0.056),
    "watering can": _made(tools.watering_can, 0.085, 0.110),
    "toy car": _made(toys.toy_car, 0.070, 0.095),
    "toy truck": _made(toys.toy_truck, 0.085, 0.110),
    "toy train": _made(toys.toy_train, 0.075, 0.100),
    "toy plane": _made(toys.toy_plane, 0.085, 0.115),
    "toy boat": _made(toys.toy_boat, 0.060, 0.080),
    "rocket": _made(toys.rocket, 0.050, 0.065),
    "toy house": _made(toys.toy_house, 0.070, 0.095),
    "chair": _made(toys.chair, 0.055, 0.075),
    "stool": _made(toys.stool, 0.055, 0.070),
    "snowman": _made(toys.snowman, 0.050, 0.065, "white"),
    "rubber duck": _made(toys.rubber_duck, 0.055, 0.075),
    "teddy bear": _made(toys.teddy_bear, 0.055, 0.075),
    "toy robot": _made(toys.toy_robot, 0.050, 0.065),
    "chess pawn": _made(toys.chess_pawn, 0.036, 0.048),
    "bowling pin": _made(toys.bowling_pin, 0.036, 0.046),
    "trophy": _made(toys.trophy, 0.055, 0.070),
    "die": _made(toys.die, 0.040, 0.056),
    "toy brick": _made(toys.toy_brick, 0.060, 0.080),
    "drum": _made(toys.drum, 0.060, 0.080),
    "gift": _made(desk.gift, 0.060, 0.085),
    "book": _made(desk.book, 0.105, 0.130),
    "laptop": _made(desk.laptop, 0.115, 0.140),
    "photo camera": _made(desk.camera, 0.058, 0.075),
    "radio": _made(desk.radio, 0.075, 0.095),
    "hat": _made(desk.hat, 0.080, 0.105),
    "spinning top": _made(toys.spinning_top, 0.042, 0.056),
    "chest": _made(desk.chest, 0.075, 0.095),
    "lantern": _made(desk.lantern, 0.050, 0.065),
}
PLAIN_CATEGORIES = ("box", "ball", "can", "cone", "mug", "bottle")


@dataclass(frozen=True, slots=True)
class Spot:
    """A flat, level place on an object where others can stand: its floor or top, in the object's frame."""

    center: Vector
    half: tuple[float, float]  # of a rectangle; of a disc both are its radius
    disc: bool
    interior: bool  # inside a container, not on top


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
    def axes(self) -> NDArray[np.float64]:
        """The footprint's axes in the world: the rows of [2, 2]."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[cos, sin], [-sin, cos]])

    @property
    def reach(self) -> float:
        """Radius of a disc that holds the footprint as `distance` takes it, a rectangle's corners included."""
        return self.radius if self.half is None else math.hypot(*self.half)

    def extent(self, direction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Half extent of the footprint along unit vectors [..., 2]."""
        if self.half is None:
            return np.full(direction.shape[:-1], self.radius)
        result: NDArray[np.float64] = np.abs(direction @ self.axes.T) @ np.array(self.half)
        return result

    def distance(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """From points [..., 2] to the footprint; negative inside of a disc, 0 inside of a rectangle."""
        x, y = points[..., 0] - self.position[0], points[..., 1] - self.position[1]
        if self.half is None:
            result: NDArray[np.float64] = np.hypot(x, y) - self.radius
            return result
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        along = np.maximum(np.abs(cos * x + sin * y) - self.half[0], 0)
        across = np.maximum(np.abs(cos * y - sin * x) - self.half[1], 0)
        result = np.hypot(along, across)
        return result

    def spots(self) -> list[Spot]:
        """Where other objects can stand on it or in it."""
        found = []
        for part in self.parts:
            if part.role in ("top", "interior"):
                x, y, z = part.offset
                disc = part.shape == "cylinder"
                height = part.size[1] if disc else part.size[2]
                half = (part.size[0], part.size[0] if disc else part.size[1])
                found.append(Spot((x, y, z + height), half, disc, part.role == "interior"))
        return found


def make_body(
    category: str, kind: Category, color: str, rgb: RGB, radius: float, height: float, shape: float,
    position: tuple[float, float], yaw: float,
) -> Body:  # fmt: skip
    """A body of these measures; a sculpted one has the height and the rectangle that its parts have."""
    asset = None
    if kind.build is not None:
        return Body(category, color, rgb, radius, height, shape, position, yaw, kind.build(radius, height, shape, rgb))
    if kind.mesh is not None:
        asset, offset, half, height = kind.mesh
        parts: tuple[Part, ...] = (Part("mesh", (1.0, 1.0, 1.0), offset, rgb),)
    else:
        assert kind.sculpt is not None
        parts, half, height = _sculpted(kind.sculpt(shape, rgb), radius)
    rectangle = half if 4 * half[0] * half[1] < math.pi * radius**2 else None
    return Body(category, color, rgb, radius, height, shape, position, yaw, parts, rectangle, asset=asset)


def _sculpted(parts: list[Part], radius: float) -> tuple[tuple[Part, ...], tuple[float, float], float]:
    """Parts scaled to a footprint's enclosing disc, above the origin; half sizes of the footprint and the height."""
    points = np.concatenate([outline(part) for part in parts])
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    reach = float(np.hypot(points[:, 0] - middle[0], points[:, 1] - middle[1]).max())
    factor = radius / reach
    shift = (-float(middle[0]), -float(middle[1]), -float(low[2]))
    half_x, half_y, height = ((high - low) / (2, 2, 1) * factor).tolist()
    return tuple(scaled(part, factor, shift) for part in parts), (half_x, half_y), height


@lru_cache(maxsize=512)
def slenderness(kind: Category) -> float:
    """Height by radius of a category that has no height of its own, at its middle proportion."""
    if kind.mesh is not None:
        return kind.mesh[3] / kind.radius[0]
    assert kind.sculpt is not None
    return _sculpted(kind.sculpt(0.5, (0.5, 0.5, 0.5)), 1.0)[2]


def sample_rgb(color: str, rng: np.random.Generator) -> RGB:
    jittered: NDArray[np.float64] = np.clip(np.array(COLORS[color]) + rng.uniform(-COLOR_JITTER, COLOR_JITTER, 3), 0, 1)
    return (float(jittered[0]), float(jittered[1]), float(jittered[2]))
