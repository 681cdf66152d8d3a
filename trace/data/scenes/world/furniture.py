"""Pieces of furniture as blocks and the surfaces on them, in random proportions, materials and patterns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..objects import RGB, Floats, Vector
from ..objects.primitives import darker
from .surfaces import OPEN, Block, Support

PLAIN_TEXTURES = ("plain", "grain", "speckle", "tiles", "cloud")
ROOM_TEXTURES = (*PLAIN_TEXTURES, "planks", "checker", "bricks", "weave", "stripes", "dots")
TEXTURE_SIZE = 128
# Materials of objects in a room: texture, shininess.
FINISHES = (("plain", 0.1), ("plain", 0.7), ("speckle", 0.2), ("grain", 0.3), ("weave", 0.1), ("stripes", 0.4),
            ("dots", 0.4), ("plain", 0.4))  # fmt: skip
# Muted, so that no surface passes for the color of an object.
MATERIALS: tuple[RGB, ...] = (
    (0.72, 0.58, 0.42), (0.55, 0.40, 0.28), (0.86, 0.84, 0.80), (0.62, 0.62, 0.64), (0.40, 0.39, 0.40),
    (0.80, 0.74, 0.62), (0.60, 0.68, 0.72), (0.70, 0.67, 0.68), (0.56, 0.64, 0.56), (0.46, 0.42, 0.40),
    (0.66, 0.50, 0.36), (0.77, 0.72, 0.70), (0.50, 0.55, 0.60), (0.82, 0.78, 0.70),
)  # fmt: skip
FURNITURE_TEXTURES = ("grain", "planks", "plain", "speckle", "cloud", "tiles")

TOP = 0.018  # half thickness of a table's top
BOARD = 0.009  # of a shelf's board
TRAY = 0.004  # of a tray
RIM = 0.006  # of a tray's rim
GAP = (0.02, 0.12)  # between two pieces of furniture


def sample_material(rng: np.random.Generator, avoid: RGB | None = None) -> tuple[RGB, str]:
    """Draw a color that does not look like `avoid`, and a texture."""
    while True:
        base = MATERIALS[int(rng.integers(len(MATERIALS)))]
        if avoid is None or sum(abs(a - b) for a, b in zip(base, avoid, strict=True)) > 0.3:
            break
    return jittered(base, rng.uniform(-0.03, 0.03, 3)), FURNITURE_TEXTURES[int(rng.integers(len(FURNITURE_TEXTURES)))]


def jittered(rgb: RGB, jitter: Floats) -> RGB:
    red, green, blue = np.clip(np.array(rgb) + jitter, 0, 1).tolist()
    return red, green, blue


@dataclass
class Furniture:
    """The furniture of a room: surfaces, numbered in their order, and blocks."""

    surfaces: list[Support] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def _add_surface(
        self, name: str, kind: str, center: Vector, half: tuple[float, float], half_height: float, rgb: RGB,
        texture: str | None, yaw: float = 0.0, fixture: str = "", headroom: float = OPEN,
    ) -> None:  # fmt: skip
        """Add a surface and the slab under it."""
        slab = (center[0], center[1], center[2] - half_height)
        self.blocks.append(Block((*half, half_height), slab, rgb, yaw, texture, len(self.surfaces), fixture))
        self.surfaces.append(Support(name, kind, 0, center, yaw, half, headroom=headroom))

    def add_table(
        self, kind: str, name: str, center: Vector, half: tuple[float, float], floor: float,
        material: tuple[RGB, str], rng: np.random.Generator,
    ) -> None:  # fmt: skip
        """Add a "table" on four legs or two panels, or a "counter": a worktop on a closed cupboard with doors."""
        (x, y, z), (rgb, texture) = center, material
        self._add_surface(name, kind, center, half, TOP, rgb, texture)
        height = (z - 2 * TOP - floor) / 2
        middle, dark = floor + height, darker(rgb, 0.7)
        if kind == "counter":
            body, _ = sample_material(rng, rgb)
            cupboard = (half[0] - 0.02, half[1] - 0.03, height)
            self.blocks.append(Block(cupboard, (x, y, middle), body, solid=False))
            for side in (-0.5, 0.5):
                door = (x + side * half[0], y - half[1] + 0.028, middle)
                panel = (half[0] * 0.46, 0.004, height * 0.92)
                self.blocks.append(Block(panel, door, darker(body, 0.92), solid=False))
                handle = (x + 0.18 * side * half[0], y - half[1] + 0.018, floor + 1.5 * height)
                self.blocks.append(Block((0.006, 0.008, 0.05), handle, (0.6, 0.6, 0.62), solid=False))
        elif rng.random() < 0.6:
            leg = rng.uniform(0.018, 0.032)
            for side, end in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                foot = (x + side * (half[0] - 0.05), y + end * (half[1] - 0.05), middle)
                self.blocks.append(Block((leg, leg, height), foot, dark, solid=False))
        else:
            for side in (-1, 1):
                foot = (x + side * (half[0] - 0.06), y, middle)
                panel = (0.02, half[1] - 0.04, height)
                self.blocks.append(Block(panel, foot, dark, texture=texture, solid=False))

    def add_beside(
        self, kind: str, side: int, main: tuple[float, float], floor: float, rng: np.random.Generator
    ) -> None:
        """Add a second table or counter at the left (-1) or right (1) of the main surface of half sizes `main`."""
        half = rng.uniform(0.20, 0.30), rng.uniform(0.22, min(0.40, main[1]))
        x = side * (main[0] + rng.uniform(*GAP) + half[0])
        y, z = rng.uniform(-0.1, 0.1), rng.uniform(-0.18, 0.12)
        material = sample_material(rng, self.blocks[0].rgb)
        name = "counter" if kind == "counter" else "side table"
        if name not in [surface.name for surface in self.surfaces]:
            self.add_table("counter" if kind == "counter" else "table", name, (x, y, z), half, floor, material, rng)

    def add_shelf(self, depth: float, floor: float, rng: np.random.Generator) -> float:
        """Add two boards behind the main surface of half depth `depth`; return where a wall may begin."""
        half = rng.uniform(0.34, 0.50), rng.uniform(0.14, 0.18)
        y = depth + rng.uniform(*GAP) + half[1]
        lower, gap = rng.uniform(-0.02, 0.14), rng.uniform(0.30, 0.42)
        rgb, texture = sample_material(rng)
        x = rng.uniform(-0.1, 0.1)
        upper = lower + gap + 2 * BOARD
        for name, z, headroom in (("lower shelf", lower, gap), ("upper shelf", upper, OPEN)):
            self._add_surface(name, "shelf", (x, y, z), half, BOARD, rgb, texture, 0.0, name, headroom)
        top = upper + rng.uniform(0.0, 0.03)
        for side in (-1, 1):
            center = (x + side * (half[0] + BOARD), y, (floor + top) / 2)
            board = (BOARD, half[1], (top - floor) / 2)
            self.blocks.append(Block(board, center, rgb, texture=texture, fixture="shelf"))
        center = (x, y + half[1] + BOARD, (lower + upper) / 2 - 0.02)
        back = (half[0] + 2 * BOARD, BOARD, (upper - lower) / 2 + 0.02)
        self.blocks.append(Block(back, center, darker(rgb, 0.85), fixture="shelf"))
        return float(y + half[1] + 2 * BOARD + rng.uniform(0.01, 0.1))

    def add_tray(self, center: Vector, half: tuple[float, float], yaw: float, rgb: RGB) -> None:
        """Add a thin board with a low rim, on another surface."""
        x, y, z = center
        self._add_surface("tray", "tray", (x, y, z + 2 * TRAY), half, TRAY, rgb, "plain", yaw, "tray")
        cos, sin = math.cos(yaw), math.sin(yaw)
        for side, end in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            dx, dy = (half[0] + RIM) * side, (half[1] + RIM) * end
            rim = (x + cos * dx - sin * dy, y + sin * dx + cos * dy, z + 0.011)
            size = (RIM, half[1] + 2 * RIM, 0.011) if side else (half[0] + 2 * RIM, RIM, 0.011)
            self.blocks.append(Block(size, rim, darker(rgb, 0.75), yaw, fixture="tray"))


def draw_textures(names: tuple[str, ...]) -> dict[str, Floats]:
    """Draw grey patterns [TEXTURE_SIZE, TEXTURE_SIZE] around 0.9, from a fixed seed; a material's color tints them."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE
    waves = sum(
        np.sin(2 * math.pi * (k * x + m * y) + p)
        for k, m, p in zip(*rng.integers(-4, 5, (2, 8)), rng.uniform(0, 6, 8), strict=True)
    )
    grain = 0.9 + 0.08 * np.sin(2 * math.pi * (14 * y + 0.3 * np.sin(2 * math.pi * x))) * (0.6 + 0.4 * np.cos(8 * x))
    speckle = rng.standard_normal(x.shape)
    shade = rng.uniform(0.82, 1.0, 8)[np.floor(y * 8).astype(int)]
    brick = np.floor(y * 12).astype(int)
    along = (x * 6 + 0.5 * (brick % 2)) % 1
    wave = np.sin(2 * math.pi * 24 * x) * np.sin(2 * math.pi * 24 * y)
    patterns = {
        "plain": np.ones_like(x),
        "grain": grain,
        "speckle": 0.9 + 0.1 * speckle,
        "tiles": np.where(((x * 8 % 1) < 0.04) | ((y * 8 % 1) < 0.04), 0.78, 0.97),
        "cloud": 0.9 + 0.03 * np.asarray(waves),
        "planks": shade * np.where((y * 8 % 1) < 0.05, 0.75, 1.0) * (grain / 0.95),
        "checker": np.where((np.floor(x * 6) + np.floor(y * 6)) % 2 == 0, 0.98, 0.80),
        "bricks": np.where((along < 0.05) | ((y * 12 % 1) < 0.09), 0.98, 0.84 + 0.06 * np.sin(9 * brick)),
        "weave": 0.9 + 0.08 * wave,
        "stripes": np.where((x * 8 % 1) < 0.5, 1.0, 0.80),
        "dots": np.where(np.hypot(x * 6 % 1 - 0.5, y * 6 % 1 - 0.5) < 0.26, 0.78, 1.0),
    }
    return {name: patterns[name] for name in names}
