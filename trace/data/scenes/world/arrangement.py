"""The objects of a room beyond its first layout: on the other surfaces, on top of others, inside containers.

They belong to other categories than the first ones, so that the questions that the layout was chosen for stay
possible; and a noun comes more than once, so that naming it alone does not tell which one is meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config import SceneConfig
from ..objects import Bools, Floats
from ..objects.assets import all_categories
from ..objects.catalog import Body
from ..objects.primitives import ground_axes, rectangle_distance
from .furniture import FINISHES, Furniture, sample_material
from .layout import sample_body
from .surfaces import Reject, Support, supports_of

TRIES = 24  # positions drawn for an object
TRAY_HALF = (0.10, 0.15)
CONTAINERS = ("bowl", "pot", "pan", "bucket", "crate", "basket", "drawer")
STANDS = ("book", "cutting board", "plate", "drum", "stool")
MARGIN = 0.004  # metres between a held object and the border of what holds it
MIN_ADDED = 2  # objects that join the first layout at the least
REPEATED = 0.75  # how often an object on or in another one has a second one of its noun somewhere


class ObjectPlacer:
    """Adds objects to a room one by one; `bodies` grows, the furniture may get a tray."""

    def __init__(self, config: SceneConfig, furniture: Furniture, bodies: list[Body], rng: np.random.Generator) -> None:
        self.config, self.furniture, self.rng = config, furniture, rng
        self.categories = all_categories(config.objects.assets)
        self.bodies = [self._finish(body) for body in bodies]
        first, objects = {body.category for body in bodies}, config.objects
        least = min(objects.max_objects, max(len(bodies) + MIN_ADDED, objects.min_objects))
        self._wanted = int(rng.integers(least, objects.max_objects + 1))
        self._allowed = [name for name in config.categories if name not in first]
        self._palette = [str(name) for name in rng.permutation(self._allowed)[:2]]

    def populate(self, with_tray: bool) -> None:
        """Add a tray, objects in containers, on others, on every other surface, and the rest."""
        if with_tray:
            self._add_tray()
        rng, world = self.rng, self.config.world
        contained, stacked = rng.random() < world.contained, rng.random() < world.stacked
        if contained:
            self._add_held(CONTAINERS, "inside")
        if stacked:
            self._add_held(STANDS, "top")
        for number in range(1, len(self.furniture.surfaces)):
            for _ in range(int(rng.integers(1, 4))):
                self._add(number, self._palette)
        while not self.full and rng.random() < 0.8:
            if not self._add(self._any_surface(), self._palette):
                break
        if len(self.bodies) < self.config.objects.min_objects:
            raise Reject("the objects do not fit")

    @property
    def full(self) -> bool:
        return len(self.bodies) >= self._wanted

    def _any_surface(self) -> int:
        return int(self.rng.integers(len(self.furniture.surfaces)))

    def _supports(self) -> list[Support]:
        return supports_of(self.bodies, self.furniture.surfaces)

    def _with_area(self, area: str) -> list[int]:
        return [number for number, support in enumerate(self._supports()) if support.area == area]

    def _add_held(self, holders: Sequence[str], area: str) -> None:
        """Add an object in or on another one, which is added if there is none."""
        rng = self.rng
        numbers = self._with_area(area)
        if not numbers:
            names = [name for name in holders if name in self._allowed]
            surface = self._any_surface()
            if not names or self.full or not self._add(surface, [str(rng.choice(names))]):
                return
            numbers = self._with_area(area)
        number = numbers[int(rng.integers(len(numbers)))]
        limit = min(self._supports()[number].half) - MARGIN
        loose = [name for name in self._allowed if name not in (*CONTAINERS, *STANDS)]
        small = [name for name in loose if self.categories[name].radius[0] <= limit]
        if not small or self.full:
            return
        preferred = [name for name in self._palette if name in small]
        name = preferred[0] if preferred and rng.random() < 0.5 else str(rng.choice(small))
        if not self._add(number, [name], limit):
            return
        if rng.random() < 0.3 and not self.full:
            self._add(number, [name], limit)
        if rng.random() < REPEATED and not self.full:
            self._add(self._any_surface(), [name])

    def _add(self, number: int, names: list[str], limit: float = math.inf) -> bool:
        """Add one more object on support `number`, if there is room; its radius is at most `limit`."""
        if self.full or not names:
            return False
        rng = self.rng
        name = names[int(rng.integers(len(names)))]
        category = self.categories[name]
        low, high = category.radius[0], min(category.radius[1], limit)
        if high < low:
            return False
        support = self._supports()[number]
        radius = rng.uniform(low, high)
        taken, known = {body.color for body in self.bodies if body.category == name}, self.config.objects.colors
        colors = [color for color in known if color not in taken and color in (category.colors or known)]
        if not colors:  # no name is left that is new in the scene
            return False
        body = self._finish(sample_body(name, str(rng.choice(colors)), radius, (0.0, 0.0), self.config, rng))
        if body.height + 0.02 > support.headroom:
            return False
        spots = support.world(rng.uniform(-1, 1, (TRIES, 2)) * np.maximum(np.array(support.half) - radius, 0))
        margin = MARGIN if support.owner is not None else 0.01
        spots = spots[support.inset(spots) >= radius + margin]
        spots = spots[self._clear(spots, body, support)]
        if not len(spots):
            return False
        x, y = spots[0].tolist()
        self.bodies.append(replace(body, position=(x, y), z=support.center[2], support=number))
        return True

    def _finish(self, body: Body) -> Body:
        return replace(body, finish=int(self.rng.integers(len(FINISHES))))

    def _clear(self, spots: Floats, body: Body, support: Support) -> Bools:
        """Whether the body stands at spots [n, 2] of a support without touching another one."""
        clear = np.ones(len(spots), bool)
        gap = self.config.objects.spacing if support.owner is None else 0.002
        low, high = support.center[2], support.center[2] + body.height
        for slot, other in enumerate(self.bodies):
            if slot != support.owner and other.z < high and other.z + other.height > low:
                clear &= np.hypot(*(spots - np.array(other.position)).T) >= other.radius + body.radius + gap
        for surface in self.furniture.surfaces:
            if surface.name == "tray" and support.name != "tray":
                clear &= rectangle_distance(spots, surface.center, surface.yaw, surface.half) >= body.radius + 0.03
        return clear

    def _add_tray(self) -> None:
        """Add a tray on the main surface, where the objects leave room for it."""
        rng, main = self.rng, self.furniture.surfaces[0]
        half, yaw = rng.uniform(*TRAY_HALF, 2).tolist(), rng.uniform(0, math.pi)
        axes = ground_axes(yaw)
        reach = np.abs(axes.T) @ half + 0.03
        positions, radii = np.array([body.position for body in self.bodies]), [body.radius for body in self.bodies]
        for x, y in rng.uniform(-1, 1, (8 * TRIES, 2)) * np.maximum(np.array(main.half) - reach, 0):
            local = np.abs((positions - (x, y)) @ axes.T)
            if (np.hypot(*np.maximum(local - half, 0).T) - radii).min() >= 0.03:
                rgb, _ = sample_material(rng, self.furniture.blocks[0].rgb)
                self.furniture.add_tray((float(x), float(y), main.center[2]), (half[0], half[1]), yaw, rgb)
                return
