"""What a generated data set is made of: typed, loaded from YAML, every unknown key an error.

The defaults are `configs/scenes/tabletop.yaml`: rooms, the whole catalog, pictures of 336 x 336 and 640 x 480;
`configs/scenes/nano.yaml` is the small world of the nano model. The resolved configuration is written into
`generate.json` of every data set, and a folder is only continued with an equal one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from ...utils.command import InputError
from ...utils.config import config_class, read_config
from .limits import LIMITS
from .objects.assets import all_categories
from .objects.catalog import CATEGORIES, COLORS
from .questions.wording import DIRECTIONS, NEAR, PARTS, RELATIONS

KINDS = ("direct", "relational", "between", "free", "part")
SURFACES = ("table", "counter", "shelf", "side table", "tray")
SIMPLE = ("box", "ball", "cone")  # plain solids that the rooms leave out


@config_class
class WorldConfig:
    """What the objects stand on. "flat": one bare table; "room": floor, walls and furniture. Lengths in metres."""

    kind: Literal["flat", "room"] = "room"
    surfaces: tuple[str, ...] = SURFACES
    min_surfaces: int = 1  # pieces of furniture; a shelf is one piece with two boards
    max_surfaces: int = 3
    stacked: float = 0.75  # part of the scenes with an object on another one
    contained: float = 0.75  # part of the scenes with objects in a container
    settle: float = 0.4  # seconds of physics
    max_shift: float = 0.01  # an object that the physics moves further than this has fallen ...
    max_tilt: float = 4.0  # ... or that it tilts by more degrees


@config_class
class ObjectsConfig:
    """What stands there. Lengths in metres."""

    min_objects: int = 4
    max_objects: int = 12
    min_categories: int = 3
    max_categories: int = 5
    categories: tuple[str, ...] = tuple(name for name in CATEGORIES if name not in SIMPLE)
    colors: tuple[str, ...] = tuple(COLORS)
    assets: str = ""  # folder of meshes with assets.yaml, see assets.py; their names join `categories`
    spacing: float = 0.02  # smallest gap between two footprints
    duplicate_names: float = 0.1  # part of the scenes in which two objects may share color and category
    region: float = 0.32  # objects of the main surface stand in a square of this half side
    table: tuple[float, float] = (0.40, 0.60)  # range of the half sides of tables


@config_class
class CameraConfig:
    """Where the picture is taken from. Angles in degrees."""

    elevation: tuple[float, float] = (22.0, 60.0)
    fovy: tuple[float, float] = (35.0, 60.0)
    height: tuple[float, float] = (0.2, 2.2)  # of the camera above the main surface, metres
    roll: tuple[float, float] = (-8.0, 8.0)
    margin: float = 0.02  # part of the half image kept free around the objects
    slack: tuple[float, float] = (0.85, 1.25)  # distance as a multiple of the nearest one that shows every object
    depth: bool = False  # write depth/ (16-bit PNG, millimetres)
    packing: Literal["fast", "small"] = "fast"  # of pictures: "small" takes a third more time for 7 % fewer bytes


@config_class
class RelationsConfig:
    """What the spatial words mean, in the camera's ground frame. Angles in degrees, lengths in metres."""

    cone: float = 45.0  # half angle around the direction
    ambiguity: float = 8.0  # a candidate within this angle of the cone's border is neither in nor out
    extreme_margin: float = 0.02  # the extreme and the nearest candidate lead by this much
    max_distance: float = 0.30  # free space: largest gap between the reference and the placed object, and the answers
    region_distance: float = 0.30  # free space: largest gap that still counts; "left of" does not say how far
    next_to: float = 0.10  # largest gap that is still "next to"
    next_to_far: float = 0.16  # object reference: every other candidate is at least this far
    clearance: float = 0.01  # gap kept around the placed object
    corridor: tuple[float, float] = (0.3, 0.7)  # "between": part of the segment that joins the two centers
    corridor_half_width: float = 0.07
    between_reach: float = 0.50  # "between": largest distance of the two centers
    column: float = 0.06  # "above" and "below": this far beside the reference's footprint at the most
    part: float = 0.15  # parts of a surface begin this far from its middle, as a fraction of its half extent
    part_margin: float = 0.04  # object reference: every other candidate is this far outside of the part


@config_class
class QuestionsConfig:
    """How many questions a view gets and how they are answered."""

    direct: int = 1
    relational: int = 1  # left, right, front, behind: balanced against guessing
    located: int = 1  # object reference by the other relations; up to this many, as the view allows
    between: int = 1
    free: int = 2
    part: int = 1
    relational_relations: tuple[str, ...] = DIRECTIONS
    located_relations: tuple[str, ...] = (*NEAR, "between", *PARTS)
    free_relations: tuple[str, ...] = (*DIRECTIONS, *NEAR)
    part_relations: tuple[str, ...] = PARTS
    unseen: tuple[str, ...] = ("between", "inside", "back part")  # kept for the benchmark, as category "unseen"
    partial: bool = True  # a view may lack questions of a kind; otherwise it is drawn again
    min_visible: int = 3  # objects that a view shows; 0: every object
    min_object_area: float = 0.000886  # part of the image: 100 pixels at 336 x 336
    min_mask_area: float = 0.0025
    min_points: int = 1
    num_points: int = 12  # at most; each answer has a number between the two
    decimals: int = 3
    interior: float = 1.0  # points are drawn with the weight (distance to the mask's border) ** interior
    border: float = 2.0  # and at least this many pixels from it, where the mask is wide enough
    wording: Literal["plain", "rich"] = "rich"
    marks: float = 0.15  # part of the questions whose references are marked by rectangles in a picture of their own


@config_class
class SceneConfig:
    world: WorldConfig = field(default_factory=WorldConfig)
    objects: ObjectsConfig = field(default_factory=ObjectsConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    relations: RelationsConfig = field(default_factory=RelationsConfig)
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)

    @property
    def categories(self) -> tuple[str, ...]:
        """The configured categories and those of the user's own meshes."""
        own = tuple(name for name in all_categories(self.objects.assets) if name not in CATEGORIES)
        return (*self.objects.categories, *own)


def load_config(path: str | Path | None) -> SceneConfig:
    """The configuration in a YAML file, or the defaults. InputError for a broken file, key, type or value."""
    if path is None:
        return SceneConfig()
    config = read_config(SceneConfig, path)
    _check_names(config, str(path))
    _check_ranges(config, str(path))
    _check_conditions(config, str(path))
    return config


def as_dict(config: SceneConfig) -> dict[str, Any]:
    """The configuration as JSON holds it (lists for tuples)."""
    return {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
        for section, fields in dataclasses.asdict(config).items()
    }


def _check_names(config: SceneConfig, source: str) -> None:
    objects, questions = config.objects, config.questions
    allowed = {
        "world.surfaces": (config.world.surfaces, SURFACES),
        "objects.categories": (objects.categories, tuple(CATEGORIES)),
        "objects.colors": (objects.colors, tuple(COLORS)),
        "questions.relational_relations": (questions.relational_relations, DIRECTIONS),
        "questions.located_relations": (questions.located_relations, (*NEAR, "between", *PARTS)),
        "questions.free_relations": (questions.free_relations, (*DIRECTIONS, *NEAR)),
        "questions.part_relations": (questions.part_relations, PARTS),
        "questions.unseen": (questions.unseen, RELATIONS),
    }
    for name, (values, known) in allowed.items():
        for value in values:
            if value not in known:
                raise InputError(f"{source}: {name} has {value!r}; known: {', '.join(known)}")
        if len(set(values)) < len(values):
            raise InputError(f"{source}: {name} names something twice")
    for name in config.categories:
        colors = all_categories(objects.assets)[name].colors
        if colors and not set(colors) & set(objects.colors):
            raise InputError(f"{source}: objects.colors has none of the colors of {name}: {', '.join(colors)}")


def _check_ranges(config: SceneConfig, source: str) -> None:
    """Every number within its limits, every range [low, high] in ascending order."""
    for name, (low, high) in LIMITS.items():
        section, key = name.split(".")
        found = getattr(getattr(config, section), key)
        values = found if isinstance(found, tuple) else (found,)
        if not all(low <= value <= high for value in values):  # which nan is not, either
            raise InputError(f"{source}: {name} must be within {low:g} to {high:g}, not {_written(found)}")
        if values[0] > values[-1]:
            raise InputError(f"{source}: {name} must be in ascending order, not {_written(found)}")
    relations, world, objects, questions = config.relations, config.world, config.objects, config.questions
    ordered = {
        "relations.next_to and next_to_far": (relations.next_to, relations.next_to_far),
        "relations.max_distance and region_distance": (relations.max_distance, relations.region_distance),
        "world.min_surfaces and max_surfaces": (world.min_surfaces, world.max_surfaces),
        "objects.min_objects and max_objects": (objects.min_objects, objects.max_objects),
        "objects.min_categories and max_categories": (objects.min_categories, objects.max_categories),
        "questions.min_points and num_points": (questions.min_points, questions.num_points),
    }
    for name, (least, most) in ordered.items():
        if least > most:
            raise InputError(f"{source}: {name} must be in ascending order, not {least}, {most}")


def _written(value: float | tuple[float, ...]) -> str:
    return f"{list(value)}" if isinstance(value, tuple) else f"{value}"


def _check_conditions(config: SceneConfig, source: str) -> None:
    """What several values have to be together."""
    world, objects, questions, relations = config.world, config.objects, config.questions, config.relations
    conditions = {
        "objects.max_categories is larger than the number of objects.categories": (
            objects.max_categories <= len(config.categories)
        ),
        "objects.min_objects must be at least objects.min_categories": objects.min_objects >= objects.min_categories,
        "objects.max_objects must be at least 4 for relational questions": (
            objects.max_objects >= 4 or questions.relational == 0
        ),
        "world.surfaces needs a table or a counter, the main surface": (
            bool({"table", "counter"} & set(world.surfaces)) or world.kind == "flat"
        ),
        "world.min_surfaces is larger than the number of world.surfaces": world.min_surfaces <= len(world.surfaces),
        "relations.cone and ambiguity must stay below 85 degrees together, and leave 5 between them": (
            relations.cone + relations.ambiguity <= 85 and relations.cone - relations.ambiguity >= 5
        ),
        "relations.corridor must end behind where it begins": relations.corridor[0] < relations.corridor[1],
        "objects.colors is empty": bool(objects.colors),
        "the counts of questions are all 0": any(getattr(questions, kind) for kind in (*KINDS, "located")),
        "questions.min_visible is larger than objects.max_objects": questions.min_visible <= objects.max_objects,
        "objects.region must be smaller than the smallest half side of objects.table": (
            objects.region < objects.table[0]
        ),
    }
    for message, holds in conditions.items():
        if not holds:
            raise InputError(f"{source}: {message}")
