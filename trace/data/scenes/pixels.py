"""Points and boxes on a mask. A normalised point (x, y) lies in the pixel (floor(x * width), floor(y * height))."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt, distance_transform_edt

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
XY = tuple[float, float]

WINDOW = 6  # pixels


def on_mask(points: Floats, mask: Bools) -> Bools:
    """Whether normalised points [n, 2] lie in the mask [height, width]; points outside the image do not."""
    height, width = mask.shape
    columns = np.floor(points[:, 0] * width).astype(np.int64)
    rows = np.floor(points[:, 1] * height).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result: Bools = inside & mask[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return result


def bounding_box(mask: Bools, rows: Ints, columns: Ints) -> tuple[float, float, float, float]:
    """Normalised (x0, y0, x1, y1) around a mask's pixels, which are not none: their outer borders."""
    height, width = mask.shape
    return (
        round(float(columns.min()) / width, 4), round(float(rows.min()) / height, 4),
        round((float(columns.max()) + 1) / width, 4), round((float(rows.max()) + 1) / height, 4),
    )  # fmt: skip


def center_on_mask(mask: Bools, decimals: int, rows: Ints, columns: Ints) -> XY | None:
    """The point with `decimals` decimals on the mask that is nearest to the mask's centroid; None if there is none.

    `rows` and `columns` are the mask's pixels.
    """
    height, width = mask.shape
    middle = [(columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height]
    # Nearly always it is close by: what is found within WINDOW pixels is the nearest of all.
    near = (np.abs(columns + 0.5 - middle[0] * width) <= WINDOW) & (np.abs(rows + 0.5 - middle[1] * height) <= WINDOW)
    for chosen in (near, slice(None)):
        if not len(rows[chosen]):
            continue
        lattice = _lattice(mask, rows[chosen], columns[chosen], decimals)
        if len(lattice):
            distance = (((lattice - middle) * [width, height]) ** 2).sum(1)
            best = distance.argmin()
            if chosen is not near or distance[best] <= (WINDOW - 1) ** 2:
                x, y = lattice[best]
                return round(float(x), decimals), round(float(y), decimals)
    return None


def sample_points(
    mask: Bools, count: int, decimals: int, interior: float, rng: np.random.Generator, border: float = 0.0
) -> tuple[XY, ...] | None:
    """`count` distinct points that are on the mask as written, rather away from its border; None if they do not fit.

    `border`: at least this many pixels from it, unless the mask is too narrow for that.
    """
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    top, left = rows.min(), columns.min()
    # A frame of one pixel makes the image's border count as a border of the mask.
    crop = np.pad(mask[top : rows.max() + 1, left : columns.max() + 1], 1)
    # Steps along the pixels are as good for keeping away from the border, at a fifth of the time.
    distance = distance_transform_cdt(crop, "chessboard") if border else distance_transform_edt(crop)
    depth = distance[rows - top + 1, columns - left + 1].astype(np.float64)
    deep = depth > border
    if border and deep.sum() >= 4 * count:
        rows, columns, depth = rows[deep], columns[deep], depth[deep]
        inner = np.zeros_like(mask)
        inner[rows, columns] = True
        mask = inner
    weights = depth**interior
    draws = (6 if border else 24) * count
    picks = rng.choice(len(rows), size=draws, p=weights / weights.sum())
    pixels = np.stack([columns[picks], rows[picks]], 1) + rng.random((draws, 2))
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
