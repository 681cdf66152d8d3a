"""Edits of one step of the reasoning: another object, another place, the opposite direction, the other kind of goal.

An edit knows what should happen if the model believes its own text: the points should move along `shift`, by as much
(`places`) or only in that direction (`direction`). Objects and their places come from the benchmark where it knows
them (`views.jsonl` of a generated one); directions and places are found in any text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.points import Mention, Point, find_points
from ..core.reasoning import STEPS, Response, Step

KINDS = ("control", "object", "place", "direction", "goal")
Shift = tuple[float, float]

# phrase -> its opposite, and where in the image the opposite lies; the longer phrases first
_DIRECTIONS: dict[str, tuple[str, Shift]] = {
    "to the left of": ("to the right of", (1.0, 0.0)),
    "to the right of": ("to the left of", (-1.0, 0.0)),
    "in front of": ("behind", (0.0, -1.0)),
    "left": ("right", (1.0, 0.0)),
    "right": ("left", (-1.0, 0.0)),
    "behind": ("in front of", (0.0, 1.0)),
    "above": ("below", (0.0, 1.0)),
    "below": ("above", (0.0, -1.0)),
}
_GOALS = {
    "an object reference": "a free space",
    "a free space": "an object reference",
    "object reference": "free space",
    "free space": "object reference",
}
LEAST = 0.1  # an edited place lies at least so far away, in units of the image's width and height: no noise of decoding
_DECIMALS = re.compile(r"\d*[.．](\d++)")


@dataclass(frozen=True, slots=True)
class Thing:
    """An object of the scene: what it is called and where its centre lies, normalised to the image."""

    name: str
    center: Point


@dataclass(frozen=True, slots=True)
class Edit:
    """One step with other words.

    prefix: the answer up to the end of the edited step; the model goes on from there.
    shift: where the points should go, in units of the image's width and height; None when nothing is predicted.
    exact: whether they should go as far as `shift` says, or only in its direction.
    """

    step: str
    kind: str
    text: str
    prefix: str
    shift: Shift | None
    exact: bool


def edits(response: Response, things: Sequence[Thing], rng: np.random.Generator) -> list[Edit]:
    """Every edit that the steps of an answer allow, one of each kind a step; `control` leaves the step as it is."""
    found = []
    for key in STEPS:
        step = response.step(key)
        if step is None or not step.text:
            continue
        found.append(_edit(response, step, "control", step.text, (0.0, 0.0), True))
        for kind, changed, shift, exact in _changed(step.text, things, rng):
            if changed != step.text:
                found.append(_edit(response, step, kind, changed, shift, exact))
    return found


def _edit(response: Response, step: Step, kind: str, text: str, shift: Shift | None, exact: bool) -> Edit:
    start = step.span[1] - len(step.text)  # a step's span ends with its own text
    return Edit(step.key, kind, text, response.text[:start] + text, shift, exact)


def _changed(
    text: str, things: Sequence[Thing], rng: np.random.Generator
) -> Iterator[tuple[str, str, Shift | None, bool]]:
    named = _mentioned(text, things)
    others = [thing for thing in things
              if named is None or (thing.name != named.name and _far(named.center, thing.center))]  # fmt: skip
    other = others[int(rng.integers(len(others)))] if others else None
    place = _place(text)
    if named is not None and other is not None:
        behind = place is not None and place.start >= text.index(named.name)
        changed = _moved(text, place, other.center) if place is not None and behind else text
        changed = changed.replace(named.name, other.name, 1)
        yield "object", changed, _between(named.center, other.center), True
    if place is not None and isinstance(at := place.item, Point):
        away = other.center if other is not None and _far(at, other.center) else _mirrored(at)
        yield "place", _moved(text, place, away), _between(at, away), True
    for phrase, (opposite, shift) in _DIRECTIONS.items():
        if re.search(rf"\b{phrase}\b", text, re.IGNORECASE):
            yield "direction", re.sub(rf"\b{phrase}\b", opposite, text, count=1, flags=re.IGNORECASE), shift, False
            break
    for goal, opposite in _GOALS.items():
        if goal in text.lower():
            yield "goal", re.sub(re.escape(goal), opposite, text, count=1, flags=re.IGNORECASE), None, False
            break


def _mentioned(text: str, things: Sequence[Thing]) -> Thing | None:
    """The object whose name stands first in the text; of two at one place, the longer name."""
    found = [(text.index(thing.name), -len(thing.name), place) for place, thing in enumerate(things)
             if re.search(rf"\b{re.escape(thing.name)}\b", text)]  # fmt: skip
    return things[min(found)[2]] if found else None


def _far(first: Point, second: Point) -> bool:
    return math.dist((first.x, first.y), (second.x, second.y)) >= LEAST


def _mirrored(at: Point) -> Point:
    """The other side of the image; from its middle, which would stay, half of the width away."""
    other = Point(1 - at.x, at.y)
    return other if _far(at, other) else Point(at.x + 0.5 if at.x < 0.5 else at.x - 0.5, at.y)


def _place(text: str) -> Mention | None:
    """The first point of a text that is written in fractions, if there is one."""
    fractions = (one for one in find_points(text) if isinstance(one.item, Point) and one.item.inside)
    return next((one for one in fractions if _DECIMALS.search(text, one.start, one.end)), None)


def _moved(text: str, place: Mention, to: Point) -> str:
    """The text with another point at a place, with as many decimals as the one that stands there."""
    decimals = max(len(found) for found in _DECIMALS.findall(text, place.start, place.end))
    return f"{text[: place.start]}({to.x:.{decimals}f}, {to.y:.{decimals}f}){text[place.end :]}"


def _between(first: Point, second: Point) -> Shift:
    return second.x - first.x, second.y - first.y
