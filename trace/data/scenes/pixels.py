"""Points and boxes on a mask. A normalised point (x, y) lies in the pixel (floor(x * width), floor(y * height))."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
XY = tuple[float, float]


def on_mask(points: Floats, mask: Bools) -> Bools:
    """Whether normalised points [n, 2] lie in the mask [height, width]; points outside the image do not."""
    height, width = mask.shape
    columns = np.floor(points[:, 0] * width).astype(np.int64)
    rows = np.floor(points[:, 1] * height).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result: Bools = inside & mask[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return result


def bounding_box(mask: Bools) -> tuple[float, float, float, float]:
    """Normalised (x0, y0, x1, y1) around a mask that is not empty: the outer borders of its pixels."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        round(columns[0] / width, 4), round(rows[0] / height, 4),
        round((columns[-1] + 1) / width, 4), round((rows[-1] + 1) / height, 4),
    )  # fmt: skip


def center_on_mask(mask: Bools, decimals: int) -> XY | None:
    """The point with `decimals` decimals on the mask that is nearest to the mask's centroid; None if there is none."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    lattice = _lattice(mask, rows, columns, decimals)
    if not len(lattice):
        return None
    offset = (lattice - [(columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height]) * [width, height]
    x, y = lattice[(offset**2).sum(1).argmin()]
    return round(float(x), decimals), round(float(y), decimals)


def sample_points(
    mask: Bools, count: int, decimals: int, interior: float, rng: np.random.Generator
) -> tuple[XY, ...] | None:
    """`count` distinct points that are on the mask as written, rather away from its border; None if they do not fit."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    top, left = rows.min(), columns.min()
    # A frame of one pixel makes the image's border count as a border of the mask.
    crop = np.pad(mask[top : rows.max() + 1, left : columns.max() + 1], 1)
    weights = distance_transform_edt(crop)[rows - top + 1, columns - left + 1] ** interior
    picks = rng.choice(len(rows), size=24 * count, p=weights / weights.sum())
    pixels = np.stack([columns[picks], rows[picks]], 1) + rng.random((24 * count, 2))
    points = np.round(pixels / [width, height], decimals)
    points = points[on_mask(points, mask)]
    distinct = list(dict.fromkeys((float(x), float(y)) for x, y in points))
    if len(distinct) < count:
        lattice = _lattice(mask, rows, columns, decimals)
        rest = [(round(float(x), decimals), round(float(y), decimals)) for x, y in rng.permutation(lattice)]
        distinct = list(dict.fromkeys([*distinct, *rest]))
    return tuple(distinct[:count]) if len(distinct) >= count else None


def _lattice(mask: Bools, rows: NDArray[np.int64], columns: NDArray[np.int64], decimals: int) -> Floats:
    """Every point with `decimals` decimals that lies on the mask: [n, 2]."""
    height, width = mask.shape
    scale = 10**decimals
    x = np.arange(int(columns.min() * scale / width), int((columns.max() + 1) * scale / width) + 2) / scale
    y = np.arange(int(rows.min() * scale / height), int((rows.max() + 1) * scale / height) + 2) / scale
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    return grid[on_mask(grid, mask)]
