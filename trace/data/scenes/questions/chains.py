"""Questions whose reference object is itself named by a relation ("the ball behind the mug left of the red can").

Every link of a chain is a relational question of its own: at least two objects have its noun, exactly one of them has
the relation, none is unsure. A chain is asked only if no shorter reading answers it: relations are left out, or another
object of a middle noun is taken. A reading goes from object to object, to the nearest one that has the relation; where
none has, it has no answer. The last link between objects is balanced as in `relational`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product

import numpy as np

from ..config import RelationsConfig
from ..objects import Bools, Floats, Ints
from ..wording import DIRECTIONS
from ..world.layout import LayoutBatch
from ..world.surfaces import Reject
from .free_space import answers_beside, free_question
from .question import Goal, Hop, ViewQuestion, build_question
from .relational import Cell, judge_directions, leads
from .view import XY, SeenObject, View, deepest_point, on_mask

Steps = tuple[tuple[int, int], ...]  # (hop whose relation is followed, hop whose noun is looked for)
OVERLAP = 0.5  # of the free space that a shorter reading finds, at most this part may be right


def shorter_readings(hops: int) -> Iterator[tuple[str, int | None, Steps]]:
    """Yield the name of each reading, the hop whose other objects it starts from (None: the named object), its steps."""
    for count in range(hops - 1, 0, -1):
        for kept in combinations(range(hops), count):
            name = "no_first_hop" if 0 not in kept else "no_middle_hop" if hops - 1 in kept else "no_last_hop"
            for nouns in product(*(range(first, second) for first, second in pairwise(kept))):
                yield name if count == hops - 1 else "one_hop", None, tuple(zip(kept, (*nouns, hops - 1), strict=True))
    for middle in range(hops - 1):
        yield "other_middle", middle, tuple((hop, hop) for hop in range(middle + 1, hops))


@dataclass(frozen=True, slots=True)
class Chains:
    """Chains of links between objects. Objects are slots, relations are indices into DIRECTIONS."""

    rows: Ints  # [chains], the arrangement
    objects: Ints  # [chains, links + 1]: the named object, then the one that each link leads to
    relations: Ints  # [chains, links]
    extreme: Ints  # [chains], the candidate of the last link that is furthest along its direction
    nearest: Ints  # [chains], the candidate nearest to the last link's reference

    def select(self, chosen: Ints | Bools) -> Chains:
        fields = ("rows", "objects", "relations", "extreme", "nearest")
        return Chains(*(getattr(self, name)[chosen] for name in fields))


class ChainFinder:
    """Finds the chains of arrangements, seen by cameras at `azimuths`; `seen` [slots] says which objects are visible.

    `allowed` [4] masks the directions.
    """

    def __init__(
        self, layouts: LayoutBatch, azimuths: Floats, allowed: Bools, config: RelationsConfig, seen: Bools | None = None
    ) -> None:
        slots = layouts.present.shape[1]
        self._facts, self._margin = judge_directions(layouts, azimuths, config), config.extreme_margin
        pairs = layouts.present[:, None, :] & layouts.present[:, :, None] & ~np.eye(slots, dtype=bool)
        self.same = (layouts.categories[:, :, None] == layouts.categories[:, None, :]) & layouts.present[:, None, :]
        self._yes = self._facts.yes & pairs[:, None]

        def with_noun(held: Bools) -> Ints:  # of the objects held [..., object], how many have the noun of each
            return held.astype(np.int64) @ (self.same if held.ndim == 3 else self.same[:, None])

        clear = with_noun(pairs) >= 2
        if seen is not None:
            clear &= with_noun(pairs & ~seen) == 0
        self._link = self._yes & (with_noun(self._yes) == 1) & clear[:, None] & allowed[:, None, None]
        self._link &= with_noun(self._facts.unsure & pairs[:, None]) == 0
        self._named = layouts.unique if seen is None else layouts.unique & seen

    def find(self, links: int, cell: Cell) -> Chains:
        """Every chain of so many links, the last one in the cell, that no shorter reading answers."""
        rows, named = self._named.nonzero()
        objects, relations = named[:, None], np.zeros((len(rows), 0), np.int64)
        for _ in range(links):
            chain, relation, end = self._link[rows, :, objects[:, -1]].nonzero()
            new = (objects[chain] != end[:, None]).all(1)
            rows, objects = rows[chain[new]], np.c_[objects[chain], end][new]
            relations = np.c_[relations[chain], relation][new]
        *_, reference, target = objects.T
        candidates = self.same[rows, target] & (np.arange(self.same.shape[1]) != reference[:, None])
        far = np.where(candidates, self._facts.along[rows, relations[:, -1], reference], -np.inf)
        near = np.where(candidates, self._facts.gap[rows, reference], np.inf)
        extreme, nearest = far.argmax(1), near.argmin(1)
        clear = leads(far, self._margin) & leads(-near, self._margin)
        chains = Chains(rows, objects, relations, extreme, nearest)
        chains = chains.select(clear & ((extreme == target) == cell[0]) & ((nearest == target) == cell[1]))
        shorter = np.zeros(len(chains.rows), bool)
        for _, answer in self.readings(chains, links):
            shorter |= answer == chains.objects[:, -1]
        return chains.select(~shorter)

    def readings(self, chains: Chains, hops: int) -> Iterator[tuple[tuple[str, int], Ints]]:
        """Yield the name and last hop of each reading, and the slots [chains] where it ends, -1 without an answer.

        Of chains with a link less than `hops`, where the last hop leads to free space, the slots of its reference.
        """
        links = chains.relations.shape[1]
        for name, middle, steps in shorter_readings(hops):
            starts = [chains.objects[:, 0]]
            if middle is not None:
                own, every = chains.objects[:, middle + 1], range(self.same.shape[1])
                starts = [np.where(self.same[chains.rows, own, slot] & (own != slot), slot, -1) for slot in every]
            for at in starts:
                yield (name, steps[-1][0]), self._follow(chains, at, steps if links == hops else steps[:-1])

    def _follow(self, chains: Chains, at: Ints, steps: Steps) -> Ints:
        rows = chains.rows
        for hop, noun in steps:
            fits = self._yes[rows, chains.relations[:, hop], at] & self.same[rows, chains.objects[:, noun + 1]]
            fits &= (at >= 0)[:, None]
            at = np.where(fits.any(1), np.where(fits, self._facts.gap[rows, at], np.inf).argmin(1), -1)
        return at


def chain_questions(
    view: View, finder: ChainFinder, wanted: Sequence[tuple[int, bool]], cell: Cell, order: Ints,
    free_relations: Sequence[str], rng: np.random.Generator, required: bool,
) -> list[ViewQuestion]:  # fmt: skip
    """One question for each wanted (number of hops, whether for free space), its last link between objects in the cell.

    `order`: the directions of that link, the preferred ones first. Raises Reject if one is `required` and not possible.
    """
    questions: list[ViewQuestion] = []
    rank = np.argsort(order)
    for hops, free in wanted:
        chains = finder.find(hops - free, cell)
        shuffled = rng.permutation(len(chains.rows))
        question = None
        for index in shuffled[np.argsort(rank[chains.relations[shuffled, -1]], kind="stable")]:
            chain = chains.select(np.array([index]))
            question = _chain_question(view, finder, chain, hops, free_relations if free else (), rng)
            if question is not None and question.goal.hops not in [other.goal.hops for other in questions]:
                questions.append(question)
                break
        else:
            if required:
                raise Reject("the wanted chains of relations are not possible")
    return questions


def _chain_question(
    view: View, finder: ChainFinder, chain: Chains, hops: int, free_relations: Sequence[str], rng: np.random.Generator
) -> ViewQuestion | None:
    """The question about free space if there are `free_relations`: None if none of them has room."""

    def seen(slot: int) -> SeenObject:
        visible = view.seen[slot]
        assert visible is not None  # the finder leaves out what is hidden
        return visible

    named, *reached = (seen(slot) for slot in chain.objects[0])
    links = tuple(Hop(DIRECTIONS[relation], end) for relation, end in zip(chain.relations[0], reached, strict=True))
    alike = finder.same[0, chain.objects[0, -1]].nonzero()[0]
    goal = Goal(
        f"chain {hops}", links[-1].relation, target=reached[-1], references=(named,), hops=links,
        candidates=tuple(seen(slot) for slot in alike if slot != chain.objects[0, -2]),
        extreme=seen(chain.extreme[0]), nearest=seen(chain.nearest[0]),
    )  # fmt: skip
    answers = [(name, hop, seen(slot)) for (name, hop), (slot,) in finder.readings(chain, hops) if slot >= 0]
    if not free_relations:
        question = build_question(view, replace(goal, mask=view.object_mask(reached[-1])), rng)
        return replace(question, shortcuts=question.shortcuts | {name: end.center for name, _, end in answers})
    answers = list(dict.fromkeys(answers))
    for relation in rng.permutation(np.array(free_relations)).tolist():
        own = replace(goal, kind=f"free chain {hops}", relation=relation, target=None, candidates=(),
                      hops=(*links, Hop(relation, None)))  # fmt: skip
        asked = free_question(view, relation, reached[-1], rng, own)
        if asked is None or asked.goal.removed is None:
            continue
        readings: dict[str, XY | None] = {}
        for name, hop, end in answers:
            found = answers_beside(view, own.hops[hop].relation, end, asked.goal.removed)
            if found is not None:
                readings[name] = point = deepest_point(found)
                shared = np.count_nonzero(found & asked.goal.mask)
                if on_mask(np.array([point]), asked.goal.mask)[0] or shared > OVERLAP * np.count_nonzero(found):
                    break
        else:
            return replace(asked, shortcuts=asked.shortcuts | readings)
    return None
