"""The questions about one view, with exact ground truth.

A view is judged on its segmentation and its geometry alone, before the picture is rendered in color: if any question
cannot be asked well, `Reject` says why and the scene is drawn again. Free space follows RoboPoint: an extra object is
placed so that it satisfies the relation, then it is taken away; the mask is every visible pixel of the surface at
which its footprint can stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .catalog import CATEGORIES
from .config import DIRECTIONS
from .instructions import word
from .pixels import XY, sample_points
from .relational import RelationalCandidate
from .relations import between_region, free_region, standable
from .shortcuts import guesses
from .view import Goal, Reject, Removed, SeenObject, View

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ViewQuestion:
    """A goal in words, with answer points (normalised, on the mask as written) and one point a shortcut baseline."""

    goal: Goal
    instruction: str
    points: tuple[XY, ...]
    shortcuts: dict[str, XY | None]


def _asked(view: View, goal: Goal, rng: np.random.Generator, near: Bools | None = None) -> ViewQuestion:
    """The question with its points, which come from `near` (a part of the mask) if there is one."""
    questions = view.config.questions
    area = goal.mask if near is None else near
    points = sample_points(area, questions.num_points, questions.decimals, questions.interior, rng)
    if points is None:
        raise Reject("no room for the points")
    noun = ""
    if goal.target is not None:
        noun = goal.target.body.category if goal.kind == "relational" else goal.target.body.name
    instruction = word(goal.kind, goal.relation, noun, [reference.body.name for reference in goal.references], rng)
    return ViewQuestion(goal, instruction, points, guesses(goal, view.objects, rng))


def direct_questions(view: View, count: int, rng: np.random.Generator) -> list[ViewQuestion]:
    if len(view.unique) < count:
        raise Reject("too few objects with a name of their own")
    chosen = rng.permutation(len(view.unique))[:count]
    return [
        _asked(view, Goal("direct", None, view.object_mask(seen), target=seen), rng)
        for seen in (view.unique[index] for index in chosen)
    ]


def relational_question(view: View, candidate: RelationalCandidate, rng: np.random.Generator) -> ViewQuestion:
    target = view.objects[candidate.target]
    goal = Goal(
        "relational",
        DIRECTIONS[candidate.relation],
        view.object_mask(target),
        target=target,
        references=(view.objects[candidate.reference],),
        candidates=tuple(view.objects[slot] for slot in candidate.candidates),
        extreme=view.objects[candidate.extreme],
        nearest=view.objects[candidate.nearest],
    )
    return _asked(view, goal, rng)


def free_questions(
    view: View, orders: Sequence[Sequence[str]], categories: Sequence[str], rng: np.random.Generator
) -> list[ViewQuestion]:
    """One question for each order: the first of its relations that some reference allows."""
    asked: set[tuple[str, int]] = set()
    result: list[ViewQuestion] = []
    for order in orders:
        question = None
        for relation in order:
            references = [view.unique[index] for index in rng.permutation(len(view.unique))]
            references = [seen for seen in references if (relation, seen.instance) not in asked]
            question = next(filter(None, (_free(view, relation, seen, categories, rng) for seen in references)), None)
            if question is not None:
                asked.add((relation, question.goal.references[0].instance))
                break
        if question is None:
            raise Reject("no free space with the wanted relation")
        result.append(question)
    return result


def _free(
    view: View, relation: str, reference: SeenObject, categories: Sequence[str], rng: np.random.Generator
) -> ViewQuestion | None:
    config, body = view.config.relations, reference.body
    category, radius, height = _extra(categories, rng)
    center, ground = np.array(body.position), view.camera.ground
    # The extra object: uniform in the disc that the relation can reach, kept if it satisfies it and stands free.
    reach = body.radius + radius + (config.next_to if relation == "next to" else config.max_distance)
    spots = center + rng.uniform(-reach, reach, (64, 2))
    close = config.max_distance
    good = free_region(relation, spots, radius, center, body.radius, ground, config, close, config.ambiguity)
    good &= standable(spots, radius, view.centers, view.radii, view.table, config.clearance)
    if not good.any():
        return None
    removed = Removed(category, _pair(spots[good.argmax()]), radius, height)
    room = view.room >= radius + config.clearance

    def region(distance: float) -> Bools:
        allowed = room.copy()
        allowed[room] = free_region(relation, view.ground[room], radius, center, body.radius, ground, config, distance)
        return view.surface_mask(allowed)

    try:
        mask, near = region(config.region_distance), region(close)
        return _asked(view, Goal("free", relation, mask, references=(reference,), removed=removed), rng, near)
    except Reject:
        return None


def between_questions(
    view: View, count: int, categories: Sequence[str], rng: np.random.Generator
) -> list[ViewQuestion]:
    pairs = [(a, b) for index, a in enumerate(view.unique) for b in view.unique[index + 1 :]]
    result: list[ViewQuestion] = []
    for index in rng.permutation(len(pairs)):
        if len(result) == count:
            break
        pair = pairs[index] if rng.random() < 0.5 else pairs[index][::-1]
        question = _between(view, pair, categories, rng)
        if question is not None:
            result.append(question)
    if len(result) < count:
        raise Reject("no free space between two objects")
    return result


def _between(
    view: View, pair: tuple[SeenObject, SeenObject], categories: Sequence[str], rng: np.random.Generator
) -> ViewQuestion | None:
    config = view.config.relations
    category, radius, height = _extra(categories, rng)
    first, second = (np.array(seen.body.position) for seen in pair)
    axis = second - first
    length = float(np.hypot(axis[0], axis[1]))
    if (
        not 2 * (radius + config.clearance) + pair[0].body.radius + pair[1].body.radius
        <= length
        <= config.between_reach
    ):
        return None
    along = rng.uniform(*config.corridor, 64)[:, None]
    across = rng.uniform(-1, 1, 64)[:, None] * config.corridor_half_width
    spots = first + along * axis + across * np.array([-axis[1], axis[0]]) / length
    good = standable(spots, radius, view.centers, view.radii, view.table, config.clearance)
    if not good.any():
        return None
    removed = Removed(category, _pair(spots[good.argmax()]), radius, height)
    allowed = view.room >= radius + config.clearance
    allowed[allowed] = between_region(view.ground[allowed], first, second, config)
    try:
        mask = view.surface_mask(allowed)
        return _asked(view, Goal("between", "between", mask, references=pair, removed=removed), rng)
    except Reject:
        return None


def _extra(categories: Sequence[str], rng: np.random.Generator) -> tuple[str, float, float]:
    """Category, footprint radius and height of an extra object."""
    name = categories[int(rng.integers(len(categories)))]
    category = CATEGORIES[name]
    radius = round(rng.uniform(*category.radius), 5)
    return name, radius, radius * rng.uniform(*category.slenderness)


def _pair(values: Floats) -> tuple[float, float]:
    return float(values[0]), float(values[1])
