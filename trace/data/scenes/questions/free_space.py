"""Questions about free places, the way RoboPoint asks them.

An extra object is placed so that it satisfies the relation, and is taken away again; the picture is rendered without
it. The mask is every visible pixel of the support at which its footprint can stand with the same relation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..objects.assets import all_categories
from ..objects.catalog import slenderness
from ..world.surfaces import Reject, Support
from .common import ViewQuestion, asked
from .relations import between_region, free_region, names_part, part_position
from .view import Goal, Removed, SeenObject, View

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TRIES = 64  # places drawn for the extra object
MIN_SURFACE = 0.03  # part of the picture that a surface covers of which a part is named
SMALL_TRIES = 4  # extra objects drawn for a place on or in another object
SMALL = 0.5  # they are made smaller where they are wider than this part of the place


@dataclass(frozen=True, slots=True)
class Extra:
    """The object that is placed and removed: its footprint's disc and its height."""

    category: str
    radius: float
    height: float


def free_questions(view: View, orders: Sequence[Sequence[str]], rng: np.random.Generator) -> list[ViewQuestion]:
    """One question for each order: the first of its relations that some reference allows."""
    asked_before: set[tuple[str, int]] = set()
    result: list[ViewQuestion] = []
    for order in orders:
        question = None
        for relation in order:
            references = [view.unique[index] for index in rng.permutation(len(view.unique))]
            references = [seen for seen in references if (relation, seen.instance) not in asked_before]
            question = next(filter(None, (_free(view, relation, seen, rng) for seen in references)), None)
            if question is not None:
                asked_before.add((relation, question.goal.references[0].instance))
                break
        if question is not None:
            result.append(question)
        elif not view.config.questions.partial:
            raise Reject("no free space with the wanted relation")
    return result


def _free(view: View, relation: str, reference: SeenObject, rng: np.random.Generator) -> ViewQuestion | None:
    if relation in ("on", "inside"):
        return _held(view, relation, reference, rng)
    if relation in ("above", "below"):
        return _over(view, relation, reference, rng)
    if view.supports[reference.body.support].owner is not None:
        return None  # what stands on another object has no surroundings of its own
    return _beside(view, relation, reference, rng)


def _beside(view: View, relation: str, reference: SeenObject, rng: np.random.Generator) -> ViewQuestion | None:
    config, body, ground = view.config.relations, reference.body, view.camera.ground
    extra = _extra(view, rng)
    # The extra object: uniform in the disc that the relation can reach, kept if it satisfies it and stands free.
    reach = body.radius + extra.radius + (config.next_to if relation == "next to" else config.max_distance)
    spots = np.array(body.position) + rng.uniform(-reach, reach, (TRIES, 2))
    close = config.max_distance
    window = body.position, body.reach + extra.radius + max(config.region_distance, config.next_to)
    good = free_region(relation, spots, extra.radius, body, ground, config, close, config.ambiguity)

    def region(distance: float) -> Callable[[Floats], Bools]:
        return lambda points: free_region(relation, points, extra.radius, body, ground, config, distance)

    same = config.region_distance == close
    return _question(
        view, Goal("free", relation, _NOTHING, references=(reference,)), body.support, extra, spots[good],
        region(config.region_distance), rng, window, None if same else region(close),
    )  # fmt: skip


def _held(view: View, relation: str, reference: SeenObject, rng: np.random.Generator) -> ViewQuestion | None:
    """On top of an object, or inside of a container."""
    area = "top" if relation == "on" else "inside"
    slot = next(slot for slot, seen in enumerate(view.seen) if seen is reference)
    number = next((n for n, place in enumerate(view.supports) if place.owner == slot and place.area == area), None)
    if number is None or not view.shows(number):
        return None
    place = view.supports[number]
    for _ in range(SMALL_TRIES):
        extra = _extra(view, rng)
        shrink = min(1.0, SMALL * min(place.half) / extra.radius)
        extra = Extra(extra.category, round(extra.radius * shrink, 5), extra.height * shrink)
        goal = Goal("free", relation, _NOTHING, references=(reference,))
        question = _question(view, goal, number, extra, _inside(place, rng), _anywhere, rng)
        if question is not None:
            return question
    return None


def _over(view: View, relation: str, reference: SeenObject, rng: np.random.Generator) -> ViewQuestion | None:
    """On a higher or a lower surface, in the column over or under an object."""
    body, column = reference.body, view.config.relations.column
    extra = _extra(view, rng)
    for number, surface in enumerate(view.room.surfaces):
        higher = surface.center[2] >= body.z + body.height
        lower = surface.center[2] + extra.height <= body.z
        if (relation == "above" and not higher) or (relation == "below" and not lower):
            continue
        reach = body.reach + column
        spots = np.array(body.position) + rng.uniform(-reach, reach, (TRIES, 2))
        goal = Goal("free", relation, _NOTHING, references=(reference,))

        def related(points: Floats) -> Bools:
            result: Bools = body.distance(points) <= column
            return result

        question = _question(view, goal, number, extra, spots[related(spots)], related, rng, (body.position, reach))
        if question is not None:
            return question
    return None


def between_questions(view: View, count: int, rng: np.random.Generator) -> list[ViewQuestion]:
    pairs = [(a, b) for index, a in enumerate(view.unique) for b in view.unique[index + 1 :]]
    result: list[ViewQuestion] = []
    for index in rng.permutation(len(pairs)):
        if len(result) == count:
            break
        pair = pairs[index] if rng.random() < 0.5 else pairs[index][::-1]
        question = _between(view, pair, rng)
        if question is not None:
            result.append(question)
    if len(result) < count and not view.config.questions.partial:
        raise Reject("no free space between two objects")
    return result


def _between(view: View, pair: tuple[SeenObject, SeenObject], rng: np.random.Generator) -> ViewQuestion | None:
    config = view.config.relations
    extra = _extra(view, rng)
    bodies = pair[0].body, pair[1].body
    first, second = (np.array(body.position) for body in bodies)
    axis = second - first
    length = float(np.hypot(axis[0], axis[1]))
    least = 2 * (extra.radius + config.clearance) + bodies[0].radius + bodies[1].radius
    if not least <= length <= config.between_reach or bodies[0].support != bodies[1].support:
        return None
    along = rng.uniform(*config.corridor, TRIES)[:, None]
    across = rng.uniform(-1, 1, TRIES)[:, None] * config.corridor_half_width
    spots = first + along * axis + across * np.array([-axis[1], axis[0]]) / length
    goal = Goal("between", "between", _NOTHING, references=pair)
    middle = (first + second) / 2
    window = (float(middle[0]), float(middle[1])), length + config.corridor_half_width
    return _question(
        view, goal, bodies[0].support, extra, spots, lambda points: between_region(points, first, second, config), rng,
        window,
    )  # fmt: skip


def part_questions(view: View, orders: Sequence[Sequence[str]], rng: np.random.Generator) -> list[ViewQuestion]:
    """Free places on a part of a surface; each order's first relation that some surface allows."""
    done: set[tuple[str, str]] = set()
    result: list[ViewQuestion] = []
    for order in orders:
        for relation in order:
            question = _on_part(view, relation, done, rng)
            if question is not None:
                assert question.goal.surface is not None
                done.add((relation, question.goal.surface.name))
                result.append(question)
                break
    return result


def _on_part(view: View, relation: str, done: set[tuple[str, str]], rng: np.random.Generator) -> ViewQuestion | None:
    ground, part = view.camera.ground, view.config.relations.part
    for number in rng.permutation(len(view.room.surfaces)):
        surface = view.room.surfaces[number]
        if (relation, surface.name) in done or not names_part(relation, surface):
            continue
        if view.shows(int(number)) < MIN_SURFACE * view.size:
            continue
        spots = _inside(surface, rng)

        def related(points: Floats, surface: Support = surface) -> Bools:
            result: Bools = part_position(relation, points, surface, ground) >= part
            return result

        goal = Goal("part", relation, _NOTHING, surface=surface)
        question = _question(view, goal, int(number), _extra(view, rng), spots[related(spots)], related, rng)
        if question is not None:
            return question
    return None


_NOTHING: Bools = np.zeros((0, 0), bool)


def _question(
    view: View, goal: Goal, support: int, extra: Extra, spots: Floats, related: Callable[[Floats], Bools],
    rng: np.random.Generator, window: tuple[tuple[float, float], float] | None = None,
    close: Callable[[Floats], Bools] | None = None,
) -> ViewQuestion | None:  # fmt: skip
    """The question with its mask, if the extra object stands free at one of `spots`, which have the relation.

    `window` is as in `View.free_mask`; `close` is the part of the region from which the answers come.
    """
    spots = spots[view.free(spots, support, extra.radius, extra.height)]
    if not len(spots):
        return None
    place = view.supports[support]
    removed = Removed(
        extra.category, (float(spots[0, 0]), float(spots[0, 1])), extra.radius, extra.height, place.center[2]
    )
    questions = view.config.questions
    least = questions.min_mask_area if place.owner is None else min(questions.min_mask_area, questions.min_object_area)
    try:
        mask = view.free_mask(support, extra.radius, extra.height, related, least, window)
        near = view.free_mask(support, extra.radius, extra.height, close, least, window) if close else None
        full = Goal(
            goal.kind, goal.relation, mask, references=goal.references, removed=removed, surface=goal.surface,
            place=place,
        )  # fmt: skip
        return asked(view, full, rng, near)
    except Reject:
        return None


def _extra(view: View, rng: np.random.Generator) -> Extra:
    """Category, footprint radius and height of an extra object."""
    categories = view.config.categories
    name = categories[int(rng.integers(len(categories)))]
    kind = all_categories(view.config.objects.assets)[name]
    radius = round(rng.uniform(*kind.radius), 5)
    height = radius * rng.uniform(*kind.slenderness)
    return Extra(name, radius, height if kind.build is not None else radius * slenderness(kind))


def _inside(place: Support, rng: np.random.Generator) -> Floats:
    return place.world(rng.uniform(-1, 1, (TRIES, 2)) * np.array(place.half))


def _anywhere(points: Floats) -> Bools:
    return np.ones(len(points), bool)
