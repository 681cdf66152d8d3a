"""What a generated data set is made of: typed, loaded from YAML, every unknown key an error.

The defaults are the values for images of 336 x 336; `configs/scenes/nano.yaml` changes what 128 x 128 needs. The
resolved configuration is written into `generate.json` of every data set, and a folder is only continued with an equal
one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...command import InputError
from ...settings import read_settings
from .catalog import CATEGORIES, COLORS

DIRECTIONS = ("left", "right", "front", "behind")
RELATIONS = (*DIRECTIONS, "between", "next to")
KINDS = ("direct", "relational", "between", "free")


@dataclass(frozen=True, slots=True)
class ObjectsConfig:
    """What stands on the table. Lengths in metres."""

    min_objects: int = 3
    max_objects: int = 6
    min_categories: int = 2
    max_categories: int = 3
    categories: tuple[str, ...] = tuple(CATEGORIES)
    colors: tuple[str, ...] = tuple(COLORS)
    spacing: float = 0.025  # smallest gap between two footprints
    duplicate_names: float = 0.1  # part of the scenes in which two objects may share color and category
    region: float = 0.28  # objects stand in a square of this half side
    table: tuple[float, float] = (0.42, 0.62)  # range of the table's half sides


@dataclass(frozen=True, slots=True)
class CameraConfig:
    """Where the picture is taken from. Angles in degrees."""

    elevation: tuple[float, float] = (32.0, 65.0)
    fovy: tuple[float, float] = (35.0, 55.0)
    margin: float = 0.02  # part of the half image kept free around the objects
    slack: tuple[float, float] = (1.0, 1.2)  # distance as a multiple of the nearest one that shows every object


@dataclass(frozen=True, slots=True)
class RelationsConfig:
    """What the spatial words mean, in the camera's ground frame. Angles in degrees, lengths in metres."""

    cone: float = 45.0  # half angle around the direction
    ambiguity: float = 8.0  # a candidate within this angle of the cone's border is neither in nor out
    extreme_margin: float = 0.02  # the extreme and the nearest candidate lead by this much
    max_distance: float = 0.30  # free space: largest gap between the reference and the placed object, and the answers
    region_distance: float = 0.30  # free space: largest gap that still counts; "left of" does not say how far
    next_to: float = 0.10  # free space: largest gap that is still "next to"
    clearance: float = 0.01  # gap kept around the placed object
    corridor: tuple[float, float] = (0.3, 0.7)  # "between": part of the segment that joins the two centers
    corridor_half_width: float = 0.07
    between_reach: float = 0.50  # "between": largest distance of the two centers


@dataclass(frozen=True, slots=True)
class QuestionsConfig:
    """How many questions a view gets and how they are answered."""

    direct: int = 1
    relational: int = 2
    between: int = 1
    free: int = 2
    relational_relations: tuple[str, ...] = DIRECTIONS
    free_relations: tuple[str, ...] = (*DIRECTIONS, "next to")
    unseen: tuple[str, ...] = ()  # relations kept for the benchmark, as category "unseen"
    min_object_area: float = 0.000886  # part of the image: 100 pixels at 336 x 336
    min_mask_area: float = 0.0025
    num_points: int = 2
    decimals: int = 3
    interior: float = 1.0  # points are drawn with the weight (distance to the mask's border) ** interior


@dataclass(frozen=True, slots=True)
class SceneConfig:
    objects: ObjectsConfig = field(default_factory=ObjectsConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    relations: RelationsConfig = field(default_factory=RelationsConfig)
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)


def load_config(path: str | Path | None) -> SceneConfig:
    """The configuration in a YAML file, or the defaults. InputError for a broken file, key, type or value."""
    if path is None:
        return SceneConfig()
    config = read_settings(SceneConfig, path)
    _check(config, str(path))
    return config


def as_dict(config: SceneConfig) -> dict[str, Any]:
    """The configuration as JSON holds it (lists for tuples)."""
    return {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
        for section, fields in dataclasses.asdict(config).items()
    }


def _check(config: SceneConfig, source: str) -> None:
    objects, questions = config.objects, config.questions
    allowed = {
        "objects.categories": (objects.categories, tuple(CATEGORIES)),
        "objects.colors": (objects.colors, tuple(COLORS)),
        "questions.relational_relations": (questions.relational_relations, DIRECTIONS),
        "questions.free_relations": (questions.free_relations, (*DIRECTIONS, "next to")),
        "questions.unseen": (questions.unseen, RELATIONS),
    }
    for name, (values, known) in allowed.items():
        for value in values:
            if value not in known:
                raise InputError(f"{source}: {name} has {value!r}; known: {', '.join(known)}")
    ordered = {
        "camera.elevation": config.camera.elevation,
        "camera.fovy": config.camera.fovy,
        "camera.slack": config.camera.slack,
        "objects.table": objects.table,
        "relations.corridor": config.relations.corridor,
        "objects.min_objects and max_objects": (objects.min_objects, objects.max_objects),
        "objects.min_categories and max_categories": (objects.min_categories, objects.max_categories),
    }
    for name, (low, high) in ordered.items():
        if not 0 < low <= high:
            raise InputError(f"{source}: {name} must be positive and in ascending order, not {low}, {high}")
    conditions = {
        "objects.max_categories is larger than the number of objects.categories": (
            objects.max_categories <= len(objects.categories)
        ),
        "objects.min_objects must be at least objects.min_categories": objects.min_objects >= objects.min_categories,
        "objects.max_objects must be at least 4 for relational questions": (
            objects.max_objects >= 4 or questions.relational == 0
        ),
        "objects.max_objects must not exceed 12": objects.max_objects <= 12,
        "relations.region_distance must be at least relations.max_distance": (
            config.relations.region_distance >= config.relations.max_distance
        ),
        "camera.elevation must stay between 20 and 80 degrees": (
            20 <= config.camera.elevation[0] and config.camera.elevation[1] <= 80
        ),
        "the counts of questions must not be negative": min(getattr(questions, kind) for kind in KINDS) >= 0,
        "questions.num_points must be at least 1": questions.num_points >= 1,
        "questions.decimals must be 2 to 4": 2 <= questions.decimals <= 4,
        "objects.region must be smaller than the smallest half side of objects.table": (
            objects.region < objects.table[0]
        ),
    }
    for message, holds in conditions.items():
        if not holds:
            raise InputError(f"{source}: {message}")
