"""How sure a model is of a point: from the probabilities of the tokens that wrote it, or from how far answers agree.

The probability of a point is that of its tokens, averaged geometrically, so that points of three decimals are not
less sure than those of two. Agreement is the share of the other answers to the same question that hold a point
nearby. Whether either means anything is what `eval.calibration` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..core.points import Point
from ..core.reasoning import Response

NEAR = 0.05  # of the image's diagonal: two answers that lie closer mean the same place


def point_confidence(
    tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[float], response: Response
) -> tuple[float, ...]:
    """One value in [0, 1] for each point of `response`, whose text is what `token_ids` say.

    () when the probabilities are not known, or text and points disagree.
    """
    if not logprobs:
        return ()
    if len(response.spans) != len(response.points):
        return ()
    raw = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    shift = len(raw) - len(raw.lstrip())  # the response's text is stripped
    found = []
    for start, end in response.spans:
        first = _tokens_of(tokenizer, token_ids, start + shift + 1) - 1
        last = _tokens_of(tokenizer, token_ids, end + shift)
        part = list(logprobs[first:last])
        found.append(math.exp(sum(part) / len(part)) if part else 1.0)
    return tuple(found)


def _tokens_of(tokenizer: Any, token_ids: Sequence[int], characters: int) -> int:
    """How many tokens are needed for the first `characters` of the text."""
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(list(token_ids[:middle]), skip_special_tokens=True)) >= characters:
            high = middle
        else:
            low = middle + 1
    return low


def centers(response: Response) -> list[Point]:
    """The points of an answer, a box by its centre."""
    return [item.center for item in response.points]


def agreement(responses: Sequence[Response], size: tuple[int, int], near: float = NEAR) -> list[tuple[float, ...]]:
    """For every point of every answer, the share of the other answers that hold a point nearby.

    Args:
        size: (width, height) of the image, as nearness is counted in its pixels.
    """
    points = [[point.to_pixels(*size) for point in centers(response)] for response in responses]
    limit = near * math.hypot(*size)
    found = []
    for place, own in enumerate(points):
        others = [other for number, other in enumerate(points) if number != place]
        found.append(
            tuple(
                sum(any(math.dist(point, other) <= limit for other in answer) for answer in others) / len(others)
                if others
                else 1.0
                for point in own
            )
        )
    return found


def medoid(responses: Sequence[Response], size: tuple[int, int]) -> int:
    """The number of the answer whose points the others support most; the first of several, unreadable ones last."""
    support = [sum(one) / len(one) if one else -1.0 for one in agreement(responses, size)]
    return max(range(len(support)), key=lambda place: (support[place], -_distance(responses, place, size)))


def _distance(responses: Sequence[Response], place: int, size: tuple[int, int]) -> float:
    """The mean distance in pixels of an answer's points to the nearest ones of the other answers."""
    points = [[point.to_pixels(*size) for point in centers(response)] for response in responses]
    nearest = [
        min(math.dist(point, other) for other in answer)
        for number, answer in enumerate(points)
        if number != place and answer
        for point in points[place]
    ]
    return sum(nearest) / len(nearest) if nearest else math.inf
