"""The objects of a room beyond its first arrangement: on the other surfaces, on top of others, inside containers.

They belong to other categories than the first ones, so that the questions that the arrangement was chosen for stay
possible; and a noun comes more than once, so that naming it alone does not tell which one is meant.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..config import SceneConfig
from ..objects.assets import all_categories
from ..objects.catalog import Body, Category, make_body, sample_rgb
from .furniture import FINISHES, Furniture, look, tray
from .surfaces import Reject, Support, supports_of

Floats = NDArray[np.float64]

SPOTS = 24  # places tried for an object
TRAY_HALF = (0.10, 0.15)
HOLDERS = ("bowl", "pot", "pan", "bucket", "crate", "basket", "drawer")
STANDS = ("book", "cutting board", "plate", "drum", "stool")
MARGIN = 0.004  # metres between a held object and the border of what holds it
MORE = 2  # objects that join the first arrangement at the least
TWICE = 0.75  # how often an object on or in another one has a second one of its noun somewhere


class Arranger:
    """Adds objects one by one; `bodies` grows, the furniture may get a tray."""

    def __init__(self, config: SceneConfig, furniture: Furniture, bodies: list[Body], rng: np.random.Generator) -> None:
        self.config, self.furniture, self.rng = config, furniture, rng
        self.kinds = all_categories(config.objects.assets)
        self.bodies = [self._finished(body) for body in bodies]
        self._first = {body.category for body in bodies}
        objects = config.objects
        least = min(objects.max_objects, max(len(bodies) + MORE, objects.min_objects))
        self._wanted = int(rng.integers(least, objects.max_objects + 1))
        allowed = [name for name in config.categories if name not in self._first]
        count = min(len(allowed), 2)
        self._palette = [str(name) for name in rng.permutation(allowed)[:count]]
        self._allowed = allowed

    def populate(self, with_tray: bool) -> None:
        """Everything: a tray, objects on every other surface, in containers, on others, and the rest."""
        if with_tray:
            self._add_tray()
        rng, world = self.rng, self.config.world
        contained, stacked = rng.random() < world.contained, rng.random() < world.stacked
        if contained:
            self._hold(HOLDERS, "inside")
        if stacked:
            self._hold(STANDS, "top")
        surfaces = list(range(1, len(self.furniture.surfaces)))
        for number in surfaces:
            for _ in range(int(rng.integers(1, 4))):
                self._add(number, self._palette)
        while self.full < 1.0 and rng.random() < 0.8:
            if not self._add(int(rng.integers(len(self.furniture.surfaces))), self._palette):
                break
        if len(self.bodies) < self.config.objects.min_objects:
            raise Reject("the objects do not fit")

    @property
    def full(self) -> float:
        return len(self.bodies) / self._wanted

    def _room(self) -> list[Support]:
        return supports_of(self.bodies, self.furniture.surfaces)

    def _hold(self, holders: tuple[str, ...], area: str) -> None:
        """An object in or on another one, which is added if there is none."""
        found = [place for place in self._room() if place.area == area]
        if not found:
            names = [name for name in holders if name in self._allowed]
            surface = int(self.rng.integers(len(self.furniture.surfaces)))
            if not names or self.full >= 1 or not self._add(surface, [str(self.rng.choice(names))]):
                return
            found = [place for place in self._room() if place.area == area]
        place = found[int(self.rng.integers(len(found)))]
        number = self._room().index(place)
        limit = min(place.half) - MARGIN
        small = [
            name for name in self._allowed if self.kinds[name].radius[0] <= limit and name not in (*HOLDERS, *STANDS)
        ]
        if not small or self.full >= 1:
            return
        preferred = [name for name in self._palette if name in small]
        name = preferred[0] if preferred and self.rng.random() < 0.5 else str(self.rng.choice(small))
        if not self._add(number, [name], limit):
            return
        if self.rng.random() < 0.3 and self.full < 1:
            self._add(number, [name], limit)
        if self.rng.random() < TWICE and self.full < 1:
            self._add(int(self.rng.integers(len(self.furniture.surfaces))), [name])

    def _add(self, support: int, names: list[str], limit: float = math.inf) -> bool:
        """One more object on a support, if there is room; its radius is at most `limit`."""
        if self.full >= 1 or not names:
            return False
        rng = self.rng
        name = names[int(rng.integers(len(names)))]
        kind = self.kinds[name]
        low, high = kind.radius[0], min(kind.radius[1], limit)
        if high < low:
            return False
        place = self._room()[support]
        radius = rng.uniform(low, high)
        body = self._body(name, kind, radius)
        if body is None or body.height + 0.02 > place.headroom:
            return False
        spots = place.world(rng.uniform(-1, 1, (SPOTS, 2)) * np.maximum(np.array(place.half) - radius, 0))
        margin = MARGIN if place.owner is not None else 0.01
        spots = spots[place.inset(spots) >= radius + margin]
        spots = spots[self._clear(spots, body, place)]
        if not len(spots):
            return False
        x, y = spots[0].tolist()
        self.bodies.append(replace(body, position=(x, y), z=place.center[2], support=support))
        return True

    def _body(self, name: str, kind: Category, radius: float) -> Body | None:
        """An object whose name is new in the scene."""
        rng = self.rng
        taken = {body.color for body in self.bodies if body.category == name}
        colors = [
            color for color in self.config.objects.colors if color not in taken and color in (kind.colors or (color,))
        ]
        if not colors:
            return None
        color = str(rng.choice(colors))
        height = radius * rng.uniform(*kind.slenderness)
        yaw = rng.uniform(0, 2 * math.pi)
        body = make_body(name, kind, color, sample_rgb(color, rng), radius, height, rng.random(), (0.0, 0.0), yaw)
        return self._finished(body)

    def _finished(self, body: Body) -> Body:
        return replace(body, finish=int(self.rng.integers(len(FINISHES))))

    def _clear(self, spots: Floats, body: Body, place: Support) -> NDArray[np.bool_]:
        """Whether the body stands at spots [n, 2] of a support without touching another one."""
        good = np.ones(len(spots), bool)
        gap = self.config.objects.spacing if place.owner is None else 0.002
        low, high = place.center[2], place.center[2] + body.height
        for slot, other in enumerate(self.bodies):
            if slot != place.owner and other.z < high and other.z + other.height > low:
                good &= np.hypot(*(spots - np.array(other.position)).T) >= other.radius + body.radius + gap
        for surface in self.furniture.surfaces:
            if surface.name == "tray" and place.name != "tray":
                good &= _beyond(surface, spots) >= body.radius + 0.03
        return good

    def _add_tray(self) -> None:
        """A tray on the main surface, where the objects leave room for it."""
        rng, main = self.rng, self.furniture.surfaces[0]
        half, yaw = rng.uniform(*TRAY_HALF, 2).tolist(), rng.uniform(0, math.pi)
        axes = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
        reach = np.abs(axes.T) @ half + 0.03
        for x, y in rng.uniform(-1, 1, (8 * SPOTS, 2)) * np.maximum(np.array(main.half) - reach, 0):
            local = np.abs((np.array([body.position for body in self.bodies]) - (x, y)) @ axes.T)
            gaps = np.hypot(*np.maximum(local - half, 0).T) - [body.radius for body in self.bodies]
            if gaps.min() >= 0.03:
                rgb, _ = look(rng, self.furniture.blocks[0].rgb)
                tray(self.furniture, (float(x), float(y), main.center[2]), (half[0], half[1]), yaw, rgb)
                return


def _beyond(surface: Support, points: Floats) -> Floats:
    """Distance from points [n, 2] to a rectangle."""
    beyond = np.maximum(np.abs(surface.local(points)) - np.array(surface.half), 0)
    result: Floats = np.hypot(beyond[:, 0], beyond[:, 1])
    return result
