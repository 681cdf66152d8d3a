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
_CHESSBOARD = np.ones((3, 3), np.int32)  # steps to any of the eight neighbours


def on_mask(points: Floats, mask: Bools) -> Bools:
    """Whether normalised points [n, 2] lie in the mask [height, width]; points outside the image do not."""
    height, width = mask.shape
    columns = np.floor(points[:, 0] * width).astype(np.int64)
    rows = np.floor(points[:, 1] * height).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result: Bools = np.zeros(len(points), bool)
    result[inside] = mask[rows[inside], columns[inside]]
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
        x, y, inside = _lattice(mask, rows[chosen], columns[chosen], decimals)
        distance = ((x - middle[0]) * width) ** 2 + (((y - middle[1]) * height) ** 2)[:, None]
        distance[~inside] = np.inf
        row, column = divmod(int(distance.argmin()), len(x))
        if distance[row, column] < np.inf and (chosen is not near or distance[row, column] <= (WINDOW - 1) ** 2):
            return round(float(x[column]), decimals), round(float(y[row]), decimals)
    return None


def sample_points(
    mask: Bools, count: int, decimals: int, interior: float, rng: np.random.Generator, border: float = 0.0
) -> tuple[XY, ...] | None:
    """`count` distinct points that are on the mask as written, rather away from its border; None if they do not fit.

    `border`: at least this many pixels from it, unless the mask is too narrow for that.
    """
    height, width = mask.shape
    lines = np.flatnonzero(mask.any(1))
    top, bottom = int(lines[0]), int(lines[-1]) + 1
    across = np.flatnonzero(mask[top:bottom].any(0))
    left, right = int(across[0]), int(across[-1]) + 1
    # A frame of one pixel makes the image's border count as a border of the mask.
    crop = np.zeros((bottom - top + 2, right - left + 2), bool)
    crop[1:-1, 1:-1] = mask[top:bottom, left:right]
    # Steps along the pixels are as good for keeping away from the border, at a fifth of the time.
    distance = distance_transform_cdt(crop, _CHESSBOARD) if border else distance_transform_edt(crop)
    if border:
        deep = distance > border
        if np.count_nonzero(deep) >= 4 * count:
            crop, mask = deep, np.zeros_like(mask)
            mask[top:bottom, left:right] = deep[1:-1, 1:-1]
    places = np.flatnonzero(crop)
    weights = distance.ravel()[places].astype(np.float64) ** interior
    draws = (6 if border else 24) * count
    rows, columns = np.divmod(places[_weighted(weights, draws, rng)], crop.shape[1])
    pixels = np.stack([columns + (left - 1), rows + (top - 1)], 1) + rng.random((draws, 2))
    points = np.round(pixels / [width, height], decimals)
    points = points[on_mask(points, mask)]
    distinct = list(dict.fromkeys(map(tuple, points.tolist())))
    if len(distinct) < count:
        rows, columns = np.nonzero(mask)
        x, y, inside = _lattice(mask, rows, columns, decimals)
        rows, columns = np.nonzero(inside)
        lattice = np.stack([x[columns], y[rows]], 1)
        rest = [(round(float(x), decimals), round(float(y), decimals)) for x, y in rng.permutation(lattice)]
        distinct = list(dict.fromkeys([*distinct, *rest]))
    return tuple(distinct[:count]) if len(distinct) >= count else None


def _weighted(weights: Floats, draws: int, rng: np.random.Generator) -> Ints:
    """Numbers drawn with these weights: what `rng.choice` draws, without its checks of every weight."""
    cumulative = np.cumsum(weights / weights.sum())
    cumulative /= cumulative[-1]
    return np.searchsorted(cumulative, rng.random(draws), side="right")


def _lattice(mask: Bools, rows: Ints, columns: Ints, decimals: int) -> tuple[Floats, Floats, Bools]:
    """Every x and every y with `decimals` decimals around some pixels, and which pairs lie on the mask: [y, x]."""
    height, width = mask.shape
    scale = 10**decimals
    x = np.arange(int(columns.min() * scale / width), int((columns.max() + 1) * scale / width) + 2) / scale
    y = np.arange(int(rows.min() * scale / height), int((rows.max() + 1) * scale / height) + 2) / scale
    across, down = np.floor(x * width).astype(np.int64), np.floor(y * height).astype(np.int64)
    inside = mask[np.minimum(down, height - 1)[:, None], np.minimum(across, width - 1)]  # none of them is negative
    inside[down >= height], inside[:, across >= width] = False, False
    return x, y, inside
