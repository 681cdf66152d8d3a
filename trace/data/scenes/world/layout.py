"""Where objects stand: layouts, drawn many at a time as arrays, judged (`relational.py`), and then made into bodies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import SceneConfig
from ..objects import Bools, Floats, Ints
from ..objects.assets import all_categories
from ..objects.catalog import Body, make_body, sample_rgb

TRIES = 12  # positions drawn for each object


@dataclass(frozen=True, slots=True)
class LayoutBatch:
    """`num` layouts of up to `slots` objects each; `present` says which slots are filled."""

    categories: Ints  # [num, slots], index into the configured categories
    colors: Ints  # [num, slots]
    radii: Floats  # [num, slots]
    positions: Floats  # [num, slots, 2]
    present: Bools  # [num, slots]
    bodies: tuple[Body, ...] = ()  # where every row is this one scene, whose footprints are known exactly

    def select(self, rows: Ints) -> LayoutBatch:
        fields = ("categories", "colors", "radii", "positions", "present")
        return replace(self, **{name: getattr(self, name)[rows] for name in fields})

    def compact(self) -> LayoutBatch:
        """Number the categories within each layout, from 0 to less than `slots`, in their order."""
        ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in self.categories])
        return replace(self, categories=ranks)

    @property
    def unique(self) -> Bools:
        """[num, slots]: whether no other object of the layout has the same color and category."""
        names = np.where(self.present, self.categories * 1000 + self.colors, -1 - np.arange(self.present.shape[1]))
        unique: Bools = self.present & ((names[:, :, None] == names[:, None, :]).sum(2) == 1)
        return unique


def layout_from_bodies(bodies: Sequence[Body], config: SceneConfig) -> LayoutBatch:
    """Describe a whole scene as one layout."""
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
    """Draw `num` layouts without overlap; those that do not fit are dropped.

    Args:
        group: [num, members, 2], the positions of the first objects. The second to the fourth then share a category, and
            a fifth has the first one's. The objects are shuffled afterwards, so that their numbers say nothing.
        counts: the range of the number of objects (default: the configuration's).
    Returns:
        The layouts that fit, and their numbers among the `num`.
    """
    objects = config.objects
    least, slots = counts or (objects.min_objects, objects.max_objects)
    members = 0 if group is None else group.shape[1]
    number = rng.integers(max(least, members), slots + 1, num)
    present = np.arange(slots) < number[:, None]
    categories = _sample_categories(num, slots, config, rng)
    if members:
        categories[:, 1:members] = categories[:, 1:2]
        categories[:, 4:members] = categories[:, :1]
    colors = _natural_colors(config)[categories, rng.integers(0, len(objects.colors), (num, slots))]
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
    categories, colors, radii = (np.take_along_axis(array, shuffle, 1) for array in (categories, colors, radii))
    layouts = LayoutBatch(categories, colors, radii, np.take_along_axis(positions, shuffle[..., None], 1), present)
    has_category = (layouts.categories[:, :, None] == np.arange(len(config.categories))) & present[:, :, None]
    fits &= has_category.any(1).sum(1) >= objects.min_categories
    duplicates_allowed = rng.random(num) < objects.duplicate_names
    rows = np.flatnonzero(fits & ((layouts.unique | ~present).all(1) | duplicates_allowed))
    return layouts.select(rows), rows


def _natural_colors(config: SceneConfig) -> Ints:
    """[categories, colors]: the color that a category has when a color is drawn for it."""
    names = config.objects.colors
    table = np.tile(np.arange(len(names)), (len(config.categories), 1))
    for row, name in enumerate(config.categories):
        natural = all_categories(config.objects.assets)[name].colors
        own = [names.index(color) for color in natural if color in names]
        if own:
            table[row] = np.resize(own, len(names))
    return table


def _sample_categories(num: int, slots: int, config: SceneConfig, rng: np.random.Generator) -> Ints:
    """[num, slots]: a few categories a layout, each of them present in the first slots."""
    amount = rng.integers(config.objects.min_categories, config.objects.max_categories + 1, num)
    palette = rng.random((num, len(config.categories))).argsort(1)
    choice = (rng.random((num, slots)) * amount[:, None]).astype(np.int64)
    first = np.broadcast_to(np.arange(slots), (num, slots))
    return np.take_along_axis(palette, np.where(first < amount[:, None], first, choice), 1)


def build_bodies(layout: LayoutBatch, config: SceneConfig, rng: np.random.Generator) -> list[Body]:
    """Build the bodies of a single layout (slot by slot) with sizes, yaw and jittered color."""
    bodies: list[Body] = []
    for slot in np.flatnonzero(layout.present[0]):
        name = config.categories[layout.categories[0, slot]]
        color = config.objects.colors[layout.colors[0, slot]]
        position = (float(layout.positions[0, slot, 0]), float(layout.positions[0, slot, 1]))
        bodies.append(sample_body(name, color, float(layout.radii[0, slot]), position, config, rng))
    return bodies


def sample_body(
    name: str, color: str, radius: float, position: tuple[float, float], config: SceneConfig, rng: np.random.Generator
) -> Body:
    """Build a body with a random height, yaw, proportion and jittered color."""
    category = all_categories(config.objects.assets)[name]
    height, yaw = radius * rng.uniform(*category.slenderness), rng.uniform(0, 2 * math.pi)
    return make_body(name, category, color, sample_rgb(color, rng), radius, height, rng.random(), position, yaw)
