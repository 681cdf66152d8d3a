"""Statistics of scores: bootstrap intervals, paired differences of two models, calibration of confidences.

Questions about one image are not independent, so intervals resample images, and two models are compared on the questions
they share. If all images have the same mean (3 of 3 right), resampling gives no width and the exact binomial bound is
used. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
EQUAL_MEANS = 1e-9  # means of images that differ by no more are equal but for rounding


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over questions with its 95 % interval; `low` and `high` are None if there is only one image."""

    mean: float
    low: float | None
    high: float | None
    questions: int


def interval(
    values: Sequence[float] | Values, images: Sequence[Hashable], rng: np.random.Generator,
    resamples: int = RESAMPLES, level: float = LEVEL, bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:  # fmt: skip
    """Compute the mean of `values` `[questions]` and its percentile bootstrap interval over images.

    `bounds` are the smallest and the largest possible value; used if all images have the same mean.
    """
    sums, counts = _by_image(values, images)
    mean, questions = float(sums.sum() / counts.sum()), int(counts.sum())
    if len(sums) < 2 or resamples < 1:
        return Interval(mean, None, None, questions)
    if np.ptp(sums / counts) <= EQUAL_MEANS:
        # By the exact binomial (Clopper-Pearson) bound, at most this share of the images not asked can differ; the mean
        # moves most if all of these have the smallest, or the largest, value.
        share = 1 - ((1 - level) / 2) ** (1 / len(sums))
        low, high = mean - share * (mean - min(mean, bounds[0])), mean + share * (max(mean, bounds[1]) - mean)
        return Interval(mean, low, high, questions)
    means = np.empty(resamples)
    chunk = max(1, 2_000_000 // len(sums))  # bounds the memory of the draws
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=size)  # [size, images]
        means[start : start + size] = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), questions)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another on shared questions; `p_value` is None if `low` is."""

    interval: Interval
    p_value: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0 and the test agrees: with few images the interval alone is too short."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None or self.p_value is None:
            return False
        return (low > 0 or high < 0) and self.p_value < 1 - LEVEL


def difference(
    values: Sequence[float] | Values, others: Sequence[float] | Values, images: Sequence[Hashable],
    rng: np.random.Generator, resamples: int = RESAMPLES,
) -> Difference:  # fmt: skip
    """Compare two models question by question: a bootstrap interval of `values - others` and a permutation test.

    The permutation test exchanges the two models' answers to all questions about an image at once.
    """
    first, second = np.asarray(values, float), np.asarray(others, float)
    gap = interval(first - second, images, rng, resamples, bounds=(-1.0, 1.0))
    if gap.low is None:
        return Difference(gap, None)
    from scipy import stats  # half a second to import: not for callers that only need intervals

    test = stats.permutation_test(
        (_by_image(first, images)[0], _by_image(second, images)[0]), lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=resamples, batch=max(1, 1_000_000 // len(first)),
        rng=rng,
    )  # fmt: skip
    return Difference(gap, float(test.pvalue))


def _by_image(values: Sequence[float] | Values, images: Sequence[Hashable]) -> tuple[Values, Values]:
    """Return the sum and the number of the values of each image, both `[images]`."""
    array = np.asarray(values, float)
    if array.size == 0 or len(array) != len(images):
        raise ValueError(f"{array.size} values for {len(images)} images: at least one value, and one image per value")
    index: dict[Hashable, int] = {}
    positions = np.array([index.setdefault(image, len(index)) for image in images])
    return np.bincount(positions, weights=array).astype(np.float64), np.bincount(positions).astype(np.float64)


BINS = 10
COVERAGES = tuple(round(0.1 * step, 1) for step in range(1, 11))


def calibration(
    points: Sequence[tuple[float, float]], answers: Sequence[tuple[float, float]], answered: float = 1.0
) -> dict[str, Any] | None:
    """Compute a model's reliability, expected calibration error and risk against coverage; None without confidences.

    `points` and `answers` are pairs of confidence and score; a point scores 1 inside the region, 0 outside. `answered`
    is the share of the questions in which the model does not say that there is nothing to point at: coverage is a part
    of it.
    """
    if not points or not answers:
        return None
    bins = reliability(points)
    error = sum(b["points"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / sum(b["points"] for b in bins)
    risks = risk_coverage(answers)
    return {
        "points": len(points), "answers": len(answers),
        "mean_confidence": float(np.mean([confidence for confidence, _ in points])),
        "ece": error, "reliability": bins,
        "risk_coverage": [{"coverage": share, "risk": risk} for share, risk in zip(COVERAGES, risks, strict=True)],
        "aurc": float(np.mean(_risks(answers))), "answered": answered,
    }  # fmt: skip


def reliability(points: Sequence[tuple[float, float]], bins: int = BINS) -> list[dict[str, float]]:
    """Return the bins of equal width in confidence that hold points, with their mean confidence and accuracy."""
    confidence, right = np.array(points, float).T
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {"low": number / bins, "high": (number + 1) / bins, "points": int((index == number).sum()),
         "confidence": float(confidence[index == number].mean()), "accuracy": float(right[index == number].mean())}
        for number in np.unique(index).tolist()
    ]  # fmt: skip


def risk_coverage(answers: Sequence[tuple[float, float]]) -> list[float]:
    """Return 1 - mean score of the most confident answers, for each share of `COVERAGES`."""
    risks = _risks(answers)
    return [float(risks[max(1, round(share * len(risks))) - 1]) for share in COVERAGES]


def _risks(answers: Sequence[tuple[float, float]]) -> Values:
    """Return the risk of the n most confident answers for every n; ties count with their mean."""
    confidence, scores = np.array(answers, float).T
    order = np.argsort(-confidence, kind="stable")
    loss, confidence = 1 - scores[order], confidence[order]
    _, group = np.unique(confidence, return_inverse=True)
    loss = (np.bincount(group, weights=loss) / np.bincount(group))[group]
    risks: Values = np.cumsum(loss) / np.arange(1, len(loss) + 1)
    return risks
