"""How sure a model is of a point: the probability of the tokens that wrote it, or the agreement of several answers.

The probability of a point is that of its tokens, averaged geometrically, so that points of three decimals are not
less sure than those of two. Agreement is the share of the other answers to the same question with a point nearby. An
answer that there is nothing to point at has the probability of the words that say so, or the share that says the same.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..core.reasoning import Response

NEAR = 0.05  # of the image's diagonal: points of two answers within it mean the same place


def point_confidence(
    tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[float], response: Response
) -> tuple[float, ...]:
    """One value in [0, 1] for each point of `response`, which was read from the text of `token_ids`; one for "none".

    () if the probabilities are unknown, or if text and points disagree.
    """
    if not logprobs or len(response.spans) != len(response.points):
        return ()
    spans = (response.none_span,) if response.none_span else response.spans

    def decode(count: int) -> str:
        return str(tokenizer.decode(list(token_ids[:count]), skip_special_tokens=True))

    def tokens_until(character: int) -> int:
        """How many tokens it takes to write the first characters of the text."""
        return bisect_left(range(len(token_ids)), character, key=lambda count: len(decode(count)))

    text = decode(len(token_ids))
    shift = len(text) - len(text.lstrip())  # the response's text is stripped
    confidence = []
    for start, end in spans:
        part = list(logprobs[tokens_until(start + shift + 1) - 1 : tokens_until(end + shift)])
        confidence.append(math.exp(sum(part) / len(part)) if part else 1.0)
    return tuple(confidence)


def agreement(responses: Sequence[Response], size: tuple[int, int], near: float = NEAR) -> list[tuple[float, ...]]:
    """For every point of every answer, the share of the others with a point nearby, in an image of `size`.

    Of an answer that there is nothing to point at, the share of the others that say the same.
    """
    points, limit = _pixels(responses, size), near * math.hypot(*size)
    shares = []
    for index, own in enumerate(points):
        others = points[:index] + points[index + 1 :]
        if responses[index].none:
            nones = sum(response.none for response in responses) - 1
            shares.append((nones / len(others) if others else 1.0,))
            continue
        near_own = [[any(math.dist(point, other) <= limit for other in answer) for answer in others] for point in own]
        shares.append(tuple(sum(agree) / len(agree) if agree else 1.0 for agree in near_own))
    return shares


def medoid(responses: Sequence[Response], size: tuple[int, int]) -> int:
    """The index of the answer whose points the others support most; the first of several, unreadable ones last."""
    support = [sum(shares) / len(shares) if shares else -1.0 for shares in agreement(responses, size)]
    points = _pixels(responses, size)

    def distance(index: int) -> float:
        """The mean distance in pixels of an answer's points to the nearest ones of the other answers."""
        others = [answer for other, answer in enumerate(points) if other != index and answer]
        nearest = [min(math.dist(point, other) for other in answer) for answer in others for point in points[index]]
        return sum(nearest) / len(nearest) if nearest else math.inf

    return max(range(len(support)), key=lambda index: (support[index], -distance(index)))


def _pixels(responses: Sequence[Response], size: tuple[int, int]) -> list[list[tuple[float, float]]]:
    return [[item.center.to_pixels(*size) for item in response.points] for response in responses]
