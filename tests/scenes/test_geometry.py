"""Every sample of the tabletop configuration, checked against views.jsonl and the depth maps; the generator is not asked.

Objects and free space are checked pixel by pixel and in both directions: by rays onto the plane on which the asked
object would stand, and by lifting every pixel to the point that the depth map shows.
"""

import math
from collections import Counter

import numpy as np
import pytest
from rendering import needs_gl
from scene_geometry import axes, depth_inside, footprint
from scene_questions import TOLERANCE, holds, of_kind, read_questions_of, related, standing

from trace_vlm.core.points import parse_points
from trace_vlm.data.scenes import generate

DIRECTIONS = ("left", "right", "front", "behind")
NEAR = 1e-3  # metres: depth is written in whole millimetres
SLACK = 2e-3  # the same along a level plane
BOX = 4e-3  # the mug's inside is drawn 2 mm above the top of its box
HELD = """
camera: {depth: true}
questions: {direct: 1, relational: 0, located: 0, between: 0, part: 0, free: 4, min_mask_area: 0.001,
  free_relations: ["on", inside, above, below]}
"""

pytestmark = needs_gl


@pytest.fixture(scope="module")
def views(questions):
    return list({one.meta["view"]: one for one in questions}.values())


@pytest.fixture(scope="module")
def free(questions, tmp_path_factory):
    """Questions about free space, and more of those on, inside, over and under objects, which are rare among others."""
    out = tmp_path_factory.mktemp("held")
    (out / "held.yaml").write_text(HELD)
    flags = f"--scenes 14 --seed 6 --size 176x132 --benchmark --config {out / 'held.yaml'} --out {out / 'bench'}"
    assert generate.main(flags.split()) == 0
    return list(of_kind([*questions, *read_questions_of(out / "bench")], "free", "between", "part"))


def test_enough_of_everything(questions):
    counts = Counter((one.meta["kind"], one.meta["relation"]) for one in questions)
    kinds, relations = (Counter(one.meta[key] for one in questions) for key in ("kind", "relation"))
    assert len(questions) >= 500 and min(kinds["direct"], kinds["between"], kinds["part"] / 2) >= 10
    assert min(counts[kind, relation] for kind in ("relational", "free") for relation in DIRECTIONS) >= 5
    assert min(relations[relation] for relation in ("next to", "on", "inside", "above", "below")) >= 2
    assert {one.mask.shape for one in questions} == {(132, 176), (132, 132), (160, 120)}


def test_every_point_lies_in_its_mask(questions):
    for one in questions:
        height, width = one.mask.shape
        points = [tuple(point) for point in one.meta["points"]]
        assert one.meta["image_size"] == [width, height] and 1 <= len(points) == len(set(points)) <= 50
        for x, y in points:
            assert one.mask[math.floor(y * height), math.floor(x * width)], one.where
            assert round(x, 3) == x and round(y, 3) == y
        assert parse_points(str(points)), one.where


def test_the_camera_is_not_mirrored_and_rolls_as_it_says(views):
    rolls = []
    for one in views:
        pose, level = one.sight.pose[:3, :3], np.append(one.sight.right, 0.0)
        assert np.allclose(pose @ pose.T, np.eye(3), atol=1e-9) and np.linalg.det(pose) > 0, "mirrored"
        rolls.append(math.degrees(math.atan2(np.cross(level, pose[:, 0]) @ pose[:, 2], level @ pose[:, 0])))
        assert rolls[-1] == pytest.approx(one.view["camera"]["roll_deg"], abs=1e-6)
    assert max(np.abs(rolls)) <= 8 and np.std(rolls) > 1


def test_surfaces_are_where_the_depth_map_shows_them(views):
    shown = 0
    for one in views:
        instances, points = one.instances, one.lifted()
        for surface in one.view["surfaces"]:
            seen = points[instances == surface["instance"]]
            top, inside = surface["center"][2], depth_inside(seen[:, :2], surface)
            assert seen[:, 2].max(initial=top) < top + NEAR and inside.min(initial=0) > -NEAR, one.where
            assert (np.abs(seen[inside > 0.01, 2] - top) < NEAR).all(), one.where
            shown += len(seen) > 0
    assert shown >= 100


def beyond(points, box):
    """How far points [n, 3] are outside a turned box; negative inside."""
    offset = points - np.array(box["center"])
    local = np.concatenate([offset[:, :2] @ axes(box["yaw"]).T, offset[:, 2:]], 1)
    return (np.abs(local) - np.array(box["half_size"])).max(1)


def test_objects_are_in_their_boxes_and_nothing_else_is(views):
    for one in views:
        instances, points = one.instances, one.lifted()
        for number, item in one.objects.items():
            shown, box, where = instances == number, item["box3d"], (one.where, item["name"])
            assert shown.sum() == item["pixels"], where
            if not shown.any():
                continue
            assert beyond(points[shown], box).max() < BOX, where
            assert abs(box["center"][2] - box["half_size"][2] - item["position"][2]) < BOX, where
            # What else shows inside the box, over the footprint, stands in it, or it stands in that, or both in a third.
            flat = points.reshape(-1, 3)
            inside = (beyond(flat, box) < -SLACK) & (depth_inside(flat[:, :2], footprint(item)) > SLACK)
            for other in set(instances.ravel()[inside].tolist()) - {number}:
                first, second = (one.objects[key]["support"].get("object") for key in (number, other))
                assert first == other or second == number or first == second is not None, where


def test_free_space_is_every_pixel_that_is_free_and_has_the_relation(questions):
    for one in of_kind(questions, "free", "between", "part"):
        area, instance, _ = one.support()
        points = one.sight.on_plane(one.rows, one.columns, area["center"][2])
        assert standing(one, points, TOLERANCE).all() and related(one, points, TOLERANCE).all(), one.where
        if "object" not in one.meta["support"]:  # an object's wall has its instance too, and hides the floor behind it
            rows, columns = np.nonzero((one.instances == instance) & ~one.mask)
            points = one.sight.on_plane(rows, columns, area["center"][2])
            missed = standing(one, points, -TOLERANCE) & related(one, points, -TOLERANCE)
            assert not missed.any(), (one.where, int(missed.sum()), int(one.mask.sum()))


def in_sight(one, area, instance):
    """The pixels [height, width] that the depth map shows on an area, and their points [n, 2]."""
    points = one.lifted()
    shows = (one.instances == instance) & (np.abs(points[..., 2] - area["center"][2]) < NEAR)
    return shows, points[shows][:, :2]


def test_free_space_is_in_sight(free):
    asked = Counter()
    for one in free:
        area, instance, _ = one.support()
        shows, points = in_sight(one, area, instance)
        may = standing(one, points, SLACK) & related(one, points, SLACK)
        must = standing(one, points, -SLACK) & related(one, points, -SLACK)
        inside = one.mask[shows]
        assert shows[one.mask].all() and not (inside & ~may).any() and not (must & ~inside).any(), one.where
        asked[one.meta["relation"]] += 1
    assert len(asked) == 14 and min(asked.values()) >= 5, asked


def test_above_and_below_are_asked_where_one_surface_has_them(free):
    """No other surface in sight has a free place over or under the reference."""
    for one in (one for one in free if one.meta["relation"] in ("above", "below")):
        own = one.meta["support"]
        for surface in one.view["surfaces"]:
            fits = one.meta["removed"]["height"] <= (surface["headroom"] or math.inf)
            if fits and surface["name"] not in (own["surface"], one.root(one.references[0])):
                _, points = in_sight(one, surface, surface["instance"])
                one.meta["support"] = {"surface": surface["name"]}
                good = standing(one, points, -SLACK) & related(one, points, -SLACK)
                one.meta["support"] = own
                assert not good.any(), (one.where, surface["name"])


def test_the_removed_object_stood_free_and_in_the_relation(free):
    for one in free:
        x, y, z = one.meta["removed"]["position"]
        spot = np.array([[x, y]])
        assert abs(z - one.support()[0]["center"][2]) < TOLERANCE, one.where
        assert standing(one, spot, TOLERANCE).all() and related(one, spot, TOLERANCE).all(), one.where


def test_references_of_free_space_are_unique_and_on_its_support(questions):
    for one in of_kind(questions, "free", "between"):
        if one.meta["relation"] in (*DIRECTIONS, "next to", "between"):
            assert all(item["support"] == one.meta["support"] for item in one.references), one.where
        names = Counter(item["name"] for item in one.objects.values() if item["pixels"] > 0)
        marked = {mark["instance"] for mark in one.meta["marks"]}
        for item in one.references:
            assert names[item["name"]] == 1 or item["instance"] in marked, one.where


def test_the_mask_is_the_asked_object_and_its_name_is_unique(questions):
    for one in of_kind(questions, "direct", "relational"):
        target = one.meta["target"]
        assert (one.mask == (one.instances == target["instance"])).all(), one.where
        if one.meta["kind"] == "direct":
            text = one.question.text.lower()
            assert target["category"] in text or f"{target['color']} object" in text
            alike = [item for item in one.objects.values() if item["category"] == target["category"] and item["pixels"]]
            called = [item for item in alike if item["color"] in text or target["color"] not in text]
            assert [item["instance"] for item in called] == [target["instance"]], one.where


def test_exactly_one_object_has_the_relation(questions):
    guesses = Counter()
    for one in of_kind(questions, "relational"):
        target = one.meta["target"]
        references = {item["instance"] for item in one.meta["references"]}
        alike = [item for item in one.objects.values() if item["category"] == target["category"] and item["pixels"]]
        noun = {item["instance"]: item for item in alike if item["instance"] not in references}
        assert set(noun) >= set(one.meta["candidates"]) >= {target["instance"]} and len(noun) >= 2, one.where
        for key, item in noun.items():
            sure = key == target["instance"]
            assert holds(one, item, sure=sure) == sure, (one.where, item["name"])
        if one.meta["relation"] in DIRECTIONS:
            way = one.sight.way(one.meta["relation"])
            farthest = max(one.meta["candidates"], key=lambda key: way @ noun[key]["position"][:2])
            assert one.meta["extreme_correct"] == (farthest == target["instance"]), one.where
            guesses[one.meta["extreme_correct"], one.meta["nearest_correct"]] += 1
    asked = sum(guesses.values())
    assert asked >= 40
    for guess in (0, 1):
        assert 0.4 <= sum(count for cell, count in guesses.items() if cell[guess]) / asked <= 0.6, guesses
