"""The catalog: what every category must be. Meshes of the user's own: measured, drawn, refused without a licence."""

import math
from dataclasses import replace

import numpy as np
import pytest
from rendering import needs_gl

from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import SceneConfig, load_scene_config
from trace_vlm.data.scenes.objects.assets import all_categories, load_assets
from trace_vlm.data.scenes.objects.catalog import CATEGORIES, COLORS, make_body, slenderness
from trace_vlm.data.scenes.objects.primitives import BANDS, LATHE_FACES, SIDES, lathe_arrays, outline
from trace_vlm.data.scenes.render import MAX_LATHES, MAX_PARTS, SceneRenderer
from trace_vlm.data.scenes.world.camera import Camera
from trace_vlm.data.scenes.world.rooms import flat_room
from trace_vlm.data.scenes.world.surfaces import supports_of
from trace_vlm.utils.command import InputError

RGB = (0.5, 0.5, 0.5)
# A wedge, 100 x 60 x 40 millimetres, whose origin is a corner.
WEDGE = ("v 0 0 0\nv 100 0 0\nv 100 60 0\nv 0 60 0\nv 0 0 40\nv 0 60 40\n"
         "f 1 4 3\nf 1 3 2\nf 1 2 5\nf 4 6 3\nf 2 3 6\nf 2 6 5\nf 1 5 6\nf 1 6 4\n")  # fmt: skip
ENTRY = "- file: wedge.obj\n  name: wedge\n  licence: CC0\n  scale: 0.001\n"


@pytest.mark.parametrize("name", [name for name, category in CATEGORIES.items() if category.sculpt])
def test_measures_are_those_of_the_parts(name):
    category = CATEGORIES[name]
    for shape in (0.0, 0.37, 1.0):
        radius = category.radius[0] + shape * (category.radius[1] - category.radius[0])
        body = make_body(name, category, "red", RGB, radius, 0.0, shape, (0.3, -0.2), 1.0)
        points = np.concatenate([outline(part) for part in body.parts])
        low, high = points.min(0), points.max(0)
        assert low[2] == pytest.approx(0, abs=1e-9) and high[2] == pytest.approx(body.height)
        assert np.hypot(points[:, 0], points[:, 1]).max() == pytest.approx(radius)
        assert np.abs(low[:2] + high[:2]).max() < 1e-9, "the footprint's middle is not the origin"
        if body.half is not None:
            assert np.abs(points[:, :2]).max(0) == pytest.approx(body.half)
            assert 4 * body.half[0] * body.half[1] < math.pi * radius**2
        lathes = sum(part.shape == "lathe" for part in body.parts)
        assert lathes <= MAX_LATHES and len(body.parts) - lathes <= MAX_PARTS
        for support in supports_of([body], ()):
            assert 0 < support.center[2] <= body.height + 1e-9 and max(support.half) <= radius
        if shape == 0.37:
            assert 0.7 < slenderness(category) * radius / body.height < 1.4
    assert all(color in COLORS for color in category.colors)


def test_a_footprint_s_distance_and_extent_agree_with_its_corners():
    body = make_body("book", CATEGORIES["book"], "red", RGB, 0.12, 0.0, 0.5, (0.2, 0.1), 0.7)
    cos, sin, rng = math.cos(0.7), math.sin(0.7), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2) * body.half
    points = grid @ [[cos, sin], [-sin, cos]] + body.position
    for angle in rng.uniform(0, 2 * math.pi, 20):
        direction = np.array([math.cos(angle), math.sin(angle)])
        assert float(body.extent(direction)) == pytest.approx(((points - body.position) @ direction).max())
    for point in rng.uniform(-0.5, 0.5, (40, 2)):
        assert float(body.distance(point)) == pytest.approx(np.hypot(*(points - point).T).min(), abs=2e-3)


def test_lathe_arrays_describe_the_turned_profile():
    vertices, normals = lathe_arrays(((0.0, 0.0), (1.0, 0.0), (1.0, 2.0), (0.0, 2.0)), (0.5, 0.5, 0.25))
    assert len(vertices) == len(normals) == 2 * BANDS * SIDES and LATHE_FACES.max() == len(vertices) - 1
    assert vertices[:, 2].max() == pytest.approx(0.5) and np.hypot(*vertices[:, :2].T).max() == pytest.approx(0.5)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1.0)
    wall = (np.abs(vertices[:, 2] - 0.25) < 0.26) & (np.abs(normals[:, 2]) < 0.5)
    assert (np.einsum("ij,ij->i", vertices[wall, :2], normals[wall, :2]) > 0).all(), "the wall faces inwards"
    a, b, c = vertices[LATHE_FACES].transpose(1, 0, 2)
    facing = np.einsum("ij,ij->i", np.cross(b - a, c - a), normals[LATHE_FACES[:, 0]])
    assert facing.min() > -1e-9, "a face is wound against its normal"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "wedge.obj").write_text(WEDGE)
    (tmp_path / "assets.yaml").write_text(ENTRY)
    return tmp_path


def wedge(folder, position=(0.0, 0.0), yaw=0.0):
    category = all_categories(str(folder))["wedge"]
    return make_body("wedge", category, "red", (0.8, 0.1, 0.1), category.radius[0], 0.0, 0.5, position, yaw)


def test_a_mesh_becomes_a_category(folder):
    assert (*(body := wedge(folder)).half, body.height) == pytest.approx((0.05, 0.03, 0.04), abs=1e-6)
    (folder / "scenes.yaml").write_text(f"objects:\n  assets: {folder}\n")
    assert "wedge" in load_scene_config(folder / "scenes.yaml").categories and "wedge" not in SceneConfig().categories


@pytest.mark.parametrize("listing, named", [
    (ENTRY.replace("  licence: CC0\n", ""), "mesh 1.*licence"), (ENTRY.replace("CC0", "' '"), "licence"),
    (ENTRY.replace("wedge.obj", "other.obj"), "other.obj"), (ENTRY.replace("wedge.obj", "a.fbx"), "file.*a.fbx"),
    (ENTRY.replace("0.001", "1.0"), "scale"), (ENTRY.replace("name: wedge", "name: mug"), "'mug'"),
    (ENTRY + ENTRY, "'wedge'"), (ENTRY + "  colors: [beige]\n", "beige"), (ENTRY + "  weight: 3\n", "weight"),
    ("wedge", "assets.yaml"), (None, "assets.yaml"), (ENTRY.replace("wedge.obj", "broken.obj"), "broken.obj")])  # fmt: skip
def test_mistakes_are_named(folder, listing, named):
    (folder / "broken.obj").write_text("v 0 0\n")
    (folder / "assets.yaml").unlink()
    if listing is not None:
        (folder / "assets.yaml").write_text(listing)
    with pytest.raises(InputError, match=named):
        all_categories(str(folder))


@needs_gl
def test_a_set_states_the_licences_of_its_meshes(folder, capsys):
    objects = f"{{assets: {folder}, categories: [mug, can], max_categories: 3}}"
    (folder / "scenes.yaml").write_text(f"world: {{kind: flat}}\nobjects: {objects}\n")
    flags = f"--out {folder / 'set'} --scenes 6 --size 64 --config {folder / 'scenes.yaml'}".split()
    assert generate.main(flags) == 0 and "mesh wedge: CC0" in capsys.readouterr().out
    assert '"category": "wedge"' in (folder / "set" / "views.jsonl").read_text()
    (folder / "wedge.obj").write_text(WEDGE.replace("40", "50"))
    load_assets.cache_clear()
    with pytest.raises(InputError, match="meshes.wedge.sha256"):
        generate.main(flags)


@needs_gl
def test_a_mesh_is_drawn_where_its_box_is(folder):
    config = replace(SceneConfig(), objects=replace(SceneConfig().objects, assets=str(folder)))
    body = wedge(folder, (0.1, -0.05), 0.6)
    camera = Camera((0.1, -0.06, 1.0), -np.pi / 2, np.radians(89.5), np.radians(30), 200, 200)
    with SceneRenderer(config, ((200, 200),)) as renderer:
        renderer.set_scene([body], flat_room((0.5, 0.5), np.random.default_rng(0)))
        renderer.set_camera(camera)
        instances, _, _ = renderer.segment()
    points = camera.ground_points(*np.nonzero(instances == 2), 0.0)
    reach = np.abs((points - np.array(body.position)) @ body.axes.T).max(0)
    assert np.abs(reach - body.half).max() < 0.006
