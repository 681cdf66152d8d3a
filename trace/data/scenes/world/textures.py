"""Grey patterns that a material's color tints; drawn once from a fixed seed, the same for every data set."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PLAIN_TEXTURES = ("plain", "grain", "speckle", "tiles", "cloud")
ROOM_TEXTURES = (*PLAIN_TEXTURES, "planks", "checker", "bricks", "weave", "stripes", "dots")
TEXTURE_SIZE = 128


def draw_textures(names: tuple[str, ...]) -> dict[str, Floats]:
    """Each pattern [TEXTURE_SIZE, TEXTURE_SIZE], around 0.9 on a scale to 1."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE
    waves = sum(
        np.sin(2 * math.pi * (k * x + m * y) + p)
        for k, m, p in zip(*rng.integers(-4, 5, (2, 8)), rng.uniform(0, 6, 8), strict=True)
    )
    grain = 0.9 + 0.08 * np.sin(2 * math.pi * (14 * y + 0.3 * np.sin(2 * math.pi * x))) * (0.6 + 0.4 * np.cos(8 * x))
    patterns = {
        "plain": np.ones_like(x),
        "grain": grain,
        "speckle": 0.9 + 0.1 * rng.standard_normal(x.shape),
        "tiles": np.where(((x * 8 % 1) < 0.04) | ((y * 8 % 1) < 0.04), 0.78, 0.97),
        "cloud": 0.9 + 0.03 * np.asarray(waves),
    }
    board = np.floor(y * 8).astype(int)
    shade = rng.uniform(0.82, 1.0, 8)[board]
    brick = np.floor(y * 12).astype(int)
    along = (x * 6 + 0.5 * (brick % 2)) % 1
    wave = np.sin(2 * math.pi * 24 * x) * np.sin(2 * math.pi * 24 * y)
    dots = np.hypot(x * 6 % 1 - 0.5, y * 6 % 1 - 0.5)
    patterns |= {
        "planks": shade * np.where((y * 8 % 1) < 0.05, 0.75, 1.0) * (grain / 0.95),
        "checker": np.where((np.floor(x * 6) + np.floor(y * 6)) % 2 == 0, 0.98, 0.80),
        "bricks": np.where((along < 0.05) | ((y * 12 % 1) < 0.09), 0.98, 0.84 + 0.06 * np.sin(9 * brick)),
        "weave": 0.9 + 0.08 * wave,
        "stripes": np.where((x * 8 % 1) < 0.5, 1.0, 0.80),
        "dots": np.where(dots < 0.26, 0.78, 1.0),
    }
    return {name: patterns[name] for name in names}
