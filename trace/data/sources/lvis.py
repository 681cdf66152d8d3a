"""LVIS v1 annotations as conversations: an image, and for some of its categories the list of all their boxes.

The question is RoboPoint's kind ("Find all instances of ..."); the answer is a list of `(x0, y0, x1, y1)` in fractions
of the image, which is how every box is written in this project. A category that is marked as not exhaustively annotated
in an image is not asked there, and neither is one with more than MAX_BOXES boxes: such an answer would be false, or
endless.

The 1.1 GB of `lvis_v1_train.json` are streamed: what is kept is 24 bytes an annotation and a line an image.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.points import Box, format_points
from ...core.prompts import IMAGE_TAG
from ...core.records import Sample, Turn
from ...utils.command import InputError
from ..scenes.questions.wording import box_question
from .problems import RECORD, Problem
from .stream import read_members

MAX_BOXES = 20
TEMPLATES = (
    "Find all instances of {name}.",
    "Find all instances of {name} in the image.",
    "Locate every instance of {name}.",
    "List the bounding boxes of all instances of {name}.",
)


@dataclass(frozen=True, slots=True)
class _Image:
    file: str
    width: int
    height: int
    unfinished: frozenset[int]  # categories of which some instances are not annotated here


@dataclass(slots=True)
class _Annotations:
    """Columns: image id and category of each box, and its (x, y, width, height) in pixels."""

    images: array[int]
    categories: array[int]
    boxes: array[float]


def read_lvis(path: Path, max_turns: int, seed: int) -> Iterator[tuple[str, Sample | Problem]]:
    """(where, sample) of every image with something to ask; categories and wording follow from the seed and the image.

    Raises:
        InputError: the file is not in COCO's and LVIS's layout.
    """
    names, images, boxes = _read(path)
    order = np.lexsort((np.asarray(boxes.categories), np.asarray(boxes.images)))
    of_image = np.asarray(boxes.images)[order]
    of_category = np.asarray(boxes.categories)[order]
    corners = np.asarray(boxes.boxes, dtype=np.float64).reshape(-1, 4)[order]
    starts = np.flatnonzero(np.diff(of_image, prepend=of_image[:1] - 1))
    for start, end in zip(starts, [*starts[1:], len(of_image)], strict=True):
        number = int(of_image[start])
        where = f"{path}, image {number}"
        if number not in images:
            yield (
                where,
                Problem(str(number), RECORD, f"{path}: annotations of image {number}, which is not in its images"),
            )
            continue
        groups = _groups(of_category[start:end], corners[start:end])
        sample = _sample(number, images[number], groups, names, max_turns, np.random.default_rng([seed, number]))
        if sample is not None:
            yield where, sample


def _groups(categories: np.ndarray, boxes: np.ndarray) -> dict[int, np.ndarray]:
    return {int(category): boxes[categories == category] for category in np.unique(categories)}


def _sample(
    number: int,
    image: _Image,
    groups: dict[int, np.ndarray],
    names: dict[int, str],
    max_turns: int,
    rng: np.random.Generator,
) -> Sample | None:
    asked = [
        category
        for category, found in groups.items()
        if category in names
        and category not in image.unfinished
        and len(found) <= MAX_BOXES
        and _all_show(found, image)
    ]
    turns: list[Turn] = []
    for category in rng.permutation(asked)[:max_turns].tolist():
        boxes = sorted((_box(found, image) for found in groups[category]), key=lambda box: (box.x0, box.y0))
        question = box_question(TEMPLATES[rng.integers(len(TEMPLATES))].format(name=names[category]))
        tag = "" if turns else f"{IMAGE_TAG}\n"
        turns += [
            Turn("human", tag + question),
            Turn("gpt", format_points(boxes)),
        ]
    return Sample(f"lvis/{number}", image.file, tuple(turns), {"kind": "detection"}) if turns else None


def _all_show(boxes: np.ndarray, image: _Image) -> bool:
    """Whether every box has some area in the image: a list that leaves one out would be wrong."""
    return all(box.x0 < box.x1 and box.y0 < box.y1 for box in (_box(found, image) for found in boxes))


def _box(found: np.ndarray, image: _Image) -> Box:
    """LVIS writes pixels, and some boxes reach a fraction of one over the border."""
    x, y, width, height = map(float, found)
    x0, x1 = (min(max(value / image.width, 0.0), 1.0) for value in (x, x + width))
    y0, y1 = (min(max(value / image.height, 0.0), 1.0) for value in (y, y + height))
    return Box(x0, y0, x1, y1)


def _read(path: Path) -> tuple[dict[int, str], dict[int, _Image], _Annotations]:
    names: dict[int, str] = {}
    images: dict[int, _Image] = {}
    boxes = _Annotations(array("q"), array("i"), array("f"))
    for key, item in read_members(path):
        try:
            if key == "categories":
                names[int(item["id"])] = _plain(item["name"])
            elif key == "images":
                unfinished = frozenset(item.get("not_exhaustive_category_ids", ()))
                if not (item["width"] >= 1 and item["height"] >= 1):
                    raise ValueError(f"image {item['id']} is {item['width']} x {item['height']} pixels")
                images[int(item["id"])] = _Image(_file_name(item), int(item["width"]), int(item["height"]), unfinished)
            elif key == "annotations":
                x, y, width, height = map(float, item["bbox"])
                if not (math.isfinite(x + y) and 0 <= width < math.inf and 0 <= height < math.inf):
                    raise ValueError(f"a box is {item['bbox']}")
                boxes.images.append(int(item["image_id"]))
                boxes.categories.append(int(item["category_id"]))
                boxes.boxes.extend((x, y, width, height))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}: an item of {key!r} is not as LVIS v1 writes it: {reason}") from None
    missing = [
        word for word, found in (("categories", names), ("images", images), ("annotations", boxes.images)) if not found
    ]
    if missing:
        raise InputError(f"{path} has no {' and no '.join(missing)}; the annotations of LVIS v1 were expected")
    return names, images, boxes


def _file_name(item: dict[str, Any]) -> str:
    """`train2017/000000391895.jpg`: LVIS v1 names an image by its COCO address alone, COCO by `file_name`."""
    if "coco_url" in item:
        return "/".join(str(item["coco_url"]).split("/")[-2:])
    return str(item["file_name"])


def _plain(name: str) -> str:
    """`alarm_clock` with a space; brackets stay, for they tell `bow_(weapon)` from `bow_(decorative_ribbons)`."""
    return name.replace("_", " ").strip()
