"""The flat world: one bare table over a floor, everything on it. The nano model's."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..config import SceneConfig
from ..instances import surface_instance
from ..objects.catalog import RGB, Body
from .layout import Layouts, realise
from .surfaces import OPEN, Block, Light, Plan, Room, Support
from .textures import PLAIN_TEXTURES

Floats = NDArray[np.float64]

FLOOR_DEPTH = 0.7
LEG_RGB: RGB = (0.3, 0.28, 0.26)
# Muted, so that no table or floor passes for the color of an object.
TABLE_COLORS = (
    (0.72, 0.58, 0.42), (0.55, 0.40, 0.28), (0.88, 0.86, 0.82), (0.62, 0.62, 0.64), (0.36, 0.35, 0.36),
    (0.80, 0.74, 0.62), (0.60, 0.68, 0.72), (0.70, 0.67, 0.68), (0.56, 0.64, 0.56), (0.46, 0.42, 0.40),
)  # fmt: skip


def plan_flat(config: SceneConfig) -> Plan:
    """Every arrangement on a table of its own size, seen from all around."""

    def furnish(layouts: Layouts, rng: np.random.Generator) -> tuple[list[Body], Room]:
        bodies = realise(layouts, 0, config, rng)
        half = rng.uniform(*config.objects.table, 2)
        return bodies, plain_room((float(half[0]), float(half[1])), rng)

    return Plan((0.0, 2 * math.pi), furnish)


def plain_room(half: tuple[float, float], rng: np.random.Generator) -> Room:
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
