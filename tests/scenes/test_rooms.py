"""Rooms: what stands where, what the physics says, which questions follow. Little or nothing is rendered."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rendering import MISSING

from trace_vlm.data.scenes.config import SceneConfig, WorldConfig
from trace_vlm.data.scenes.objects.catalog import CATEGORIES, Body, make_body
from trace_vlm.data.scenes.questions.relations import NO, UNSURE, YES, SpatialFacts, footprint_gap
from trace_vlm.data.scenes.wording import DIRECTIONS
from trace_vlm.data.scenes.world.layout import sample_layouts
from trace_vlm.data.scenes.world.physics import settle
from trace_vlm.data.scenes.world.rooms import plan_room
from trace_vlm.data.scenes.world.surfaces import Block, Light, Reject, Room, Support, supports_of

CONFIG = SceneConfig()
LIGHT = Light((0.0, 0.0, 2.0), 0.4, (0.0, 0.0, -1.0), 0.1, 0.3, (1.0, 1.0, 1.0), 0.0)


def room(*heights: float) -> Room:
    """Square tables of half side 0.5 above each other."""
    tops = [Support(f"table {z}", "table", 1, (0.0, 0.0, z), 0.0, (0.5, 0.5)) for z in heights]
    return Room(tuple(tops), tuple(Block((0.5, 0.5, 0.01), (0, 0, z - 0.01), (1, 1, 1)) for z in heights), LIGHT)


def body(category: str, x: float, y: float, color: str = "red", size: float = 0.5, **fields: Any) -> Body:
    kind = CATEGORIES[category]
    radius = kind.radius[0] + size * (kind.radius[1] - kind.radius[0])
    made = make_body(category, kind, color, (0.5, 0.5, 0.5), radius, radius * kind.slenderness[1], 0.5, (x, y), 0.0)
    return replace(made, **fields)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[list[Body], Room]]:
    rng = np.random.default_rng(4)
    made = []
    while len(made) < 25:
        plan = plan_room(CONFIG, rng)
        layouts, kept = sample_layouts(8, CONFIG, rng, counts=plan.counts)
        if len(kept):
            try:
                made.append(plan.furnish(layouts.select(np.array([0])), rng))
            except Reject:
                continue
    return made


# --- what stands where ----------------------------------------------------------------------------------------------


def test_rooms_are_as_configured(scenes: list[tuple[list[Body], Room]]) -> None:
    kinds, areas = Counter[str](), Counter[str]()
    for bodies, place in scenes:
        objects = CONFIG.objects
        assert objects.min_objects <= len(bodies) <= objects.max_objects
        names = [surface.name for surface in place.surfaces]
        assert len(set(names)) == len(names)
        pieces = {"shelf" if "shelf" in name else name for name in names}
        assert 1 <= len(pieces) <= CONFIG.world.max_surfaces
        assert place.surfaces[0].center == (0.0, 0.0, 0.0)
        instances = [surface.instance for surface in place.surfaces]
        assert len(set(instances)) == len(instances) and not set(instances) & set(range(2, 2 + len(bodies)))
        kinds.update(pieces)
        areas.update(supports_of(bodies, place.surfaces)[one.support].area for one in bodies)
    assert set(kinds) == {"table", "counter", "shelf", "side table", "tray"}
    assert min(areas["inside"], areas["top"]) >= 3


def test_nothing_touches_anything_else(scenes: list[tuple[list[Body], Room]]) -> None:
    for bodies, place in scenes:
        supports = supports_of(bodies, place.surfaces)
        for slot, one in enumerate(bodies):
            support = supports[one.support]
            assert one.z == support.center[2], "every foot is on its support"
            inset = float(support.inset(np.array(one.position)))
            assert inset > 0 if support.owner is None else inset >= one.radius - 0.012
            assert one.height < support.headroom
            for other in bodies[:slot]:
                apart = max(one.z - other.z - other.height, other.z - one.z - one.height)
                carried = support.owner is not None and bodies[support.owner] is other
                if apart < -1e-6 and not carried:
                    assert footprint_gap(one, other) > 0, (one.name, other.name)


def test_scenes_depend_on_their_number_alone() -> None:
    def make() -> list[Body]:
        rng = np.random.default_rng(11)
        layouts, _ = sample_layouts(8, CONFIG, rng, counts=(4, 6))
        return plan_room(CONFIG, rng).furnish(layouts.select(np.array([0])), rng)[0]

    assert make() == make()


# --- physics --------------------------------------------------------------------------------------------------------


def test_what_stands_stays_and_carries() -> None:
    book = body("book", 0.2, 0.1)
    table = room(0.0)
    book_top = supports_of([book], table.surfaces)[1]
    mug = body("apple", *book_top.center[:2], z=book_top.center[2], support=1)
    bodies = [book, mug, body("bowling pin", -0.2, 0.2), body("crate", 0.0, -0.3)]
    settled = settle(bodies, table, WorldConfig())
    for before, after in zip(bodies, settled, strict=True):
        assert math.dist(before.position, after.position) < 0.005 and before.z == after.z


@pytest.mark.parametrize(
    "bodies, reason",
    [
        ([body("bottle", 0.5, 0.0)], "an object falls"),  # half over the edge
        ([body("die", 0.0, 0.0), body("gift", 0.03, 0.0)], "an object"),  # one in the other
        ([body("toy car", 0.9, 0.9)], "an object falls off its support"),
    ],
)
def test_what_falls_is_rejected_with_the_reason(bodies: list[Body], reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        settle(bodies, room(0.0), WorldConfig(settle=1.0))


# --- what is where --------------------------------------------------------------------------------------------------


def test_facts_about_a_scene_by_hand() -> None:
    place = room(0.0, 0.5)
    crate = body("crate", 0.0, -0.3)
    inside = supports_of([crate], place.surfaces)[2]
    bodies = [
        crate,
        body("apple", *inside.center[:2], z=inside.center[2], support=2),
        body("die", 0.32, 0.0),
        body("apple", 0.18, 0.0, "green"),  # next to the die, under the drum
        body("drum", 0.18, 0.0, z=0.5, support=1),
        body("apple", 0.04, 0.0, "yellow"),
    ]
    facts = SpatialFacts(bodies, supports_of(bodies, place.surfaces), CONFIG.relations)
    assert facts.near("inside").tolist()[0] == [NO, YES, NO, NO, NO, NO]
    assert facts.near("on").max() == NO
    assert facts.near("next to").tolist()[2] == [NO, NO, NO, YES, UNSURE, NO]
    assert facts.near("below").tolist()[4] == [NO, NO, UNSURE, YES, NO, UNSURE]
    assert facts.near("above").tolist()[3] == [NO, NO, NO, NO, YES, NO]
    assert facts.between(2, 5).tolist()[3] == YES
    assert facts.roots == [0, 0, 0, 0, 1, 0]


# --- end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """Three scenes of three views in three shapes, with depth."""
    if MISSING:
        pytest.skip(MISSING)
    from trace_vlm.data.scenes.config import DatasetSpec
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.scene import make_scene

    out = tmp_path_factory.mktemp("rooms")
    config = replace(CONFIG, camera=replace(CONFIG.camera, depth=True))
    job = DatasetSpec(out, config, ((160, 120), (128, 128), (96, 128)), 3, 9, True)
    with SceneRenderer.from_config(config, job.sizes) as renderer:
        return out, job, [json.loads(json.dumps(make_scene(job, number, renderer))) for number in range(3)]


def test_views_take_turns_in_shape(made: tuple[Path, Any, list[Any]]) -> None:
    out, _, lines = made
    for line in lines:
        assert [(view["width"], view["height"]) for view in line["views"]] == [(160, 120), (128, 128), (96, 128)]
        for view in line["views"]:
            for key in ("image", "instances", "depth"):
                with Image.open(out / view[key]) as picture:
                    assert picture.size == (view["width"], view["height"])


def test_depth_is_where_the_main_surface_is(made: tuple[Path, Any, list[Any]]) -> None:
    out, _, lines = made
    for view in (view for line in lines for view in line["views"]):
        depth = np.asarray(Image.open(out / view["depth"])).astype(float) / 1000
        instances = np.asarray(Image.open(out / view["instances"]))
        pose, intrinsics = np.array(view["camera"]["world_from_camera"]), np.array(view["camera"]["intrinsics"])
        rows, columns = np.nonzero(instances == view["surfaces"][0]["instance"])
        rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1) @ np.linalg.inv(intrinsics).T
        points = (rays * depth[rows, columns, None]) @ pose[:3, :3].T + pose[:3, 3]
        half = np.array(view["surfaces"][0]["half_size"])
        top = (np.abs(points[:, :2]) < half - 0.02).all(1)
        assert np.abs(points[top, 2]).max() < 0.02 and np.median(np.abs(points[top, 2])) < 0.003


def test_the_camera_rolls_within_its_range(made: tuple[Path, Any, list[Any]]) -> None:
    _, job, lines = made
    rolls = []
    for view in (view for line in lines for view in line["views"]):
        pose = np.array(view["camera"]["world_from_camera"])
        assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)
        level = np.array([pose[1, 2], -pose[0, 2], 0.0])
        level /= np.linalg.norm(level)
        turn = math.degrees(math.atan2(np.cross(level, pose[:3, 0]) @ pose[:3, 2], level @ pose[:3, 0]))
        assert turn == pytest.approx(view["camera"]["roll_deg"], abs=1e-6)
        assert job.config.camera.height[0] <= pose[2, 3] <= job.config.camera.height[1]
        rolls.append(turn)
    assert max(np.abs(rolls)) <= 8 and np.std(rolls) > 1


def test_every_view_shows_enough_and_asks(made: tuple[Path, Any, list[Any]]) -> None:
    _, job, lines = made
    for line in lines:
        for view in line["views"]:
            assert len(view["objects"]) >= job.config.questions.min_visible
            mine = [sample["meta"] for sample in line["samples"] if sample["meta"]["view"] == view["view"]]
            assert any(meta["relation"] for meta in mine)
            least, most = job.config.questions.min_points, job.config.questions.num_points
            assert all(least <= len(meta["points"]) <= most for meta in mine)
            for meta in (meta for meta in mine if meta["kind"] == "relational"):
                assert len(meta["candidates"]) >= 2 and meta["target"]["instance"] in meta["candidates"]
                assert ("extreme_correct" in meta) == (meta["relation"] in DIRECTIONS)


def test_a_scene_does_not_depend_on_those_before_it(made: tuple[Path, Any, list[Any]], tmp_path: Path) -> None:
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.scene import make_scene

    out, job, lines = made
    with SceneRenderer.from_config(job.config, job.sizes) as renderer:
        again = make_scene(dataclasses.replace(job, out=tmp_path), 2, renderer)
    assert json.loads(json.dumps(again)) == lines[2]
    files = list(tmp_path.rglob("*.png"))
    assert len(files) > 15
    assert all(path.read_bytes() == (out / path.relative_to(tmp_path)).read_bytes() for path in files)


def test_nothing_of_a_scene_stays_in_memory(made: tuple[Path, Any, list[Any]], tmp_path: Path) -> None:
    """A view alone holds ten times the limit. (What the GL library holds: benchmarks/scenes.py --memory.)"""
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.scene import make_scene

    _, job, _ = made
    small = replace(job, out=tmp_path, sizes=((96, 72),), views=1)
    held = []
    with SceneRenderer.from_config(small.config, small.sizes) as renderer:
        tracemalloc.start()
        try:
            for number in range(9):
                make_scene(small, number, renderer)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert held[-1] - held[3] < 5 * 15_000, held  # caches of the catalog fill on the way


def test_unseen_relations_stay_out_of_training(made: tuple[Path, Any, list[Any]]) -> None:
    _, job, _ = made
    training = dataclasses.replace(job, benchmark=False)
    assert training.counts["between"] == 0 and job.counts["between"] == 1
    hidden = set(CONFIG.questions.unseen)
    assert not any(hidden & set(names) for names in training.relations.values())
    assert hidden - {"between"} <= {name for names in job.relations.values() for name in names}
