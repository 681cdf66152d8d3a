"""How far one gets without looking: the shortcut baselines of a data set, on its own ground-truth masks.

A result on the questions means something only beside these. Each is one point a question, taken from the sample's
`meta.shortcuts`; the fixed shift from the reference is fitted on the set itself (for each relation the shift that
hits most masks), so it is the best such a rule can do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .pixels import XY, on_mask
from .view import Goal, SeenObject

Meta = Mapping[str, Any]
Shifts = dict[str, tuple[float, float]]

# Image axis and sign of each direction, for guessers that never leave the image plane.
_IMAGE_SIDE = {"left": (0, -1), "right": (0, 1), "front": (1, 1), "behind": (1, -1)}


def guesses(goal: Goal, objects: Sequence[SeenObject], rng: np.random.Generator) -> dict[str, XY | None]:
    """One normalised point a shortcut that can be followed on a single view; None where a shortcut does not apply."""
    target, references = goal.target, goal.references
    same = [seen for seen in objects if target and seen.body.category == target.body.category]
    nouns = goal.candidates or tuple(same)
    middle = np.mean([reference.center for reference in references], 0) if len(references) == 2 else None
    uniform = rng.random(2)
    points: dict[str, XY | None] = {
        "uniform": (round(float(uniform[0]), 4), round(float(uniform[1]), 4)),
        "center": (0.5, 0.5),
        "reference": references[0].center if references else None,
        "midpoint": (round(float(middle[0]), 4), round(float(middle[1]), 4)) if middle is not None else None,
        "random_noun": nouns[rng.integers(len(nouns))].center if nouns else None,
        "extreme": goal.extreme.center if goal.extreme else None,
        "nearest": goal.nearest.center if goal.nearest else None,
    }
    return points | _image_guesses(goal)


def _image_guesses(goal: Goal) -> dict[str, XY | None]:
    """The extreme and the nearest candidate in the image, and the nearest one on the asked side of the reference."""
    names = ("image_extreme", "image_nearest", "image_nearest_on_side")
    if goal.kind != "relational" or goal.relation not in _IMAGE_SIDE:
        return dict.fromkeys(names)
    axis, sign = _IMAGE_SIDE[goal.relation]
    x, y = goal.references[0].center

    def ahead(seen: SeenObject) -> float:
        return sign * (seen.center[axis] - goal.references[0].center[axis])

    def distance(seen: SeenObject) -> float:
        return math.hypot(seen.center[0] - x, seen.center[1] - y)

    on_side = [seen for seen in goal.candidates if ahead(seen) > 0] or list(goal.candidates)
    chosen = (max(goal.candidates, key=ahead), min(goal.candidates, key=distance), min(on_side, key=distance))
    return {name: seen.center for name, seen in zip(names, chosen, strict=True)}


def fit_shifts(folder: Path, metas: Iterable[Meta]) -> Shifts:
    """For each relation of free space, the normalised shift from the first reference's center that hits most masks."""
    votes: dict[str, NDArray[np.int64]] = {}
    size = (1, 1)
    for meta in metas:
        if meta["task"] != "free_space":
            continue
        mask = load_mask(folder / meta["mask"])
        height, width = size = mask.shape
        # Laid with the reference in the middle of a canvas of twice the size: the best shift is the highest count.
        column, row = _pixel(meta["references"][0]["center"], width, height)
        canvas = votes.setdefault(meta["relation"], np.zeros((2 * height, 2 * width), np.int64))
        canvas[height - row : 2 * height - row, width - column : 2 * width - column] += mask
    shifts: Shifts = {}
    for relation, canvas in sorted(votes.items()):
        row, column = divmod(int(canvas.argmax()), canvas.shape[1])
        shifts[relation] = ((column - size[1]) / size[1], (row - size[0]) / size[0])
    return shifts


def shifted_reference(meta: Meta, shifts: Shifts) -> list[float] | None:
    """The point of the fixed-shift baseline, moved to the pixel's center; None where no shift was fitted."""
    shift = shifts.get(meta["relation"] or "") if meta["task"] == "free_space" else None
    if shift is None:
        return None
    width, height = meta["image_size"]
    column, row = _pixel(meta["references"][0]["center"], width, height)
    return [round((column + 0.5) / width + shift[0], 4), round((row + 0.5) / height + shift[1], 4)]


class Score:
    """Collects the baselines' hits; `result` gives percent by kind. A uniform point counts by the mask's area."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hits: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, meta: Meta) -> None:
        mask = load_mask(self.folder / meta["mask"])
        for name, point in meta["shortcuts"].items():
            if name == "uniform":
                self.hits[meta["kind"]][name].append(float(mask.mean()))
            elif point is not None:
                self.hits[meta["kind"]][name].append(float(on_mask(np.array([point]), mask)[0]))

    def result(self) -> dict[str, dict[str, float]]:
        return {
            kind: {name: round(100 * sum(hits) / len(hits), 1) for name, hits in sorted(names.items())}
            for kind, names in sorted(self.hits.items())
        }


def load_mask(path: Path) -> NDArray[np.bool_]:
    with Image.open(path) as image:
        mask: NDArray[np.bool_] = np.asarray(image) > 127
    return mask


def _pixel(point: Iterable[float], width: int, height: int) -> tuple[int, int]:
    x, y = point
    return min(int(x * width), width - 1), min(int(y * height), height - 1)
