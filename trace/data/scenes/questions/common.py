"""The questions about one view, with exact ground truth: what is common to all, and those about objects.

A view is judged on its segmentation and its geometry alone, before the picture is rendered in color: if a question
that must be asked cannot be asked well, `Reject` says why and the scene is drawn again. `free` has the questions about
free places, `located` those about objects by what is on, in, above or between what.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..world.surfaces import Reject
from .baselines import guesses
from .mask_sampling import XY, sample_points
from .relational import RelationalCandidate
from .view import Goal, SeenObject, View
from .wording import DIRECTIONS, MARK_COLORS, write_instruction

Bools = NDArray[np.bool_]

CROWDED = 0.6  # part of an object's box inside of another's rectangle with which both are in it


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


def asked(view: View, goal: Goal, rng: np.random.Generator, near: Bools | None = None) -> ViewQuestion:
    """The question with its points, which come from `near` (a part of the mask) if there is one."""
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
    names = [name_of(view, reference, rng) for reference in goal.references]
    surface = goal.surface.name if goal.surface else None
    instruction = write_instruction(
        goal.relation, goal.target is None, _target(view, goal, rng), names, rng, questions.wording, surface, marks,
        [_crowded(view, reference) for reference in goal.references] if marks else (),
    )  # fmt: skip
    return ViewQuestion(goal, instruction, points, guesses(goal, view.objects, rng), marks)


def _crowded(view: View, reference: SeenObject) -> bool:
    """Whether the rectangle around an object holds another one as well, or most of it."""
    x0, y0, x1, y1 = reference.box
    for other in view.objects:
        a0, b0, a1, b1 = other.box
        shared = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
        if other is not reference and shared > CROWDED * (a1 - a0) * (b1 - b0):
            return True
    return False


def _target(view: View, goal: Goal, rng: np.random.Generator) -> str:
    if goal.target is None:
        return ""
    return goal.target.body.category if goal.kind == "relational" else name_of(view, goal.target, rng)


def name_of(view: View, seen: SeenObject, rng: np.random.Generator) -> str:
    """Color and category; in the rich wording at times the category alone, where the scene has one of it."""
    body = seen.body
    if view.config.questions.wording == "rich":
        alone = sum(other.category == body.category for other in view.bodies) == 1
        if alone and rng.random() < 0.5:
            return body.category
    return body.name


def direct_questions(view: View, count: int, rng: np.random.Generator) -> list[ViewQuestion]:
    if len(view.unique) < count and not view.config.questions.partial:
        raise Reject("too few objects with a name of their own")
    chosen = rng.permutation(len(view.unique))[:count]
    return [
        asked(view, Goal("direct", None, view.object_mask(seen), target=seen), rng)
        for seen in (view.unique[index] for index in chosen)
    ]


def relational_question(view: View, candidate: RelationalCandidate, rng: np.random.Generator) -> ViewQuestion:
    def seen(slot: int) -> SeenObject:
        found = view.seen[slot]
        if found is None:
            raise Reject("an object of the relational question is hidden")
        return found

    target = seen(candidate.target)
    goal = Goal(
        "relational",
        DIRECTIONS[candidate.relation],
        view.object_mask(target),
        target=target,
        references=(seen(candidate.reference),),
        candidates=tuple(seen(slot) for slot in candidate.candidates),
        extreme=seen(candidate.extreme),
        nearest=seen(candidate.nearest),
    )
    return asked(view, goal, rng)
