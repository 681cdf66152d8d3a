"""Rooms: floor, walls, one to three pieces of furniture, and objects on, in and over them that stand by themselves.

The world's origin is the middle of the main surface's top. A room is planned first (furniture, from where it can be
seen); then an arrangement that allows the wanted questions gets its objects, and more objects join it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import SceneConfig
from ..instances import surface_instance
from ..objects.catalog import RGB, Body
from . import furniture as pieces
from .arrangement import Arranger
from .furniture import Furniture, look
from .layout import LayoutBatch, build_bodies
from .physics import settle
from .surfaces import OPEN, Block, Light, Room, Support, renumbered
from .textures import PLAIN_TEXTURES

Floats = NDArray[np.float64]

MAIN = ("table", "counter")  # what can be the main surface
HEIGHT = {"table": (0.68, 0.80), "counter": (0.85, 0.95)}  # above the floor, metres
FRONT = -math.pi / 2  # where one stands who looks at the back wall
FACING = math.radians(58)  # furniture with a back is seen from this far to each side
GAP = (0.02, 0.12)  # between two pieces of furniture
SHELF = 0.5  # how often a shelf is the first piece to be added
WALL = (4.0, 5.4)  # distance of the walls
WALL_HEIGHT = 2.5
WALL_COLORS: tuple[RGB, ...] = (
    (0.88, 0.87, 0.84), (0.80, 0.83, 0.85), (0.86, 0.80, 0.72), (0.74, 0.78, 0.74), (0.82, 0.76, 0.78),
    (0.70, 0.71, 0.74),
)  # fmt: skip


FLOOR_DEPTH = 0.7
LEG_RGB: RGB = (0.3, 0.28, 0.26)
# Muted, so that no table or floor passes for the color of an object.
TABLE_COLORS = (
    (0.72, 0.58, 0.42), (0.55, 0.40, 0.28), (0.88, 0.86, 0.82), (0.62, 0.62, 0.64), (0.36, 0.35, 0.36),
    (0.80, 0.74, 0.62), (0.60, 0.68, 0.72), (0.70, 0.67, 0.68), (0.56, 0.64, 0.56), (0.46, 0.42, 0.40),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """How a scene is going to be: from where it can be seen, and how an arrangement is made into objects and a room.

    `furnish` raises `view.Reject` when that fails. `counts`: range of the number of objects that the arrangement has.
    """

    azimuths: tuple[float, float]
    furnish: Callable[[LayoutBatch, np.random.Generator], tuple[list[Body], Room]]
    counts: tuple[int, int] | None = None
    spread: float = 0.0  # how far the first view may turn from the arrangement's azimuth, radians
    attempts: int = 3  # pictures tried for a view
    num_azimuths: int = 64  # azimuths from which a further view is chosen
    checked: bool = False  # objects are costly to make: an arrangement is looked at for every view before

    def first_azimuths(self, azimuth: float, rng: np.random.Generator) -> Floats:
        """Azimuths for the first view, the arrangement's own first."""
        if not self.spread:
            return np.array([azimuth])
        near = np.clip(azimuth + rng.uniform(-self.spread, self.spread, 16), *self.azimuths)
        return np.array([azimuth, *near])


@dataclass(frozen=True, slots=True)
class _Sketch:
    """The furniture of a room before its objects: everything but a tray, whose place depends on them."""

    furniture: Furniture
    floor: float
    back: float | None  # y of a near back wall
    tray: bool


def plan_room(config: SceneConfig, rng: np.random.Generator) -> ScenePlan:
    """Furniture, and the directions from which it is seen."""
    sketch = _sketch(config, rng)
    azimuths = (FRONT - FACING, FRONT + FACING) if sketch.back is not None else (-math.pi, math.pi)

    def furnish(layouts: LayoutBatch, rng: np.random.Generator) -> tuple[list[Body], Room]:
        own = Furniture(list(sketch.furniture.surfaces), list(sketch.furniture.blocks))
        arranger = Arranger(config, own, build_bodies(layouts, 0, config, rng), rng)
        arranger.populate(sketch.tray)
        room = _finished(own, sketch, rng)
        return settle(arranger.bodies, room, config.world), room

    most = max(4, config.objects.max_objects // 2)
    counts = (min(config.objects.min_objects, most), most)
    return ScenePlan(azimuths, furnish, counts, spread=math.radians(6), attempts=5, num_azimuths=24, checked=True)


def _sketch(config: SceneConfig, rng: np.random.Generator) -> _Sketch:
    world, objects = config.world, config.objects
    furniture = Furniture()
    mains = [kind for kind in MAIN if kind in world.surfaces]
    main = mains[int(rng.integers(len(mains)))]
    floor = -rng.uniform(*HEIGHT[main])
    half_x, half_y = rng.uniform(*objects.table, 2).tolist()
    rgb, texture = look(rng)
    build = pieces.table if main == "table" else pieces.counter
    build(furniture, main, (0.0, 0.0, 0.0), (half_x, half_y), floor, rgb, texture, rng)
    count = int(rng.integers(world.min_surfaces, world.max_surfaces + 1)) - 1
    others = [str(kind) for kind in rng.permutation(list(world.surfaces)) if kind != main]
    if "shelf" in others and rng.random() < SHELF:  # without one nothing is above or below
        others.sort(key=lambda kind: kind != "shelf")
    others = others[:count]
    sides = {"side table": [-1, 1], "table": [-1, 1], "counter": [-1, 1]}
    taken: list[int] = []
    back: float | None = None
    for kind in others:
        if kind == "shelf":
            back = _add_shelf(furniture, half_y, floor, rng)
        elif kind in sides:
            free = [side for side in sides[kind] if side not in taken]
            taken.append(free[int(rng.integers(len(free)))])
            _add_beside(furniture, kind, taken[-1], half_x, half_y, floor, rng)
    if back is None and (main == "counter" or rng.random() < 0.5):
        back = half_y + rng.uniform(0.0, 0.3)
    return _Sketch(furniture, floor, back, "tray" in others)


def _add_shelf(furniture: Furniture, depth: float, floor: float, rng: np.random.Generator) -> float:
    """Behind the main surface; returns where the wall may begin."""
    half = rng.uniform(0.34, 0.50), rng.uniform(0.14, 0.18)
    y = depth + rng.uniform(*GAP) + half[1]
    lower, gap = rng.uniform(-0.02, 0.14), rng.uniform(0.30, 0.42)
    rgb, texture = look(rng)
    x = rng.uniform(-0.1, 0.1)
    pieces.shelf(furniture, (x, y), half, lower, gap, floor, rgb, texture, rng)
    return float(y + half[1] + 2 * pieces.BOARD + rng.uniform(0.01, 0.1))


def _add_beside(
    furniture: Furniture, kind: str, side: int, half_x: float, half_y: float, floor: float, rng: np.random.Generator
) -> None:
    """A second table or counter at the left (-1) or right (1) of the main surface."""
    half = rng.uniform(0.20, 0.30), rng.uniform(0.22, min(0.40, half_y))
    x = side * (half_x + rng.uniform(*GAP) + half[0])
    y, z = rng.uniform(-0.1, 0.1), rng.uniform(-0.18, 0.12)
    rgb, texture = look(rng, furniture.blocks[0].rgb)
    build = pieces.counter if kind == "counter" else pieces.table
    name = kind if kind != "table" else "side table"
    if name not in [surface.name for surface in furniture.surfaces]:
        build(furniture, name, (x, y, z), half, floor, rgb, texture, rng)


def _finished(furniture: Furniture, sketch: _Sketch, rng: np.random.Generator) -> Room:
    """Floor, walls and light around the furniture."""
    floor = sketch.floor
    rgb, texture = look(rng, furniture.blocks[0].rgb)
    dim: RGB = (rgb[0] * 0.85, rgb[1] * 0.85, rgb[2] * 0.85)
    blocks = [Block((6, 6, 0.1), (0, 0, floor - 0.1), dim, texture=texture), *furniture.blocks]
    if rng.random() < 0.4:
        rug, pattern = look(rng, dim)
        size = (*rng.uniform(0.8, 1.3, 2).tolist(), 0.006)
        blocks.append(Block(size, (0, -0.2, floor + 0.006), rug, rng.uniform(-0.3, 0.3), pattern, solid=False))
    far = rng.uniform(*WALL)
    back = sketch.back if sketch.back is not None else far
    blocks += _walls(far, back, floor, rng)
    return Room(renumbered(furniture.surfaces), tuple(blocks), _light(rng, sketch.back is not None), far - 0.2)


def _walls(far: float, back: float, floor: float, rng: np.random.Generator) -> list[Block]:
    base = np.array(WALL_COLORS[int(rng.integers(len(WALL_COLORS)))]) + rng.uniform(-0.03, 0.03, 3)
    red, green, blue = np.clip(base, 0, 1).tolist()
    rgb: RGB = (red, green, blue)
    texture = str(rng.choice(["plain", "plain", "cloud", "bricks", "stripes", "speckle"]))
    middle = floor + WALL_HEIGHT / 2
    blocks: list[Block] = []
    strip: RGB = (0.92, 0.91, 0.89)
    for x, y in ((0.0, back), (0.0, -far), (far, 0.0), (-far, 0.0)):
        across = x == 0.0
        sign = math.copysign(1.0, y if across else x)
        half = (6.0, 0.05, WALL_HEIGHT / 2) if across else (0.05, 6.0, WALL_HEIGHT / 2)
        place = (x + (0 if across else 0.05 * sign), y + (0.05 * sign if across else 0), middle)
        blocks.append(Block(half, place, rgb, texture=texture, solid=False))
        low = (6.0, 0.012, 0.05) if across else (0.012, 6.0, 0.05)
        blocks.append(Block(low, (x, y, floor + 0.05), strip, solid=False))
    return blocks + _hangings(far, back, floor, rng)


def _hangings(far: float, back: float, floor: float, rng: np.random.Generator) -> list[Block]:
    """A window and pictures on the back wall and the side walls."""
    blocks: list[Block] = []
    if rng.random() < 0.5:
        x, z = rng.uniform(-1.2, 1.2), floor + rng.uniform(1.45, 1.7)
        half = rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.5)
        blocks.append(Block((half[0], 0.01, half[1]), (x, back, z), (0.80, 0.90, 0.98), solid=False, glow=True))
        white: RGB = (0.93, 0.93, 0.92)
        for dx, dz, size in (
            (0.0, half[1], (half[0] + 0.04, 0.025, 0.03)), (0.0, -half[1], (half[0] + 0.08, 0.05, 0.02)),
            (half[0], 0.0, (0.03, 0.025, half[1])), (-half[0], 0.0, (0.03, 0.025, half[1])),
            (0.0, 0.0, (0.015, 0.02, half[1])),
        ):  # fmt: skip
            blocks.append(Block(size, (x + dx, back, z + dz), white, solid=False))
    for wall in rng.permutation(3)[: int(rng.integers(0, 3))]:
        rgb, texture = look(rng)
        size = rng.uniform(0.18, 0.35, 2).tolist()
        along, z = rng.uniform(-1.5, 1.5), floor + rng.uniform(1.4, 1.8)
        x, y = ((along, -far), (far, along), (-far, along))[int(wall)]
        across = int(wall) == 0
        frame = (size[0], 0.02, size[1]) if across else (0.02, size[0], size[1])
        inner = (size[0] - 0.03, 0.024, size[1] - 0.03) if across else (0.024, size[0] - 0.03, size[1] - 0.03)
        blocks.append(Block(frame, (x, y, z), (0.25, 0.22, 0.2), solid=False))
        blocks.append(Block(inner, (x, y, z), rgb, texture=texture, solid=False))
    return blocks


def _light(rng: np.random.Generator, behind: bool) -> Light:
    """The key light; it comes from the front where a wall is behind."""
    angle = FRONT + rng.uniform(-1.2, 1.2) if behind else rng.uniform(0, 2 * math.pi)
    lean, fill = rng.uniform(0.2, 1.0), rng.uniform(0, 2 * math.pi)
    return Light(
        key_position=(lean * math.cos(angle), lean * math.sin(angle), rng.uniform(1.6, 2.4)),
        key=rng.uniform(0.3, 0.55),
        fill_direction=(math.cos(fill), math.sin(fill), -1.2),
        fill=rng.uniform(0.08, 0.25),
        ambient=rng.uniform(0.25, 0.38),
        tint=tuple(1 + rng.uniform(-0.06, 0.06, 3)),
        shininess=0.0,
    )


def plan_flat_table(config: SceneConfig) -> ScenePlan:
    """Every arrangement on a table of its own size, seen from all around."""

    def furnish(layouts: LayoutBatch, rng: np.random.Generator) -> tuple[list[Body], Room]:
        bodies = build_bodies(layouts, 0, config, rng)
        half = rng.uniform(*config.objects.table, 2)
        return bodies, flat_room((float(half[0]), float(half[1])), rng)

    return ScenePlan((0.0, 2 * math.pi), furnish)


def flat_room(half: tuple[float, float], rng: np.random.Generator) -> Room:
    """A bare table of these half sizes in random colors and light."""
    table, floor = rng.choice(len(TABLE_COLORS), 2, replace=False)
    angle, lean = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2)
    fill = rng.uniform(0, 2 * math.pi)
    jitter = rng.uniform(-0.03, 0.03, (2, 3))
    table_rgb = _rgb(np.clip(np.array(TABLE_COLORS[table]) + jitter[0], 0, 1))
    table_texture = PLAIN_TEXTURES[int(rng.integers(len(PLAIN_TEXTURES)))]
    floor_rgb = _rgb(np.clip(0.8 * np.array(TABLE_COLORS[floor]) + jitter[1], 0, 1))
    floor_texture = PLAIN_TEXTURES[int(rng.integers(len(PLAIN_TEXTURES)))]
    light = Light(
        key_position=(lean * math.cos(angle), lean * math.sin(angle), rng.uniform(1.6, 2.4)),
        key=rng.uniform(0.35, 0.6),
        fill_direction=(math.cos(fill), math.sin(fill), -1.2),
        fill=rng.uniform(0.05, 0.2),
        ambient=rng.uniform(0.25, 0.38),
        tint=tuple(1 + rng.uniform(-0.06, 0.06, 3)),
        shininess=rng.uniform(0.0, 0.5),
    )
    x, y = half
    legs = [
        Block(
            (0.025, 0.025, FLOOR_DEPTH / 2 - 0.02),
            (sx * (x - 0.04), sy * (y - 0.04), -FLOOR_DEPTH / 2 - 0.02),
            LEG_RGB,
        )
        for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1))
    ]
    blocks = (
        Block((12, 12, 0.2), (0, 0, -FLOOR_DEPTH - 0.2), floor_rgb, texture=floor_texture),
        Block((x, y, 0.02), (0, 0, -0.02), table_rgb, texture=table_texture, surface=0),
        *legs,
    )
    top = Support("table", "table", surface_instance(0), (0.0, 0.0, 0.0), 0.0, half, headroom=OPEN)
    return Room((top,), blocks, light)


def _rgb(values: Floats) -> RGB:
    red, green, blue = values.tolist()
    return red, green, blue
