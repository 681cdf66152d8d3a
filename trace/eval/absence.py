"""Questions about what is not there: how often a model points all the same, or says "none" where something is.

The right answer to a question whose mask is empty is that there is nothing to point at (`core.absence`). Saying so is
also how a model abstains: `risk` is the error of the answers that point, `coverage` their share of the questions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .statistics import interval


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One value a question, each a share of the answers to it (0 or 1 with one answer)."""

    none: list[float] = field(default_factory=list)  # that say that there is nothing
    pointed: list[float] = field(default_factory=list)  # that hold a point
    scores: list[float] = field(default_factory=list)

    def add(self, none: float, pointed: float, score: float) -> None:
        self.none.append(none)
        self.pointed.append(pointed)
        self.scores.append(score)


def mean_outcomes(runs: Sequence[Outcomes]) -> Outcomes:
    """Average the runs of a model question by question."""
    parts = ([getattr(run, name) for run in runs] for name in ("none", "pointed", "scores"))
    return Outcomes(*(np.mean(part, axis=0).tolist() for part in parts))


def summarize_absence(
    outcomes: Outcomes, absent: Sequence[bool], images: Sequence[Hashable], seed: int, resamples: int
) -> dict[str, Any]:
    """Compare a model's answers where something is there and where nothing is.

    Args:
        absent: for each question, whether nothing is there; at least once.
    Returns:
        `accuracy` and `false_none` over the questions where something is there, `false_points` over the others (each
        with its interval over images, None without such questions), `f1` of "none", `coverage` and `risk` (None if no
        answer points).
    """
    missing = np.array(absent)
    none, pointed, scores = (np.array(part, float) for part in (outcomes.none, outcomes.pointed, outcomes.scores))

    def over(values: Any, chosen: Any) -> dict[str, Any] | None:
        where = np.flatnonzero(chosen)
        if not len(where):
            return None
        rng = np.random.default_rng(seed)
        return asdict(interval(values[where], [images[index] for index in where.tolist()], rng, resamples))

    right, said = float(none[missing].sum()), float(none.sum())
    coverage = float(pointed.mean())
    return {
        "accuracy": over(scores, ~missing), "false_none": over(none, ~missing), "false_points": over(pointed, missing),
        "f1": 2 * right / (said + float(missing.sum())),
        "coverage": coverage,
        "risk": 1 - float(scores[~missing].sum() / pointed.sum()) if coverage else None,
    }  # fmt: skip
