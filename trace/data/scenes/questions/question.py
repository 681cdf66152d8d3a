"""A question about a view: what is asked, its ground truth, its words and its answer points.

A view is judged on its segmentation and its geometry alone, before the picture is rendered in color: if a question
that must be asked cannot be asked well, `Reject` says why and the scene is drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..objects import Bools
from ..wording import MARK_COLORS, write_instruction
from ..world.surfaces import Reject, Support
from .baselines import baseline_points
from .view import XY, SeenObject, View, sample_points

CROWDED = 0.6  # part of an object's box inside of another's rectangle with which both are in it


@dataclass(frozen=True, slots=True)
class ExtraObject:
    """The object of a free-space question: it is placed so that it satisfies the relation, and is taken away."""

    category: str
    radius: float  # of its footprint's disc
    height: float
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)  # once it is placed

    def as_json(self) -> dict[str, Any]:
        position, height = [round(value, 5) for value in self.position], round(self.height, 5)
        return {"category": self.category, "position": position, "radius": self.radius, "height": height}


@dataclass(frozen=True, slots=True)
class Hop:
    """One relation of a chain and the object that it leads to; None for free space."""

    relation: str
    seen: SeenObject | None


@dataclass(frozen=True, slots=True)
class Absence:
    """Why nothing is to be pointed at; see `absent`."""

    reason: str  # "color", "category", "relation", "full", "hidden" or "impossible"
    task: str  # of the question if it had an answer
    looked_for: str  # "blue mug", "mug" or "free space"
    answer: str  # "there is no blue mug."
    instead: tuple[tuple[SeenObject, str | None], ...]  # what is seen, and its direction or relation
    near: int | None  # number of the view's true question that differs in one word ...
    word: str | None  # ... which is "color", "noun" or "relation"


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked about a view, and where it is: `mask` [height, width] is the ground truth.

    `kind` is "direct", "relational" or "chain N" for an object, "free", "between", "part" or "free chain N" for free
    space, "absent object", "absent relation" or "absent free" for what is not there. Relational questions and chains also
    record the candidates of the last noun and, for left, right, front and behind, the extreme and the nearest one. A
    chain's reference is the object that its words name.
    """

    kind: str
    relation: str | None
    mask: Bools = field(default_factory=lambda: np.zeros((0, 0), bool))
    target: SeenObject | None = None
    references: tuple[SeenObject, ...] = ()
    removed: ExtraObject | None = None
    candidates: tuple[SeenObject, ...] = ()
    extreme: SeenObject | None = None
    nearest: SeenObject | None = None
    surface: Support | None = None  # that the words name
    support: Support | None = None  # of free space
    hops: tuple[Hop, ...] = ()  # of a chain
    absence: Absence | None = None


@dataclass(frozen=True, slots=True)
class ViewQuestion:
    """A goal in words, with answer points (normalised, on the mask as written) and one point a shortcut baseline.

    `marks`: the colors of the rectangles around its references in a picture of its own; () without.
    """

    goal: Goal
    instruction: str
    points: tuple[XY, ...]
    shortcuts: dict[str, XY | None]
    marks: tuple[str, ...] = ()


def build_question(view: View, goal: Goal, rng: np.random.Generator, near: Bools | None = None) -> ViewQuestion:
    """Draw the words and points of a question; the points come from `near`, a part of the mask, if it is given."""
    questions = view.config.questions
    area = goal.mask if near is None else near
    count = questions.num_points
    if questions.min_points < count:
        count = int(rng.integers(questions.min_points, count + 1))
    points = None
    while points is None and count:  # a small mask may have room for fewer
        points = sample_points(area, count, questions.decimals, questions.interior, rng, questions.border)
        count = count // 2 if count // 2 >= questions.min_points else 0
    if points is None:
        raise Reject("no room for the points")
    marks: tuple[str, ...] = ()
    if questions.marks and goal.references and rng.random() < questions.marks:
        marks = tuple(str(color) for color in rng.permutation(list(MARK_COLORS)))[: len(goal.references)]
    names = [_name(view, reference, rng) for reference in goal.references]
    target = ""
    if goal.target is not None:
        target = _name(view, goal.target, rng) if goal.kind == "direct" else goal.target.body.category
    crowded = [_is_crowded(view, reference) for reference in goal.references] if marks else ()
    instruction = write_instruction(
        goal.relation, goal.target is None, target, names, rng, questions.wording,
        goal.surface.name if goal.surface else None, marks, crowded,
        [(hop.relation, hop.seen.body.category) for hop in goal.hops[:-1] if hop.seen],
    )  # fmt: skip
    return ViewQuestion(goal, instruction, points, baseline_points(goal, view.objects, rng), marks)


def _is_crowded(view: View, reference: SeenObject) -> bool:
    """Whether the rectangle around an object holds another one as well, or most of it."""
    x0, y0, x1, y1 = reference.box
    others = [other.box for other in view.objects if other is not reference]
    return any(
        max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0)) > CROWDED * (a1 - a0) * (b1 - b0)
        for a0, b0, a1, b1 in others
    )


def _name(view: View, seen: SeenObject, rng: np.random.Generator) -> str:
    """Color and category; in the rich wording at times the category alone, where the scene has one of it."""
    category = seen.body.category
    alone = [other.category for other in view.bodies].count(category) == 1
    return category if view.config.questions.wording == "rich" and alone and rng.random() < 0.5 else seen.body.name
