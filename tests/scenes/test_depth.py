"""Depth map, instance map, pose and boxes of a view agree, and masks are what they say.

Every pixel is lifted to the point that the depth map shows, so a mask is checked, pixel by pixel and in both
directions, against what is really in sight there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from rendering import needs_gl
from scene_geometry import Array, axes, depth_inside, footprint
from scene_questions import Looked, of_kind, read_questions_of, related, standing

from trace_vlm.data.scenes import generate

NEAR = 1e-3  # metres: depth is written in whole millimetres
SLACK = 2e-3  # on a level plane that is this much along it
BOX = 4e-3  # the mug's inside is drawn 2 mm higher than the mug is said to be

pytestmark = needs_gl


HELD = """
camera: {depth: true}
questions: {direct: 1, relational: 0, located: 0, between: 0, part: 0, free: 4, min_mask_area: 0.001,
  free_relations: ["on", inside, above, below]}
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[Looked]:
    """Questions about free places on, inside, over and under objects alone, which are rare among all others."""
    out = tmp_path_factory.mktemp("held")
    (out / "held.yaml").write_text(HELD)
    flags = f"--scenes 14 --seed 6 --size 176x132 --benchmark --config {out / 'held.yaml'} --out {out / 'bench'}"
    assert generate.main(flags.split()) == 0
    return read_questions_of(out / "bench")


def views(looked: list[Looked]) -> list[Looked]:
    """One question of each view."""
    return list({one.meta["view"]: one for one in looked}.values())


def beyond(points: Array, box: dict[str, Any]) -> Array:
    """How far points [n, 3] are outside of a turned box; negative inside."""
    offset = points - np.array(box["center"])
    local = np.concatenate([offset[:, :2] @ axes(box["yaw"]).T, offset[:, 2:]], 1)
    return (np.abs(local) - np.array(box["half_size"])).max(1)


def test_surfaces_are_where_the_depth_map_shows_them(looked: list[Looked]) -> None:
    shown = 0
    for one in views(looked):
        instances, points = one.instances, one.lifted()
        for surface in one.view["surfaces"]:
            seen = points[instances == surface["instance"]]
            top, inside = surface["center"][2], depth_inside(seen[:, :2], surface)
            assert seen[:, 2].max(initial=top) < top + NEAR and inside.min(initial=0) > -NEAR, one.where
            assert (np.abs(seen[inside > 0.01, 2] - top) < NEAR).all(), one.where
            shown += len(seen) > 0
    assert shown >= 100


def test_objects_are_in_their_boxes_and_nothing_else_is(looked: list[Looked]) -> None:
    for one in views(looked):
        instances, points = one.instances, one.lifted()
        for number, item in one.objects.items():
            shown = instances == number
            assert shown.sum() == item["pixels"]
            if not shown.any():
                continue
            box, foot = item["box3d"], footprint(item)
            assert beyond(points[shown], box).max() < BOX, (one.where, item["name"])
            assert abs(box["center"][2] - box["half_size"][2] - item["position"][2]) < BOX
            # What else shows inside the box, over the footprint, stands in it, or it stands in that, or both in a third.
            flat = points.reshape(-1, 3)
            inside = (beyond(flat, box) < -SLACK) & (depth_inside(flat[:, :2], foot) > SLACK)
            for other in set(instances.ravel()[inside].tolist()) - {number}:
                supports = [one.objects[key]["support"] for key in (number, other)]
                carried = {support.get("object") for support in supports} & {number, other}
                assert carried or ("object" in supports[0] and supports[0] == supports[1]), (one.where, item["name"])


def test_free_masks_are_the_places_in_sight_no_more_no_less(looked: list[Looked], held: list[Looked]) -> None:
    asked: Counter[str] = Counter()
    for one in of_kind([*looked, *held], "free", "between", "part"):
        area, instance, _ = one.support()
        points = one.lifted()
        shows = (one.instances == instance) & (np.abs(points[..., 2] - area["center"][2]) < NEAR)
        assert shows[one.mask].all(), one.where
        places = points[shows][:, :2]
        may = standing(one, places, SLACK) & related(one, places, SLACK)
        must = standing(one, places, -SLACK) & related(one, places, -SLACK)
        inside = one.mask[shows]
        assert not (inside & ~may).any(), (one.where, int((inside & ~may).sum()), int(inside.sum()))
        left_out = int((must & ~inside).sum())
        assert not left_out, (one.where, left_out, int(inside.sum()))
        asked[one.meta["relation"]] += 1
    assert len(asked) == 14 and min(asked.values()) >= 5, asked


def test_above_and_below_are_asked_where_one_surface_has_them(looked: list[Looked], held: list[Looked]) -> None:
    """No other surface in sight has a free place over or under the reference."""
    for one in of_kind([*looked, *held], "free"):
        if one.meta["relation"] not in ("above", "below"):
            continue
        points, instances, own = one.lifted(), one.instances, one.meta["support"]
        for surface in one.view["surfaces"]:
            top, headroom = surface["center"][2], surface["headroom"] or np.inf
            if surface["name"] in (own["surface"], one.root(one.references[0])):
                continue
            if one.meta["removed"]["height"] > headroom:
                continue
            one.meta["support"] = {"surface": surface["name"]}
            shows = (instances == surface["instance"]) & (np.abs(points[..., 2] - top) < NEAR)
            places = points[shows][:, :2]
            good = standing(one, places, -SLACK) & related(one, places, -SLACK)
            one.meta["support"] = own
            assert not good.any(), (one.where, surface["name"], int(good.sum()), int(one.mask.sum()))
