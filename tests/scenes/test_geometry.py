"""Every sample of the tabletop configuration, checked against the poses, boxes and camera of views.jsonl.

Nothing here calls the generator's functions. Rays are cast through the pixels of a mask onto the plane on which the
asked object would stand, and the claim of the words is worked out from there, in both directions.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from rendering import needs_gl
from scene_geometry import distance, footprint, gap, half_extent
from scene_questions import PARTS, TOLERANCE, Looked, in_corridor, of_kind, related, standing

from trace_vlm.core.points import parse_points

DIRECTIONS = ("left", "right", "front", "behind")

pytestmark = needs_gl


def test_enough_of_everything(looked: list[Looked]) -> None:
    assert len(looked) >= 500
    counts = Counter((one.meta["kind"], one.meta["relation"]) for one in looked)
    for relation in DIRECTIONS:
        assert counts["relational", relation] >= 5 and counts["free", relation] >= 5
    for kind in ("direct", "between"):
        assert sum(count for (name, _), count in counts.items() if name == kind) >= 10
    assert sum(count for (name, relation), count in counts.items() if name == "part" and relation in PARTS) >= 20
    for relation in ("next to", "on", "inside", "above", "below"):
        assert sum(count for (_, name), count in counts.items() if name == relation) >= 2, relation
    assert {one.mask.shape for one in looked} == {(132, 176), (132, 132), (160, 120)}


def test_every_point_lies_in_its_mask(looked: list[Looked]) -> None:
    for one in looked:
        height, width = one.mask.shape
        assert one.meta["image_size"] == [width, height]
        points = one.meta["points"]
        assert 1 <= len(points) <= 50 and len({tuple(point) for point in points}) == len(points)
        for x, y in points:
            assert one.mask[math.floor(y * height), math.floor(x * width)], one.where
            assert round(x, 3) == x and round(y, 3) == y
        assert parse_points(str([tuple(point) for point in points])), one.where


def test_free_space_is_every_pixel_that_is_free_and_has_the_relation(looked: list[Looked]) -> None:
    for one in of_kind(looked, "free", "between", "part"):
        area, instance, _ = one.support()
        assert (one.instances[one.mask] == instance).all(), one.where
        points = one.sight.on_plane(one.rows, one.columns, area["center"][2])
        assert standing(one, points, TOLERANCE).all() and related(one, points, TOLERANCE).all(), one.where
        if "object" not in one.meta["support"]:  # an object's wall has its instance too, and hides the floor behind it
            rows, columns = np.nonzero((one.instances == instance) & ~one.mask)
            points = one.sight.on_plane(rows, columns, area["center"][2])
            missed = standing(one, points, -TOLERANCE) & related(one, points, -TOLERANCE)
            assert not missed.any(), (one.where, int(missed.sum()), int(one.mask.sum()))


def test_what_was_taken_away_stood_free_and_in_the_relation(looked: list[Looked]) -> None:
    for one in of_kind(looked, "free", "between", "part"):
        spot = np.array([one.meta["removed"]["position"][:2]])
        assert abs(one.meta["removed"]["position"][2] - one.support()[0]["center"][2]) < TOLERANCE, one.where
        assert standing(one, spot, TOLERANCE).all() and related(one, spot, TOLERANCE).all(), one.where


def test_references_of_free_space_stand_where_the_place_is(looked: list[Looked]) -> None:
    for one in of_kind(looked, "free", "between"):
        if one.meta["relation"] in (*DIRECTIONS, "next to", "between"):
            assert all(item["support"] == one.meta["support"] for item in one.references), one.where
        names = Counter(item["name"] for item in one.objects.values() if item["pixels"] > 0)
        marked = {mark["instance"] for mark in one.meta["marks"]}
        for item in one.references:
            assert names[item["name"]] == 1 or item["instance"] in marked, one.where


def test_the_mask_is_the_asked_object_and_its_name_is_unique(looked: list[Looked]) -> None:
    for one in of_kind(looked, "direct", "relational"):
        target = one.meta["target"]
        assert (one.mask == (one.instances == target["instance"])).all(), one.where
        if one.meta["kind"] == "direct":
            text = one.question.text.lower()
            assert target["category"] in text or f"{target['color']} object" in text
            alike = [item for item in one.objects.values() if item["category"] == target["category"] and item["pixels"]]
            called = [item for item in alike if item["color"] in text or target["color"] not in text]
            assert [item["instance"] for item in called] == [target["instance"]], one.where


def holds(one: Looked, item: dict[str, Any], sure: bool) -> bool:
    """Whether `item` has the asked relation: well so (`sure`), or as far as the configuration calls it unclear."""
    relation, relations, sight = one.meta["relation"], one.relations, one.sight
    center = np.array([item["position"][:2]])
    slack = TOLERANCE if sure else -TOLERANCE
    if relation in PARTS:
        area = one.surface(one.meta["surface"])
        way = sight.way(relation.split()[0])
        along = float((center[0] - np.array(area["center"][:2])) @ way)
        least = relations["part"] * half_extent(area, way)
        return one.root(item) == area["name"] and along >= (
            least - slack if sure else least - relations["part_margin"] - slack
        )
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


def test_exactly_one_object_has_the_relation(looked: list[Looked]) -> None:
    for one in of_kind(looked, "relational"):
        target = one.meta["target"]
        references = {item["instance"] for item in one.meta["references"]}
        noun = {
            key: item
            for key, item in one.objects.items()
            if item["category"] == target["category"] and key not in references and item["pixels"] > 0
        }
        assert set(noun) >= set(one.meta["candidates"]) >= {target["instance"]} and len(noun) >= 2, one.where
        for key, item in noun.items():
            if key == target["instance"]:
                assert holds(one, item, sure=True), one.where
            else:
                assert not holds(one, item, sure=False), (one.where, item["name"])


def test_the_extreme_and_the_nearest_are_what_they_are_called(looked: list[Looked]) -> None:
    cells: Counter[tuple[bool, bool]] = Counter()
    for one in of_kind(looked, "relational"):
        if one.meta["relation"] not in DIRECTIONS:
            continue
        first, target = one.references[0], one.meta["target"]["instance"]
        way = one.sight.way(one.meta["relation"])
        items = [one.objects[key] for key in one.meta["candidates"]]
        offsets = [np.array(item["position"][:2]) - np.array(first["position"][:2]) for item in items]
        farthest = items[int(np.argmax([offset @ way for offset in offsets]))]["instance"]
        assert one.meta["extreme_correct"] == (farthest == target), one.where
        cells[one.meta["extreme_correct"], one.meta["nearest_correct"]] += 1
    asked = sum(cells.values())
    assert asked >= 40
    for guess in (0, 1):
        assert 0.4 <= sum(count for cell, count in cells.items() if cell[guess]) / asked <= 0.6, cells


def test_the_camera_is_a_pinhole_and_the_picture_is_not_mirrored(looked: list[Looked]) -> None:
    for one in {one.meta["view"]: one for one in looked}.values():
        rows, columns = np.array([10, 60, 90]), np.array([20, 70, 100])
        points = np.append(one.sight.on_plane(rows, columns, 0.0), np.zeros((3, 1)), 1)
        known = ~np.isnan(points).any(1)
        pixels = np.stack([columns, rows], 1)[known] + 0.5
        assert np.allclose(one.sight.project(points[known]), pixels, atol=1e-6)
        pose = one.sight.pose[:3, :3]
        assert np.allclose(pose @ pose.T, np.eye(3), atol=1e-9) and np.linalg.det(pose) > 0
        for item in one.view["objects"]:
            x0, y0, x1, y1 = np.array(item["box"]) * ([one.view["width"], one.view["height"]] * 2)
            middle = one.sight.project(np.array([item["box3d"]["center"]]))[0]
            reach = max(x1 - x0, y1 - y0) / 2 + 4
            assert abs(middle - [(x0 + x1) / 2, (y0 + y1) / 2]).max() <= reach, (one.view["view"], item["name"])
