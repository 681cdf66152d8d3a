"""One view of a scene as its questions see it: the visible objects, and where every pixel of the surface lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .camera import Camera
from .catalog import Body
from .config import SceneConfig
from .pixels import bounding_box, center_on_mask
from .relations import Table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Reject(Exception):
    """The view is not good enough; the reason is counted."""


@dataclass(frozen=True, slots=True)
class SeenObject:
    """A body as one view shows it. `center` and `box` are normalised; `instance` is its value in instances/."""

    instance: int
    body: Body
    center: tuple[float, float]
    box: tuple[float, float, float, float]
    pixels: int

    def as_json(self) -> dict[str, Any]:
        body = self.body
        return {
            "instance": self.instance,
            "name": body.name,
            "category": body.category,
            "color": body.color,
            "center": list(self.center),
            "box": list(self.box),
            "pixels": self.pixels,
            "position": [round(body.position[0], 5), round(body.position[1], 5), 0.0],
            "radius": round(body.radius, 5),
            "height": round(body.height, 5),
        }


@dataclass(frozen=True, slots=True)
class Removed:
    """The extra object of a free-space question: it was placed, satisfied the relation, and was taken away."""

    category: str
    position: tuple[float, float]
    radius: float
    height: float

    def as_json(self) -> dict[str, Any]:
        x, y = self.position
        position = [round(x, 5), round(y, 5), 0.0]
        return {
            "category": self.category,
            "position": position,
            "radius": self.radius,
            "height": round(self.height, 5),
        }


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked about a view, and where it is: `mask` [height, width] is the ground truth.

    Relational questions also record the candidates of their noun and which of them a guesser would take.
    """

    kind: str
    relation: str | None
    mask: Bools
    target: SeenObject | None = None
    references: tuple[SeenObject, ...] = ()
    removed: Removed | None = None
    candidates: tuple[SeenObject, ...] = ()
    extreme: SeenObject | None = None
    nearest: SeenObject | None = None


class View:
    """What the questions need to know of a view: objects, surface pixels and where those lie on the table."""

    def __init__(
        self, bodies: Sequence[Body], table: Table, camera: Camera, instances: NDArray[np.uint8], config: SceneConfig
    ) -> None:
        self.config, self.table, self.camera, self.instances = config, table, camera, instances
        self.area = instances.size
        self.objects = [self._see(slot, body) for slot, body in enumerate(bodies)]
        names = [body.name for body in bodies]
        self.unique = [seen for seen in self.objects if names.count(seen.body.name) == 1]
        self.rows, self.columns = np.nonzero(instances == 1)
        self.ground = camera.ground_points(self.rows, self.columns)
        self.centers = np.array([body.position for body in bodies])
        self.radii = np.array([body.radius for body in bodies])
        inside = (np.abs(self.ground) <= np.array(table.half)).all(1)
        self.rows, self.columns, self.ground = self.rows[inside], self.columns[inside], self.ground[inside]
        # Gap from every surface pixel to the nearest body: a footprint of radius r fits where it is at least r.
        offsets = self.ground[:, None] - self.centers[None]
        gaps = np.hypot(offsets[..., 0], offsets[..., 1]) - self.radii
        self.room = np.minimum(
            gaps.min(1), (np.array(table.half) - np.abs(self.ground)).min(1) + config.relations.clearance
        )

    def _see(self, slot: int, body: Body) -> SeenObject:
        mask = self.instances == 2 + slot
        pixels = int(mask.sum())
        questions = self.config.questions
        if pixels < max(1.0, questions.min_object_area * self.area):
            raise Reject("an object is hidden")
        center = center_on_mask(mask, questions.decimals)
        if center is None:
            raise Reject("an object is hidden")
        return SeenObject(2 + slot, body, center, bounding_box(mask), pixels)

    def object_mask(self, seen: SeenObject) -> Bools:
        mask: Bools = self.instances == seen.instance
        return mask

    def surface_mask(self, allowed: Bools) -> Bools:
        """[height, width] from one value a surface pixel; Reject when it is too small to point at."""
        if allowed.sum() < self.config.questions.min_mask_area * self.area:
            raise Reject("the free space is too small")
        mask = np.zeros(self.instances.shape, bool)
        mask[self.rows[allowed], self.columns[allowed]] = True
        return mask
