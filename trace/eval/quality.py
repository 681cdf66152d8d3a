"""What accuracy does not show: whether the reasoning is true, and whether the points of an answer are several places.

An answer can score well with one safe point written twice, or with reasoning about objects that are elsewhere. The reward
(`train.reward`), the evaluation during training and `summarize_vqa` measure it alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..core.points import Box, Mention, Point, find_points
from ..core.reasoning import Response

RADIUS = 0.02  # points closer than this are one place, in units of the image's longer side
Read = Callable[[str], Sequence[Mention]]
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")


def distinct_places(points: Sequence[Point | Box], size: tuple[int, int], radius: float = RADIUS) -> list[int]:
    """Return the indices of points that are no closer than `radius` to an earlier one of them; `size` is (width, height)."""
    kept: list[int] = []
    width, height = (side / max(size) for side in size)
    places = [(item.center.x * width, item.center.y * height) for item in points]
    for index, place in enumerate(places):
        if all(math.dist(place, places[other]) >= radius - 1e-6 for other in kept):
            kept.append(index)
    return kept


class Places(NamedTuple):
    """The places that an answer writes for objects. `due`: how many there are or, if those are more, should be."""

    true: int  # that lie on the object they are written for
    due: int
    first_step: bool | None  # whether all of the first step are true; None if it has to locate nothing


def true_places(
    response: Response, meta: Mapping[str, Any], instances: NDArray[Any], read: Read = find_points
) -> Places:
    """Compare the places in the first two steps with the objects that the question names and leads to.

    A place belongs to the name before it; behind the last one of a sentence the name may follow. An object counts once.

    Args:
        meta: of the sample, as the generator writes it (`references`, `target`, `hops`); nothing is due without it.
        instances: the instance map, `[height, width]`.
        read: reads the points of a text, in the answer's convention.
    """
    target, named = meta.get("target"), list(meta.get("references") or ())
    if target and not meta.get("relation"):
        target, named = None, [target]
    found = [hop for hop in meta.get("hops") or () if hop["instance"]] or ([target] if target else [])
    objects = [(item.get("instance"), [item["name"]]) for item in named]
    objects += [(item.get("instance"), [item["name"], item.get("noun") or item["category"]]) for item in found]
    names, (height, width), counts = {name for _, all_names in objects for name in all_names}, instances.shape, []
    left = list(objects)
    for step in map(response.step, ("reference", "target")):
        before, written = len(left), 0
        for sentence in _SENTENCE_ENDS.split(step.text) if step is not None else ():
            mentions, start = read(sentence), 0
            for mention in mentions:
                words = sentence[start : mention.start]
                if mention is mentions[-1] and not any(_is_in(name, words) for name in names):
                    words = sentence[mention.end :]  # "left of it at (0.24, 0.50): the mug"
                pixel = mention.item.center.to_pixel(width, height)
                instance = None if pixel is None else int(instances[pixel[1], pixel[0]])
                true = [one for one in left if one[0] == instance and any(_is_in(name, words) for name in one[1])]
                left, written, start = [one for one in left if one not in true], written + 1, mention.end
        counts.append((before - len(left), written))
    (first, written), (second, more) = counts
    first_step = first >= len(named) and first == written if named else None
    return Places(first + second, max(len(objects), written + more), first_step)


def _is_in(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) is not None


def answer_quality(
    response: Response, size: tuple[int, int], meta: Mapping[str, Any], instances: NDArray[Any] | None,
    read: Read = find_points,
) -> dict[str, float]:  # fmt: skip
    """Return `distinct_points`, and of reasoning that has to locate objects `true_places` and `true_first_step`."""
    quality = {"distinct_points": float(len(distinct_places(response.points, size)))}
    if instances is not None and response.steps:
        places = true_places(response, meta, instances, read)
        quality |= {"true_places": places.true / places.due} if places.due else {}
        quality |= {} if places.first_step is None else {"true_first_step": float(places.first_step)}
    return quality


def mean_quality(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each name over the answers that have it."""
    names = dict.fromkeys(name for answer in answers for name in answer)
    return {name: fmean(answer[name] for answer in answers if name in answer) for name in names}
