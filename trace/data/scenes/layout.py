"""Where objects stand: arrangements, drawn many at a time as arrays and only then made into bodies.

An arrangement that allows exactly the questions one wants (`relational.py`) is found in milliseconds, before anything
is rendered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .catalog import CATEGORIES, Body, sample_rgb
from .config import ObjectsConfig
from .relations import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TRIES = 12  # spots drawn for each object


@dataclass(frozen=True, slots=True)
class Layouts:
    """`num` arrangements of up to `slots` objects each; `present` says which slots are filled."""

    categories: Ints  # [num, slots], index into the configured categories
    colors: Ints  # [num, slots]
    radii: Floats  # [num, slots]
    positions: Floats  # [num, slots, 2]
    present: Bools  # [num, slots]

    def select(self, rows: Ints) -> Layouts:
        return Layouts(
            self.categories[rows], self.colors[rows], self.radii[rows], self.positions[rows], self.present[rows]
        )

    @property
    def unique(self) -> Bools:
        """[num, slots]: whether no other object of the arrangement has the same color and category."""
        names = np.where(self.present, self.categories * 1000 + self.colors, -1 - np.arange(self.present.shape[1]))
        result: Bools = self.present & ((names[:, :, None] == names[:, None, :]).sum(2) == 1)
        return result


def sample_layouts(
    num: int, config: ObjectsConfig, rng: np.random.Generator, group: Floats | None = None
) -> tuple[Layouts, Ints]:
    """Arrangements without overlap, and which of the `num` drawn ones they are: those that do not fit are dropped.

    `group` [num, members, 2] fixes the places of the first objects, of which all but the first then share a category.
    The objects are shuffled afterwards, so that their numbers say nothing.
    """
    slots = config.max_objects
    members = 0 if group is None else group.shape[1]
    counts = rng.integers(max(config.min_objects, members), slots + 1, num)
    present = np.arange(slots) < counts[:, None]
    categories = _sample_categories(num, slots, config, rng)
    if members:
        categories[:, 1:members] = categories[:, 1:2]
    colors = rng.integers(0, len(config.colors), (num, slots))
    low, high = np.array([CATEGORIES[name].radius for name in config.categories]).T
    radii = low[categories] + (high - low)[categories] * rng.random((num, slots))
    spots = rng.uniform(-config.region, config.region, (num, slots, TRIES, 2))
    if group is not None:
        spots[:, :members] = group[:, :, None]
    positions = np.zeros((num, slots, 2))
    fits = (np.abs(spots[:, :members]) <= config.region).all((1, 2, 3))
    for slot in range(slots):
        gaps = np.hypot(*(spots[:, slot, :, None] - positions[:, None, :slot]).transpose(3, 0, 1, 2))
        clear = (gaps >= (radii[:, None, :slot] + radii[:, None, slot, None] + config.spacing)).all(2)
        positions[:, slot] = spots[np.arange(num), slot, clear.argmax(1)]
        fits &= clear.any(1) | ~present[:, slot]
    shuffle = np.where(present, rng.random((num, slots)), 2.0).argsort(1)
    layouts = Layouts(
        np.take_along_axis(categories, shuffle, 1),
        np.take_along_axis(colors, shuffle, 1),
        np.take_along_axis(radii, shuffle, 1),
        np.take_along_axis(positions, shuffle[..., None], 1),
        present,
    )
    kinds = (layouts.categories[:, :, None] == np.arange(len(config.categories))) & present[:, :, None]
    fits &= kinds.any(1).sum(1) >= config.min_categories
    allowed = rng.random(num) < config.duplicate_names
    rows = np.flatnonzero(fits & ((layouts.unique | ~present).all(1) | allowed))
    return layouts.select(rows), rows


def _sample_categories(num: int, slots: int, config: ObjectsConfig, rng: np.random.Generator) -> Ints:
    """[num, slots]: a few categories an arrangement, each of them present in the first slots."""
    kinds = rng.integers(config.min_categories, config.max_categories + 1, num)
    palette = rng.random((num, len(config.categories))).argsort(1)
    choice = (rng.random((num, slots)) * kinds[:, None]).astype(np.int64)
    first = np.broadcast_to(np.arange(slots), (num, slots))
    choice = np.where(first < kinds[:, None], first, choice)
    return np.take_along_axis(palette, choice, 1)


def realise(layouts: Layouts, row: int, config: ObjectsConfig, rng: np.random.Generator) -> tuple[list[Body], Table]:
    """The bodies of one arrangement (slot by slot) with sizes, yaw and jittered color, and a table under them."""
    bodies: list[Body] = []
    for slot in np.flatnonzero(layouts.present[row]):
        category = config.categories[layouts.categories[row, slot]]
        color = config.colors[layouts.colors[row, slot]]
        radius = float(layouts.radii[row, slot])
        height = radius * rng.uniform(*CATEGORIES[category].slenderness)
        x, y = (float(value) for value in layouts.positions[row, slot])
        yaw = rng.uniform(0, 2 * math.pi)
        bodies.append(Body(category, color, sample_rgb(color, rng), radius, height, rng.random(), (x, y), yaw))
    half = rng.uniform(*config.table, 2)
    return bodies, Table((float(half[0]), float(half[1])))
