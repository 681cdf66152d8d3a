"""Whether a model's confidence means anything: reliability, expected calibration error, risk against coverage.

Points count for reliability (is a point that is 0.8 sure right in 80 % of the cases?), answers for risk: the mean loss
of those kept when only the surest share of the questions is answered.
"""

from __future__ import annotations

import math
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


def draw(found: Mapping[str, Mapping[str, Any]], path: Path, colors: Mapping[str, str]) -> None:
    """The reliability diagram, the points of each bin and the risk-coverage curves of several models as a PNG.

    `found` maps labels to what `calibration` returns, `colors` labels to the models' colours.
    """
    from ..drawing.canvas import DPI, Page, save
    from ..drawing.fonts import families

    page = Page(900, 545 + 16 * len(found))  # the legends stand below, where no curve is
    reliable, counts, risks = page.axes(70, 40, 350, 300), page.axes(70, 365, 350, 120), page.axes(520, 40, 350, 445)
    reliable.plot([0, 1], [0, 1], color="#9aa4b0", linewidth=1, linestyle="--")
    for place, (label, one) in enumerate(found.items()):
        bins, steps = one["reliability"], one["risk_coverage"]
        style = {"color": colors[label], "markersize": 4}
        reliable.plot([bar["confidence"] for bar in bins], [bar["accuracy"] for bar in bins], "o-", **style)
        width = 0.9 / BINS / len(found)
        left = [bar["low"] + 0.05 / BINS + place * width for bar in bins]
        bars = counts.bar(left, [bar["points"] for bar in bins], width, align="edge", color=colors[label],
                          label=f"{label}: ECE {one['ece']:.3f}")  # fmt: skip
        counts.bar_label(bars, fontsize=7, rotation=0 if len(found) == 1 else 90, padding=2)
        risks.plot([step["coverage"] for step in steps], [step["risk"] for step in steps], "o-", **style,
                   label=f"{label}: mean risk {one['aurc']:.3f}")  # fmt: skip
    bins = [bar for one in found.values() for bar in one["reliability"]]
    x = min(bar["low"] for bar in bins), max(bar["high"] for bar in bins)
    shares = [bar[name] for bar in bins for name in ("confidence", "accuracy")]
    losses = [step["risk"] for one in found.values() for step in one["risk_coverage"]]
    most = max(bar["points"] for bar in bins)
    for axes, title, settings in (
        (reliable, "Reliability", {"xlim": x, "ylim": _around(shares), "ylabel": "share inside the region"}),
        (counts, "", {"xlim": x, "ylim": (0, 1.4 * most), "xlabel": "confidence of a point", "ylabel": "points"}),
        (risks, "Risk and coverage", {"xlim": (0, 1.02), "ylim": _around(losses),
                                      "xlabel": "share of the questions answered", "ylabel": "1 - accuracy of those"}),
    ):  # fmt: skip
        axes.set(**settings)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8.5)
        axes.grid(color="#e6e9ed", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, below in ((counts, -0.33), (risks, -0.09)):
        font = {"family": families(" ".join(found)), "size": 8}
        axes.legend(prop=font, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, below))
    save(page.figure, path, scale=150 / DPI)


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The tenths around some shares, with a little room: what is shown of an axis from 0 to 1."""
    low, high = math.floor(10 * min(values) + 1e-9) / 10, math.ceil(10 * max(values) - 1e-9) / 10
    return low - 0.01, max(high, low + 0.1) + 0.01
