"""What went wrong with an answer: every point that misses gets a class, as far as the benchmark tells.

Shares are of questions: an answer with four points of which one misses gives a quarter to that point's class, so that
the classes and the accuracy of a model add up to 1. Of a box every pixel outside the region has its own class. What a
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

from ..command import InputError
from ..images import BROKEN_IMAGE
from ..points import Box, Point, counted
from ..records import Question
from .metrics import Mask, Values, box_pixels, score, weight

UNANSWERED = "not answered"
UNPARSABLE = "unparsable"
OUTSIDE = "outside the image"
ON_REFERENCE = "on the reference object"
ON_OBJECT = "on another object"
TOO_FAR = "right side but too far"
BESIDE = "right side but beside the region"
WRONG_WAY = "wrong direction"
ELSEWHERE = "elsewhere"
CLASSES = (UNANSWERED, UNPARSABLE, OUTSIDE, ON_REFERENCE, ON_OBJECT, TOO_FAR, BESIDE, WRONG_WAY, ELSEWHERE)
DIRECTIONS = ("left", "right", "in front", "front", "behind", "above", "below")
OBJECTS = np.arange(2, 200)  # values of objects in an image of instances; 0 is the background, the others are surfaces
SAME_WAY = math.cos(math.radians(60))  # seen from the reference, a point less than this off the region's direction


class Judge:
    """Says why a point misses one question's region."""

    def __init__(self, question: Question, mask: Mask, root: Path) -> None:
        """`root` is the benchmark's folder, to which `meta["instances"]` is relative."""
        self.mask, self.meta = mask, question.meta
        self.references = [one for one in _sequence(question.meta.get("references")) if isinstance(one, Mapping)]
        self.instances = _instances(question, root, mask.shape)

    def shares(self, points: Sequence[Point | Box]) -> dict[str, float]:
        """Class -> share of the answer; with the score they add up to 1."""
        if not points:
            return {UNPARSABLE: 1.0}
        found: dict[str, float] = {}
        total = weight(points, self.mask)
        for item in (points[place] for place in counted(points)):
            for name, missed in self._missed(item).items():
                found[name] = found.get(name, 0.0) + missed / total
        return found

    def of(self, point: Point) -> str:
        """The class of a point that misses."""
        return self._classes(np.array([point.x]), np.array([point.y]))[0] if point.inside else OUTSIDE

    def _missed(self, item: Point | Box) -> dict[str, float]:
        """Class -> how much of an item misses: 1 for a point, pixels for a box."""
        if isinstance(item, Point):
            return {} if score([item], self.mask) else {self.of(item): 1.0}
        height, width = self.mask.shape
        left, top, right, bottom = box_pixels(item, (height, width))
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
            found[np.isin(instance, OBJECTS)] = ON_OBJECT
            found[np.isin(instance, OBJECTS) & np.isin(instance, named)] = ON_REFERENCE
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


def distance(point: Point, region: NDArray[np.int64], shape: tuple[int, int]) -> float:
    """Pixels from a point to the nearest pixel of a region, 0 inside it.

    Args:
        region: `[pixels, 2]`, rows and columns inside.
        shape: (height, width) of the mask.
    """
    y, x = point.y * shape[0], point.x * shape[1]
    gaps = np.maximum(np.maximum(region - [y, x], [y, x] - region - 1.0), 0.0)
    return float(np.hypot(gaps[:, 0], gaps[:, 1]).min())
