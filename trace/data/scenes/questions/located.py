"""Object reference by what is on, in, above, below, next to or between what, or on which part of a surface.

Every such question has at least two visible candidates of its noun: exactly one of them has the relation, and all
others, the hidden ones included, clearly do not have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..instances import FIRST_OBJECT
from ..world.surfaces import Support
from .common import ViewQuestion, asked
from .relations import names_part, part_position
from .spatial_facts import NO, UNSURE, YES, Facts
from .view import Goal, SeenObject, View
from .wording import NEAR, PARTS

MIN_SURFACE = 0.01  # part of the picture that a named surface covers


@dataclass(frozen=True, slots=True)
class Option:
    """A question that a view allows: the target, and what the words refer to."""

    target: SeenObject
    references: tuple[SeenObject, ...]
    surface: Support | None
    candidates: tuple[SeenObject, ...]


def located_questions(
    view: View, facts: Facts, orders: Sequence[Sequence[str]], rng: np.random.Generator
) -> list[ViewQuestion]:
    """One question for each order: the first of its relations that the view allows."""
    used: set[tuple[str, int]] = set()
    result: list[ViewQuestion] = []
    for order in orders:
        for relation in order:
            options = [one for one in _options(view, facts, relation) if (relation, one.target.instance) not in used]
            if options:
                option = options[int(rng.integers(len(options)))]
                used.add((relation, option.target.instance))
                goal = Goal(
                    "relational", relation, view.object_mask(option.target), target=option.target,
                    references=option.references, candidates=option.candidates, surface=option.surface,
                )  # fmt: skip
                result.append(asked(view, goal, rng))
                break
    return result


def _options(view: View, facts: Facts, relation: str) -> list[Option]:
    found: list[Option] = []
    if relation in NEAR:
        for reference in view.unique:
            row = facts.near(relation)[reference.instance - FIRST_OBJECT]
            found += _single(view, dict(enumerate(row.tolist())), (reference,), None)
    elif relation == "between":
        for pair in combinations(view.unique, 2):
            row = facts.between(pair[0].instance - FIRST_OBJECT, pair[1].instance - FIRST_OBJECT)
            found += _single(view, dict(enumerate(row.tolist())), pair, None)
    if relation in PARTS or (relation == "on" and len(view.room.surfaces) > 1):
        for number, surface in enumerate(view.room.surfaces):
            if view.shows(number) >= MIN_SURFACE * view.size and names_part(relation, surface):
                found += _single(view, _on_surface(view, facts, relation, number), (), surface)
    return found


def _single(
    view: View, judged: Mapping[int, int], references: tuple[SeenObject, ...], surface: Support | None
) -> Iterator[Option]:
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
        visible = [seen for slot in slots if (seen := view.seen[slot]) is not None]
        if answers.count(YES) == 1 and UNSURE not in answers and len(visible) >= 2:
            target = view.seen[slots[answers.index(YES)]]
            if target is not None:
                yield Option(target, references, surface, tuple(visible))


def _on_surface(view: View, facts: Facts, relation: str, number: int) -> dict[int, int]:
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
