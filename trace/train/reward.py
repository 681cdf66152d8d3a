"""The reward of an answer, for reinforcement learning: verifiable, from a mask and an instance map, in parts from 0 to 1.

format   the answer has the asked form: with reasoning the four steps in their order, then a list of points
mask     points on the mask over the larger of the points written and asked for; outside, the value falls with distance
count    as many points as asked for
distinct the share of points that are no closer than `radius` to another one
place    the share of places in the reasoning that lie on the object they are written for

Points that are closer than `radius` to an earlier one add nothing to `mask`, so one safe point, once or repeated, scores
less than several. The length of an answer has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ..core.points import Box, Mention, find_points
from ..core.reasoning import STEPS, Response
from ..eval.benchmark import Mask
from ..eval.error_classes import RegionDistances
from ..eval.quality import distinct_places, true_places
from .config import Reward


def reward_parts(
    response: Response, mask: Mask, meta: Mapping[str, Any], settings: Reward, reasoning: bool, *,
    instances: NDArray[Any] | None = None, cut: bool = False,
    read: Callable[[str], Sequence[Mention]] = find_points,
) -> dict[str, float]:  # fmt: skip
    """Return the parts of an answer's reward; `place` only where the reasoning has something to locate.

    Args:
        mask: the ground-truth region, `[height, width]`.
        meta: of the sample: `points`, as many as are asked for unless the settings say, and the generator's objects.
        reasoning: whether the answer was to reason first.
        instances: the instance map, `[height, width]`; without it there is no part `place`.
        cut: whether the answer ended at the limit of tokens.
        read: reads the points of the steps, in the answer's convention.
    """
    points, size = response.points, (mask.shape[1], mask.shape[0])
    asked = settings.points or len(meta.get("points") or ()) or max(1, len(points))
    steps = tuple(step.key for step in response.steps)
    formed = steps == (STEPS if reasoning else ()) and bool(points) and not cut
    formed = formed and (response.answer_span is not None or not reasoning)
    kept = distinct_places(points, size, settings.radius)
    distances = RegionDistances(mask).measure([points[index].center for index in kept])
    near = sum(max(0.0, 1.0 - distance / (settings.falloff * max(size))) for distance in distances)
    parts = {
        "format": float(formed and not any(isinstance(item, Box) for item in points)),
        "mask": near / max(asked, len(points)),
        "count": max(0.0, 1.0 - abs(len(points) - asked) / asked),
        "distinct": len(kept) / max(1, len(points)),
    }
    if reasoning and instances is not None:
        places = true_places(response, meta, instances, read)
        parts |= {"place": places.true / places.due} if places.due else {}
    return parts


def total_reward(parts: Mapping[str, float], settings: Reward) -> float:
    return sum(getattr(settings, name) * value for name, value in parts.items())
