"""Questions about free space, the way RoboPoint asks them.

An extra object is placed so that it satisfies the relation, and is taken away again; the picture is rendered without
it. The mask is every visible pixel of the support at which its footprint can stand with the same relation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from ..objects import Bools, Floats, Ints
from ..objects.assets import all_categories
from ..objects.catalog import Body, slenderness
from ..world.camera import Camera
from ..world.surfaces import Reject, Spans, Support, points_in_square
from .question import ExtraObject, Goal, ViewQuestion, build_question
from .relations import between_region, free_region, names_part, part_position
from .view import SeenObject, View

Window = tuple[tuple[float, float], float]  # a square on the ground: its center and half side
Region = Callable[[Floats], Bools]  # which of some world points [n, 2] have a relation

SPOTS = 64  # drawn for the extra object
MIN_SURFACE = 0.03  # part of the picture that a surface covers of which a part is named
SMALL_TRIES = 4  # extra objects drawn for a place on or in another object
SMALL = 0.5  # they are made smaller where they are wider than this part of the place
_CORNERS = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])


def free_questions(view: View, orders: Sequence[Sequence[str]], rng: np.random.Generator) -> list[ViewQuestion]:
    """One question for each order: the first of its relations that some reference allows."""
    used: set[tuple[str, int]] = set()
    questions: list[ViewQuestion] = []
    for order in orders:
        question = None
        for relation in order:
            references = [view.unique[index] for index in rng.permutation(len(view.unique))]
            references = [seen for seen in references if (relation, seen.instance) not in used]
            question = next(filter(None, (free_question(view, relation, seen, rng) for seen in references)), None)
            if question is not None:
                used.add((relation, question.goal.references[0].instance))
                questions.append(question)
                break
        if question is None and not view.config.questions.partial:
            raise Reject("no free space with the wanted relation")
    return questions


def free_question(
    view: View, relation: str, reference: SeenObject, rng: np.random.Generator, goal: Goal | None = None
) -> ViewQuestion | None:
    """The question with this relation to a reference, if there is room; `goal` names the reference in other words."""
    if relation in ("on", "inside"):
        return _on_or_inside(view, relation, reference, rng)
    if relation in ("above", "below"):
        return _above_or_below(view, relation, reference, rng)
    body = reference.body
    if view.supports[body.support].owner is not None:
        return None  # what stands on another object has no surroundings of its own
    config, ground = view.config.relations, view.camera.ground
    extra = _draw_extra(view, rng)
    # The extra object: uniform in the disc that the relation can reach, kept if it satisfies it and stands free.
    reach = body.radius + extra.radius + (config.next_to if relation == "next to" else config.max_distance)
    spots = np.array(body.position) + rng.uniform(-reach, reach, (SPOTS, 2))
    good = free_region(relation, spots, extra.radius, body, ground, config, config.max_distance, config.ambiguity)
    window, region = _beside(view, relation, body, extra.radius, config.region_distance)
    answers = None
    if config.region_distance != config.max_distance:
        answers = _beside(view, relation, body, extra.radius, config.max_distance)[1]
    goal = goal or Goal("free", relation, references=(reference,))
    return _build(view, goal, body.support, extra, spots[good], region, rng, window, answers)


def _beside(view: View, relation: str, body: Body, radius: float, distance: float) -> tuple[Window, Region]:
    config, ground = view.config.relations, view.camera.ground
    window = body.position, body.reach + radius + max(config.region_distance, config.next_to)
    return window, lambda points: free_region(relation, points, radius, body, ground, config, distance)


def answers_beside(view: View, relation: str, reference: SeenObject, extra: ExtraObject) -> Bools | None:
    """The pixels [height, width] from which answers about `extra` beside a reference come; None without any."""
    support, near = reference.body.support, view.config.relations.max_distance
    if view.supports[support].owner is not None:
        return None
    window, region = _beside(view, relation, reference.body, extra.radius, near)
    mask = free_mask(view, support, extra.radius, extra.height, region, 0.0, window)
    return mask if mask.any() else None


def _on_or_inside(view: View, relation: str, reference: SeenObject, rng: np.random.Generator) -> ViewQuestion | None:
    """On top of an object, or inside of a container."""
    area = "top" if relation == "on" else "inside"
    slot = next(slot for slot, seen in enumerate(view.seen) if seen is reference)
    number = next((n for n, place in enumerate(view.supports) if place.owner == slot and place.area == area), None)
    if number is None or not view.num_pixels(number):
        return None
    place = view.supports[number]
    for _ in range(SMALL_TRIES):
        extra = _draw_extra(view, rng)
        shrink = min(1.0, SMALL * min(place.half) / extra.radius)
        extra = replace(extra, radius=round(extra.radius * shrink, 5), height=extra.height * shrink)
        goal, spots = Goal("free", relation, references=(reference,)), _spots_on(place, rng)
        question = _build(view, goal, number, extra, spots, lambda points: np.ones(len(points), bool), rng)
        if question is not None:
            return question
    return None


def _above_or_below(view: View, relation: str, reference: SeenObject, rng: np.random.Generator) -> ViewQuestion | None:
    """On a higher or a lower surface, in the column over or under an object."""
    body, column = reference.body, view.config.relations.column
    extra = _draw_extra(view, rng)

    def region(points: Floats) -> Bools:
        inside: Bools = body.distance(points) <= column
        return inside

    for number, surface in enumerate(view.room.surfaces):
        higher = surface.center[2] >= body.z + body.height
        lower = surface.center[2] + extra.height <= body.z
        if (relation == "above" and not higher) or (relation == "below" and not lower):
            continue
        reach = body.reach + column
        spots = np.array(body.position) + rng.uniform(-reach, reach, (SPOTS, 2))
        goal = Goal("free", relation, references=(reference,))
        question = _build(view, goal, number, extra, spots[region(spots)], region, rng, (body.position, reach))
        if question is not None:
            return question
    return None


def between_questions(view: View, count: int, rng: np.random.Generator) -> list[ViewQuestion]:
    """Questions about free space between two objects."""
    pairs = list(combinations(view.unique, 2))
    questions: list[ViewQuestion] = []
    for index in rng.permutation(len(pairs)):
        if len(questions) == count:
            break
        pair = pairs[index] if rng.random() < 0.5 else pairs[index][::-1]
        question = _between(view, pair, rng)
        if question is not None:
            questions.append(question)
    if len(questions) < count and not view.config.questions.partial:
        raise Reject("no free space between two objects")
    return questions


def _between(view: View, pair: tuple[SeenObject, SeenObject], rng: np.random.Generator) -> ViewQuestion | None:
    config = view.config.relations
    extra = _draw_extra(view, rng)
    bodies = pair[0].body, pair[1].body
    first, second = (np.array(body.position) for body in bodies)
    axis = second - first
    length = float(np.hypot(axis[0], axis[1]))
    least = 2 * (extra.radius + config.clearance) + bodies[0].radius + bodies[1].radius
    if not least <= length <= config.between_reach or bodies[0].support != bodies[1].support:
        return None
    along = rng.uniform(*config.corridor, SPOTS)[:, None]
    across = rng.uniform(-1, 1, SPOTS)[:, None] * config.corridor_half_width
    spots = first + along * axis + across * np.array([-axis[1], axis[0]]) / length
    middle = (first + second) / 2
    window = (float(middle[0]), float(middle[1])), length + config.corridor_half_width
    region = partial(between_region, first=first, second=second, config=config)
    goal = Goal("between", "between", references=pair)
    return _build(view, goal, bodies[0].support, extra, spots, region, rng, window)


def part_questions(view: View, orders: Sequence[Sequence[str]], rng: np.random.Generator) -> list[ViewQuestion]:
    """Questions about free space on a part of a surface: each order's first relation that some surface allows."""
    used: set[tuple[str, str]] = set()
    questions: list[ViewQuestion] = []
    for order in orders:
        for relation in order:
            question = _on_part(view, relation, used, rng)
            if question is not None:
                assert question.goal.surface is not None
                used.add((relation, question.goal.surface.name))
                questions.append(question)
                break
    return questions


def _on_part(view: View, relation: str, used: set[tuple[str, str]], rng: np.random.Generator) -> ViewQuestion | None:
    ground, part = view.camera.ground, view.config.relations.part
    for number in rng.permutation(len(view.room.surfaces)).tolist():
        surface = view.room.surfaces[number]
        if (relation, surface.name) in used or not names_part(relation, surface):
            continue
        if view.num_pixels(number) < MIN_SURFACE * view.size:
            continue
        spots = _spots_on(surface, rng)

        def region(points: Floats, surface: Support = surface) -> Bools:
            inside: Bools = part_position(relation, points, surface, ground) >= part
            return inside

        goal, extra = Goal("part", relation, surface=surface), _draw_extra(view, rng)
        question = _build(view, goal, number, extra, spots[region(spots)], region, rng)
        if question is not None:
            return question
    return None


def _build(
    view: View, goal: Goal, support: int, extra: ExtraObject, spots: Floats, region: Region, rng: np.random.Generator,
    window: Window | None = None, answers: Region | None = None,
) -> ViewQuestion | None:  # fmt: skip
    """The question with its mask; None if the extra object stands free at none of `spots`, which have the relation.

    `window` is as in `free_mask`; `answers` is the part of the region from which the answers come.
    """
    spots = spots[is_free(view, spots, support, extra.radius, extra.height)]
    if not len(spots):
        return None
    place, questions = view.supports[support], view.config.questions
    removed = replace(extra, position=(float(spots[0, 0]), float(spots[0, 1]), place.center[2]))
    least = questions.min_mask_area if place.owner is None else min(questions.min_mask_area, questions.min_object_area)
    try:
        mask = free_mask(view, support, extra.radius, extra.height, region, least, window)
        near = free_mask(view, support, extra.radius, extra.height, answers, least, window) if answers else None
        return build_question(view, replace(goal, mask=mask, removed=removed, support=place), rng, near)
    except Reject:
        return None


def is_free(
    view: View, points: Floats, support: int, radius: float, height: float, spans: Spans | None = None
) -> Bools:
    """Whether a disc at points [n, 2] has room on a support, around and above (`spans`: `Obstacles.exclude`)."""
    surface, clearance = view.supports[support], view.config.relations.clearance
    if height + clearance > surface.headroom:
        return np.zeros(len(points), bool)
    result: Bools = surface.inset(points) >= radius
    view.obstacles.exclude(result, points, surface, height, radius + clearance, spans)
    return result


def free_mask(
    view: View, support: int, radius: float, height: float, related: Region, least: float, window: Window | None = None
) -> Bools:
    """The visible pixels [height, width] where the disc may stand and `related` (of world points) holds.

    `related` holds nowhere outside of `window`, which saves looking there. Raises Reject when the pixels are less
    than the part `least` of the picture.
    """
    rows, columns, ground = view.area(support)
    z = view.supports[support].center[2]
    start, stop = 0, len(rows)
    if window is not None:
        starts, stops = _rows_of_squares(view.camera, rows, z, np.array([window[0]]), np.array([window[1]]))
        start, stop = int(starts[0]), int(stops[0])
    rows, columns, ground = rows[start:stop], columns[start:stop], ground[start:stop]
    chosen = np.arange(len(ground)) if window is None else points_in_square(ground, *window)
    chosen = chosen[related(_take(ground, chosen))]
    if len(chosen) >= least * view.size:  # fewer can only become fewer
        spans = partial(_rows_of_squares, view.camera, rows[chosen], z)
        chosen = chosen[is_free(view, _take(ground, chosen), support, radius, height, spans)]
    if len(chosen) < least * view.size:
        raise Reject("the free space is too small")
    mask = np.zeros(view.instances.shape, bool)
    mask[rows[chosen], columns[chosen]] = True
    return mask


def _rows_of_squares(camera: Camera, rows: Ints, z: float, centers: Floats, reach: Floats) -> tuple[Ints, Ints]:
    """Where among pixels sorted by their `rows` those are that can show squares at the height z: [start, stop).

    The squares have half sides `reach` [k] around `centers` [k, 2]; a row more at each end is for rounding.
    """
    corners = np.empty((len(centers), 4, 3))
    corners[..., :2] = centers[:, None] + reach[:, None, None] * _CORNERS
    corners[..., 2] = z
    low, high, behind = camera.rows_of(corners)
    first = np.where(behind, 0, np.floor(low) - 1)
    last = np.where(behind, camera.height, np.ceil(high) + 1)
    return np.searchsorted(rows, first), np.searchsorted(rows, last, side="right")


def _take(ground: Floats, chosen: Ints) -> Floats:
    """`ground[chosen]` whose columns, which are looked at one by one, lie together in memory."""
    result = np.empty((len(chosen), 2), order="F")
    for axis in (0, 1):
        ground[:, axis].take(chosen, out=result[:, axis], mode="clip")  # "raise" would copy once more
    return result


def _draw_extra(view: View, rng: np.random.Generator) -> ExtraObject:
    categories = view.config.categories
    name = categories[int(rng.integers(len(categories)))]
    category = all_categories(view.config.objects.assets)[name]
    radius = round(rng.uniform(*category.radius), 5)
    height = radius * rng.uniform(*category.slenderness)
    return ExtraObject(name, radius, height if category.build is not None else radius * slenderness(category))


def _spots_on(place: Support, rng: np.random.Generator) -> Floats:
    return place.world(rng.uniform(-1, 1, (SPOTS, 2)) * np.array(place.half))
