"""Numbers about an attention map that compare between steps, images and models, because nothing is scaled.

share       of a token's attention, how much goes to the image
entropy     of that part over the image tokens, as a fraction of its maximum: 1 is spread evenly
area        the share of the image tokens that hold half of that part: 0.5 is spread evenly
target      how much of that part lies on the ground-truth region
reference   how much of that part lies on the object that the instruction names
distance    from the hottest image token to the predicted points, in units of the image's longer side
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from ..core.images import Square, patch_coverage
from ..core.points import Box, Point

Grid = NDArray[np.float32]
Values = dict[str, float | None]  # measure -> value, None where it is not defined

MEASURES: Mapping[str, tuple[str, str]] = {  # title and unit
    "share": ("attention on the image", "share of a token's attention"),
    "entropy": ("entropy over the image (1: even)", "fraction of the largest entropy"),
    "area": ("image tokens holding half (0.5: even)", "share of the image tokens"),
    "target": ("image attention on the target", "share of the attention on the image"),
    "reference": ("image attention on the named object", "share of the attention on the image"),
    "distance": ("peak to predicted points", "longer sides of the image"),
}
DECIMALS = 5  # of a stored value


@dataclass(frozen=True, slots=True)
class Regions:
    """What maps are compared with, in the frame of the padded square."""

    target: Grid | None  # the share of each patch that the ground truth covers, [grid, grid] in [0, 1]
    reference: Grid | None  # the same of the named object
    points: tuple[Point, ...]  # the predicted points that lie in the image


def regions(
    size: tuple[int, int], patches: int, points: Sequence[Point | Box], target: NDArray[np.bool_] | None = None,
    reference: NDArray[np.bool_] | None = None,
) -> Regions:  # fmt: skip
    """Build the regions of an image of `size` (width, height); masks are [height, width] over the original image."""
    of_target, of_named = (None if mask is None else patch_coverage(mask, patches) for mask in (target, reference))
    return Regions(
        of_target, of_named, tuple(Square(*size).pad_point(item.center) for item in points if item.center.inside)
    )


def measure(grid: Grid, where: Regions) -> Values:
    """Return every number of one map [grid, grid]; None without the mask, points or attention that it needs.

    The share is the map's sum, which is a share only where heads were averaged.
    """
    mass = float(grid.sum())
    values: Values = {**dict.fromkeys(MEASURES), "share": mass}
    if not mass > 0:
        return values
    part = (grid / mass).ravel().astype(np.float64)
    positive = part[part > 0]
    values["entropy"] = float(-(positive * np.log(positive)).sum() / math.log(len(part))) if len(part) > 1 else 1.0
    falling = np.sort(part)[::-1]
    held = np.cumsum(falling)
    full = int(np.searchsorted(held, 0.5))  # hottest tokens that count in full; the next one counts in part
    before = held[full - 1] if full else 0.0
    values["area"] = float((full + (0.5 - before) / falling[full]) / len(part))
    for name, region in (("target", where.target), ("reference", where.reference)):
        values[name] = None if region is None else float((part * region.ravel()).sum())
    values["distance"] = _distance(int(part.argmax()), grid.shape[0], where.points)
    return values


def uniform(even: Grid, where: Regions, share: float) -> Values:
    """Return what `measure` gives for even attention.

    Args:
        even: that attention over the patches, `[grid, grid]`; sums to 1.
        share: the image's part of the tokens that are attended.
    """
    values, weights = measure((even * share).astype(np.float32), where), even.ravel().tolist()
    distances = [_distance(token, len(even), where.points) for token in range(even.size)]
    known = [distance for distance in distances if distance is not None]  # all of them, or none without points
    return {**values, "share": share, "distance": fmean(known, weights) if known else None}  # any peak


def _distance(token: int, patches: int, points: Sequence[Point]) -> float | None:
    """The mean distance from the centre of an image token to the points, in units of the square's side."""
    if not points:
        return None
    row, column = divmod(token, patches)
    x, y = (column + 0.5) / patches, (row + 0.5) / patches
    return fmean(math.hypot(point.x - x, point.y - y) for point in points)
