"""Relational questions ("the mug to the left of the red ball") that cannot be guessed.

Such a question belongs to one of four cells: the extreme candidate in the asked direction is right or wrong, times the
nearest candidate is right or wrong. Each question of the data set has a wanted cell, which only its number and the seed
decide, so the cells are balanced by construction. Arrangements are judged as arrays, many at a time; for the cell in
which both guesses are wrong, which hardly ever happens by chance, four objects are placed so that it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..config import ObjectsConfig, RelationsConfig
from ..objects import Bools, Floats, Ints
from ..world.layout import LayoutBatch
from .relations import directions, in_cone, outside_cone, split

Cell = tuple[bool, bool]  # (the extreme candidate is right, the nearest candidate is right)
CELLS: tuple[Cell, ...] = ((True, True), (True, False), (False, True), (False, False))
HARD = CELLS[3]
ROOM = 0.5  # of the region's half side, between the middles of two objects that stand apart
LEVEL = 0.15  # metres: of what stands higher or lower than this, "left of" and "in front of" are not clear


@dataclass(frozen=True, slots=True)
class RelationalCandidate:
    """A relational question an arrangement allows. Numbers are slots."""

    relation: int  # index into DIRECTIONS
    reference: int
    target: int
    candidates: tuple[int, ...]  # every object of the noun except the reference
    extreme: int
    nearest: int


@dataclass(frozen=True, slots=True)
class RelationalBatch:
    """Every relational question of `num` arrangements, as arrays over [num, 4 directions, reference, category].

    Where a question is not `valid`, target, extreme and nearest candidate mean nothing.
    """

    valid: Bools
    target: Ints
    extreme: Ints
    nearest: Ints

    def cells(self) -> Bools:
        """[4, num, 4, slots, categories]: which valid questions belong to which of CELLS."""
        extreme, nearest = self.extreme == self.target, self.nearest == self.target
        return np.stack([self.valid & (extreme == cell[0]) & (nearest == cell[1]) for cell in CELLS])


@dataclass(frozen=True, slots=True)
class DirectionFacts:
    """Which objects of `num` arrangements lie in which direction from which: [num, 4 directions, reference, object].

    `along` (metres) is how far along the direction; `gap` [num, reference, object] is the distance from the reference
    to the object's enclosing disc. Pairs of one object, or with an empty slot, mean nothing.
    """

    yes: Bools
    unsure: Bools
    along: Floats
    gap: Floats


def judge_directions(layouts: LayoutBatch, azimuths: Floats, config: RelationsConfig) -> DirectionFacts:
    """Judge every direction between two objects of every arrangement, seen by a camera at its azimuth."""
    vectors = directions(azimuths)  # [num, 4, 2]
    offset = layouts.positions[:, None, :] - layouts.positions[:, :, None]  # [num, reference, object, 2]
    # reach [num, 4 or 1, reference, object]: half extents of two objects together along each direction.
    if layouts.bodies:
        extents = np.stack([body.extent(vectors) for body in layouts.bodies], -1)  # [num, 4, objects]
        reach = extents[:, :, None, :] + extents[..., None]
        places = np.array([body.position for body in layouts.bodies])
        gaps = np.stack([body.distance(places) for body in layouts.bodies]) - [body.radius for body in layouts.bodies]
        gap = np.broadcast_to(gaps, (len(azimuths), *gaps.shape))
    else:
        discs = layouts.radii[:, None, :] + layouts.radii[:, :, None]
        reach, gap = discs[:, None], np.hypot(offset[..., 0], offset[..., 1]) - discs
    along, across = split(offset[:, None], vectors[:, :, None, None])  # [num, 4, reference, object]
    yes = in_cone(along, across, reach, config.cone - config.ambiguity)
    unsure = ~yes & ~outside_cone(along, across, config.cone + config.ambiguity)
    if layouts.bodies:
        heights = np.array([body.z for body in layouts.bodies])
        unsure |= yes & (np.abs(heights[:, None] - heights) > LEVEL)
    return DirectionFacts(yes, unsure, along, gap)


def relational_questions(
    layouts: LayoutBatch, azimuths: Floats, num_categories: int, allowed: Bools, config: RelationsConfig
) -> RelationalBatch:
    """Judge every (direction, reference, noun) of every arrangement, seen by a camera at its azimuth.

    A question is valid if the reference's name is unique, at least two other objects have the noun, exactly one of them
    satisfies the relation, none is in the unsure zone, and the extreme and the nearest candidate are clear.
    `allowed` [4] masks the directions.
    """
    slots = layouts.present.shape[1]
    facts = judge_directions(layouts, azimuths, config)
    pairs = layouts.present[:, None, :] & layouts.present[:, :, None] & ~np.eye(slots, dtype=bool)
    noun = layouts.categories[:, None, :] == np.arange(num_categories)[:, None]  # [num, category, object]
    candidate = pairs[:, None, :, None, :] & noun[:, None, None]  # [num, 1, reference, category, object]
    hits = facts.yes[:, :, :, None] & candidate
    valid = layouts.unique[:, None, :, None] & allowed[None, :, None, None] & (candidate.sum(-1) >= 2)
    valid = valid & (hits.sum(-1) == 1) & ~(facts.unsure[:, :, :, None] & candidate).any(-1)
    # The rest is worked out for the few that are left.
    which = row, way, reference, category = valid.nonzero()
    same = candidate[row, 0, reference, category]
    far = np.where(same, facts.along[row, way, reference], -np.inf)
    near = np.where(same, facts.gap[row, reference], np.inf)
    valid[which] = leads(far, config.extreme_margin) & leads(-near, config.extreme_margin)
    extreme, nearest = np.zeros((2, *valid.shape), np.int64)
    extreme[which], nearest[which] = far.argmax(-1), near.argmin(-1)
    return RelationalBatch(valid, hits.argmax(-1), extreme, nearest)


def leads(values: Floats, margin: float) -> Bools:
    """Whether the largest value of the last axis leads the second by `margin` (False where fewer are finite)."""
    if values.shape[-1] < 2:
        return np.zeros(values.shape[:-1], bool)
    top = np.partition(values, values.shape[-1] - 2, -1)[..., -2:]
    with np.errstate(invalid="ignore"):
        ahead: Bools = top[..., 1] - top[..., 0] >= margin
    return ahead & np.isfinite(top[..., 0])


def choose_questions(
    questions: RelationalBatch, layouts: LayoutBatch, row: int, wanted: tuple[Cell, ...], orders: Ints,
    rng: np.random.Generator,
) -> tuple[RelationalCandidate, ...] | None:  # fmt: skip
    """Distinct questions of arrangement `row` in the wanted cells, each in the first direction possible."""
    cells = questions.cells()[:, row]
    chosen: dict[tuple[int, int, int], RelationalCandidate] = {}
    for cell, order in zip(wanted, orders, strict=True):
        possible = cells[CELLS.index(cell)]
        options = [
            (int(relation), int(reference), int(noun))
            for relation in order
            for reference, noun in rng.permutation(np.argwhere(possible[relation]))
        ]
        pick = next((option for option in options if option not in chosen), None)
        if pick is None:
            return None
        relation, reference, noun = pick
        same = layouts.present[row] & (layouts.categories[row] == noun)
        same[reference] = False
        target, extreme, nearest = (int(a[row][pick]) for a in (questions.target, questions.extreme, questions.nearest))
        candidates = tuple(np.flatnonzero(same).tolist())
        chosen[pick] = RelationalCandidate(relation, reference, target, candidates, extreme, nearest)
    return tuple(chosen.values())


def matching_rows(questions: RelationalBatch, wanted: tuple[Cell, ...]) -> Ints:
    """The arrangements that have at least as many questions in each cell as are wanted of it."""
    counts = questions.cells().sum((2, 3, 4))
    enough = np.ones(counts.shape[1], bool)
    for index, cell in enumerate(CELLS):
        enough &= counts[index] >= wanted.count(cell)
    return np.flatnonzero(enough)


def decoy_group(
    azimuths: Floats, direction: int, objects: ObjectsConfig, config: RelationsConfig, rng: np.random.Generator,
    cell: Cell = HARD, links: int = 1, tries: int = 1,
) -> Floats:  # fmt: skip
    """Places [num, members, 2] of objects that make a question likely in which the extreme candidate is wrong.

    They are a reference, a target in the cone, a decoy that is more extreme beside the cone, and in the cell HARD one
    that is nearer outside of it. For a chain of three `links` there are always four, the last of which leads to the
    reference (where the nearest candidate is right, it is further away than the target), and a fifth that leads to it.
    The group is drawn in the frame of the asked direction and moved to where it fits; what does not fit (of `tries`,
    the first that is as wide as the region and has room between its members is taken) is left for the sampler to drop.
    """
    num, region = len(azimuths) * tries, objects.region
    inside = math.radians(config.cone - config.ambiguity)
    beside = math.radians(config.cone + config.ambiguity)
    ahead = region * rng.uniform(0.4, 0.9, num)
    target = np.stack([ahead, ahead * np.tan(rng.uniform(-inside, inside, num))], 1)
    further = ahead + region * rng.uniform(0.08, 0.4, num)
    aside = further * np.tan(rng.uniform(beside, beside + 0.15, num)) * rng.choice([-1, 1], num)
    away = np.hypot(target[:, 0], target[:, 1])
    near = rng.uniform(0.4 * region, away, num) if cell == HARD else away + region * rng.uniform(0.08, 0.6, num)
    angle = rng.uniform(beside, 2 * math.pi - beside, num)
    members = [np.zeros((num, 2)), target, np.stack([further, aside], 1),
               np.stack([near * np.cos(angle), near * np.sin(angle)], 1)]  # fmt: skip
    if links == 3:
        turn = rng.integers(0, 4, num) * math.pi / 2 + rng.uniform(-inside, inside, num)
        members.append(
            members[3] - region * rng.uniform(0.5, 1.2, (num, 1)) * np.stack([np.cos(turn), np.sin(turn)], 1)
        )
    local = np.stack(members if links == 3 or cell == HARD else members[:3], 1)
    axis = np.repeat(directions(azimuths)[:, direction], tries, 0)[:, None]  # [num, 1, 2]
    side = np.stack([-axis[..., 1], axis[..., 0]], -1)
    group = local[..., :1] * axis + local[..., 1:] * side
    low, high = -region - group.min(1), region - group.max(1)
    shift: Floats = low + (high - low) * rng.random((num, 2))
    first = np.arange(0, num, tries)
    if tries > 1:
        gaps = np.hypot(*(group[:, :, None] - group[:, None]).transpose(3, 0, 1, 2)) + np.eye(local.shape[1])
        fits = (gaps.min((1, 2)) >= ROOM * region) & (high >= low).all(1)
        first += fits.reshape(-1, tries).argmax(1)
    result: Floats = (group + shift[:, None])[first]
    return result


def wanted_cells(seed: int, split: int, first: int, count: int) -> Iterator[tuple[Cell, Ints]]:
    """Wanted cell and order of directions for relational questions `first` .. `first + count - 1` of a data set.

    Questions go in blocks of 16 = 4 rounds of the 4 cells, and over a block every cell meets every direction. In a
    round, the two cells in which the extreme candidate is wrong are in different pairs of neighbors: an arrangement
    that has both is hard to find.
    """
    for number in range(first, first + count):
        block, place = divmod(number, 16)
        turn, position = divmod(place, 4)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, 1, block)))
        shifts, rounds = rng.permutation(4), rng.permutation(4)
        own = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, 5, block, turn)))
        easy = own.permutation(2)
        pairs = own.permuted(np.array([[easy[0], 2], [easy[1], 3]]), axis=1)
        cell = int(own.permutation(pairs)[position // 2, position % 2])
        direction = int(shifts[cell] + rounds[turn]) % 4
        others = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, 2, number))).permutation(4)
        yield CELLS[cell], np.array([direction, *(other for other in others if other != direction)])
