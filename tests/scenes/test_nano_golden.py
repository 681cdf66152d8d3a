"""The nano model's world stays what its weights were trained on: the same seed gives the same scenes and texts.

`nano_golden.json` was recorded when the weights were made. What a GL driver may round differently (pixel counts, the
points drawn on masks) is held with a tolerance; arrangement, camera, questions and words are held exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rendering import needs_gl

from trace_vlm.data.scenes.config import load_scene_config

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "nano_golden.json").read_text())
SEED, VIEWS, SIZE = 5, 2, (128, 128)

pytestmark = needs_gl


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any], list[Any]]:
    """The record, and the views and samples made now."""
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.scene import Job, make_scene

    wanted = GOLDEN[request.param]
    out = tmp_path_factory.mktemp("golden")
    config = load_scene_config(ROOT / "configs" / "scenes" / "nano.yaml")
    job = Job(out, config, (SIZE,), VIEWS, SEED, request.param == "benchmark")
    with SceneRenderer.from_config(config, job.sizes) as renderer:
        lines = [make_scene(job, number, renderer) for number in range(len(wanted["views"]) // VIEWS)]
    return (
        wanted,
        [view for line in lines for view in line["views"]],
        [one for line in lines for one in line["samples"]],
    )


def test_scenes_and_cameras_are_the_recorded_ones(pair: tuple[Any, list[Any], list[Any]]) -> None:
    wanted, views, _ = pair
    assert [view["view"] for view in views] == [view["view"] for view in wanted["views"]]
    for now, then in zip(views, wanted["views"], strict=True):
        assert np.abs(np.subtract(now["camera"]["world_from_camera"], then["camera"])).max() < 1e-5
        assert np.abs(np.subtract(now["surface"]["half_size"], then["half_size"])).max() < 1e-5
        assert [item["name"] for item in now["objects"]] == [row[0] for row in then["objects"]]
        for item, (_, x, y, radius, height, pixels) in zip(now["objects"], then["objects"], strict=True):
            assert (*item["position"], item["radius"], item["height"]) == (x, y, 0.0, radius, height)
            assert abs(item["pixels"] - pixels) <= 3 + 0.02 * pixels


def test_questions_are_the_recorded_ones(pair: tuple[Any, list[Any], list[Any]]) -> None:
    wanted, _, samples = pair
    assert len(samples) == len(wanted["samples"])
    for now, then in zip(samples, wanted["samples"], strict=True):
        meta, removed = now["meta"], now["meta"].get("removed")
        assert now["instruction"] == then["text"]
        assert (meta["kind"], meta["relation"]) == (then["kind"], then["relation"])
        assert (meta["target"] and meta["target"]["instance"]) == then["target"]
        assert [item["instance"] for item in meta["references"]] == then["references"]
        assert (removed and [removed["category"], *removed["position"][:2], removed["radius"]]) == then["removed"]
        assert np.abs(np.subtract(meta["points"], then["points"])).max() <= 0.03
