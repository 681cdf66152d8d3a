"""Whether a model's confidence means anything: reliability, expected calibration error, risk against coverage.

Points count for reliability (is a point that is 0.8 sure right in 80 % of the cases?), answers for risk: the mean loss
of those kept when only the surest share of the questions is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BINS = 10
COVERAGES = tuple(round(0.1 * step, 1) for step in range(1, 11))


def calibration(points: Sequence[tuple[float, float]], answers: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """The numbers of a model; None when it gave no confidence.

    Args:
        points: (confidence, 1 if inside the region else 0) of every point.
        answers: (confidence, score) of every answer that has one.
    """
    if not points or not answers:
        return None
    bins = reliability(points)
    total = sum(one["points"] for one in bins)
    error = sum(one["points"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / total
    risks = risk_coverage(answers)
    return {
        "points": len(points),
        "answers": len(answers),
        "mean_confidence": float(np.mean([sure for sure, _ in points])),
        "ece": error,
        "reliability": bins,
        "risk_coverage": [{"coverage": share, "risk": risk} for share, risk in zip(COVERAGES, risks, strict=True)],
        "aurc": float(np.mean(_risks(answers))),
    }


def reliability(points: Sequence[tuple[float, float]], bins: int = BINS) -> list[dict[str, float]]:
    """Equally wide bins of confidence with their mean confidence and accuracy; empty ones are left out."""
    sure, right = np.array(points, float).T
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "points": int((place == number).sum()),
            "confidence": float(sure[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
        }
        for number in range(bins)
        if (place == number).any()
    ]


def risk_coverage(answers: Sequence[tuple[float, float]]) -> list[float]:
    """1 - mean score of the surest answers, for each share of `COVERAGES`."""
    risks = _risks(answers)
    return [float(risks[max(1, round(share * len(risks))) - 1]) for share in COVERAGES]


def _risks(answers: Sequence[tuple[float, float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The risk of the surest n answers, for every n; equally sure ones count with their mean."""
    sure, scores = np.array(answers, float).T
    order = np.argsort(-sure, kind="stable")
    loss, sure = 1 - scores[order], sure[order]
    _, group = np.unique(sure, return_inverse=True)
    loss = (np.bincount(group, weights=loss) / np.bincount(group))[group]
    return np.cumsum(loss) / np.arange(1, len(loss) + 1)


def draw(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The reliability diagram and the risk-coverage curves of several models (label -> `calibration`) as a PNG."""
    from ..canvas import DPI, Page, save
    from ..plots import COLORS

    page = Page(900, 425 + 14 * len(found))  # the legends stand below, where no curve is
    left, right = page.axes(70, 40, 350, 330), page.axes(520, 40, 350, 330)
    left.plot([0, 1], [0, 1], color="#9aa4b0", linewidth=1, linestyle="--")
    for place, (label, one) in enumerate(found.items()):
        color = COLORS[place % len(COLORS)]
        bins = one["reliability"]
        left.plot(
            [bar["confidence"] for bar in bins], [bar["accuracy"] for bar in bins], "o-", color=color, markersize=4,
            label=f"{label}: ECE {one['ece']:.3f}",
        )  # fmt: skip
        right.plot(
            [step["coverage"] for step in one["risk_coverage"]], [step["risk"] for step in one["risk_coverage"]],
            "o-", color=color, markersize=4, label=f"{label}: mean risk {one['aurc']:.3f}",
        )  # fmt: skip
    for axes, x, y, title in (
        (left, "confidence of a point", "share inside the region", "Reliability"),
        (right, "share of the questions answered", "1 - accuracy of those", "Risk and coverage"),
    ):
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(color="#e6e9ed", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.13))
    save(page.figure, path, scale=150 / DPI)
