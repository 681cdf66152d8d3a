"""One scene from its number: arrangement, views, questions. All of it depends on (seed, split, number) alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from ...utils.command import InputError
from .config import DatasetSpec
from .objects import Bools, Floats, Ints
from .objects.catalog import Body
from .questions import relational
from .questions.absent import absent_questions
from .questions.chains import ChainFinder, chain_questions
from .questions.free_space import between_questions, free_questions, part_questions
from .questions.object_questions import direct_questions, located_questions, relational_question
from .questions.question import ViewQuestion
from .questions.relational import HARD, Cell, RelationalBatch, RelationalCandidate
from .questions.relations import SpatialFacts
from .questions.view import View
from .render import SceneRenderer
from .scene_files import write_scene
from .wording import DIRECTIONS
from .world.camera import Camera, sample_camera
from .world.layout import LayoutBatch, layout_from_bodies, sample_layouts
from .world.rooms import ScenePlan, plan_flat_table, plan_room
from .world.surfaces import Reject, Room, supports_of

BATCH = 48  # arrangements drawn and judged at a time
MANY = 8  # objects of an arrangement, in which chains of relations are easy to find
GROUPS = 16  # groups of objects drawn for each, where chains are wanted
MAX_ROUNDS = 400
# Keys of the random streams of questions that are dealt out over the whole set: (which comes first, the others).
STREAMS = {"free": (3, 4), "located": (6, 7), "part": (8, 9)}


def make_scene(spec: DatasetSpec, number: int, renderer: SceneRenderer) -> dict[str, Any]:
    """Render scene `number`, write its images and masks, and return its line: views, samples and rejects by reason."""
    return SceneBuilder(spec, number, renderer).build()


class SceneBuilder:
    """Draws arrangements of one scene until every view has the questions that it is to have."""

    def __init__(self, spec: DatasetSpec, number: int, renderer: SceneRenderer) -> None:
        self.spec, self.number, self.renderer = spec, number, renderer
        self.rng = _stream(spec, 0, number)
        self.rejects: Counter[str] = Counter()
        count = spec.counts["relational"]
        # Of each view: cells of its relational questions, and for each the directions in their order.
        self.cells: list[tuple[Cell, ...]] = []
        self.orders: list[Ints] = []
        # Of each view with chains: the cell of the last link between objects with the order of its directions, and of
        # each question the number of hops and whether it asks for free space.
        self.links: list[tuple[Cell, Ints]] = []
        self.chains: list[list[tuple[int, bool]]] = []
        self.beside = [name for name in spec.relations["free"] if name in (*DIRECTIONS, "next to")]
        for view in range(spec.views):
            wanted = list(relational.wanted_cells(spec.seed, spec.split, (number * spec.views + view) * count, count))
            self.cells.append(tuple(cell for cell, _ in wanted))
            self.orders.append(np.array([order for _, order in wanted], np.int64).reshape(-1, len(DIRECTIONS)))
            if spec.counts["chain"]:
                first = number * spec.views + view
                wanted = wanted or list(relational.wanted_cells(spec.seed, spec.split, first, 1))
                self.links.append(wanted[0])
                counts = spec.config.questions.chain.items()
                free = len(self.beside) > 0
                self.chains.append(
                    [(n, free and (first + n + k) % 2 == 1) for n, count in counts for k in range(count)]
                )

    def build(self) -> dict[str, Any]:
        config, rng = self.spec.config, self.rng
        for _ in range(MAX_ROUNDS):
            plan = plan_flat_table(config) if config.world.kind == "flat" else plan_room(config, rng)
            azimuths = rng.uniform(*plan.azimuths, BATCH)
            # The view for which the arrangement is drawn: the first, or the first with a question of the cell HARD.
            lead = next((view for view, cells in enumerate(self.cells) if HARD in cells), 0) if plan.checked else 0
            layouts, kept = self._draw_layouts(plan, azimuths, lead)
            if not len(kept):
                self.rejects["the objects do not fit side by side"] += BATCH
                continue
            azimuths = azimuths[kept]
            rows = relational.matching_rows(self._relational(layouts.compact(), azimuths), self.cells[lead])
            self.rejects["the wanted relational questions are not possible"] += len(azimuths) - len(rows)
            rows = self._with_chains(layouts, azimuths, rows, lead)
            for row in rows:
                layout = layouts.select(np.array([row]))
                if plan.checked and not self._allows_other_views(plan, layout, lead):
                    self.rejects["the wanted relational questions are not possible"] += 1
                    continue
                try:
                    bodies, room = plan.furnish(layout, rng)
                except Reject as reason:
                    self.rejects[str(reason)] += 1
                    continue
                views = self._take_views(plan, bodies, room, float(azimuths[row]), lead)
                if views is not None:
                    return write_scene(self.spec, self.number, views, self.renderer, self.rejects)
        rejected = ", ".join(f"{reason}: {count}" for reason, count in self.rejects.most_common())
        raise InputError(
            f"no scene {self.number} in {MAX_ROUNDS} rounds. Loosen the configuration. Rejected: {rejected}"
        )

    def _draw_layouts(self, plan: ScenePlan, azimuths: Floats, lead: int) -> tuple[LayoutBatch, Ints]:
        """Arrangements of which many have the questions of the view `lead`, and their numbers among the azimuths."""
        config, rng = self.spec.config, self.rng
        asked = list(zip(self.cells[lead], self.orders[lead], strict=True))
        decoys, group, tries = [want for want in asked if want[0] == HARD], None, 1
        least, most = plan.counts or (config.objects.min_objects, config.objects.max_objects)
        links = 1
        if self.chains:
            links, tries = max(hops - free for hops, free in self.chains[lead]), GROUPS
            least, most = max(least, links + 2), max(most, min(config.objects.max_objects, MANY))
            decoys = decoys or [want for want in self.links[lead : lead + 1] if not want[0][0]]
        if decoys:
            cell, order = decoys[0]
            direction = next(int(index) for index in order if DIRECTIONS[index] in self.spec.relations["relational"])
            group = relational.decoy_group(
                azimuths, direction, config.objects, config.relations, rng, cell, links, tries
            )
        return sample_layouts(len(azimuths), config, rng, group, (least, most))

    def _relational(self, layouts: LayoutBatch, azimuths: Floats) -> RelationalBatch:
        """`layouts` are compact: the number of nouns does not grow with the catalog."""
        names = self.spec.relations["relational"]
        allowed = np.array([relation in names for relation in DIRECTIONS])
        nouns = int(layouts.categories.max()) + 1
        return relational.relational_questions(layouts, azimuths, nouns, allowed, self.spec.config.relations)

    def _finder(self, layouts: LayoutBatch, azimuths: Floats, seen: Bools | None = None) -> ChainFinder:
        names = self.spec.relations["chain"]
        allowed = np.array([relation in names for relation in DIRECTIONS])
        return ChainFinder(layouts, azimuths, allowed, self.spec.config.relations, seen)

    def _with_chains(self, layouts: LayoutBatch, azimuths: Floats, rows: Ints, view: int) -> Ints:
        """Those of the rows that have the chains that a view is to have."""
        if not self.chains or not len(rows):
            return rows
        finder = self._finder(layouts.select(rows), azimuths[rows])
        possible = np.ones(len(rows), bool)
        for links in {hops - free for hops, free in self.chains[view]}:
            possible &= np.isin(np.arange(len(rows)), finder.find(links, self.links[view][0]).rows)
        self.rejects["the wanted chains of relations are not possible"] += int((~possible).sum())
        return rows[possible]

    def _allows_other_views(self, plan: ScenePlan, layout: LayoutBatch, lead: int) -> bool:
        """Whether the arrangement by itself allows what the other views want: making its objects costs more."""
        for index, cells in enumerate(self.cells):
            if index != lead and cells:
                azimuths = self.rng.uniform(*plan.azimuths, plan.num_azimuths)
                if not len(relational.matching_rows(self._relational(_repeated(layout, azimuths), azimuths), cells)):
                    return False
        return True

    def _take_views(
        self, plan: ScenePlan, bodies: list[Body], room: Room, azimuth: float, lead: int
    ) -> list[tuple[View, list[ViewQuestion]]] | None:
        """Every view of one arrangement, `lead` at `azimuth`; None if a view does not have its questions."""
        config, rng = self.spec.config, self.rng
        layout = layout_from_bodies(bodies, config)
        facts = SpatialFacts(bodies, supports_of(bodies, room.surfaces), config.relations)
        self.renderer.set_scene(bodies, room)
        views: list[tuple[View, list[ViewQuestion]]] = []
        for index, cells in enumerate(self.cells):
            if index == lead:
                azimuths = plan.first_azimuths(azimuth, rng)
            else:
                azimuths = rng.uniform(*plan.azimuths, plan.num_azimuths)
            layouts = _repeated(layout, azimuths)
            questions = self._relational(layouts, azimuths)
            rows = relational.matching_rows(questions, cells)
            if not len(rows) and plan.checked:
                self.rejects["a view does not have the wanted relational questions"] += 1
            chained = self._with_chains(layouts, azimuths, rows, index)
            rows = chained if index == lead else np.concatenate([chained, np.setdiff1d(rows, chained)])
            for row in rows[: plan.attempts]:
                chosen = relational.choose_questions(questions, layouts, row, cells, self.orders[index], rng)
                if chosen is None:
                    continue
                size = self.spec.size(self.number, index)
                camera = sample_camera(bodies, float(azimuths[row]), size, config.camera, rng)
                try:
                    view, asked = self._take_view(index, bodies, room, facts, camera, chosen)
                    if self.chains:
                        seen = np.array([one is not None for one in view.seen])
                        finder = self._finder(layouts.select(np.array([row])), azimuths[[row]], seen)
                        wanted = self.chains[index], *self.links[index]
                        asked += chain_questions(view, finder, *wanted, self.beside, rng, index == lead)
                    views.append((view, asked + self._absent(view, facts, asked, index)))
                    break
                except Reject as reason:
                    self.rejects[str(reason)] += 1
            else:
                return None
        return views

    def _absent(self, view: View, facts: SpatialFacts, asked: list[ViewQuestion], index: int) -> list[ViewQuestion]:
        """As many questions as make the wanted share; they have a random stream of their own."""
        share, rng = self.spec.config.absent, _stream(self.spec, 10, self.number, index)
        count = int(len(asked) * share / (1 - share) + rng.random()) if share else 0
        counts = self.spec.counts
        relations = {kind: names if counts[kind] else () for kind, names in self.spec.relations.items()}
        return absent_questions(view, facts, asked, relations, count, rng) if count else []

    def _take_view(
        self, index: int, bodies: list[Body], room: Room, facts: SpatialFacts, camera: Camera,
        chosen: tuple[RelationalCandidate, ...],
    ) -> tuple[View, list[ViewQuestion]]:  # fmt: skip
        config, rng = self.spec.config, self.rng
        low, high = config.camera.height
        if not low <= camera.position[2] <= high:
            raise Reject("the camera is too low or too high")
        if math.hypot(*camera.position[:2]) > room.reach:
            raise Reject("the camera is outside of the room")
        self.renderer.set_camera(camera)
        instances, areas, depth = self.renderer.segment(config.camera.depth)
        view = View(bodies, room, camera, instances, areas, config, depth)
        counts = self.spec.counts
        first = self.number * self.spec.views + index

        def orders(kind: str) -> list[list[str]]:
            return [self._order(kind, first * counts[kind] + offset) for offset in range(counts[kind])]

        questions = direct_questions(view, counts["direct"], rng)
        questions += [relational_question(view, candidate, rng) for candidate in chosen]
        questions += located_questions(view, facts, orders("located"), rng)
        questions += between_questions(view, counts["between"], rng)
        questions += free_questions(view, orders("free"), rng)
        questions += part_questions(view, orders("part"), rng)
        if not any(question.goal.relation for question in questions) and sum(counts.values()) > counts["direct"]:
            raise Reject("no relation holds")
        return view, questions

    def _order(self, kind: str, number: int) -> list[str]:
        """The wanted relation of a question (balanced in blocks), then the others in a random order."""
        spec, (own, rest) = self.spec, STREAMS[kind]
        relations = spec.relations[kind]
        block, position = divmod(number, len(relations))
        order = _stream(spec, own, block).permutation(relations).tolist()
        others = [*order[:position], *order[position + 1 :]]
        return [order[position], *_stream(spec, rest, number).permutation(others).tolist()]


def _repeated(layout: LayoutBatch, azimuths: Floats) -> LayoutBatch:
    """One arrangement, compact, as often as there are azimuths."""
    return layout.compact().select(np.zeros(len(azimuths), np.int64))


def _stream(spec: DatasetSpec, *key: int) -> np.random.Generator:
    """An independent random stream of the data set."""
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(spec.split, *key)))
