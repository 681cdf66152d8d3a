"""Pieces of furniture as blocks and the surfaces on them, in random proportions and materials."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..objects.catalog import RGB
from .surfaces import OPEN, Block, Support

Floats = NDArray[np.float64]

TOP = 0.018  # half thickness of a table's top
BOARD = 0.009  # of a shelf's board
RIM = 0.006  # of a tray's rim
# Muted, so that no surface passes for the color of an object.
MATERIALS: tuple[RGB, ...] = (
    (0.72, 0.58, 0.42), (0.55, 0.40, 0.28), (0.86, 0.84, 0.80), (0.62, 0.62, 0.64), (0.40, 0.39, 0.40),
    (0.80, 0.74, 0.62), (0.60, 0.68, 0.72), (0.70, 0.67, 0.68), (0.56, 0.64, 0.56), (0.46, 0.42, 0.40),
    (0.66, 0.50, 0.36), (0.77, 0.72, 0.70), (0.50, 0.55, 0.60), (0.82, 0.78, 0.70),
)  # fmt: skip
# Materials of objects in a room: texture, shininess.
FINISHES = (("plain", 0.1), ("plain", 0.7), ("speckle", 0.2), ("grain", 0.3), ("weave", 0.1), ("stripes", 0.4),
            ("dots", 0.4), ("plain", 0.4))  # fmt: skip
WOODS = ("grain", "planks", "plain", "speckle", "cloud", "tiles")


@dataclass
class Furniture:
    """What a room is put together from; `add` numbers the surfaces."""

    surfaces: list[Support] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def add(self, surface: Support, half_height: float, rgb: RGB, texture: str | None, fixture: str = "") -> None:
        """A surface with the slab under it."""
        x, y, z = surface.center
        half = (*surface.half, half_height)
        number = len(self.surfaces)
        self.surfaces.append(surface)
        center = (x, y, z - half_height)
        self.blocks.append(Block(half, center, rgb, surface.yaw, texture, number, fixture))


def look(rng: np.random.Generator, avoid: RGB | None = None) -> tuple[RGB, str]:
    """A material that does not look like `avoid`."""
    while True:
        base = MATERIALS[int(rng.integers(len(MATERIALS)))]
        if avoid is None or sum(abs(a - b) for a, b in zip(base, avoid, strict=True)) > 0.3:
            break
    red, green, blue = np.clip(np.array(base) + rng.uniform(-0.03, 0.03, 3), 0, 1).tolist()
    return (red, green, blue), WOODS[int(rng.integers(len(WOODS)))]


def table(
    furniture: Furniture, name: str, center: tuple[float, float, float], half: tuple[float, float], floor: float,
    rgb: RGB, texture: str, rng: np.random.Generator,
) -> None:  # fmt: skip
    """A top on four legs, or on two panels."""
    x, y, z = center
    kind = "table"
    furniture.add(Support(name, kind, 0, center, 0.0, half), TOP, rgb, texture)
    dark: RGB = (rgb[0] * 0.7, rgb[1] * 0.7, rgb[2] * 0.7)
    low = z - 2 * TOP
    height = (low - floor) / 2
    if rng.random() < 0.6:
        leg = rng.uniform(0.018, 0.032)
        for sx in (-1, 1):
            for sy in (-1, 1):
                place = (x + sx * (half[0] - 0.05), y + sy * (half[1] - 0.05), floor + height)
                furniture.blocks.append(Block((leg, leg, height), place, dark, solid=False))
    else:
        for sx in (-1, 1):
            place = (x + sx * (half[0] - 0.06), y, floor + height)
            furniture.blocks.append(Block((0.02, half[1] - 0.04, height), place, dark, texture=texture, solid=False))


def counter(
    furniture: Furniture, name: str, center: tuple[float, float, float], half: tuple[float, float], floor: float,
    rgb: RGB, texture: str, rng: np.random.Generator,
) -> None:  # fmt: skip
    """A worktop on a closed cupboard with doors."""
    x, y, z = center
    furniture.add(Support(name, "counter", 0, center, 0.0, half), TOP, rgb, texture)
    body, _ = look(rng, rgb)
    low = z - 2 * TOP
    height = (low - floor) / 2
    furniture.blocks.append(Block((half[0] - 0.02, half[1] - 0.03, height), (x, y, floor + height), body, solid=False))
    for sx in (-0.5, 0.5):
        door = (x + sx * half[0], y - half[1] + 0.028, floor + height)
        shade: RGB = (body[0] * 0.92, body[1] * 0.92, body[2] * 0.92)
        furniture.blocks.append(Block((half[0] * 0.46, 0.004, height * 0.92), door, shade, solid=False))
        grip = (x + 0.18 * sx * half[0], y - half[1] + 0.018, floor + 1.5 * height)
        furniture.blocks.append(Block((0.006, 0.008, 0.05), grip, (0.6, 0.6, 0.62), solid=False))


def shelf(
    furniture: Furniture, center: tuple[float, float], half: tuple[float, float], lower: float, gap: float,
    floor: float, rgb: RGB, texture: str, rng: np.random.Generator,
) -> None:  # fmt: skip
    """Two boards, one above the other, between two sides; open in front."""
    x, y = center
    upper = lower + gap + 2 * BOARD
    furniture.add(
        Support("lower shelf", "shelf", 0, (x, y, lower), 0.0, half, headroom=gap), BOARD, rgb, texture, "lower shelf"
    )
    furniture.add(
        Support("upper shelf", "shelf", 0, (x, y, upper), 0.0, half, headroom=OPEN), BOARD, rgb, texture, "upper shelf"
    )
    top = upper + rng.uniform(0.0, 0.03)
    for sx in (-1, 1):
        side = (x + sx * (half[0] + BOARD), y, (floor + top) / 2)
        furniture.blocks.append(Block((BOARD, half[1], (top - floor) / 2), side, rgb, texture=texture, fixture="shelf"))
    back: RGB = (rgb[0] * 0.85, rgb[1] * 0.85, rgb[2] * 0.85)
    place = (x, y + half[1] + BOARD, (lower + upper) / 2 - 0.02)
    furniture.blocks.append(
        Block((half[0] + 2 * BOARD, BOARD, (upper - lower) / 2 + 0.02), place, back, fixture="shelf")
    )


def tray(
    furniture: Furniture, center: tuple[float, float, float], half: tuple[float, float], yaw: float, rgb: RGB
) -> None:
    """A thin board with a low rim, on another surface."""
    x, y, z = center
    thick = 0.004
    level = z + 2 * thick
    furniture.add(Support("tray", "tray", 0, (x, y, level), yaw, half), thick, rgb, "plain", "tray")
    dark: RGB = (rgb[0] * 0.75, rgb[1] * 0.75, rgb[2] * 0.75)
    cos, sin = math.cos(yaw), math.sin(yaw)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        reach = (half[0] + RIM) * dx, (half[1] + RIM) * dy
        place = (x + cos * reach[0] - sin * reach[1], y + sin * reach[0] + cos * reach[1], z + 0.011)
        size = (RIM, half[1] + 2 * RIM, 0.011) if dx else (half[0] + 2 * RIM, RIM, 0.011)
        furniture.blocks.append(Block(size, place, dark, yaw, fixture="tray"))
