"""What went wrong with an answer: every point that misses gets a class, as far as the benchmark tells.

Shares are of questions: an answer with four points of which one misses gives a quarter to that point's class, so that
the classes and the accuracy of a model add up to 1. Of a box every pixel outside the region has its own class. An answer
without a point is "cut" where it ended at the limit of tokens, otherwise "unparsable". What a
class needs is taken from the question's `meta` as the scene generator writes it: `references` (with `instance`, `box`,
`center`), `instances` (an image of object numbers) and `relation`. Where that is missing, a miss is "elsewhere".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.images import BROKEN_IMAGE
from ..core.points import Box, Point, scored_indices
from ..core.records import Question
from ..data.scenes.instances import on_object
from ..utils.command import InputError
from .benchmark import Mask

Values = NDArray[np.float64]

UNANSWERED = "not answered"
CUT = "cut"
UNPARSABLE = "unparsable"
OUTSIDE = "outside the image"
ON_REFERENCE = "on the reference object"
ON_OBJECT = "on another object"
TOO_FAR = "right side but too far"
BESIDE = "right side but beside the region"
WRONG_WAY = "wrong direction"
ELSEWHERE = "elsewhere"
CLASSES = (UNANSWERED, CUT, UNPARSABLE, OUTSIDE, ON_REFERENCE, ON_OBJECT, TOO_FAR, BESIDE, WRONG_WAY, ELSEWHERE)
DIRECTIONS = ("left", "right", "in front", "front", "behind", "above", "below")
SAME_WAY = math.cos(math.radians(60))  # seen from the reference, a point less than this off the region's direction


class ErrorClassifier:
    """Says why a point misses one question's region."""

    def __init__(self, question: Question, mask: Mask, root: Path) -> None:
        """`root` is the benchmark's folder, to which `meta["instances"]` is relative."""
        self.mask, self.meta = mask, question.meta
        self.references = [one for one in _sequence(question.meta.get("references")) if isinstance(one, Mapping)]
        self.instances = _instances(question, root, mask.shape)

    def shares(self, points: Sequence[Point | Box], cut: bool = False) -> dict[str, float]:
        """Class -> share of the answer; with the score they add up to 1. `cut`: it ended at the limit of tokens."""
        if not points:
            return {CUT if cut else UNPARSABLE: 1.0}
        total = float(sum(map(self._weight, (points[place] for place in scored_indices(points)))))
        missing = [item for item in points if isinstance(item, Point) and not self._hit(item)]
        classes = dict(zip(missing, self.of(missing), strict=True))
        found: dict[str, float] = {}
        for item in (points[place] for place in scored_indices(points)):
            if isinstance(item, Box):
                missed = self._missed(item)
            else:
                missed = {classes[item]: 1.0} if item in classes else {}
            for name, amount in missed.items():
                found[name] = found.get(name, 0.0) + amount / total
        return found

    def of(self, points: Sequence[Point]) -> list[str]:
        """The classes of points that miss."""
        inside = [point for point in points if point.inside]
        if not inside:
            return [OUTSIDE] * len(points)
        classes = iter(self._classes(np.array([one.x for one in inside]), np.array([one.y for one in inside])))
        return [next(classes) if point.inside else OUTSIDE for point in points]

    def _hit(self, point: Point) -> bool:
        pixel = point.to_pixel(self.mask.shape[1], self.mask.shape[0])
        return pixel is not None and bool(self.mask[pixel[1], pixel[0]])

    def _weight(self, item: Point | Box) -> int:
        """What an item counts in the score: a point 1, a box its pixels."""
        if isinstance(item, Point):
            return 1
        left, top, right, bottom = item.to_pixel_range(self.mask.shape[1], self.mask.shape[0])
        return (right - left) * (bottom - top)

    def _missed(self, item: Box) -> dict[str, float]:
        """Class -> how many pixels of a box miss."""
        height, width = self.mask.shape
        left, top, right, bottom = item.to_pixel_range(width, height)
        first = np.array([max(top, 0), max(left, 0)])
        inner = self.mask[first[0] : max(bottom, 0), first[1] : max(right, 0)]
        y, x = (np.argwhere(~inner) + first + 0.5).T
        beyond = (right - left) * (bottom - top) - inner.size
        found = {**Counter(self._classes(x / width, y / height)), OUTSIDE: beyond}
        return {name: float(pixels) for name, pixels in found.items() if pixels}

    def _classes(self, x: Values, y: Values) -> list[str]:
        """The classes of missing points inside the image, normalised `x` and `y` `[points]`."""
        height, width = self.mask.shape
        columns = np.minimum((x * width + 1e-6).astype(int), width - 1)  # as Point.to_pixel
        rows = np.minimum((y * height + 1e-6).astype(int), height - 1)
        found = self._directions(columns, rows)
        if self.instances is not None:
            instance = self.instances[rows, columns]
            named = [one["instance"] for one in self.references if isinstance(one.get("instance"), int)]
            found[on_object(instance)] = ON_OBJECT
            found[on_object(instance) & np.isin(instance, named)] = ON_REFERENCE
        else:
            for one in self.references:
                found[_inside(x, y, one.get("box"))] = ON_REFERENCE
        return list(found)

    def _directions(self, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """Seen from the one reference: whether each pixel lies where the region does, and how far."""
        relation, height, width = self.meta.get("relation"), *self.mask.shape
        center = self.references[0].get("center") if len(self.references) == 1 else None
        if relation not in DIRECTIONS or center is None or not _pair(center):
            return np.full(len(columns), ELSEWHERE, object)
        origin = np.array([center[0] * width, center[1] * height])
        region = np.argwhere(self.mask)[:, ::-1] + 0.5 - origin
        way = region.mean(0) / max(float(np.hypot(*region.mean(0))), 1e-9)
        offset = np.stack([columns, rows], axis=-1) + 0.5 - origin
        distance = np.hypot(*offset.T)
        same = (distance >= 1e-9) & (offset @ way >= SAME_WAY * distance)
        far = distance > float(np.hypot(*region.T).max())
        found: NDArray[np.object_] = np.where(same, np.where(far, TOO_FAR, BESIDE), WRONG_WAY).astype(object)
        return found


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int | float) for one in value)


def _inside(x: Values, y: Values, box: Any) -> NDArray[np.bool_]:
    values = _sequence(box)
    if len(values) != 4:
        return np.zeros(len(x), bool)
    return np.asarray((values[0] <= x) & (x <= values[2]) & (values[1] <= y) & (y <= values[3]))


def _instances(question: Question, root: Path, shape: tuple[int, int]) -> NDArray[np.int64] | None:
    name = question.meta.get("instances")
    if not isinstance(name, str):
        return None
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            found = np.asarray(image, np.int64)
    except BROKEN_IMAGE as error:
        raise InputError(
            f"the image of instances {path} of question {question.question_id} is broken: {error}"
        ) from None
    return found if found.shape == shape else None


class Distances:
    """Distances in pixels to the nearest pixel of a region, 0 inside it.

    For every pixel the nearest columns of the region in its row are found once, to the left and to the right, as a
    distance transform begins; a point then looks at one pixel a row, however large the region is.
    """

    def __init__(self, mask: Mask) -> None:
        """`mask` `[height, width]` has at least one pixel."""
        self.shape = mask.shape
        self.rows = np.flatnonzero(mask.any(axis=1))
        region, columns = mask[self.rows], np.arange(mask.shape[1], dtype=np.float32)
        self.left = np.maximum.accumulate(np.where(region, columns, -np.inf), axis=1)
        self.right = np.minimum.accumulate(np.where(region, columns, np.inf)[:, ::-1], axis=1)[:, ::-1]

    def of(self, points: Sequence[Point]) -> list[float]:
        """The distance of each point."""
        return [self._of(point.x * self.shape[1], point.y * self.shape[0]) for point in points]

    def _of(self, x: float, y: float) -> float:
        column = int(min(max(x, 0.0), self.shape[1] - 1.0))
        across = np.minimum(_gap(self.left[:, column], x), _gap(self.right[:, column], x))
        return float(np.hypot(across, _gap(self.rows, y)).min())


def _gap(pixels: NDArray[Any], place: float) -> Values:
    """How far `place` lies from pixels of size 1 that begin at `pixels`, along one axis."""
    first = pixels.astype(np.float64)
    gap: Values = np.maximum(np.maximum(first - place, place - first - 1.0), 0.0)
    return gap
