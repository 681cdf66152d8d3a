"""Rooms: what stands where, what the physics says, which questions follow. Little or nothing is rendered."""

import gc
import json
import math
import tracemalloc
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from rendering import needs_gl

from trace_vlm.data.scenes.config import DatasetSpec, SceneConfig, WorldConfig
from trace_vlm.data.scenes.objects.catalog import CATEGORIES, make_body
from trace_vlm.data.scenes.questions.relations import NO, UNSURE, YES, SpatialFacts, footprint_gap
from trace_vlm.data.scenes.render import SceneRenderer
from trace_vlm.data.scenes.scene import make_scene
from trace_vlm.data.scenes.world.layout import sample_layouts
from trace_vlm.data.scenes.world.physics import settle
from trace_vlm.data.scenes.world.rooms import plan_room
from trace_vlm.data.scenes.world.surfaces import Block, Light, Reject, Room, Support, supports_of

CONFIG = SceneConfig()
LIGHT = Light((0.0, 0.0, 2.0), 0.4, (0.0, 0.0, -1.0), 0.1, 0.3, (1.0, 1.0, 1.0), 0.0)


def tables(*heights):  # square, of half side 0.5, above each other
    tops = [Support(f"table {z}", "table", 1, (0.0, 0.0, z), 0.0, (0.5, 0.5)) for z in heights]
    return Room(tuple(tops), tuple(Block((0.5, 0.5, 0.01), (0, 0, z - 0.01), (1, 1, 1)) for z in heights), LIGHT)


def body(name, x, y, color="red", **fields):
    radius = sum((category := CATEGORIES[name]).radius) / 2
    height = radius * category.slenderness[1]
    return replace(make_body(name, category, color, (0.5, 0.5, 0.5), radius, height, 0.5, (x, y), 0.0), **fields)


@pytest.fixture(scope="module")
def scenes():
    rng, furnished = np.random.default_rng(4), []
    while len(furnished) < 25:
        plan = plan_room(CONFIG, rng)
        layouts, kept = sample_layouts(8, CONFIG, rng, counts=plan.counts)
        with suppress(Reject):
            if len(kept):
                furnished.append(plan.furnish(layouts.select(np.array([0])), rng))
    return furnished


def test_rooms_are_as_configured(scenes):
    furniture, areas = set(), Counter()
    for bodies, room in scenes:
        assert CONFIG.objects.min_objects <= len(bodies) <= CONFIG.objects.max_objects
        names = [surface.name for surface in room.surfaces]
        pieces = {"shelf" if "shelf" in name else name for name in names}
        assert len(set(names)) == len(names) and 1 <= len(pieces) <= CONFIG.world.max_surfaces
        assert room.surfaces[0].center == (0.0, 0.0, 0.0)
        assert len({surface.instance for surface in room.surfaces} - set(range(2, 2 + len(bodies)))) == len(names)
        furniture |= pieces
        areas.update(supports_of(bodies, room.surfaces)[item.support].area for item in bodies)
    assert furniture == {"table", "counter", "shelf", "side table", "tray"}
    assert min(areas["inside"], areas["top"]) >= 3


def test_nothing_touches_anything_else(scenes):
    for bodies, room in scenes:
        supports = supports_of(bodies, room.surfaces)
        for slot, item in enumerate(bodies):
            support = supports[item.support]
            assert item.z == support.center[2] and item.height < support.headroom
            inset = support.inset(np.array(item.position))
            assert inset > 0 if support.owner is None else inset >= item.radius - 0.012
            for number, other in enumerate(bodies[:slot]):
                apart = max(item.z - other.z - other.height, other.z - item.z - item.height)
                if apart < -1e-6 and support.owner != number:
                    assert footprint_gap(item, other) > 0, (item.name, other.name)


def test_stable_objects_stay_and_carry_others():
    book, room = body("book", 0.2, 0.1), tables(0.0)
    top = supports_of([book], room.surfaces)[1]
    apple = body("apple", *top.center[:2], z=top.center[2], support=1)
    bodies = [book, apple, body("bowling pin", -0.2, 0.2), body("crate", 0.0, -0.3)]
    for before, after in zip(bodies, settle(bodies, room, WorldConfig()), strict=True):
        assert math.dist(before.position, after.position) < 0.005 and before.z == after.z


@pytest.mark.parametrize("bodies", [
    [body("bottle", 0.5, 0.0)], [body("toy car", 0.9, 0.9)],  # half over the edge, beside the table
    [body("die", 0.0, 0.0), body("gift", 0.03, 0.0)],  # one in the other
])  # fmt: skip
def test_unstable_scenes_are_rejected(bodies):
    with pytest.raises(Reject):
        settle(bodies, tables(0.0), WorldConfig(settle=1.0))


def test_facts_about_a_scene_by_hand():
    room, crate = tables(0.0, 0.5), body("crate", 0.0, -0.3)
    inside = supports_of([crate], room.surfaces)[2]
    bodies = [crate, body("apple", *inside.center[:2], z=inside.center[2], support=2), body("die", 0.32, 0.0),
              body("apple", 0.18, 0.0, "green"),  # next to the die, under the drum
              body("drum", 0.18, 0.0, z=0.5, support=1), body("apple", 0.04, 0.0, "yellow")]  # fmt: skip
    facts = SpatialFacts(bodies, supports_of(bodies, room.surfaces), CONFIG.relations)
    assert facts.near("inside").tolist()[0] == [NO, YES, NO, NO, NO, NO]
    assert facts.near("on").max() == NO
    assert facts.near("next to").tolist()[2] == [NO, NO, NO, YES, UNSURE, NO]
    assert facts.near("below").tolist()[4] == [NO, NO, UNSURE, YES, NO, UNSURE]
    assert facts.near("above").tolist()[3] == [NO, NO, NO, NO, YES, NO]
    assert facts.between(2, 5).tolist()[3] == YES and facts.roots == [0, 0, 0, 0, 1, 0]


@needs_gl
def test_a_scene_does_not_depend_on_those_before_it(tmp_path):
    config = replace(CONFIG, camera=replace(CONFIG.camera, depth=True))
    files = {}
    for numbers in ((0, 1), (1,)):
        (out := tmp_path / str(len(numbers))).mkdir()
        spec = DatasetSpec(out, config, ((160, 120), (128, 128), (96, 128)), 3, 9, True)
        with SceneRenderer(config, spec.sizes) as renderer:
            line = [make_scene(spec, number, renderer) for number in numbers][-1]
        (out / "line.json").write_text(json.dumps(line))
        files[numbers] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
    assert len(files[1,]) > 15 and all(files[0, 1][name] == content for name, content in files[1,].items())


@needs_gl
def test_nothing_of_a_scene_stays_in_memory(tmp_path):
    # A view alone holds ten times the limit. (For what the GL library holds: benchmarks/scenes.py --memory.)
    spec, held = DatasetSpec(tmp_path, CONFIG, ((96, 72),), 1, 9, True), []
    with SceneRenderer(CONFIG, spec.sizes) as renderer:
        tracemalloc.start()
        try:
            for number in range(9):
                make_scene(spec, number, renderer)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert held[-1] - held[3] < 5 * 15_000, held  # caches of the catalog fill on the way
