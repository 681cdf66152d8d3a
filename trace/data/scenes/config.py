"""What a generated data set is made of: typed, with limits, loaded from YAML.

The defaults are `configs/scenes/tabletop.yaml` (but for `absent`): rooms, all objects; `configs/scenes/nano.yaml` is the
small world of the nano model. The resolved configuration is written into `generate.json` of every data set, and a folder
is only continued with an equal one. Lengths in metres, angles in degrees.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from ...utils.command import InputError
from ...utils.config import Field, config_class, read_config
from .objects.assets import all_categories
from .objects.catalog import CATEGORIES, COLORS
from .wording import DIRECTIONS, NEAR, PARTS, RELATIONS

SURFACES = ("table", "counter", "shelf", "side table", "tray")
SIMPLE = ("box", "ball", "cone")  # plain solids that the rooms leave out
KINDS = ("direct", "relational", "located", "between", "free", "part", "chain")  # of questions, in their order
TRAINING, BENCHMARK = 0, 1  # the splits: first key of every random stream, so that their scenes are disjoint

HalfSide = Annotated[float, Field(ge=0.1, le=3)]
Elevation = Annotated[float, Field(ge=10, le=80)]
FieldOfView = Annotated[float, Field(ge=5, le=100)]
Height = Annotated[float, Field(ge=0.01, le=100)]
Roll = Annotated[float, Field(ge=-45, le=45)]
Slack = Annotated[float, Field(ge=0.2, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
QuestionCount = Annotated[int, Field(ge=0, le=20)]
Hops = Annotated[int, Field(ge=2, le=3)]


@config_class
class WorldConfig:
    """What the objects stand on. "flat": one bare table; "room": floor, walls and furniture."""

    kind: Literal["flat", "room"] = "room"
    surfaces: tuple[str, ...] = SURFACES
    min_surfaces: int = Field(1, ge=1, le=3)  # pieces of furniture; a shelf is one piece with two boards
    max_surfaces: int = Field(3, ge=1, le=3)
    stacked: Share = 0.75  # part of the scenes with an object on another one
    contained: Share = 0.75  # part of the scenes with objects in a container
    settle: float = Field(0.4, ge=0.1, le=5)  # seconds of physics
    max_shift: float = Field(0.01, ge=0.001, le=1)  # an object that the physics moves further than this has fallen ...
    max_tilt: float = Field(4.0, ge=0.1, le=90)  # ... or that it tilts by more degrees


@config_class
class ObjectsConfig:
    """Which objects there are."""

    min_objects: int = Field(4, ge=1, le=12)
    max_objects: int = Field(12, ge=1, le=12)
    min_categories: int = Field(3, ge=1, le=12)
    max_categories: int = Field(5, ge=1, le=12)
    categories: tuple[str, ...] = tuple(name for name in CATEGORIES if name not in SIMPLE)
    colors: tuple[str, ...] = tuple(COLORS)
    assets: str = ""  # folder of meshes with assets.yaml, see objects/assets.py; their names join `categories`
    spacing: float = Field(0.02, ge=0, le=0.5)  # smallest gap between two footprints
    duplicate_names: Share = 0.1  # part of the scenes in which two objects may share color and category
    region: float = Field(0.32, ge=0.05, le=3)  # objects of the main surface stand in a square of this half side
    table: tuple[HalfSide, HalfSide] = (0.40, 0.60)  # range of the half sides of tables

    @property
    def fewest_relational(self) -> int:
        """Objects of an arrangement with a relational question: a reference and three of a noun, and other categories."""
        return 4 + max(0, self.min_categories - 2)


@config_class
class CameraConfig:
    """Where the picture is taken from."""

    elevation: tuple[Elevation, Elevation] = (22.0, 60.0)
    fovy: tuple[FieldOfView, FieldOfView] = (35.0, 60.0)
    height: tuple[Height, Height] = (0.2, 2.2)  # of the camera above the main surface
    roll: tuple[Roll, Roll] = (-8.0, 8.0)
    margin: float = Field(0.02, ge=0, le=0.5)  # part of the half image kept free around the objects
    slack: tuple[Slack, Slack] = (0.85, 1.25)  # distance as a multiple of the nearest one that shows every object
    depth: bool = False  # write depth/ (16-bit PNG, millimetres)
    packing: Literal["fast", "small"] = "fast"  # of pictures: "small" takes a third more time for 7 % fewer bytes


@config_class
class RelationsConfig:
    """What the spatial words mean, in the camera's ground frame."""

    cone: float = Field(45.0, ge=5, le=80)  # half angle around the direction
    ambiguity: float = Field(8.0, ge=0, le=40)  # a candidate this near to the cone's border is neither in nor out
    extreme_margin: Share = 0.02  # the extreme and the nearest candidate lead by this much
    max_distance: float = Field(0.30, ge=0.01, le=10)  # free space: largest gap to the placed object and the answers
    region_distance: float = Field(0.30, ge=0.01, le=10)  # ... that still counts; "left of" does not say how far
    next_to: float = Field(0.10, ge=0.01, le=1)  # largest gap that is still "next to"
    next_to_far: float = Field(0.16, ge=0.01, le=2)  # object reference: every other candidate is at least this far
    clearance: float = Field(0.01, ge=0, le=0.5)  # gap kept around the placed object
    corridor: tuple[Share, Share] = (0.3, 0.7)  # "between": part of the segment that joins the two centers
    corridor_half_width: float = Field(0.07, ge=0.005, le=1)
    between_reach: float = Field(0.50, ge=0.05, le=5)  # "between": largest distance of the two centers
    column: float = Field(0.06, ge=0.005, le=1)  # "above", "below": at most this far beside the reference's footprint
    part: float = Field(0.15, ge=0, le=0.9)  # of its half extent: a surface's part begins this far from its middle
    part_margin: Share = 0.04  # object reference: every other candidate is this far outside of the part


@config_class
class QuestionsConfig:
    """How many questions a view gets and how they are answered."""

    direct: QuestionCount = 1
    relational: QuestionCount = 1  # left, right, front, behind: balanced against guessing
    located: QuestionCount = 1  # object reference by the other relations; up to this many, as the view allows
    between: QuestionCount = 1
    free: QuestionCount = 2
    part: QuestionCount = 1
    chain: dict[Hops, QuestionCount] = field(default_factory=dict)  # by number of hops; half of them for free space
    relational_relations: tuple[str, ...] = DIRECTIONS
    located_relations: tuple[str, ...] = (*NEAR, "between", *PARTS)
    free_relations: tuple[str, ...] = (*DIRECTIONS, *NEAR)
    part_relations: tuple[str, ...] = PARTS
    unseen: tuple[str, ...] = ("between", "inside", "back part")  # kept for the benchmark, as category "unseen"
    partial: bool = True  # a view may lack questions of a kind; otherwise it is drawn again
    min_visible: int = Field(3, ge=0, le=12)  # objects that a view shows; 0: every object
    min_object_area: Share = 0.000886  # part of the image: 100 pixels at 336 x 336
    min_mask_area: Share = 0.0025
    min_points: int = Field(1, ge=1, le=50)
    num_points: int = Field(12, ge=1, le=50)  # at most; each answer has a number between the two
    decimals: int = Field(3, ge=2, le=4)
    interior: float = Field(1.0, ge=0, le=20)  # points are drawn with the weight (distance to the border) ** this ...
    border: float = Field(2.0, ge=0, le=50)  # ... at least this many pixels from it, where the mask is wide enough
    wording: Literal["plain", "rich"] = "rich"
    absent: Share | None = None  # of all questions that ask for what is not there; null: see `SceneConfig.absent`
    marks: Share = 0.15  # part of the questions whose references are marked by rectangles in a picture of their own


@config_class
class SceneConfig:
    """The whole configuration of a generated data set."""

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

    @property
    def absent(self) -> float:
        """The part of all questions that ask for what is not there: 0.15 in rooms, 0 in flat worlds, or as configured."""
        given = self.questions.absent
        return given if given is not None else 0.15 if self.world.kind == "room" else 0.0

    def __post_init__(self) -> None:
        self._check_names()
        world, objects, questions, relations = self.world, self.objects, self.questions, self.relations
        pairs = {
            "objects.table": objects.table,
            **{f"camera.{key}": getattr(self.camera, key) for key in ("elevation", "fovy", "height", "roll", "slack")},
            "relations.next_to and next_to_far": (relations.next_to, relations.next_to_far),
            "relations.max_distance and region_distance": (relations.max_distance, relations.region_distance),
            "world.min_surfaces and max_surfaces": (world.min_surfaces, world.max_surfaces),
            "objects.min_objects and max_objects": (objects.min_objects, objects.max_objects),
            "objects.min_categories and max_categories": (objects.min_categories, objects.max_categories),
            "questions.min_points and num_points": (questions.min_points, questions.num_points),
        }
        for key, (low, high) in pairs.items():
            if low > high:
                raise InputError(f"{key} must be in ascending order, not {low}, {high}")
        few_categories = objects.max_categories > len(self.categories)
        chains = any(questions.chain.values())
        least = max(objects.fewest_relational, 5 * chains)
        few_objects = objects.max_objects < least and (questions.relational > 0 or chains)
        no_main_surface = world.kind == "room" and not {"table", "counter"} & set(world.surfaces)
        cone_overflows = relations.cone + relations.ambiguity > 85 or relations.cone - relations.ambiguity < 5
        mistakes = {
            "objects.max_categories is larger than the number of objects.categories": few_categories,
            f"objects.max_objects must be at least {least} for relational questions or chains": few_objects,
            "objects.min_objects is smaller than objects.min_categories": objects.min_objects < objects.min_categories,
            "questions.min_visible is larger than objects.max_objects": questions.min_visible > objects.max_objects,
            "world.surfaces needs a table or a counter, the main surface": no_main_surface,
            "world.min_surfaces is larger than the number of world.surfaces": world.min_surfaces > len(world.surfaces),
            "relations.cone and ambiguity must stay below 85 degrees together, and leave 5 between them": cone_overflows,
            "relations.corridor must end behind where it begins": relations.corridor[0] >= relations.corridor[1],
            "objects.colors is empty": not objects.colors,
            "questions.absent must be below 1": questions.absent == 1,
            "the counts of questions are all 0": not any(getattr(questions, kind) for kind in KINDS),
            "objects.region must be smaller than the half sides of objects.table": objects.region >= objects.table[0],
        }
        for message, wrong in mistakes.items():
            if wrong:
                raise InputError(message)

    def _check_names(self) -> None:
        objects, questions = self.objects, self.questions
        names = {
            "world.surfaces": (self.world.surfaces, SURFACES),
            "objects.categories": (objects.categories, tuple(CATEGORIES)),
            "objects.colors": (objects.colors, tuple(COLORS)),
            "questions.relational_relations": (questions.relational_relations, DIRECTIONS),
            "questions.located_relations": (questions.located_relations, (*NEAR, "between", *PARTS)),
            "questions.free_relations": (questions.free_relations, (*DIRECTIONS, *NEAR)),
            "questions.part_relations": (questions.part_relations, PARTS),
            "questions.unseen": (questions.unseen, RELATIONS),
        }
        for key, (values, known) in names.items():
            unknown = next((value for value in values if value not in known), None)
            if unknown is not None:
                raise InputError(f"{key} has {unknown!r}. Known names: {', '.join(known)}")
            if len(set(values)) < len(values):
                raise InputError(f"{key} has a name twice: {', '.join(values)}")
        for name in self.categories:
            colors = all_categories(objects.assets)[name].colors
            if colors and not set(colors) & set(objects.colors):
                raise InputError(f"objects.colors has none of the colors of {name}: {', '.join(colors)}")


def load_scene_config(path: str | Path | None) -> SceneConfig:
    """Read a YAML file, or return the defaults. InputError for a broken file, key, type or value."""
    return SceneConfig() if path is None else read_config(SceneConfig, path)


def as_dict(config: SceneConfig) -> dict[str, Any]:
    """The configuration as JSON stores it (lists for tuples); without `chain` and `absent` where there is none."""

    def stored(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): count for key, count in value.items()}
        return list(value) if isinstance(value, tuple) else value

    absent = {"absent": config.absent} if config.absent else {}
    return {
        section: {key: stored(value) for key, value in fields.items() if value != {} and key != "absent"}
        | (absent if section == "questions" else {})
        for section, fields in dataclasses.asdict(config).items()
    }


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What every scene of a data set shares: its configuration and the flags of the command."""

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
        relations, questions = self.relations, self.config.questions
        given = {kind: getattr(questions, kind) for kind in KINDS} | {"chain": sum(questions.chain.values())}
        return {kind: count if relations.get(kind, True) else 0 for kind, count in given.items()}

    @property
    def relations(self) -> dict[str, tuple[str, ...]]:
        """Relations of each kind of question that has some; the unseen ones only in a benchmark."""
        questions = self.config.questions
        hidden = () if self.benchmark else questions.unseen
        kinds = {
            "relational": questions.relational_relations, "located": questions.located_relations,
            "between": ("between",), "free": questions.free_relations, "part": questions.part_relations,
            "chain": questions.relational_relations,
        }  # fmt: skip
        return {kind: tuple(name for name in names if name not in hidden) for kind, names in kinds.items()}
