"""The reward of an answer, in parts from 0 to 1 that a mask and an instance map decide; docs/rl.md explains them.

Points that are closer than `radius` to an earlier one add nothing, and `mask` is over the larger of the points written
and asked for: one safe point, once or repeated, scores less than several. The length of an answer has no part in it.
Where nothing is there to point at (the mask is empty), the answer that says so has all of these parts, a point none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..core.points import Box
from ..core.reasoning import STEPS, Response
from ..eval.benchmark import Mask
from ..eval.error_classes import RegionDistances
from ..eval.quality import distinct_places, true_places
from .config import Reward


def reward_parts(
    response: Response, mask: Mask, meta: Mapping[str, Any], instances: NDArray[Any] | None, settings: Reward,
    reasoning: bool, cut: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Return the parts of an answer's reward; `place` only where the reasoning has something to locate.

    Args:
        mask: the ground-truth region, `[height, width]`, as `instances`, the instance map.
        meta: of the sample: `points`, as many as are asked for unless the settings say, and the generator's objects.
        reasoning: whether the answer was to reason first.
        cut: whether the answer ended at the limit of tokens.
    """
    points = response.points
    asked = settings.points or len(meta.get("points") or ()) or max(1, len(points))
    steps = tuple(step.key for step in response.steps)
    formed = steps == (STEPS if reasoning else ()) and (response.answer_span is not None or not reasoning)
    formed = formed and response.parsable and not cut and not any(isinstance(item, Box) for item in points)
    if not mask.any():
        right = float(response.none)
        return {"format": float(formed), "mask": right, "distinct": right, "count": right}
    kept = distinct_places(points, mask, settings.radius)
    distances = RegionDistances(mask).measure([points[index].center for index in kept])
    near = sum(max(0.0, 1.0 - distance / (settings.falloff * max(mask.shape))) for distance in distances)
    parts = {
        "format": float(formed), "mask": near / max(asked, len(points)), "distinct": len(kept) / max(1, len(points)),
        "count": max(0.0, 1.0 - abs(len(points) - asked) / asked),
    }  # fmt: skip
    if reasoning and instances is not None:
        true, due, _ = true_places(response, meta, instances)
        parts |= {"place": true / due} if due else {}
    return parts


def total_reward(parts: Mapping[str, float], settings: Reward) -> float:
    return sum(getattr(settings, name) * value for name, value in parts.items())
