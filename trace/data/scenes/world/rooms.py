"""The scene around the objects: a room with one to three pieces of furniture, or the nano model's flat table.

The world's origin is the middle of the main surface's top. A scene is planned first (furniture, directions from which
it can be seen); then a layout that allows the wanted questions gets its bodies, and in a room more objects join it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ....core.images import FIRST_SURFACE, MORE_SURFACES
from ..config import SceneConfig
from ..objects import RGB, Floats
from ..objects.catalog import Body
from ..objects.primitives import darker
from .arrangement import ObjectPlacer
from .furniture import PLAIN_TEXTURES, Furniture, jittered, sample_material
from .layout import LayoutBatch, build_bodies
from .physics import settle
from .surfaces import Block, Light, Room, Support

HEIGHT = {"table": (0.68, 0.80), "counter": (0.85, 0.95)}  # of the main surface above the floor, metres
FRONT = -math.pi / 2  # azimuth of a camera that looks at the back wall
FACING = math.radians(58)  # furniture with a back is seen from this far to each side
SHELF = 0.5  # how often a shelf is the first piece to be added
WALL = (4.0, 5.4)  # distance of the walls
WALL_HEIGHT = 2.5
WALL_COLORS: tuple[RGB, ...] = (
    (0.88, 0.87, 0.84), (0.80, 0.83, 0.85), (0.86, 0.80, 0.72), (0.74, 0.78, 0.74), (0.82, 0.76, 0.78),
    (0.70, 0.71, 0.74),
)  # fmt: skip
FLAT_FLOOR_DEPTH = 0.7
LEG_RGB: RGB = (0.3, 0.28, 0.26)
# Muted, so that no table or floor passes for the color of an object.
TABLE_COLORS = (
    (0.72, 0.58, 0.42), (0.55, 0.40, 0.28), (0.88, 0.86, 0.82), (0.62, 0.62, 0.64), (0.36, 0.35, 0.36),
    (0.80, 0.74, 0.62), (0.60, 0.68, 0.72), (0.70, 0.67, 0.68), (0.56, 0.64, 0.56), (0.46, 0.42, 0.40),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """From where a scene can be seen, and how a layout is made into bodies and a room.

    `furnish` raises `Reject` when that fails. `counts`: range of the number of objects that the layout has.
    """

    azimuths: tuple[float, float]
    furnish: Callable[[LayoutBatch, np.random.Generator], tuple[list[Body], Room]]
    counts: tuple[int, int] | None = None
    spread: float = 0.0  # how far the first view may turn from the layout's azimuth, radians
    attempts: int = 3  # pictures tried for a view
    num_azimuths: int = 64  # azimuths from which a further view is chosen
    checked: bool = False  # objects are costly to make: a layout is checked for every view before

    def first_azimuths(self, azimuth: float, rng: np.random.Generator) -> Floats:
        """Azimuths for the first view, the layout's own first."""
        if not self.spread:
            return np.array([azimuth])
        near = np.clip(azimuth + rng.uniform(-self.spread, self.spread, 16), *self.azimuths)
        return np.array([azimuth, *near])


def plan_room(config: SceneConfig, rng: np.random.Generator) -> ScenePlan:
    """Choose the furniture, all but a tray, whose place depends on the objects, and the directions of the camera."""
    world, furniture = config.world, Furniture()
    mains = [kind for kind in HEIGHT if kind in world.surfaces]
    main = mains[int(rng.integers(len(mains)))]
    floor = -rng.uniform(*HEIGHT[main])
    half_x, half_y = rng.uniform(*config.objects.table, 2).tolist()
    furniture.add_table(main, main, (0.0, 0.0, 0.0), (half_x, half_y), floor, sample_material(rng), rng)
    count = int(rng.integers(world.min_surfaces, world.max_surfaces + 1)) - 1
    others = [str(kind) for kind in rng.permutation(list(world.surfaces)) if kind != main]
    if "shelf" in others and rng.random() < SHELF:  # without one nothing is above or below
        others.sort(key=lambda kind: kind != "shelf")
    others = others[:count]
    free_sides = [-1, 1]
    back: float | None = None  # y of a near back wall
    for kind in others:
        if kind == "shelf":
            back = furniture.add_shelf(half_y, floor, rng)
        elif kind != "tray":
            side = free_sides.pop(int(rng.integers(len(free_sides))))
            furniture.add_beside(kind, side, (half_x, half_y), floor, rng)
    if back is None and (main == "counter" or rng.random() < 0.5):
        back = half_y + rng.uniform(0.0, 0.3)

    def furnish(layout: LayoutBatch, rng: np.random.Generator) -> tuple[list[Body], Room]:
        own = Furniture(list(furniture.surfaces), list(furniture.blocks))
        placer = ObjectPlacer(config, own, build_bodies(layout, config, rng), rng)
        placer.populate("tray" in others)
        room = _room(own, floor, back, rng)
        return settle(placer.bodies, room, world), room

    most = max(config.objects.fewest_relational, config.objects.max_objects // 2)
    counts = (min(config.objects.min_objects, most), most)
    azimuths = (FRONT - FACING, FRONT + FACING) if back is not None else (-math.pi, math.pi)
    return ScenePlan(azimuths, furnish, counts, math.radians(6), attempts=5, num_azimuths=24, checked=True)


def _room(furniture: Furniture, floor: float, back: float | None, rng: np.random.Generator) -> Room:
    """Put floor, walls and light around the furniture."""
    rgb, texture = sample_material(rng, furniture.blocks[0].rgb)
    dim = darker(rgb, 0.85)
    blocks = [Block((6, 6, 0.1), (0, 0, floor - 0.1), dim, texture=texture), *furniture.blocks]
    if rng.random() < 0.4:
        rug, pattern = sample_material(rng, dim)
        x, y = rng.uniform(0.8, 1.3, 2).tolist()
        blocks.append(Block((x, y, 0.006), (0, -0.2, floor + 0.006), rug, rng.uniform(-0.3, 0.3), pattern, solid=False))
    far = rng.uniform(*WALL)
    blocks += _walls(far, far if back is None else back, floor, rng)
    angle = rng.uniform(0, 2 * math.pi) if back is None else FRONT + rng.uniform(-1.2, 1.2)  # from the front of a wall
    lean, fill_angle = rng.uniform(0.2, 1.0), rng.uniform(0, 2 * math.pi)
    light = _light(rng, angle, lean, fill_angle, (0.3, 0.55), (0.08, 0.25))
    instances = (FIRST_SURFACE, *range(MORE_SURFACES, 255))
    surfaces = [replace(surface, instance=instances[k]) for k, surface in enumerate(furniture.surfaces)]
    return Room(tuple(surfaces), tuple(blocks), light, far - 0.2)


def _walls(far: float, back: float, floor: float, rng: np.random.Generator) -> list[Block]:
    """Four walls with skirting boards; a window and pictures on the back wall and the side walls."""
    blocks: list[Block] = []

    def add(size: tuple[float, float, float], center: tuple[float, float, float], rgb: RGB, across: bool = True,
            texture: str | None = None, glow: bool = False) -> None:  # fmt: skip
        half = size if across else (size[1], size[0], size[2])  # `across`: its width runs along x
        blocks.append(Block(half, center, rgb, texture=texture, solid=False, glow=glow))

    rgb = jittered(WALL_COLORS[int(rng.integers(len(WALL_COLORS)))], rng.uniform(-0.03, 0.03, 3))
    texture = str(rng.choice(["plain", "plain", "cloud", "bricks", "stripes", "speckle"]))
    for x, y in ((0.0, back), (0.0, -far), (far, 0.0), (-far, 0.0)):
        across = x == 0.0
        shift = math.copysign(0.05, y if across else x)
        center = (x, y + shift) if across else (x + shift, y)
        add((6.0, 0.05, WALL_HEIGHT / 2), (*center, floor + WALL_HEIGHT / 2), rgb, across, texture)
        add((6.0, 0.012, 0.05), (x, y, floor + 0.05), (0.92, 0.91, 0.89), across)
    if rng.random() < 0.5:
        x, z = rng.uniform(-1.2, 1.2), floor + rng.uniform(1.45, 1.7)
        width, height = rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.5)
        add((width, 0.01, height), (x, back, z), (0.80, 0.90, 0.98), glow=True)
        for dx, dz, size in (
            (0.0, height, (width + 0.04, 0.025, 0.03)), (0.0, -height, (width + 0.08, 0.05, 0.02)),
            (width, 0.0, (0.03, 0.025, height)), (-width, 0.0, (0.03, 0.025, height)),
            (0.0, 0.0, (0.015, 0.02, height)),
        ):  # fmt: skip
            add(size, (x + dx, back, z + dz), (0.93, 0.93, 0.92))
    for wall in rng.permutation(3)[: int(rng.integers(0, 3))].tolist():
        rgb, texture = sample_material(rng)
        width, height = rng.uniform(0.18, 0.35, 2).tolist()
        along, z = rng.uniform(-1.5, 1.5), floor + rng.uniform(1.4, 1.8)
        x, y = ((along, -far), (far, along), (-far, along))[wall]
        add((width, 0.02, height), (x, y, z), (0.25, 0.22, 0.2), wall == 0)
        add((width - 0.03, 0.024, height - 0.03), (x, y, z), rgb, wall == 0, texture)
    return blocks


def plan_flat_table(config: SceneConfig) -> ScenePlan:
    """Plan a scene on one bare table over a floor, seen from all around."""

    def furnish(layout: LayoutBatch, rng: np.random.Generator) -> tuple[list[Body], Room]:
        bodies = build_bodies(layout, config, rng)
        half = rng.uniform(*config.objects.table, 2)
        return bodies, flat_room((float(half[0]), float(half[1])), rng)

    return ScenePlan((0.0, 2 * math.pi), furnish)


def flat_room(half: tuple[float, float], rng: np.random.Generator) -> Room:
    """A bare table of these half sizes in random colors and light."""
    table, floor = rng.choice(len(TABLE_COLORS), 2, replace=False)
    angle, lean, fill_angle = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2), rng.uniform(0, 2 * math.pi)
    jitter = rng.uniform(-0.03, 0.03, (2, 3))
    table_texture, floor_texture = (PLAIN_TEXTURES[int(rng.integers(len(PLAIN_TEXTURES)))] for _ in range(2))
    light = _light(rng, angle, lean, fill_angle, (0.35, 0.6), (0.05, 0.2), shininess=(0.0, 0.5))
    (x, y), depth = half, FLAT_FLOOR_DEPTH
    floor_rgb = jittered(darker(TABLE_COLORS[floor], 0.8), jitter[1])
    blocks = [
        Block((12, 12, 0.2), (0, 0, -depth - 0.2), floor_rgb, texture=floor_texture),
        Block((x, y, 0.02), (0, 0, -0.02), jittered(TABLE_COLORS[table], jitter[0]), texture=table_texture, surface=0),
    ]
    for side, end in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        center = (side * (x - 0.04), end * (y - 0.04), -depth / 2 - 0.02)
        blocks.append(Block((0.025, 0.025, depth / 2 - 0.02), center, LEG_RGB))
    top = Support("table", "table", FIRST_SURFACE, (0.0, 0.0, 0.0), 0.0, half)
    return Room((top,), tuple(blocks), light)


def _light(
    rng: np.random.Generator, angle: float, lean: float, fill_angle: float, key: tuple[float, float],
    fill: tuple[float, float], shininess: tuple[float, float] | None = None,
) -> Light:  # fmt: skip
    return Light(
        key_position=(lean * math.cos(angle), lean * math.sin(angle), rng.uniform(1.6, 2.4)),
        key=rng.uniform(*key), fill_direction=(math.cos(fill_angle), math.sin(fill_angle), -1.2),
        fill=rng.uniform(*fill), ambient=rng.uniform(0.25, 0.38), tint=tuple(1 + rng.uniform(-0.06, 0.06, 3)),
        shininess=rng.uniform(*shininess) if shininess else 0.0,
    )  # fmt: skip
