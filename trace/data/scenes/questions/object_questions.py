"""Questions about objects: by name, by direction (balanced, see `relational`), or by another relation ("located").

A located question has at least two visible candidates of its noun: exactly one of them has the relation, and all
others, the hidden ones included, clearly do not have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from ....core.images import FIRST_OBJECT
from ..wording import DIRECTIONS, NEAR, PARTS
from ..world.surfaces import Reject, Support
from .question import Goal, ViewQuestion, build_question
from .relational import RelationalCandidate
from .relations import NO, UNSURE, YES, SpatialFacts, names_part, part_position
from .view import SeenObject, View

MIN_SURFACE = 0.01  # part of the picture that a named surface covers


def direct_questions(view: View, count: int, rng: np.random.Generator) -> list[ViewQuestion]:
    """Questions by names that single an object out."""
    if len(view.unique) < count and not view.config.questions.partial:
        raise Reject("too few objects with a name of their own")
    chosen = [view.unique[index] for index in rng.permutation(len(view.unique))[:count]]
    return [build_question(view, Goal("direct", None, view.object_mask(seen), target=seen), rng) for seen in chosen]


def relational_question(view: View, candidate: RelationalCandidate, rng: np.random.Generator) -> ViewQuestion:
    """A question by direction. Raises Reject if one of its objects is hidden."""

    def seen(slot: int) -> SeenObject:
        visible = view.seen[slot]
        if visible is None:
            raise Reject("an object of the relational question is hidden")
        return visible

    target = seen(candidate.target)
    goal = Goal(
        "relational", DIRECTIONS[candidate.relation], view.object_mask(target), target=target,
        references=(seen(candidate.reference),), candidates=tuple(seen(slot) for slot in candidate.candidates),
        extreme=seen(candidate.extreme), nearest=seen(candidate.nearest),
    )  # fmt: skip
    return build_question(view, goal, rng)


def located_questions(
    view: View, facts: SpatialFacts, orders: Sequence[Sequence[str]], rng: np.random.Generator
) -> list[ViewQuestion]:
    """One question for each order: the first of its relations that the view allows."""
    used: set[tuple[str, int]] = set()
    questions: list[ViewQuestion] = []
    for order in orders:
        for relation in order:
            goals = [(target, goal) for target, goal in _goals(view, facts, relation) if (relation, target) not in used]
            if goals:
                target, goal = goals[int(rng.integers(len(goals)))]
                used.add((relation, target))
                questions.append(build_question(view, goal, rng))
                break
    return questions


def _goals(view: View, facts: SpatialFacts, relation: str) -> list[tuple[int, Goal]]:
    """Every goal with this relation that the view allows, after its target's instance."""
    goals: list[tuple[int, Goal]] = []
    if relation in NEAR:
        for reference in view.unique:
            row = facts.near(relation)[reference.instance - FIRST_OBJECT]
            goals += _singled_out(view, relation, dict(enumerate(row.tolist())), (reference,))
    elif relation == "between":
        for pair in combinations(view.unique, 2):
            row = facts.between(pair[0].instance - FIRST_OBJECT, pair[1].instance - FIRST_OBJECT)
            goals += _singled_out(view, relation, dict(enumerate(row.tolist())), pair)
    if relation in PARTS or (relation == "on" and len(view.room.surfaces) > 1):
        for number, surface in enumerate(view.room.surfaces):
            if view.num_pixels(number) >= MIN_SURFACE * view.size and names_part(relation, surface):
                goals += _singled_out(view, relation, _on_surface(view, facts, relation, number), (), surface)
    return goals


def _singled_out(
    view: View, relation: str, judged: Mapping[int, int], references: tuple[SeenObject, ...],
    surface: Support | None = None,
) -> Iterator[tuple[int, Goal]]:  # fmt: skip
    """The nouns of which exactly one object has the relation and no other is near it."""
    if YES not in judged.values():
        return
    own = {seen.instance - FIRST_OBJECT for seen in references}
    by_noun: dict[str, list[int]] = {}
    for slot in judged:
        if slot not in own:
            by_noun.setdefault(view.bodies[slot].category, []).append(slot)
    for slots in by_noun.values():
        answers = [judged[slot] for slot in slots]
        visible = tuple(seen for slot in slots if (seen := view.seen[slot]) is not None)
        if answers.count(YES) == 1 and UNSURE not in answers and len(visible) >= 2:
            target = view.seen[slots[answers.index(YES)]]
            if target is not None:
                yield target.instance, Goal(
                    "relational", relation, view.object_mask(target), target=target, references=references,
                    candidates=visible, surface=surface,
                )  # fmt: skip


def _on_surface(view: View, facts: SpatialFacts, relation: str, number: int) -> dict[int, int]:
    """Which objects are on a surface, or of those on it, which are on its part."""
    here = [slot for slot, root in enumerate(facts.roots) if root == number]
    if relation == "on":
        direct = {slot: YES if view.bodies[slot].support == number else UNSURE for slot in here}
        return {slot: direct.get(slot, NO) for slot in range(len(view.bodies))}
    if not here:
        return {}
    config, ground, surface = view.config.relations, view.camera.ground, view.room.surfaces[number]
    half = surface.extent(np.array(ground.right if relation in ("left part", "right part") else ground.forward))
    points = np.array([view.bodies[slot].position for slot in here])
    positions = part_position(relation, points, surface, ground)
    outside = config.part - config.part_margin / half
    return {
        slot: YES if position >= config.part else NO if position <= outside else UNSURE
        for slot, position in zip(here, positions.tolist(), strict=True)
    }
