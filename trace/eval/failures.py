"""What went wrong with an answer: every point that misses gets a class, as far as the benchmark tells.

Shares are of questions: an answer with four points of which one misses gives a quarter to that point's class, so that
the classes and the accuracy of a model add up to 1. What a class needs is taken from the question's `meta` as the
scene generator writes it: `references` (with `instance`, `box`, `center`), `instances` (an image of object numbers)
and `relation`. Where that is missing, a miss is "elsewhere".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..command import InputError
from ..images import BROKEN_IMAGE
from ..points import Box, Point
from ..records import Question
from .metrics import Mask, score

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
OBJECTS = range(2, 200)  # values of objects in an image of instances; 0 is the background, the others are surfaces
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
        missed = 1 - score(points, self.mask)
        if missed <= 0:
            return {}
        centers = [item.center if isinstance(item, Box) else item for item in points]
        outside = [center for center in centers if score([center], self.mask) == 0] or centers
        found: dict[str, float] = {}
        for point in outside:
            name = self.of(point)
            found[name] = found.get(name, 0.0) + missed / len(outside)
        return found

    def of(self, point: Point) -> str:
        """The class of a point that misses."""
        height, width = self.mask.shape
        pixel = point.to_pixel(width, height)
        if pixel is None:
            return OUTSIDE
        x, y = pixel
        if self.instances is not None:
            instance = int(self.instances[y, x])
            if instance in OBJECTS:
                return ON_REFERENCE if instance in self._numbers() else ON_OBJECT
        elif any(_inside(point, one.get("box")) for one in self.references):
            return ON_REFERENCE
        return self._direction(x, y)

    def _numbers(self) -> set[Any]:
        return {one.get("instance") for one in self.references}

    def _direction(self, x: int, y: int) -> str:
        """Seen from the one reference: whether the point lies where the region does, and how far."""
        relation, height, width = self.meta.get("relation"), *self.mask.shape
        center = self.references[0].get("center") if len(self.references) == 1 else None
        if relation not in DIRECTIONS or center is None or not _pair(center):
            return ELSEWHERE
        origin = np.array([center[0] * width, center[1] * height])
        region = np.argwhere(self.mask)[:, ::-1] + 0.5 - origin
        way = region.mean(0) / max(float(np.hypot(*region.mean(0))), 1e-9)
        offset = np.array([x, y]) + 0.5 - origin
        distance = float(np.hypot(*offset))
        if distance < 1e-9 or float(offset @ way) / distance < SAME_WAY:
            return WRONG_WAY
        return TOO_FAR if distance > float(np.hypot(*region.T).max()) else BESIDE


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int | float) for one in value)


def _inside(point: Point, box: Any) -> bool:
    values = _sequence(box)
    return len(values) == 4 and values[0] <= point.x <= values[2] and values[1] <= point.y <= values[3]


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
