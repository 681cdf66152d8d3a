"""One scene from its number: arrangement, views, questions, files. All of it depends on (seed, split, number) alone."""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...command import InputError
from .camera import Camera, sample_camera
from .catalog import Body
from .config import DIRECTIONS, SceneConfig
from .layout import Layouts, realise, sample_layouts
from .questions import ViewQuestion, between_questions, direct_questions, free_questions, relational_question
from .relational import (
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
from .relations import Table
from .view import Reject, View
from .world import Appearance, Studio

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TRAINING, BENCHMARK = 0, 1  # the splits: first key of every random stream, so that their scenes are disjoint
BATCH = 48  # arrangements drawn and judged at a time
MAX_ROUNDS = 400
CAMERA_TRIES = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What every scene of a data set shares."""

    out: Path
    config: SceneConfig
    size: tuple[int, int]  # width, height
    views: int
    seed: int
    benchmark: bool

    @property
    def split(self) -> int:
        return BENCHMARK if self.benchmark else TRAINING

    @property
    def counts(self) -> dict[str, int]:
        """Questions of each kind a view, in the order in which they are numbered."""
        questions = self.config.questions
        free, relational = self.relations
        return {
            "direct": questions.direct,
            "relational": questions.relational if relational else 0,
            "between": questions.between if self.benchmark or "between" not in questions.unseen else 0,
            "free": questions.free if free else 0,
        }

    @property
    def relations(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Relations of free space and of relational questions; the unseen ones only in a benchmark."""
        questions = self.config.questions
        hidden = () if self.benchmark else questions.unseen
        return (
            tuple(relation for relation in questions.free_relations if relation not in hidden),
            tuple(relation for relation in questions.relational_relations if relation not in hidden),
        )


@dataclass(frozen=True, slots=True)
class _Shot:
    """A view that passed: its camera, its segmentation, its questions."""

    camera: Camera
    instances: NDArray[np.uint8]
    view: View
    questions: list[ViewQuestion]


def make_scene(job: Job, number: int, studio: Studio) -> dict[str, Any]:
    """Render scene `number`, write its images and masks, and return its line: views, samples and rejects by reason."""
    rng = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.split, 0, number)))
    rejects: Counter[str] = Counter()
    relational = job.counts["relational"]
    wanted = [
        list(wanted_cells(job.seed, job.split, (number * job.views + view) * relational, relational))
        for view in range(job.views)
    ]
    for _ in range(MAX_ROUNDS):
        azimuths = rng.uniform(0, 2 * math.pi, BATCH)
        group = next((_group(job, azimuths, order, rng) for cell, order in wanted[0] if cell == HARD), None)
        layouts, kept = sample_layouts(BATCH, job.config.objects, rng, group)
        if not len(kept):
            continue
        azimuths = azimuths[kept]
        questions = _judge(job, layouts, azimuths)
        rows = matching_rows(questions, tuple(cell for cell, _ in wanted[0]))
        rejects["the wanted relational questions are not possible"] += len(azimuths) - len(rows)
        for row in rows:
            single = layouts.select(np.array([row]))
            shots = _shoot(job, number, single, float(azimuths[row]), wanted, studio, rng, rejects)
            if shots is not None:
                bodies, table, taken = shots
                return _write(job, number, bodies, table, taken, studio, rejects)
    raise InputError(
        f"scene {number} was given up after {MAX_ROUNDS} rounds; loosen the configuration. Rejected: "
        + ", ".join(f"{reason}: {count}" for reason, count in rejects.most_common())
    )


def _group(job: Job, azimuths: Floats, order: Ints, rng: np.random.Generator) -> Floats:
    direction = next(int(index) for index in order if DIRECTIONS[index] in job.relations[1])
    return hard_group(azimuths, direction, job.config.objects, job.config.relations, rng)


def _judge(job: Job, layouts: Layouts, azimuths: Floats) -> Relational:
    allowed = np.array([relation in job.relations[1] for relation in DIRECTIONS])
    return relational_questions(layouts, azimuths, len(job.config.objects.categories), allowed, job.config.relations)


def _shoot(
    job: Job, number: int, single: Layouts, azimuth: float, wanted: list[list[tuple[Cell, Ints]]], studio: Studio,
    rng: np.random.Generator, rejects: Counter[str],
) -> tuple[list[Body], Table, list[_Shot]] | None:  # fmt: skip
    """Every view of one arrangement, the first at `azimuth`; None when one of them cannot be had."""
    bodies, table = realise(single, 0, job.config.objects, rng)
    studio.arrange(bodies, table, Appearance.sample(rng))
    shots: list[_Shot] = []
    for index, cells in enumerate(wanted):
        azimuths = np.array([azimuth]) if index == 0 else rng.uniform(0, 2 * math.pi, 64)
        repeated = single.select(np.zeros(len(azimuths), np.int64))
        questions = _judge(job, repeated, azimuths)
        rows = matching_rows(questions, tuple(cell for cell, _ in cells))
        shot = None
        for row in rows[:CAMERA_TRIES]:
            orders = np.array([order for _, order in cells], np.int64).reshape(-1, len(DIRECTIONS))
            chosen = choose_questions(questions, repeated, row, tuple(cell for cell, _ in cells), orders, rng)
            if chosen is None:
                continue
            camera = sample_camera(bodies, float(azimuths[row]), job.size, job.config.camera, rng)
            try:
                shot = _take(job, number, index, bodies, table, camera, chosen, studio, rng)
                break
            except Reject as reason:
                rejects[str(reason)] += 1
        if shot is None:
            return None
        shots.append(shot)
    return bodies, table, shots


def _take(
    job: Job, number: int, index: int, bodies: list[Body], table: Table, camera: Camera,
    chosen: tuple[RelationalCandidate, ...], studio: Studio, rng: np.random.Generator,
) -> _Shot:  # fmt: skip
    studio.look(camera)
    instances = studio.segment()
    view = View(bodies, table, camera, instances, job.config)
    counts, extras = job.counts, job.config.objects.categories
    result = direct_questions(view, counts["direct"], rng)
    result += [relational_question(view, candidate, rng) for candidate in chosen]
    result += between_questions(view, counts["between"], extras, rng)
    first = (number * job.views + index) * counts["free"]
    orders = [_free_order(job, first + offset) for offset in range(counts["free"])]
    result += free_questions(view, orders, extras, rng)
    return _Shot(camera, instances, view, result)


def _free_order(job: Job, number: int) -> list[str]:
    """The wanted relation of a free-space question (balanced in blocks), then the others in a random order."""
    relations = job.relations[0]
    block, place = divmod(number, len(relations))
    order = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.split, 3, block))).permutation(
        relations
    )
    rest = np.random.default_rng(np.random.SeedSequence(job.seed, spawn_key=(job.split, 4, number)))
    return [str(order[place]), *(str(other) for other in rest.permutation(np.delete(order, place)))]


# --- files ----------------------------------------------------------------------------------------------------------


def _write(
    job: Job, number: int, bodies: list[Body], table: Table, shots: list[_Shot], studio: Studio, rejects: Counter[str]
) -> dict[str, Any]:
    views, samples = [], []
    per_view = sum(job.counts.values())
    for index, shot in enumerate(shots):
        name = f"{number:06d}_{index}"
        studio.look(shot.camera)
        _save(job.out / "images" / f"{name}.png", studio.color())
        _save(job.out / "instances" / f"{name}.png", shot.instances)
        camera = shot.camera
        views.append(
            {
                "view": name,
                "image": f"images/{name}.png",
                "instances": f"instances/{name}.png",
                "width": camera.width,
                "height": camera.height,
                "camera": {
                    "fovy_deg": math.degrees(camera.fovy),
                    "intrinsics": camera.intrinsics.tolist(),
                    "world_from_camera": camera.world_from_camera.tolist(),
                },
                "surface": {"name": "table", "center": [0.0, 0.0, 0.0], "half_size": list(table.half)},
                "objects": [seen.as_json() for seen in shot.view.objects],
                "seed": [job.seed, job.split, number],
            }
        )
        for place, question in enumerate(shot.questions):
            running = (number * job.views + index) * per_view + place
            identifier: int | str = running if job.benchmark else f"{name}_{place}"
            _save(job.out / "masks" / f"{identifier}.png", question.goal.mask.astype(np.uint8) * 255)
            samples.append(
                {"id": identifier, "instruction": question.instruction, "meta": _meta(job, name, identifier, question)}
            )
    return {"scene": number, "views": views, "samples": samples, "rejects": dict(rejects)}


def _meta(job: Job, view: str, identifier: int | str, question: ViewQuestion) -> Mapping[str, Any]:
    """What a sample or a benchmark question records beyond its text."""
    goal = question.goal
    target = goal.target
    meta: dict[str, Any] = {
        "task": "object_reference" if target else "free_space",
        "kind": goal.kind,
        "relation": goal.relation,
        "target": target.as_json() if target else None,
        "references": [reference.as_json() for reference in goal.references],
        "surface": "table",
        "view": view,
        "mask": f"masks/{identifier}.png",
        "instances": f"instances/{view}.png",
        "image_size": list(job.size),
        "points": [list(point) for point in question.points],
        "shortcuts": {name: list(point) if point else None for name, point in question.shortcuts.items()},
    }
    if goal.removed:
        meta["removed"] = goal.removed.as_json()
    if goal.kind == "relational":
        meta["candidates"] = [seen.instance for seen in goal.candidates]
        meta["extreme_correct"] = goal.extreme is target
        meta["nearest_correct"] = goal.nearest is target
    return meta


def _save(path: Path, array: NDArray[np.uint8]) -> None:
    """PNG, whole or not at all. Light compression: half the time for a tenth more bytes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=3)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
