"""Error classes: why an answer, or a part of it, did not score.

Shares are of questions: an answer with four points of which one misses gives a quarter to that point's class, so that a
model's accuracy and its classes add up to 1. Of a box, each pixel outside the region has its own class. The classes need
the question's `meta` as the scene generator writes it: `references` (`instance`, `box`, `center`), `instances` (an image
of object numbers), `relation`. Without it, a miss is "elsewhere".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.images import on_object, open_instances
from ..core.points import Box, Point, scored_indices
from ..core.reasoning import THOUGHTS, THOUGHTS_END, Response
from ..core.records import Question
from ..utils.command import InputError
from .benchmark import Mask
from .rules import ALL_POINTS, NOTHING, SHARE, YES_NO, counted_points, is_readable, rule_of

UNANSWERED = "not answered"
CUT = "cut"  # no point, because the answer ended at the token limit
UNPARSABLE = "unparsable"
OUTSIDE = "outside the image"
ON_REFERENCE = "on the reference object"
ON_OBJECT = "on another object"
TOO_FAR = "right side but too far"
BESIDE = "right side but beside the region"
WRONG_WAY = "wrong direction"
ELSEWHERE = "elsewhere"
WRONG_WORD = "no instead of yes, or yes instead of no"
WRONG_NUMBER = "another number of points"
FALSE_POINT = "points, though nothing is there"
FALSE_NONE = "none, though something is there"
CLASSES = (UNANSWERED, CUT, UNPARSABLE, OUTSIDE, ON_REFERENCE, ON_OBJECT, TOO_FAR, BESIDE, WRONG_WAY, ELSEWHERE,
           WRONG_WORD, WRONG_NUMBER, FALSE_POINT, FALSE_NONE)  # fmt: skip
DIRECTIONS = ("left", "right", "in front", "front", "behind", "above", "below")
MIN_COSINE = math.cos(math.radians(60))  # a point on the right side is less than this off the region's direction


class ErrorClassifier:
    """Classifies the points that miss one question's region; `root` is the benchmark's folder."""

    def __init__(self, question: Question, mask: Mask, root: Path) -> None:
        self.mask, self.meta = mask, question.meta
        hops = question.meta.get("hops") or ()  # of a chain: what the relation refers to is the last object before it
        references = [*(question.meta.get("references") or ()), *hops[:-1]]
        self.references = [reference for reference in references if isinstance(reference, Mapping)]
        self.instances: NDArray[np.int64] | None = None
        path = root / str(question.meta.get("instances") or "")
        if path.resolve().is_relative_to(root.resolve()) and path.is_file():
            try:
                instances = open_instances(path).astype(np.int64)
            except InputError as error:
                raise InputError(f"question {question.question_id}: {error}") from None
            self.instances = instances if instances.shape == mask.shape else None

    def shares(self, points: Sequence[Point | Box], cut: bool = False) -> dict[str, float]:
        """Return class -> share of the answer; `cut`: it ended at the token limit."""
        if not points:
            return {CUT if cut else UNPARSABLE: 1.0}
        items = [points[index] for index in scored_indices(points)]
        missing = [item for item in points if isinstance(item, Point) and not self._hits(item)]
        classes = dict(zip(missing, self.classify(missing), strict=True))
        total, missed = 0, list[tuple[str, float]]()
        for item in items:
            if isinstance(item, Box):
                weight, pixels = self._classify_box(item)
                missed += pixels.items()
            else:
                weight = 1
                missed += [(classes[item], 1.0)] if item in classes else []
            total += weight
        shares: dict[str, float] = {}
        for name, amount in missed:
            shares[name] = shares.get(name, 0.0) + amount / total
        return shares

    def classify(self, points: Sequence[Point]) -> list[str]:
        """Return the classes of points that miss."""
        x, y = np.array([(point.x, point.y) for point in points if point.inside]).reshape(-1, 2).T
        classes = iter(self._classify(x, y))
        return [next(classes) if point.inside else OUTSIDE for point in points]

    def _hits(self, point: Point) -> bool:
        height, width = self.mask.shape
        pixel = point.to_pixel(width, height)
        return pixel is not None and bool(self.mask[pixel[1], pixel[0]])

    def _classify_box(self, box: Box) -> tuple[int, dict[str, float]]:
        """Return the number of pixels of a box, and class -> pixels that miss."""
        height, width = self.mask.shape
        left, top, right, bottom = box.to_pixel_range(width, height)
        first = np.array([max(top, 0), max(left, 0)])
        inner = self.mask[first[0] : max(bottom, 0), first[1] : max(right, 0)]
        y, x = (np.argwhere(~inner) + first + 0.5).T
        size = (right - left) * (bottom - top)
        classes = {**Counter(self._classify(x / width, y / height)), OUTSIDE: size - inner.size}
        return size, {name: float(pixels) for name, pixels in classes.items() if pixels}

    def _classify(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[str]:
        """Return the classes of missing points inside the image, normalised `x` and `y` `[points]`."""
        height, width = self.mask.shape
        columns = np.minimum((x * width + 1e-6).astype(int), width - 1)  # as Point.to_pixel
        rows = np.minimum((y * height + 1e-6).astype(int), height - 1)
        classes = self._classify_direction(columns, rows)
        if self.instances is not None:
            instance = self.instances[rows, columns]
            named = [number for one in self.references if isinstance(number := one.get("instance"), int)]
            classes[on_object(instance)] = ON_OBJECT
            classes[on_object(instance) & np.isin(instance, named)] = ON_REFERENCE
        else:
            for reference in self.references:
                if box := reference.get("box"):
                    classes[(box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3])] = ON_REFERENCE
        return list(classes)

    def _classify_direction(self, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """Compare each pixel with the region in direction and distance, seen from the only reference, or a chain's last."""
        relation, height, width = self.meta.get("relation"), *self.mask.shape
        walked = len(self.references) == 1 or len(self.meta.get("hops") or ()) > 1
        center = self.references[-1].get("center") if walked else None
        if relation not in DIRECTIONS or not isinstance(center, list | tuple) or len(center) != 2:
            return np.full(len(columns), ELSEWHERE, object)
        origin = np.array([center[0] * width, center[1] * height])
        region = np.argwhere(self.mask)[:, ::-1] + 0.5 - origin
        direction = region.mean(0) / max(float(np.hypot(*region.mean(0))), 1e-9)
        offset = np.stack([columns, rows], axis=-1) + 0.5 - origin
        distance = np.hypot(*offset.T)
        right_side = (distance >= 1e-9) & (offset @ direction >= MIN_COSINE * distance)
        far = distance > float(np.hypot(*region.T).max())
        return np.where(right_side, np.where(far, TOO_FAR, BESIDE), WRONG_WAY).astype(object)


def answer_errors(
    question: Question, response: Response, right: bool, cut: bool, classifier: ErrorClassifier | None
) -> dict[str, float]:
    """Return class -> share of an answer by the question's rule; `classifier` is None for yes and no, without a mask."""
    if right:
        return {}
    if classifier is None:
        return {WRONG_WORD if is_readable(question, response) else CUT if cut else UNPARSABLE: 1.0}
    if response.parsable and rule_of(question) == NOTHING:
        return {FALSE_POINT: 1.0}
    if response.none:
        return {FALSE_NONE: 1.0}
    shares = classifier.shares(counted_points(question, response.points), cut)
    if rule_of(question) != ALL_POINTS:
        return shares
    total = sum(shares.values())  # one miss makes the whole answer wrong
    return {name: share / total for name, share in shares.items()} or {WRONG_NUMBER: 1.0}


class RegionDistances:
    """Distances in pixels to the nearest pixel of a region `[height, width]`, 0 inside it.

    The nearest columns of the region to the left and right of every pixel are computed once per row, as a distance
    transform begins; a point then looks at one pixel per row, however large the region is.
    """

    def __init__(self, mask: Mask) -> None:
        self.shape = mask.shape
        self.rows = np.flatnonzero(mask.any(axis=1))
        region, columns = mask[self.rows], np.arange(mask.shape[1], dtype=np.float32)
        self.left = np.maximum.accumulate(np.where(region, columns, -np.inf), axis=1)
        self.right = np.minimum.accumulate(np.where(region, columns, np.inf)[:, ::-1], axis=1)[:, ::-1]

    def measure(self, points: Sequence[Point]) -> list[float]:
        """Return the distance of each point."""

        def gap(pixels: NDArray[Any], position: float) -> NDArray[np.float64]:  # pixels have size 1
            first = pixels.astype(np.float64)
            return np.maximum(np.maximum(first - position, position - first - 1.0), 0.0)

        distances = []
        for point in points:
            x, y = point.x * self.shape[1], point.y * self.shape[0]
            column = int(min(max(x, 0.0), self.shape[1] - 1.0))
            across = np.minimum(gap(self.left[:, column], x), gap(self.right[:, column], x))
            distances.append(float(np.hypot(across, gap(self.rows, y)).min()))
        return distances


EXAMPLES = 3
EXAMPLE_LENGTH = 120  # characters

_NUMBER = r"\d++(?:\.\d++)?+"
# The first pattern that occurs in the text names the reason.
_REASONS = (
    ("percent signs", re.compile(r"\d\.?+\s{0,3}+(?:%|％|percent)", re.IGNORECASE)),
    ("special tokens", re.compile(r"<\|?[a-z_]{1,30}+\d{1,6}+\|?>|<\|\w{1,30}+\|>", re.IGNORECASE)),
    ("XML tags of another convention", re.compile(r"<points?\b", re.IGNORECASE)),
    ("decimal commas", re.compile(r"(?<![\d.])\d,\d++\s{0,3}+[;/|]|(?<![\d.])0,\d++\s{0,3}+,?+\s{0,3}+0,\d")),
    ("three numbers in brackets", re.compile(rf"[(\[] ?+(?:-?{_NUMBER} ?+, ?+){{2}}-?{_NUMBER} ?+[)\]]")),
    ("cut inside a point", re.compile(r"[(\[]\s{0,3}+[-\d.,\s]{0,40}+\Z")),
    ("another form of brackets", re.compile(rf"[(\[{{<]\s{{0,3}}+-?{_NUMBER}")),
    ("no brackets", re.compile(r"\d")),
)  # fmt: skip


class UnparsedAnswer(NamedTuple):
    question_id: str
    text: str  # on one line, shortened
    reason: str


def explain_unparsed(question_id: object, response: Response, cut: bool = False, rule: str = SHARE) -> UnparsedAnswer:
    """Name the reason why `response` does not hold what `rule` needs; `cut`: it ended at the token limit."""
    text = response.text
    line = " ".join(text.split())
    if len(line) > EXAMPLE_LENGTH:  # its beginning and its end, where the points should be
        line = f"{line[: EXAMPLE_LENGTH // 2].rstrip()} ... {line[-EXAMPLE_LENGTH // 2 :].lstrip()}"
    answer = text[slice(*response.answer_span)] if response.answer_span else text
    thinking = text.rfind(THOUGHTS) > text.rfind(THOUGHTS_END)
    if not line:
        reason = "empty"
    elif response.answer_span is None and (thinking or response.steps or cut):
        reason = "cut before the final answer"
    elif rule == YES_NO:
        reason = "neither yes nor no"
    else:
        reason = next((name for name, pattern in _REASONS if pattern.search(answer)), "no numbers")
        if cut and reason in ("no numbers", "cut inside a point"):
            reason = "cut inside the final answer"
    return UnparsedAnswer(str(question_id), line, reason)


def summarize_unparsed(answers: Sequence[UnparsedAnswer]) -> dict[str, Any]:
    """Count the reasons and choose examples, of different reasons first."""
    first = {answer.reason: answer for answer in reversed(answers)}
    examples = sorted(answers, key=lambda answer: first[answer.reason] is not answer)
    return {
        "reasons": dict(Counter(answer.reason for answer in answers).most_common()),
        "examples": [answer._asdict() for answer in examples[:EXAMPLES]],
    }
