"""Meshes of the user's own: read, measured, placed and drawn; refused without a licence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rendering import needs_gl

from trace_vlm.data.scenes import generate
from trace_vlm.data.scenes.config import SceneConfig, load_config
from trace_vlm.data.scenes.objects.assets import all_categories, load_assets
from trace_vlm.data.scenes.objects.catalog import make_body
from trace_vlm.utils.command import InputError

# A wedge, 100 x 60 x 40 millimetres, whose origin is a corner.
WEDGE = """v 0 0 0\nv 100 0 0\nv 100 60 0\nv 0 60 0\nv 0 0 40\nv 0 60 40
f 1 4 3\nf 1 3 2\nf 1 2 5\nf 4 6 3\nf 2 3 6\nf 2 6 5\nf 1 5 6\nf 1 6 4
"""
ENTRY = "- file: wedge.obj\n  name: wedge\n  licence: CC0\n  scale: 0.001\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wedge.obj").write_text(WEDGE)
    (tmp_path / "assets.yaml").write_text(ENTRY)
    return tmp_path


def test_a_mesh_becomes_a_category(folder: Path) -> None:
    kind = all_categories(str(folder))["wedge"]
    body = make_body("wedge", kind, "red", (0.5, 0.5, 0.5), kind.radius[0], 0.0, 0.5, (0.0, 0.0), 0.0)
    assert body.half == pytest.approx((0.05, 0.03), abs=1e-6) and body.height == pytest.approx(0.04, abs=1e-6)
    config = folder / "scenes.yaml"
    config.write_text(f"objects:\n  assets: {folder}\n")
    assert "wedge" in load_config(config).categories and "wedge" not in SceneConfig().categories


@pytest.mark.parametrize(
    "listing, message",
    [
        (ENTRY.replace("  licence: CC0\n", ""), r"mesh 1 \(wedge.obj\): licence is missing"),
        (ENTRY.replace("CC0", "' '"), "licence is missing"),
        (ENTRY.replace("wedge.obj", "other.obj"), "other.obj does not exist"),
        (ENTRY.replace("wedge.obj", "wedge.fbx"), "must be one of .obj, .stl"),
        (ENTRY.replace("0.001", "1.0"), "so change scale"),
        (ENTRY.replace("name: wedge", "name: mug"), "'mug' is one of the catalog"),
        (ENTRY + ENTRY, "'wedge' is used twice"),
        (ENTRY + "  colors: [beige]\n", "colors has 'beige'"),
        (ENTRY + "  weight: 3\n", "unknown key weight"),
        ("wedge", "must hold a list of meshes"),
    ],
)
def test_mistakes_are_named(folder: Path, listing: str, message: str) -> None:
    (folder / "assets.yaml").write_text(listing)
    with pytest.raises(InputError, match=message):
        all_categories(str(folder))


def test_a_folder_without_a_list_and_a_broken_mesh(folder: Path) -> None:
    with pytest.raises(InputError, match="it lists the meshes of objects.assets with name and licence"):
        load_assets(str(folder / "nowhere"))
    (folder / "wedge.obj").write_text("v 0 0\n")
    with pytest.raises(InputError, match="is no mesh that MuJoCo can read"):
        load_assets(str(folder))


@needs_gl
def test_a_set_states_the_licences_of_its_meshes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "scenes.yaml"
    config.write_text(
        f"world: {{kind: flat}}\nobjects: {{assets: {folder}, categories: [mug, can], max_categories: 3}}\n"
    )
    flags = f"--out {folder / 'set'} --scenes 6 --size 64 --config {config}".split()
    assert generate.main(flags) == 0 and "mesh wedge: CC0" in capsys.readouterr().out
    views = [json.loads(line) for line in (folder / "set" / "views.jsonl").read_text().splitlines()]
    assert any(item["category"] == "wedge" for view in views for item in view["objects"])
    (folder / "wedge.obj").write_text(WEDGE.replace("40", "50"))
    load_assets.cache_clear()
    with pytest.raises(InputError, match="another configuration: meshes.wedge.sha256 was"):
        generate.main(flags)


@needs_gl
def test_a_mesh_is_drawn_where_its_box_is(folder: Path) -> None:
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.world.camera import Camera
    from trace_vlm.data.scenes.world.rooms import flat_room

    config = replace(SceneConfig(), objects=replace(SceneConfig().objects, assets=str(folder)))
    kind = all_categories(str(folder))["wedge"]
    body = make_body("wedge", kind, "red", (0.8, 0.1, 0.1), kind.radius[0], 0.0, 0.5, (0.1, -0.05), 0.6)
    camera = Camera((0.1, -0.06, 1.0), -np.pi / 2, np.radians(89.5), np.radians(30), 200, 200)
    with SceneRenderer.from_config(config, ((200, 200),)) as renderer:
        renderer.set_scene([body], flat_room((0.5, 0.5), np.random.default_rng(0)))
        renderer.set_camera(camera)
        instances, _, _ = renderer.segment()
    rows, columns = np.nonzero(instances == 2)
    points = camera.ground_points(rows, columns, 0.0)
    assert body.half is not None
    local = np.abs((points - np.array(body.position)) @ body.axes.T)
    assert (local.max(0) < np.array(body.half) + 0.006).all() and (local.max(0) > np.array(body.half) - 0.006).all()
