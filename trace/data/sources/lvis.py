"""LVIS v1 annotations as conversations: an image, and for some of its categories the list of all their boxes.

The question is of RoboPoint's kind ("Find all instances of ..."), the answer lists `(x0, y0, x1, y1)` in fractions of
the image. A category that is marked as not exhaustively annotated in an image is not asked there, nor one with more
than MAX_BOXES boxes: such an answer would be false, or endless. The 1.1 GB of `lvis_v1_train.json` are streamed: 24
bytes an annotation and a line an image stay in memory.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ijson
import numpy as np
from numpy.typing import NDArray

from ...core.points import Box, format_points
from ...core.prompts import IMAGE_TAG
from ...core.records import Sample, Turn
from ...utils.command import InputError, existing_file
from ..scenes.wording import box_question
from .sample_checks import Problem

T = TypeVar("T")
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


def read_lvis(path: Path, max_turns: int, seed: int) -> Iterator[tuple[str, Sample | Problem]]:
    """(where, sample) of every image with something to ask; categories and wording follow from the seed and the image.

    Raises:
        InputError: the file is not in COCO's and LVIS's layout.
    """
    path = existing_file(path, "the annotation file")
    names = dict(_read(path, "categories", lambda item: (int(item["id"]), item["name"].replace("_", " ").strip())))
    images = dict(_read(path, "images", _image))
    columns = array("q"), array("i"), array("f")
    for image_id, category_id, box in _read(path, "annotations", _annotation):
        columns[0].append(image_id)
        columns[1].append(category_id)
        columns[2].extend(box)
    image_ids, category_ids = np.asarray(columns[0]), np.asarray(columns[1])
    boxes = np.asarray(columns[2], dtype=np.float64).reshape(-1, 4)
    order = np.lexsort((category_ids, image_ids))
    image_ids, category_ids, boxes = image_ids[order], category_ids[order], boxes[order]
    starts = np.flatnonzero(np.diff(image_ids, prepend=image_ids[:1] - 1))
    for start, end in zip(starts, [*starts[1:], len(image_ids)], strict=True):
        number = int(image_ids[start])
        where = f"{path}, image {number}"
        if number not in images:
            trouble = f"{path}: annotations of image {number}, which is not in its images"
            yield where, Problem(str(number), "record", trouble)
            continue
        rng = np.random.default_rng([seed, number])
        turns = _turns(images[number], category_ids[start:end], boxes[start:end], names, max_turns, rng)
        if turns:
            yield where, Sample(f"lvis/{number}", images[number].file, tuple(turns), {"kind": "detection"})


def _turns(
    image: _Image, category_ids: NDArray[np.int64], boxes: NDArray[np.float64], names: dict[int, str], max_turns: int,
    rng: np.random.Generator,
) -> list[Turn]:  # fmt: skip
    """Questions about up to `max_turns` categories; `boxes` [num, 4] are x, y, width, height in pixels."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = np.clip(corners / ([image.width, image.height] * 2), 0.0, 1.0)  # some reach over the border by a fraction
    visible = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
    groups = {int(category): category_ids == category for category in np.unique(category_ids)}
    asked = [
        category
        for category, group in groups.items()
        if category in names
        and category not in image.unfinished
        and group.sum() <= MAX_BOXES
        and visible[group].all()  # a list that leaves one out would be wrong
    ]
    turns: list[Turn] = []
    for category in rng.permutation(asked)[:max_turns].tolist():
        answer = sorted((Box(*map(float, box)) for box in corners[groups[category]]), key=lambda box: (box.x0, box.y0))
        question = box_question(TEMPLATES[rng.integers(len(TEMPLATES))].format(name=names[category]))
        turns += [Turn("human", question if turns else f"{IMAGE_TAG}\n{question}"), Turn("gpt", format_points(answer))]
    return turns


def _read(path: Path, key: str, convert: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """The items of a list of the file, one at a time, as `convert` gives them."""
    empty = True
    try:
        with open(path, "rb") as file:
            for item in ijson.items(file, f"{key}.item", use_float=True):
                yield convert(item)
                empty = False
    except ijson.JSONError as error:
        raise InputError(f"{path} is broken JSON: {str(error).splitlines()[0]}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: an item of {key!r} is not as LVIS v1 writes it: {reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if empty:
        raise InputError(f"{path} has no {key}; the annotations of LVIS v1 were expected")


def _image(item: dict[str, Any]) -> tuple[int, _Image]:
    if not (item["width"] >= 1 and item["height"] >= 1):
        raise ValueError(f"image {item['id']} is {item['width']} x {item['height']} pixels")
    # LVIS v1 names an image by its COCO address alone, COCO by `file_name`
    file = "/".join(str(item["coco_url"]).split("/")[-2:]) if "coco_url" in item else str(item["file_name"])
    unfinished = frozenset(item.get("not_exhaustive_category_ids", ()))
    return int(item["id"]), _Image(file, int(item["width"]), int(item["height"]), unfinished)


def _annotation(item: dict[str, Any]) -> tuple[int, int, tuple[float, ...]]:
    x, y, width, height = map(float, item["bbox"])
    if not (math.isfinite(x + y) and 0 <= width < math.inf and 0 <= height < math.inf):
        raise ValueError(f"a box is {item['bbox']}")
    return int(item["image_id"]), int(item["category_id"]), (x, y, width, height)
