"""One scene from its number: arrangement, views, questions. All of it depends on (seed, split, number) alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.command import InputError
from .config import SceneConfig
from .objects.catalog import Body
from .questions.common import direct_questions, relational_question
from .questions.free_space import between_questions, free_questions, part_questions
from .questions.located import located_questions
from .questions.relational import (
    HARD,
    Cell,
    Relational,
    RelationalCandidate,
    choose_questions,
    hard_group,
    matching_rows,
    relational_questions,
    wanted_cells,
)
from .questions.spatial_facts import Facts
from .questions.view import View
from .questions.wording import DIRECTIONS
from .render import SceneRenderer
from .scene_files import Shot, write_scene
from .world.camera import Camera, sample_camera
from .world.layout import LayoutBatch, layout_from_bodies, sample_layouts
from .world.rooms import ScenePlan, plan_flat_table, plan_room
from .world.surfaces import Reject, Room, supports_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Wanted = list[list[tuple[Cell, Ints]]]  # of each view: cells of its relational questions, directions in their order

TRAINING, BENCHMARK = 0, 1  # the splits: first key of every random stream, so that their scenes are disjoint
BATCH = 48  # arrangements drawn and judged at a time
MAX_ROUNDS = 400
# Keys of the random streams of questions that are dealt out over the whole set: (which comes first, the others).
STREAMS = {"free": (3, 4), "located": (6, 7), "part": (8, 9)}


@dataclass(frozen=True, slots=True)
class Job:
    """What every scene of a data set shares."""

    out: Path
    config: SceneConfig
    sizes: tuple[tuple[int, int], ...]  # width, height; the views take turns
    views: int
    seed: int
    benchmark: bool

    @property
    def split(self) -> int:
        return BENCHMARK if self.benchmark else TRAINING

    def size(self, number: int, view: int) -> tuple[int, int]:
        return self.sizes[(number * self.views + view) % len(self.sizes)]

    @property
    def counts(self) -> dict[str, int]:
        """Questions of each kind a view, in the order in which they are numbered."""
        questions, allowed = self.config.questions, self.relations
        return {
            "direct": questions.direct,
            "relational": questions.relational if allowed["relational"] else 0,
            "located": questions.located if allowed["located"] else 0,
            "between": questions.between if self.benchmark or "between" not in questions.unseen else 0,
            "free": questions.free if allowed["free"] else 0,
            "part": questions.part if allowed["part"] else 0,
        }

    @property
    def relations(self) -> dict[str, tuple[str, ...]]:
        """Relations of each kind of question; the unseen ones only in a benchmark."""
        questions = self.config.questions
        hidden = () if self.benchmark else questions.unseen
        kinds = {
            "relational": questions.relational_relations,
            "located": questions.located_relations,
            "free": questions.free_relations,
            "part": questions.part_relations,
        }
        return {kind: tuple(name for name in names if name not in hidden) for kind, names in kinds.items()}


def make_scene(job: Job, number: int, renderer: SceneRenderer) -> dict[str, Any]:
    """Render scene `number`, write its images and masks, and return its line: views, samples and rejects by reason."""
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.split, 0, number)))
    rejects: Counter[str] = Counter()
    relational = job.counts["relational"]
    wanted = [
        list(wanted_cells(job.seed, job.split, (number * job.views + view) * relational, relational))
        for view in range(job.views)
    ]
    for _ in range(MAX_ROUNDS):
        plan = plan_flat_table(job.config) if job.config.world.kind == "flat" else plan_room(job.config, rng)
        azimuths = rng.uniform(*plan.azimuths, BATCH)
        lead = _lead(plan, wanted)
        group = next((_group(job, azimuths, order, rng) for cell, order in wanted[lead] if cell == HARD), None)
        layouts, kept = sample_layouts(BATCH, job.config, rng, group, plan.counts)
        if not len(kept):
            rejects["the objects do not fit side by side"] += BATCH
            continue
        azimuths = azimuths[kept]
        questions = _judge(job, layouts.compact(), azimuths)
        rows = matching_rows(questions, tuple(cell for cell, _ in wanted[lead]))
        rejects["the wanted relational questions are not possible"] += len(azimuths) - len(rows)
        for row in rows:
            single = layouts.select(np.array([row]))
            if plan.checked and not _promising(job, plan, single, wanted, lead, rng):
                rejects["the wanted relational questions are not possible"] += 1
                continue
            shots = _shoot(job, number, plan, single, float(azimuths[row]), wanted, lead, renderer, rng, rejects)
            if shots is not None:
                bodies, room, taken = shots
                return write_scene(job, number, bodies, room, taken, renderer, rejects)
    raise InputError(
        f"scene {number} was given up after {MAX_ROUNDS} rounds; loosen the configuration. Rejected: "
        + ", ".join(f"{reason}: {count}" for reason, count in rejects.most_common())
    )


def _lead(plan: ScenePlan, wanted: Wanted) -> int:
    """The view for which the arrangement is drawn: the first, or the first with a question of the cell HARD."""
    hard = (index for index, cells in enumerate(wanted) if any(cell == HARD for cell, _ in cells))
    return next(hard, 0) if plan.checked else 0


def _group(job: Job, azimuths: Floats, order: Ints, rng: np.random.Generator) -> Floats:
    direction = next(int(index) for index in order if DIRECTIONS[index] in job.relations["relational"])
    return hard_group(azimuths, direction, job.config.objects, job.config.relations, rng)


def _judge(job: Job, layouts: LayoutBatch, azimuths: Floats) -> Relational:
    """`layouts` are compact: the number of nouns does not grow with the catalog."""
    names = job.relations["relational"]
    allowed = np.array([relation in names for relation in DIRECTIONS])
    return relational_questions(layouts, azimuths, int(layouts.categories.max()) + 1, allowed, job.config.relations)


def _repeated(layouts: LayoutBatch, azimuths: Floats) -> LayoutBatch:
    return layouts.compact().select(np.zeros(len(azimuths), np.int64))


def _promising(
    job: Job, plan: ScenePlan, single: LayoutBatch, wanted: Wanted, lead: int, rng: np.random.Generator
) -> bool:
    """Whether the arrangement by itself allows what the views other than `lead` want: objects cost more than this."""
    for index, cells in enumerate(wanted):
        if index != lead and cells:
            azimuths = rng.uniform(*plan.azimuths, plan.num_azimuths)
            questions = _judge(job, _repeated(single, azimuths), azimuths)
            if not len(matching_rows(questions, tuple(cell for cell, _ in cells))):
                return False
    return True


def _shoot(
    job: Job, number: int, plan: ScenePlan, single: LayoutBatch, azimuth: float, wanted: Wanted, lead: int,
    renderer: SceneRenderer, rng: np.random.Generator, rejects: Counter[str],
) -> tuple[list[Body], Room, list[Shot]] | None:  # fmt: skip
    """Every view of one arrangement, `lead` at `azimuth`; None when one of them cannot be had."""
    try:
        bodies, room = plan.furnish(single, rng)
    except Reject as reason:
        rejects[str(reason)] += 1
        return None
    whole = layout_from_bodies(bodies, job.config)
    facts = Facts(bodies, supports_of(bodies, room.surfaces), job.config.relations)
    renderer.set_scene(bodies, room)
    shots: list[Shot] = []
    for index, cells in enumerate(wanted):
        azimuths = (
            plan.first_azimuths(azimuth, rng) if index == lead else rng.uniform(*plan.azimuths, plan.num_azimuths)
        )
        repeated = _repeated(whole, azimuths)
        questions = _judge(job, repeated, azimuths)
        rows = matching_rows(questions, tuple(cell for cell, _ in cells))
        if not len(rows) and plan.checked:
            rejects["a view does not have the wanted relational questions"] += 1
        shot = None
        for row in rows[: plan.attempts]:
            orders = np.array([order for _, order in cells], np.int64).reshape(-1, len(DIRECTIONS))
            chosen = choose_questions(questions, repeated, row, tuple(cell for cell, _ in cells), orders, rng)
            if chosen is None:
                continue
            camera = sample_camera(bodies, float(azimuths[row]), job.size(number, index), job.config.camera, rng)
            try:
                shot = _take(job, number, index, bodies, room, facts, camera, chosen, renderer, rng)
                break
            except Reject as reason:
                rejects[str(reason)] += 1
        if shot is None:
            return None
        shots.append(shot)
    return bodies, room, shots


def _take(
    job: Job, number: int, index: int, bodies: list[Body], room: Room, facts: Facts, camera: Camera,
    chosen: tuple[RelationalCandidate, ...], renderer: SceneRenderer, rng: np.random.Generator,
) -> Shot:  # fmt: skip
    low, high = job.config.camera.height
    if not low <= camera.position[2] <= high:
        raise Reject("the camera is too low or too high")
    if math.hypot(*camera.position[:2]) > room.reach:
        raise Reject("the camera is outside of the room")
    renderer.set_camera(camera)
    instances, areas, depth = renderer.segment(job.config.camera.depth)
    view = View(bodies, room, camera, instances, areas, job.config)
    counts = job.counts
    first = number * job.views + index

    def orders(kind: str) -> list[list[str]]:
        return [_order(job, kind, first * counts[kind] + offset) for offset in range(counts[kind])]

    result = direct_questions(view, counts["direct"], rng)
    result += [relational_question(view, candidate, rng) for candidate in chosen]
    result += located_questions(view, facts, orders("located"), rng)
    result += between_questions(view, counts["between"], rng)
    result += free_questions(view, orders("free"), rng)
    result += part_questions(view, orders("part"), rng)
    if not any(question.goal.relation for question in result) and sum(counts.values()) > counts["direct"]:
        raise Reject("no relation holds")
    return Shot(camera, view, result, depth)


def _order(job: Job, kind: str, number: int) -> list[str]:
    """The wanted relation of a question (balanced in blocks), then the others in a random order."""
    block, place = divmod(number, len(job.relations[kind]))
    own, rest = STREAMS[kind]
    order = _shuffled(tuple(job.relations[kind]), job.seed, (job.split, own, block))
    others = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.split, rest, number)))
    return [order[place], *others.permutation([*order[:place], *order[place + 1 :]]).tolist()]


@lru_cache(maxsize=64)  # a block is asked for by several questions
def _shuffled(relations: tuple[str, ...], seed: int, stream: tuple[int, ...]) -> tuple[str, ...]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))
    return tuple(rng.permutation(relations).tolist())
