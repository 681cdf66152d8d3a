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

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
ALIKE = 1e-9  # means of images that differ by no more are equal but for rounding


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
