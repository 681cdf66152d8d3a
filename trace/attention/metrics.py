"""Numbers about an attention map that can be compared between steps, images and models, because nothing is scaled.

    share       of a token's attention, how much goes to the image
    entropy     of that part over the image tokens, as a fraction of the most it can be: 1 is spread evenly
    area        the share of the image tokens that hold half of that part: 0.5 is spread evenly
    target      how much of that part lies on the ground-truth region
    reference   how much of that part lies on the object that the instruction names
    distance    from the hottest image token to the predicted points, in units of the longer side of the image

Beside every value stands what attention spread evenly over its tokens would give (`uniform`). Maps cover the padded
square; regions and points are taken into its frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.images import Square, patch_coverage
from ..core.points import Box, Point

Grid = NDArray[np.float32]

MEASURES: Mapping[str, str] = {
    "share": "attention on the image",
    "entropy": "entropy over the image (1: even)",
    "area": "image tokens holding half (0.5: even)",
    "target": "image attention on the target",
    "reference": "image attention on the named object",
    "distance": "peak to predicted points",
}
UNITS: Mapping[str, str] = {
    "share": "share of a token's attention",
    "entropy": "fraction of the largest entropy",
    "area": "share of the image tokens",
    "target": "share of the attention on the image",
    "reference": "share of the attention on the image",
    "distance": "longer sides of the image",
}
DECIMALS = 5  # of a stored value


@dataclass(frozen=True, slots=True)
class Regions:
    """Where things are, over the patches of the padded square: the share of each that a region covers, in [0, 1].

    target: the ground truth, [grid, grid]; None without one. reference: the object that the instruction names.
    points: the predicted points that lie in the image, in the square's frame.
    """

    target: Grid | None
    reference: Grid | None
    points: tuple[Point, ...]


def regions(
    size: tuple[int, int],
    patches: int,
    points: Sequence[Point | Box],
    target: NDArray[np.bool_] | None,
    reference: NDArray[np.bool_] | None,
) -> Regions:
    """The regions of an image of `size` (width, height); masks are [height, width] over the original image."""
    square = Square(*size)
    centers = [item.center for item in points]
    return Regions(
        None if target is None else patch_coverage(target, patches),
        None if reference is None else patch_coverage(reference, patches),
        tuple(square.pad_point(point) for point in centers if point.inside),
    )


def measure(grid: Grid, where: Regions) -> dict[str, float | None]:
    """Every number of one map [grid, grid]; None for what it does not have (no mask, no points, no attention at all).

    The share is the map's sum, which is a share only where heads were averaged.
    """
    found: dict[str, float | None] = dict.fromkeys(MEASURES)
    mass = float(grid.sum())
    found["share"] = mass
    if not mass > 0:
        return found
    part = (grid / mass).ravel().astype(np.float64)
    positive = part[part > 0]
    found["entropy"] = float(-(positive * np.log(positive)).sum() / math.log(len(part))) if len(part) > 1 else 1.0
    found["area"] = _half(part)
    found["target"] = _on(part, where.target)
    found["reference"] = _on(part, where.reference)
    row, column = divmod(int(part.argmax()), grid.shape[1])
    found["distance"] = _distance(row, column, grid.shape[0], where.points)
    return found


def uniform(patches: int, where: Regions, share: float) -> dict[str, float | None]:
    """What `measure` gives for attention spread evenly; `share` is the image's part of the tokens one can look at."""
    even = np.full((patches, patches), share / patches**2, np.float32)
    found = measure(even, where)
    found["share"] = share
    places = [(row, column) for row in range(patches) for column in range(patches)]
    distances = [_distance(row, column, patches, where.points) for row, column in places]
    known = [distance for distance in distances if distance is not None]
    found["distance"] = sum(known) / len(known) if known else None  # the peak may be anywhere
    return found


def _half(part: NDArray[np.float64]) -> float:
    """The share of tokens, hottest first, that hold half of the mass; the last of them counts in part."""
    falling = np.sort(part)[::-1]
    held = np.cumsum(falling)
    full = int(np.searchsorted(held, 0.5))
    before = held[full - 1] if full else 0.0
    return float((full + (0.5 - before) / falling[full]) / len(part))


def _on(part: NDArray[np.float64], region: Grid | None) -> float | None:
    return None if region is None else float((part * region.ravel()).sum())


def _distance(row: int, column: int, patches: int, points: Sequence[Point]) -> float | None:
    """The mean distance from the centre of a patch to the points, in units of the square's side."""
    if not points:
        return None
    x, y = (column + 0.5) / patches, (row + 0.5) / patches
    return sum(math.hypot(point.x - x, point.y - y) for point in points) / len(points)


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """As they are stored."""
    return {name: None if value is None else round(value, DECIMALS) for name, value in values.items()}
