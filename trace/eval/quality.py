"""What accuracy does not show: whether the reasoning is true, and whether the points of an answer are several places.

The reward (`train.reward`), the evaluation during training and `summarize_vqa` measure it alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from numpy.typing import NDArray

from ..core.points import Box, Point
from ..core.reasoning import Response
from .benchmark import Mask

RADIUS = 0.02  # points closer than this are one place, in units of the image's longer side
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")


def distinct_places(points: Sequence[Point | Box], mask: Mask, radius: float = RADIUS) -> list[int]:
    """Return the indices of points that are no closer than `radius` to an earlier one; `mask` has the image's size."""
    kept: list[int] = []
    height, width = (side / max(mask.shape) for side in mask.shape)
    places = [(item.center.x * width, item.center.y * height) for item in points]
    for index, place in enumerate(places):
        if all(math.dist(place, places[other]) >= radius - 1e-6 for other in kept):
            kept.append(index)
    return kept


def true_places(response: Response, meta: Mapping[str, Any], instances: NDArray[Any]) -> tuple[int, int, bool | None]:
    """Compare the places in the first two steps with the objects that the question names and leads to.

    The object under a place must be named before it, or behind the last place of a sentence, and counts once.

    Args:
        meta: of the sample, as the generator writes it (`references`, `target`, `hops`); nothing is due without it.
        instances: the instance map, `[height, width]`.
    Returns:
        How many places lie on the object they are written for, how many there are or (if more) should be, and whether
        all of the first step are true; None if it has to locate nothing.
    """
    target, named = meta.get("target"), list(meta.get("references") or ())
    if target and not meta.get("relation"):
        target, named = None, [target]
    found = [hop for hop in meta.get("hops") or () if hop["instance"]] or ([target] if target else [])
    objects = [(item.get("instance"), [item["name"]]) for item in named]
    objects += [(item.get("instance"), [item["name"], item.get("noun") or item["category"]]) for item in found]
    (height, width), left, counts = instances.shape, list(objects), []
    for step in map(response.step, ("reference", "target")):
        before, written = len(left), 0
        for sentence in _SENTENCE_ENDS.split(step.text) if step is not None else ():
            mentions, start = response.read(sentence), 0
            for mention in mentions:
                words = sentence[start : mention.start]
                if mention is mentions[-1]:  # "left of the can at (0.24, 0.50): the mug"
                    words += sentence[mention.end :]
                pixel = mention.item.center.to_pixel(width, height)
                instance = None if pixel is None else int(instances[pixel[1], pixel[0]])
                true = [one for one in left if one[0] == instance and any(_is_in(name, words) for name in one[1])]
                left, written, start = [one for one in left if one not in true], written + 1, mention.end
        counts.append((before - len(left), written))
    (first, written), (second, more) = counts
    first_step = first >= len(named) and first == written if named else None
    return first + second, max(len(objects), written + more), first_step


def _is_in(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) is not None


def answer_quality(
    response: Response, mask: Mask, meta: Mapping[str, Any], instances: NDArray[Any] | None
) -> dict[str, float]:
    """Return `distinct_points`, and of reasoning that has to locate objects `true_places` and `true_first_step`."""
    quality = {"distinct_points": float(len(distinct_places(response.points, mask)))}
    if instances is not None and response.steps:
        true, due, first_step = true_places(response, meta, instances)
        quality |= {"true_places": true / due} if due else {}
        quality |= {} if first_step is None else {"true_first_step": float(first_step)}
    return quality


def mean_quality(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each name over the answers that have it."""
    names = dict.fromkeys(name for answer in answers for name in answer)
    return {name: fmean(answer[name] for answer in answers if name in answer) for name in names}
