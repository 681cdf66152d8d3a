"""Where objects stand: arrangements, drawn many at a time as arrays and only then made into bodies.

An arrangement that allows exactly the questions one wants (`relational.py`) is found in milliseconds, before anything
is rendered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..config import SceneConfig
from ..objects.assets import all_categories
from ..objects.catalog import Body, make_body, sample_rgb

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TRIES = 12  # spots drawn for each object


@dataclass(frozen=True, slots=True)
class LayoutBatch:
    """`num` arrangements of up to `slots` objects each; `present` says which slots are filled."""

    categories: Ints  # [num, slots], index into the configured categories
    colors: Ints  # [num, slots]
    radii: Floats  # [num, slots]
    positions: Floats  # [num, slots, 2]
    present: Bools  # [num, slots]
    bodies: tuple[Body, ...] = ()  # where every row is this one scene, whose footprints are known exactly

    def select(self, rows: Ints) -> LayoutBatch:
        return LayoutBatch(
            self.categories[rows], self.colors[rows], self.radii[rows], self.positions[rows], self.present[rows],
            self.bodies,
        )  # fmt: skip

    def compact(self) -> LayoutBatch:
        """The same with categories numbered within each arrangement, from 0 to less than `slots`, in their order."""
        ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in self.categories])
        return replace(self, categories=ranks)

    @property
    def unique(self) -> Bools:
        """[num, slots]: whether no other object of the arrangement has the same color and category."""
        names = np.where(self.present, self.categories * 1000 + self.colors, -1 - np.arange(self.present.shape[1]))
        result: Bools = self.present & ((names[:, :, None] == names[:, None, :]).sum(2) == 1)
        return result


def layout_from_bodies(bodies: Sequence[Body], config: SceneConfig) -> LayoutBatch:
    """A whole scene as one arrangement."""
    categories = [config.categories.index(body.category) for body in bodies]
    colors = [config.objects.colors.index(body.color) for body in bodies]
    return LayoutBatch(
        np.array([categories]), np.array([colors]), np.array([[body.radius for body in bodies]]),
        np.array([[body.position for body in bodies]]), np.ones((1, len(bodies)), bool), tuple(bodies),
    )  # fmt: skip


def sample_layouts(
    num: int, config: SceneConfig, rng: np.random.Generator, group: Floats | None = None,
    counts: tuple[int, int] | None = None,
) -> tuple[LayoutBatch, Ints]:  # fmt: skip
    """Arrangements without overlap, and which of the `num` drawn ones they are: those that do not fit are dropped.

    `group` [num, members, 2] fixes the places of the first objects, of which all but the first then share a category.
    The objects are shuffled afterwards, so that their numbers say nothing. `counts` is the range of their number.
    """
    objects = config.objects
    least, slots = counts or (objects.min_objects, objects.max_objects)
    members = 0 if group is None else group.shape[1]
    number = rng.integers(max(least, members), slots + 1, num)
    present = np.arange(slots) < number[:, None]
    categories = _sample_categories(num, slots, config, rng)
    if members:
        categories[:, 1:members] = categories[:, 1:2]
    colors = rng.integers(0, len(objects.colors), (num, slots))
    colors = _natural_colors(config)[categories, colors]
    low, high = np.array([all_categories(objects.assets)[name].radius for name in config.categories]).T
    radii = low[categories] + (high - low)[categories] * rng.random((num, slots))
    spots = rng.uniform(-objects.region, objects.region, (num, slots, TRIES, 2))
    if group is not None:
        spots[:, :members] = group[:, :, None]
    positions = np.zeros((num, slots, 2))
    fits = (np.abs(spots[:, :members]) <= objects.region).all((1, 2, 3))
    for slot in range(slots):
        gaps = np.hypot(*(spots[:, slot, :, None] - positions[:, None, :slot]).transpose(3, 0, 1, 2))
        clear = (gaps >= (radii[:, None, :slot] + radii[:, None, slot, None] + objects.spacing)).all(2)
        positions[:, slot] = spots[np.arange(num), slot, clear.argmax(1)]
        fits &= clear.any(1) | ~present[:, slot]
    shuffle = np.where(present, rng.random((num, slots)), 2.0).argsort(1)
    layouts = LayoutBatch(
        np.take_along_axis(categories, shuffle, 1),
        np.take_along_axis(colors, shuffle, 1),
        np.take_along_axis(radii, shuffle, 1),
        np.take_along_axis(positions, shuffle[..., None], 1),
        present,
    )
    found = (layouts.categories[:, :, None] == np.arange(len(config.categories))) & present[:, :, None]
    fits &= found.any(1).sum(1) >= objects.min_categories
    allowed = rng.random(num) < objects.duplicate_names
    rows = np.flatnonzero(fits & ((layouts.unique | ~present).all(1) | allowed))
    return layouts.select(rows), rows


def _natural_colors(config: SceneConfig) -> Ints:
    """[categories, colors]: the color that a category has when a color is drawn for it."""
    names = config.objects.colors
    table = np.tile(np.arange(len(names)), (len(config.categories), 1))
    for row, name in enumerate(config.categories):
        own = [names.index(color) for color in all_categories(config.objects.assets)[name].colors if color in names]
        if own:
            table[row] = np.resize(own, len(names))
    return table


def _sample_categories(num: int, slots: int, config: SceneConfig, rng: np.random.Generator) -> Ints:
    """[num, slots]: a few categories an arrangement, each of them present in the first slots."""
    amount = rng.integers(config.objects.min_categories, config.objects.max_categories + 1, num)
    palette = rng.random((num, len(config.categories))).argsort(1)
    choice = (rng.random((num, slots)) * amount[:, None]).astype(np.int64)
    first = np.broadcast_to(np.arange(slots), (num, slots))
    choice = np.where(first < amount[:, None], first, choice)
    return np.take_along_axis(palette, choice, 1)


def build_bodies(layouts: LayoutBatch, row: int, config: SceneConfig, rng: np.random.Generator) -> list[Body]:
    """The bodies of one arrangement (slot by slot) with sizes, yaw and jittered color."""
    bodies: list[Body] = []
    for slot in np.flatnonzero(layouts.present[row]):
        category = config.categories[layouts.categories[row, slot]]
        kind = all_categories(config.objects.assets)[category]
        color = config.objects.colors[layouts.colors[row, slot]]
        radius = float(layouts.radii[row, slot])
        height = radius * rng.uniform(*kind.slenderness)
        x, y = (float(value) for value in layouts.positions[row, slot])
        yaw = rng.uniform(0, 2 * math.pi)
        bodies.append(
            make_body(category, kind, color, sample_rgb(color, rng), radius, height, rng.random(), (x, y), yaw)
        )
    return bodies
