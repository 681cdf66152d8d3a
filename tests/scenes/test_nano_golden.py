"""The nano model's world is that recorded with its weights, up to what a GL driver rounds (pixel counts, points)."""

import json
from pathlib import Path

import numpy as np
import pytest
from rendering import needs_gl

from trace_vlm.data.scenes.config import DatasetSpec, load_scene_config

NANO = Path(__file__).parents[2] / "configs" / "scenes" / "nano.yaml"
GOLDEN = json.loads((Path(__file__).parent / "nano_golden.json").read_text())


@needs_gl
@pytest.mark.parametrize("split", sorted(GOLDEN))
def test_scenes_and_questions_are_the_recorded_ones(split, tmp_path):
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.scene import make_scene

    wanted = GOLDEN[split]
    spec = DatasetSpec(tmp_path, load_scene_config(NANO), ((128, 128),), 2, 5, split == "benchmark")
    with SceneRenderer(spec.config, spec.sizes) as renderer:
        scenes = [make_scene(spec, number, renderer) for number in range(len(wanted["views"]) // 2)]
    for now, then in zip((view for scene in scenes for view in scene["views"]), wanted["views"], strict=True):
        assert now["view"] == then["view"]
        assert np.abs(np.subtract(now["camera"]["world_from_camera"], then["camera"])).max() < 1e-5
        assert np.abs(np.subtract(now["surface"]["half_size"], then["half_size"])).max() < 1e-5
        assert [item["name"] for item in now["objects"]] == [row[0] for row in then["objects"]]
        for item, (_, x, y, radius, height, pixels) in zip(now["objects"], then["objects"], strict=True):
            assert (*item["position"], item["radius"], item["height"]) == (x, y, 0.0, radius, height)
            assert abs(item["pixels"] - pixels) <= 3 + 0.02 * pixels
    for now, then in zip((sample for scene in scenes for sample in scene["samples"]), wanted["samples"], strict=True):
        meta, removed = now["meta"], now["meta"].get("removed")
        assert now["instruction"] == then["text"]
        assert (meta["kind"], meta["relation"]) == (then["kind"], then["relation"])
        assert (meta["target"] and meta["target"]["instance"]) == then["target"]
        assert [item["instance"] for item in meta["references"]] == then["references"]
        assert (removed and [removed["category"], *removed["position"][:2], removed["radius"]]) == then["removed"]
        assert np.abs(np.subtract(meta["points"], then["points"])).max() <= 0.03
