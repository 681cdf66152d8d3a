"""The questions of a generated benchmark with their views, and what their words claim, worked out from geometry alone.

It reads the files that the generator writes and asks none of its functions.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scene_geometry import Array, Sight, depth_inside, distance, footprint, gap, half_extent

from trace_vlm.core.records import read_questions
from trace_vlm.utils.files import read_json, read_jsonl

TOLERANCE = 2e-4  # metres: positions are written with five decimals, sizes too
PARTS = ("left part", "right part", "front part", "back part")


class SceneQuestion:
    """One question with its view: what the tests below need, read from the files."""

    def __init__(self, folder: Path, question: Any, view: dict[str, Any], config: dict[str, Any]) -> None:
        self.folder, self.question, self.view = folder, question, view
        self.meta: dict[str, Any] = question.meta
        self.relations, self.sight = config["relations"], Sight(view)
        self.mask = pixels(folder / self.meta["mask"]) > 0
        self.rows, self.columns = np.nonzero(self.mask)
        self.objects = {item["instance"]: item for item in [*view["objects"], *view["hidden"]]}
        self.references = [self.objects[item["instance"]] for item in self.meta["references"]]
        self.where = f"question {question.question_id}: {question.text[:90]}"

    @property
    def instances(self) -> Array:
        return pixels(self.folder / self.view["instances"])

    def lifted(self) -> Array:
        """World points [height, width, 3] of the pixels, from the depth map and the camera's pose and intrinsics."""
        metres = pixels(self.folder / self.view["depth"]) / 1000
        rows, columns = np.indices(metres.shape)
        rays = self.sight.rays(rows.ravel(), columns.ravel())
        return (self.sight.origin + rays * metres.reshape(-1, 1)).reshape(*metres.shape, 3)

    def surface(self, name: str) -> dict[str, Any]:
        (found,) = [item for item in self.view["surfaces"] if item["name"] == name]
        return found

    def root(self, item: dict[str, Any]) -> str:
        """The surface that carries an object, or what carries it."""
        while "object" in item["support"]:
            item = self.objects[item["support"]["object"]]
        return str(item["support"]["surface"])

    def support(self) -> tuple[dict[str, Any], int, float]:
        """The area on which the asked object would stand, the value of its pixels, and its headroom."""
        support = self.meta["support"]
        if "surface" in support:
            found = self.surface(support["surface"])
            return found, found["instance"], found["headroom"] or math.inf
        item = self.objects[support["object"]]
        return item["top" if support["area"] == "top" else "interior"], item["instance"], math.inf


def pixels(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


def read_questions_of(folder: Path) -> list[SceneQuestion]:
    """Every question of a generated benchmark."""
    config = read_json(folder / "generate.json")["settings"]["config"]
    views = {view["view"]: view for _, view in read_jsonl(folder / "views.jsonl")}
    questions = read_questions(folder / "point_questions.jsonl")
    return [SceneQuestion(folder, question, views[question.meta["view"]], config) for question in questions]


def of_kind(questions: list[SceneQuestion], *kinds: str) -> Iterator[SceneQuestion]:
    return (one for one in questions if one.meta["kind"] in kinds)


def standing(one: SceneQuestion, points: Array, slack: float) -> Array:
    """Whether the asked object can stand at points [n, 2] of its support; `slack` metres are forgiven."""
    area, _, headroom = one.support()
    removed = one.meta["removed"]
    radius, clearance = removed["radius"], one.relations["clearance"]
    low = area["center"][2]
    high = low + removed["height"]
    assert removed["height"] < headroom
    fits = depth_inside(points, area) >= radius - slack
    carrier = one.meta["support"].get("object")
    for instance, item in one.objects.items():
        foot = item["position"][2]
        if instance != carrier and min(high, foot + item["height"]) - max(low, foot) > 1e-3:
            fits &= gap(points, footprint(item)) - radius >= clearance - slack
    for item in one.view["fixtures"]:
        foot, top = (item["center"][2] + sign * item["half_size"][2] for sign in (-1, 1))
        if min(high, top) - max(low, foot) > 1e-3:
            fits &= gap(points, item) - radius >= clearance - slack
    return fits


def related(one: SceneQuestion, points: Array, slack: float) -> Array:
    """Whether an object at points [n, 2] of its support has the asked relation."""
    relation, radius, relations = one.meta["relation"], one.meta["removed"]["radius"], one.relations
    if relation in PARTS:
        return in_part(one.surface(one.meta["surface"]), relation, points, one.sight, relations["part"], slack)
    first = one.references[0]
    away = gap(points, footprint(first)) - radius
    if relation == "between":
        return in_corridor(points, first, one.references[1], relations, slack)
    if relation == "next to":
        return away <= relations["next_to"] + slack
    if relation in ("on", "inside"):
        area = {"on": "top", "inside": "inside"}[relation]
        return np.full(len(points), one.meta["support"] == {"object": first["instance"], "area": area})
    if relation in ("above", "below"):
        plane, foot = one.support()[0]["center"][2], first["position"][2]
        right = plane > foot + first["height"] - 2e-3 if relation == "above" else plane < foot
        return right & (away + radius <= relations["column"] + slack)
    way = one.sight.way(relation)
    offset = points - np.array(first["position"][:2])
    along, across = offset @ way, np.abs(offset @ [way[1], -way[0]])
    beyond = along >= half_extent(footprint(first), way) + radius - slack
    cone = across <= along * math.tan(math.radians(relations["cone"])) + slack
    return beyond & cone & (away <= relations["region_distance"] + slack)


def in_part(area: Any, relation: str, points: Array, sight: Sight, part: float, slack: float) -> Array:
    way = sight.way(relation.split()[0])
    return (points - np.array(area["center"][:2])) @ way >= part * half_extent(area, way) - slack


def in_corridor(points: Array, first: Any, second: Any, relations: dict[str, Any], slack: float) -> Array:
    start, end = (np.array(item["position"][:2]) for item in (first, second))
    length = float(np.linalg.norm(end - start))
    way = (end - start) / length
    along, across = (points - start) @ way, np.abs((points - start) @ [way[1], -way[0]])
    low, high = relations["corridor"]
    inside = (along >= low * length - slack) & (along <= high * length + slack)
    return inside & (across <= relations["corridor_half_width"] + slack)


def holds(one: SceneQuestion, item: dict[str, Any], sure: bool) -> bool:
    """Whether `item` has the asked relation: well so (`sure`), or as far as the configuration calls it unclear."""
    relation, relations, sight = one.meta["relation"], one.relations, one.sight
    center = np.array([item["position"][:2]])
    slack = TOLERANCE if sure else -TOLERANCE
    if relation in PARTS:
        area = one.surface(one.meta["surface"])
        way = sight.way(relation.split()[0])
        along = float((center[0] - np.array(area["center"][:2])) @ way)
        least = relations["part"] * half_extent(area, way) - (0 if sure else relations["part_margin"])
        return one.root(item) == area["name"] and along >= least - slack
    if relation == "on" and not one.references:
        stands = item["support"] == {"surface": one.meta["surface"]}
        return stands if sure else one.root(item) == one.meta["surface"]
    first = one.references[0]
    if relation == "between":
        return bool(in_corridor(center, first, one.references[1], relations, slack)[0])
    if relation in ("on", "inside"):
        return item["support"] == {"object": first["instance"], "area": "top" if relation == "on" else "inside"}
    if relation == "next to":
        limit = relations["next_to"] if sure else relations["next_to_far"]
        return item["support"] == first["support"] and distance(footprint(item), footprint(first)) <= limit + slack
    if relation in ("above", "below"):
        low, high = (first, item) if relation == "above" else (item, first)
        over = high["position"][2] >= low["position"][2] + low["height"] - 2e-3
        near = float(gap(center, footprint(first))[0]) <= relations["column"] + slack
        return over and near and one.root(item) != one.root(first)
    way = sight.way(relation)
    offset = center[0] - np.array(first["position"][:2])
    along, across = float(offset @ way), float(abs(offset @ [way[1], -way[0]]))
    unclear = -relations["ambiguity"] if sure else relations["ambiguity"]
    angle = math.degrees(math.atan2(across, along))
    reach = half_extent(footprint(item), way) + half_extent(footprint(first), way)
    return angle <= relations["cone"] + unclear + 0.05 * (1 if sure else -1) and (not sure or along >= reach - slack)
