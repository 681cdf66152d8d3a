"""One view of a scene as its questions see it: the visible objects, the pixels of a support, points on a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt, distance_transform_edt, find_objects

from ....core.images import FIRST_OBJECT
from ..config import SceneConfig
from ..objects import Bools, Floats, Ints
from ..objects.catalog import Body
from ..world.camera import Camera
from ..world.surfaces import Obstacles, Reject, Room, Support, supports_of

XY = tuple[float, float]
Box = tuple[float, float, float, float]

WINDOW = 6  # pixels
_CHESSBOARD = np.ones((3, 3), np.int32)  # steps to any of the eight neighbours


@dataclass(frozen=True, slots=True)
class SeenObject:
    """A body as one view shows it. `center` and `box` are normalised; `instance` is its value in instances/."""

    instance: int
    body: Body
    center: XY
    box: Box
    pixels: int

    def as_json(self) -> dict[str, Any]:
        return describe_body(self.instance, self.body, self.center, self.box, self.pixels)


def describe_body(instance: int, body: Body, center: XY | None, box: Box | None, pixels: int) -> dict[str, Any]:
    """What a question records of an object; views.jsonl has the rest of its geometry besides."""
    return {
        "instance": instance, "name": body.name, "category": body.category, "color": body.color,
        "center": list(center) if center else None, "box": list(box) if box else None, "pixels": pixels,
        "position": [round(value, 5) for value in (*body.position, body.z)],
        "radius": round(body.radius, 5), "height": round(body.height, 5),
    }  # fmt: skip


class View:
    """What the questions need to know of a view: objects, supports, and the pixels that show them.

    `instances` [height, width] is the instance map, `areas` [height, width] the number (from 1) of the support whose
    level area a pixel may show, `depth` [height, width] is in metres. Raises Reject if too few objects are visible.
    """

    def __init__(
        self, bodies: Sequence[Body], room: Room, camera: Camera, instances: NDArray[np.uint8],
        areas: NDArray[np.uint8], config: SceneConfig, depth: Floats | None = None,
    ) -> None:  # fmt: skip
        self.config, self.room, self.camera, self.instances, self._areas = config, room, camera, instances, areas
        self.depth = depth
        self.bodies = list(bodies)
        self.size = instances.size
        self.supports = supports_of(bodies, room.surfaces)
        windows = find_objects(instances)
        windows += [None] * (FIRST_OBJECT + len(bodies))
        self.seen = [self._see(slot, body, windows[slot + FIRST_OBJECT - 1]) for slot, body in enumerate(bodies)]
        self.objects = [seen for seen in self.seen if seen is not None]
        least = config.questions.min_visible
        if len(self.objects) < (least or len(bodies)):
            raise Reject("too few objects are visible" if least else "an object is hidden")
        names = [body.name for body in bodies]
        self.unique = [seen for seen in self.objects if names.count(seen.body.name) == 1]
        self.obstacles = Obstacles(self.bodies, room.fixtures)
        self._pixels: dict[int, tuple[Ints, Ints, Floats]] = {}

    def _see(self, slot: int, body: Body, window: tuple[slice, slice] | None) -> SeenObject | None:
        if window is None:
            return None
        rows, columns = np.nonzero(self.instances[window] == FIRST_OBJECT + slot)
        questions = self.config.questions
        if len(rows) < max(1.0, questions.min_object_area * self.size):
            return None
        rows, columns = rows + window[0].start, columns + window[1].start
        center = center_on_mask(self.instances == FIRST_OBJECT + slot, questions.decimals, rows, columns)
        if center is None:
            return None
        height, width = self.instances.shape
        box = (
            round(float(columns.min()) / width, 4), round(float(rows.min()) / height, 4),
            round((float(columns.max()) + 1) / width, 4), round((float(rows.max()) + 1) / height, 4),
        )  # fmt: skip
        return SeenObject(FIRST_OBJECT + slot, body, center, box, len(rows))

    def object_mask(self, seen: SeenObject) -> Bools:
        mask: Bools = self.instances == seen.instance
        return mask

    def root(self, body: Body) -> Support:
        """The surface on which a body stands, directly or on other objects."""
        support = self.supports[body.support]
        return support if support.owner is None else self.root(self.bodies[support.owner])

    @cached_property
    def _area_sizes(self) -> Ints:
        return np.bincount(self._areas.ravel(), minlength=len(self.supports) + 1)

    def num_pixels(self, support: int) -> int:
        """How many pixels show a support, with its edges."""
        return int(self._area_sizes[support + 1])

    @cached_property
    def _windows(self) -> list[tuple[slice, slice] | None]:
        return find_objects(self._areas, len(self.supports))

    def area(self, support: int) -> tuple[Ints, Ints, Floats]:
        """Rows and columns of the pixels that show a support, edges too, and where: world x, y [n, 2]."""
        if support not in self._pixels:
            window = self._windows[support] or (slice(0, 0), slice(0, 0))
            rows, columns = np.nonzero(self._areas[window] == support + 1)
            rows, columns = rows + window[0].start, columns + window[1].start
            ground = self.camera.ground_points(rows, columns, self.supports[support].center[2])
            self._pixels[support] = rows, columns, ground
        return self._pixels[support]


def on_mask(points: Floats, mask: Bools) -> Bools:
    """Whether normalised points [n, 2] lie in the mask [height, width]; points outside the image do not."""
    height, width = mask.shape
    columns = np.floor(points[:, 0] * width).astype(np.int64)
    rows = np.floor(points[:, 1] * height).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result: Bools = np.zeros(len(points), bool)
    result[inside] = mask[rows[inside], columns[inside]]
    return result


def center_on_mask(mask: Bools, decimals: int, rows: Ints, columns: Ints) -> XY | None:
    """The point with `decimals` decimals on a mask of pixels `rows`, `columns` nearest to its centroid, if any."""
    height, width = mask.shape
    middle = [(columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height]
    # Nearly always it is close by: a point within WINDOW pixels is the nearest of all.
    near = (np.abs(columns + 0.5 - middle[0] * width) <= WINDOW) & (np.abs(rows + 0.5 - middle[1] * height) <= WINDOW)
    for chosen in (near, slice(None)):
        if not len(rows[chosen]):
            continue
        x, y, inside = _lattice(mask, rows[chosen], columns[chosen], decimals)
        distance = ((x - middle[0]) * width) ** 2 + (((y - middle[1]) * height) ** 2)[:, None]
        distance[~inside] = np.inf
        row, column = divmod(int(distance.argmin()), len(x))
        if distance[row, column] < np.inf and (chosen is not near or distance[row, column] <= (WINDOW - 1) ** 2):
            return round(float(x[column]), decimals), round(float(y[row]), decimals)
    return None


def deepest_point(mask: Bools) -> XY:
    """The middle of the pixel of a mask that is furthest from its border, normalised."""
    row, column = np.unravel_index(
        distance_transform_cdt(np.pad(mask, 1), _CHESSBOARD)[1:-1, 1:-1].argmax(), mask.shape
    )
    return round((float(column) + 0.5) / mask.shape[1], 4), round((float(row) + 0.5) / mask.shape[0], 4)


def sample_points(
    mask: Bools, count: int, decimals: int, interior: float, rng: np.random.Generator, border: float = 0.0
) -> tuple[XY, ...] | None:
    """`count` distinct points that are on the mask as written, rather away from its border; None if they do not fit.

    `border`: at least this many pixels from it, unless the mask is too narrow for that.
    """
    height, width = mask.shape
    lines = np.flatnonzero(mask.any(1))
    top, bottom = int(lines[0]), int(lines[-1]) + 1
    across = np.flatnonzero(mask[top:bottom].any(0))
    left, right = int(across[0]), int(across[-1]) + 1
    # A frame of one pixel makes the image's border count as a border of the mask.
    crop = np.zeros((bottom - top + 2, right - left + 2), bool)
    crop[1:-1, 1:-1] = mask[top:bottom, left:right]
    # Steps along the pixels are as good for keeping away from the border, at a fifth of the time.
    distance = distance_transform_cdt(crop, _CHESSBOARD) if border else distance_transform_edt(crop)
    if border:
        deep = distance > border
        if np.count_nonzero(deep) >= 4 * count:
            crop, mask = deep, np.zeros_like(mask)
            mask[top:bottom, left:right] = deep[1:-1, 1:-1]
    pixels = np.flatnonzero(crop)
    weights = distance.ravel()[pixels].astype(np.float64) ** interior
    draws = (6 if border else 24) * count
    # What `rng.choice` draws, without its checks of every weight.
    cumulative = np.cumsum(weights / weights.sum())
    cumulative /= cumulative[-1]
    drawn = pixels[np.searchsorted(cumulative, rng.random(draws), side="right")]
    rows, columns = np.divmod(drawn, crop.shape[1])
    points = np.stack([columns + (left - 1), rows + (top - 1)], 1) + rng.random((draws, 2))
    points = np.round(points / [width, height], decimals)
    points = points[on_mask(points, mask)]
    distinct = list(dict.fromkeys(map(tuple, points.tolist())))
    if len(distinct) < count:
        rows, columns = np.nonzero(mask)
        x, y, inside = _lattice(mask, rows, columns, decimals)
        rows, columns = np.nonzero(inside)
        lattice = np.stack([x[columns], y[rows]], 1)
        rest = [(round(float(x), decimals), round(float(y), decimals)) for x, y in rng.permutation(lattice)]
        distinct = list(dict.fromkeys([*distinct, *rest]))
    return tuple(distinct[:count]) if len(distinct) >= count else None


def _lattice(mask: Bools, rows: Ints, columns: Ints, decimals: int) -> tuple[Floats, Floats, Bools]:
    """Every x and every y with `decimals` decimals around some pixels, and which pairs lie on the mask: [y, x]."""
    height, width = mask.shape
    scale = 10**decimals
    x = np.arange(int(columns.min() * scale / width), int((columns.max() + 1) * scale / width) + 2) / scale
    y = np.arange(int(rows.min() * scale / height), int((rows.max() + 1) * scale / height) + 2) / scale
    across, down = np.floor(x * width).astype(np.int64), np.floor(y * height).astype(np.int64)
    inside = mask[np.minimum(down, height - 1)[:, None], np.minimum(across, width - 1)]  # none of them is negative
    inside[down >= height], inside[:, across >= width] = False, False
    return x, y, inside
