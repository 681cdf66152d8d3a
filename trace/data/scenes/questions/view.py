"""One view of a scene as its questions see it: the visible objects, and where every pixel of a support lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from ..config import SceneConfig
from ..instances import FIRST_OBJECT
from ..objects.catalog import Body
from ..world.camera import Camera
from ..world.surfaces import Obstacles, Reject, Room, Spans, Support, points_in_square, supports_of
from .mask_sampling import bounding_box, center_on_mask

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SeenObject:
    """A body as one view shows it. `center` and `box` are normalised; `instance` is its value in instances/."""

    instance: int
    body: Body
    center: tuple[float, float]
    box: tuple[float, float, float, float]
    pixels: int

    def as_json(self) -> dict[str, Any]:
        """What a question records of an object; views.jsonl has the rest of its geometry besides."""
        body = self.body
        return {
            "instance": self.instance,
            "name": body.name,
            "category": body.category,
            "color": body.color,
            "center": list(self.center),
            "box": list(self.box),
            "pixels": self.pixels,
            "position": [round(body.position[0], 5), round(body.position[1], 5), round(body.z, 5)],
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
    z: float = 0.0

    def as_json(self) -> dict[str, Any]:
        x, y = self.position
        position = [round(x, 5), round(y, 5), round(self.z, 5)]
        return {
            "category": self.category,
            "position": position,
            "radius": self.radius,
            "height": round(self.height, 5),
        }


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked about a view, and where it is: `mask` [height, width] is the ground truth.

    `place` is the support of a free place. Relational questions also record the candidates of their noun and, for
    left, right, front and behind, which of them a guesser would take.
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
    surface: Support | None = None  # that the words name
    place: Support | None = None


@dataclass(frozen=True, slots=True)
class Area:
    """The pixels that show a support and where they lie on its plane: world x, y [n, 2].

    Those of its edges are among them; they lie outside of its border, where nothing stands.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    ground: Floats


class View:
    """What the questions need to know of a view: objects, supports, and which of their pixels are free."""

    def __init__(
        self, bodies: Sequence[Body], room: Room, camera: Camera, instances: NDArray[np.uint8],
        areas: NDArray[np.uint8], config: SceneConfig,
    ) -> None:  # fmt: skip
        self.config, self.room, self.camera, self.instances, self._areas = config, room, camera, instances, areas
        self.bodies = list(bodies)
        self.size = instances.size
        self.supports = supports_of(bodies, room.surfaces)
        found = find_objects(instances)
        self.seen = [
            self._see(slot, body, found[slot + FIRST_OBJECT - 1] if slot + FIRST_OBJECT <= len(found) else None)
            for slot, body in enumerate(bodies)
        ]
        self.objects = [seen for seen in self.seen if seen is not None]
        least = config.questions.min_visible
        if len(self.objects) < (least or len(bodies)):
            raise Reject("too few objects are visible" if least else "an object is hidden")
        names = [body.name for body in bodies]
        self.unique = [seen for seen in self.objects if names.count(seen.body.name) == 1]
        self._obstacles = Obstacles(self.bodies, room.fixtures)
        self._found: dict[int, Area] = {}
        self._shown: dict[int, int] = {}
        self._windows: list[tuple[slice, slice] | None] | None = None

    def _see(self, slot: int, body: Body, window: tuple[slice, slice] | None) -> SeenObject | None:
        if window is None:
            return None
        rows, columns = np.nonzero(self.instances[window] == FIRST_OBJECT + slot)
        questions = self.config.questions
        if len(rows) < max(1.0, questions.min_object_area * self.size):
            return None
        rows, columns = rows + window[0].start, columns + window[1].start
        mask = self.instances == FIRST_OBJECT + slot
        center = center_on_mask(mask, questions.decimals, rows, columns)
        if center is None:
            return None
        return SeenObject(FIRST_OBJECT + slot, body, center, bounding_box(mask, rows, columns), len(rows))

    def object_mask(self, seen: SeenObject) -> Bools:
        mask: Bools = self.instances == seen.instance
        return mask

    def root(self, body: Body) -> Support:
        """The surface on which a body stands, directly or on other objects."""
        support = self.supports[body.support]
        return support if support.owner is None else self.root(self.bodies[support.owner])

    def area(self, support: int) -> Area:
        if support not in self._found:
            window = self._window(support)
            rows, columns = np.nonzero(self._areas[window] == support + 1)
            rows, columns = rows + window[0].start, columns + window[1].start
            ground = self.camera.ground_points(rows, columns, self.supports[support].center[2])
            self._found[support] = Area(rows, columns, ground)
        return self._found[support]

    def _window(self, support: int) -> tuple[slice, slice]:
        """A part of the picture that holds every pixel that shows the support's geom."""
        if self._windows is None:
            self._windows = find_objects(self._areas)
        window = self._windows[support] if support < len(self._windows) else None
        return window or (slice(0, 0), slice(0, 0))

    def shows(self, support: int) -> int:
        """How many pixels show a support, with its edges."""
        if support not in self._shown:
            self._shown[support] = int(np.count_nonzero(self._areas[self._window(support)] == support + 1))
        return self._shown[support]

    def free(self, points: Floats, support: int, radius: float, height: float, spans: Spans | None = None) -> Bools:
        """Whether a disc of `radius` at points [n, 2] stands on a support with room all around and above.

        `spans` is as in `Obstacles.exclude`.
        """
        place, clearance = self.supports[support], self.config.relations.clearance
        if height + clearance > place.headroom:
            return np.zeros(len(points), bool)
        result: Bools = place.inset(points) >= radius
        self._obstacles.exclude(result, points, place, height, radius + clearance, spans)
        return result

    def free_mask(
        self, support: int, radius: float, height: float, related: Callable[[Floats], Bools], least: float,
        window: tuple[tuple[float, float], float] | None = None,
    ) -> Bools:  # fmt: skip
        """The visible pixels [height, width] where the disc may stand and `related` (of world points) holds.

        `window` = (x, y), reach: `related` holds nowhere outside of this square, which saves looking there.
        Reject when they are less than the part `least` of the picture.
        """
        area, z = self.area(support), self.supports[support].center[2]
        start, stop = 0, len(area.rows)
        if window is not None:
            starts, stops = self._stretch(area.rows, z, np.array([window[0]]), np.array([window[1]]))
            start, stop = int(starts[0]), int(stops[0])
        ground = area.ground[start:stop]
        chosen = np.arange(len(ground)) if window is None else points_in_square(ground, *window)
        chosen = chosen[related(_taken(ground, chosen))]
        if len(chosen) >= least * self.size:  # fewer can only become fewer
            rows = area.rows[start + chosen]
            free = self.free(
                _taken(ground, chosen), support, radius, height,
                lambda centers, reach: self._stretch(rows, z, centers, reach),
            )  # fmt: skip
            chosen = chosen[free]
        if len(chosen) < least * self.size:
            raise Reject("the free space is too small")
        mask = np.zeros(self.instances.shape, bool)
        mask[area.rows[start + chosen], area.columns[start + chosen]] = True
        return mask

    def _stretch(self, rows: Ints, z: float, centers: Floats, reach: Floats) -> tuple[Ints, Ints]:
        """Where among pixels sorted by their `rows` those are that can show squares at the height z: [start, stop).

        The squares have half sides `reach` [k] around `centers` [k, 2]; a row more at each end is for rounding.
        """
        corners = np.empty((len(centers), 4, 3))
        corners[..., :2] = centers[:, None] + reach[:, None, None] * _CORNERS
        corners[..., 2] = z
        low, high, behind = self.camera.rows_of(corners)
        first = np.where(behind, 0, np.floor(low) - 1)
        last = np.where(behind, self.camera.height, np.ceil(high) + 1)
        return np.searchsorted(rows, first), np.searchsorted(rows, last, side="right")


_CORNERS = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])


def _taken(ground: Floats, chosen: Ints) -> Floats:
    """`ground[chosen]` whose columns, which are looked at one by one, lie together in memory."""
    result = np.empty((len(chosen), 2), order="F")
    for axis in (0, 1):
        ground[:, axis].take(chosen, out=result[:, axis], mode="clip")  # "raise" would copy once more
    return result
