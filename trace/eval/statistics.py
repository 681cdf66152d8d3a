"""The score of an answer, and what may be said about the mean of many.

One decision, in one place: an answer scores the fraction of its points that lie inside the ground-truth region; one of
boxes alone the fraction of their pixels; an answer without a point scores 0 and stays in the mean. The mean is over
questions (macro), as RoboPoint publishes it. Questions about one image are not independent, so intervals resample
images, and comparisons of two models pair the questions they share. Where all images are alike (3 of 3 right) there is
nothing to resample, and the exact binomial bound takes its place.

`robopoint_score` keeps the behaviour of the reference's own script, for numbers that have to be comparable with
published ones. Nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.points import Box, Point, counted

Mask = NDArray[np.bool_]  # [height, width], True inside the ground-truth region
Values = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
ALIKE = 1e-9  # means of images that differ by no more are equal but for rounding
REFERENCE_SIZE = (640, 480)  # the image size that the reference assumes for every image


def score(points: Sequence[Point | Box], mask: Mask) -> float:
    """The fraction of `points` inside `mask` `[height, width]`, from 0 to 1; no points score 0.

    Points are normalised to the image that the mask belongs to. (1, 1) is the image's corner and belongs to its
    last pixel; what lies outside the image is a miss. Beside points boxes do not count (`points.counted`); otherwise a
    box weighs as many points as it has pixels, those outside the image included.
    """
    hits = total = 0
    for item in (points[place] for place in counted(points)):
        inside, count = _box_hits(item, mask) if isinstance(item, Box) else (int(_point_hits(item, mask)), 1)
        hits += inside
        total += count
    return hits / total if total else 0.0


def weight(points: Sequence[Point | Box], mask: Mask) -> float:
    """What an answer counts in the micro mean: a point 1, a box its pixels."""
    items = [points[place] for place in counted(points)]
    return float(sum(_box_hits(item, mask)[1] if isinstance(item, Box) else 1 for item in items))


def _point_hits(point: Point, mask: Mask) -> bool:
    height, width = mask.shape
    pixel = point.to_pixel(width, height)
    return pixel is not None and bool(mask[pixel[1], pixel[0]])


def _box_hits(box: Box, mask: Mask) -> tuple[int, int]:
    """Pixels of `box` inside the region, and all of its pixels (at least one)."""
    left, top, right, bottom = box_pixels(box, mask.shape)
    inside = mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return int(inside.sum()), (right - left) * (bottom - top)


def box_pixels(box: Box, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a box's pixels in an image [height, width], right and bottom one past the last."""
    (left, right), (top, bottom) = _pixel_range(box.x0, box.x1, shape[1]), _pixel_range(box.y0, box.y1, shape[0])
    return left, top, right, bottom


def _pixel_range(low: float, high: float, side: int) -> tuple[int, int]:
    first = _pixel(low, side)
    if low <= 1.0:
        first = min(first, side - 1)  # a box that is only the far edge lies in the last pixel
    return first, max(_pixel(high, side), first + 1)


def _pixel(value: float, side: int) -> int:
    """The pixel line that holds a coordinate, also outside the image; the small shift is that of `Point.to_pixel`."""
    return math.floor(value * side + 1e-6)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions with its 95 % interval; `low` and `high` are None where one image is all there is."""

    mean: float
    low: float | None
    high: float | None
    questions: int


def interval(
    values: Sequence[float] | Values,
    images: Sequence[Hashable],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Mean of `values` `[questions]` and its percentile bootstrap interval, resampling images, not questions.

    Args:
        bounds: the smallest and the largest value that is possible; used where all images have the same mean.
    Raises:
        ValueError: no values, or not one image a value.
    """
    sums, counts = _by_image(values, images)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2 or resamples < 1:
        return Interval(mean, None, None, int(counts.sum()))
    if np.ptp(sums / counts) <= ALIKE:
        low, high = _all_alike(mean, len(sums), level, bounds)
        return Interval(mean, low, high, int(counts.sum()))
    means = np.empty(resamples)
    chunk = max(1, 2_000_000 // len(sums))  # bounds the memory of the draws
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=size)  # [size, images]
        means[start : start + size] = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), int(counts.sum()))


def _all_alike(mean: float, images: int, level: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """The interval of a mean that all of `images` have.

    By the exact binomial (Clopper-Pearson) bound at most the share `other` of the images that were not asked can be
    otherwise; the mean moves most when all of these have the smallest, or the largest, value.
    """
    other = 1 - ((1 - level) / 2) ** (1 / images)
    return mean - other * (mean - min(mean, bounds[0])), mean + other * (max(mean, bounds[1]) - mean)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another on the questions both were asked; `p_value` as for `Interval`."""

    interval: Interval
    p_value: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0 and the test agrees: with few images the interval alone is too short."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or self.p_value is None:
            return False
        return (low > 0 or high < 0) and self.p_value < 1 - LEVEL


def difference(
    values: Sequence[float] | Values,
    others: Sequence[float] | Values,
    images: Sequence[Hashable],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Difference:
    """Mean of `values - others`, paired by question: a bootstrap interval and a permutation test, both by image.

    The permutation test exchanges the two models' answers to all questions about an image at once.
    """
    first, second = np.asarray(values, float), np.asarray(others, float)
    gap = interval(first - second, images, rng, resamples, bounds=(-1.0, 1.0))
    if gap.low is None:
        return Difference(gap, None)
    from scipy import stats  # half a second to import: not for callers that only score

    test = stats.permutation_test(
        (_by_image(first, images)[0], _by_image(second, images)[0]),
        lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // len(first)),
        rng=rng,
    )
    return Difference(gap, float(test.pvalue))


def _by_image(values: Sequence[float] | Values, images: Sequence[Hashable]) -> tuple[Values, Values]:
    """Sum and number of the values of each image, both `[images]`."""
    array = np.asarray(values, float)
    if array.size == 0 or len(array) != len(images):
        raise ValueError(f"{array.size} values for {len(images)} images: one each, and at least one, are needed")
    index: dict[Hashable, int] = {}
    places = np.array([index.setdefault(image, len(index)) for image in images])
    return np.bincount(places, weights=array).astype(np.float64), np.bincount(places).astype(np.float64)


# --- the reference's own scoring -------------------------------------------------------------------------------

_BRACKETS = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?")


def robopoint_score(text: str, mask: Values, size: tuple[int, int] = REFERENCE_SIZE) -> float | None:
    """What RoboPoint's script gives the answer `text`, or None where it skips the answer or dies on it.

    `mask` `[height, width]` holds grey values divided by 255, not binarised: a point on a JPEG edge counts in part.
    Coordinates are read from the whole text, and scaled by `size` (width, height) whatever the mask's size is.
    """
    groups: list[NDArray[np.generic]] = []
    try:
        for body in _BRACKETS.findall(text):
            numbers = _reference_numbers(body)
            if numbers is not None and len(numbers) in (2, 4):
                groups.append(_reference_pixels(numbers, size))
    except (ValueError, TypeError, OverflowError):
        return None  # an int of 5000 digits, a box of mixed ints and floats, infinity
    pixels = np.concatenate(groups) if groups else np.empty((0, 2), np.int64)
    if not len(pixels):
        return 0.0
    inside = np.ones(len(pixels), bool)
    for axis, side in ((0, mask.shape[1]), (1, mask.shape[0])):
        inside &= (pixels[:, axis] >= 0) & (pixels[:, axis] < side)
    if pixels.dtype.kind not in "iu":
        return None  # too large for an integer array: indexing with it is where the script dies
    hits = mask[pixels[inside, 1].astype(np.int64), pixels[inside, 0].astype(np.int64)]
    return float(np.concatenate([hits, np.zeros(int((~inside).sum()))]).mean())


def _reference_numbers(body: str) -> list[int | float] | None:
    """The numbers between two brackets, or None when the reference sees no coordinates there."""
    first, *rest = body.split(",")
    pieces = [first, *(piece.lstrip() for piece in rest)]  # a space is allowed after a comma and nowhere else
    if not all(_NUMBER.fullmatch(piece) for piece in pieces):
        return None
    return [float(piece) if "." in piece else int(piece) for piece in pieces]


def _reference_pixels(numbers: list[int | float], size: tuple[int, int]) -> NDArray[np.generic]:
    """Pixels `[n, 2]` (x, y) of a pair or a box; scaled when a pair holds a float, or a box begins with one."""
    scaled = any(isinstance(number, float) for number in (numbers if len(numbers) == 2 else numbers[:1]))
    if scaled:
        numbers = [int(number * size[place % 2]) for place, number in enumerate(numbers)]
    if len(numbers) == 2:
        return np.array([numbers])
    x0, y0, x1, y1 = numbers
    columns = range(*slice(x0, x1).indices(size[0]))  # negative ends count from the far side, as in a slice
    rows = range(*slice(y0, y1).indices(size[1]))
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)
    return grid.reshape(-1, 2).astype(np.int64)
