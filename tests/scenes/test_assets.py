"""Meshes of the user's own: read, measured, placed and drawn; refused without a licence."""

from dataclasses import replace

import numpy as np
import pytest
from rendering import needs_gl

from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import SceneConfig, load_scene_config
from trace_vlm.data.scenes.objects.assets import all_categories, load_assets
from trace_vlm.data.scenes.objects.catalog import make_body
from trace_vlm.data.scenes.render import SceneRenderer
from trace_vlm.data.scenes.world.camera import Camera
from trace_vlm.data.scenes.world.rooms import flat_room
from trace_vlm.utils.command import InputError

# A wedge, 100 x 60 x 40 millimetres, whose origin is a corner.
WEDGE = ("v 0 0 0\nv 100 0 0\nv 100 60 0\nv 0 60 0\nv 0 0 40\nv 0 60 40\n"
         "f 1 4 3\nf 1 3 2\nf 1 2 5\nf 4 6 3\nf 2 3 6\nf 2 6 5\nf 1 5 6\nf 1 6 4\n")  # fmt: skip
ENTRY = "- file: wedge.obj\n  name: wedge\n  licence: CC0\n  scale: 0.001\n"


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
