"""Pre-training texts say what is true of their view."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes_by_hand import draw_views

from trace_vlm.core.points import Point, parse_points
from trace_vlm.core.records import read_samples
from trace_vlm.data.scenes import captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = draw_views(tmp_path_factory.mktemp("views") / "data", views=30, size=(128, 96))
    assert captions.main(["--data", str(made), "--out", str(made / "captions.json")]) == 0
    return made


def test_every_text_is_true(folder: Path) -> None:
    views = {view["view"]: view for view in map(json.loads, (folder / "views.jsonl").read_text().splitlines())}
    kinds = set()
    for sample in read_samples(folder / "captions.json"):
        view = views[sample.meta["view"]]
        question, answer = (turn.text for turn in sample.conversations)
        instances = np.asarray(Image.open(folder / view["instances"]))
        things = {item["name"]: item for item in view["objects"]}
        kind = sample.id.split("_")[2]
        kinds.add(kind)
        places = [point.to_pixel(128, 96) for point in parse_points(answer) if isinstance(point, Point)]
        seen = [int(instances[row, column]) for column, row in filter(None, places)]
        if kind == "free":
            assert seen == [1]
            continue
        named = [name for name in sorted(things, key=question.find) if name in question]
        assert seen == [things[name]["instance"] for name in named][: len(seen)]
        if kind == "relate":
            (x0, y0, _), (x1, y1, _) = (things[name]["position"] for name in named)
            side = re.search(r"lies (.*) the", answer)
            assert side is not None
            away = {"to the left of": x1 - x0, "to the right of": x0 - x1, "in front of": y1 - y0, "behind": y0 - y1}
            assert away[side[1]] == max(away.values())
    assert kinds == {"name", "point", "relate", "free"}


def test_same_views_give_the_same_texts(folder: Path, tmp_path: Path) -> None:
    captions.main(["--data", str(folder), "--out", str(tmp_path / "again.json")])
    assert (tmp_path / "again.json").read_bytes() == (folder / "captions.json").read_bytes()


def test_freest_spot_lies_on_one_surface() -> None:
    view = {"view": "0_0", "image": "i.png", "instances": "n.png", "objects": [],
            "camera": {"world_from_camera": [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]]}}  # fmt: skip
    instances = np.zeros((60, 80), np.uint8)
    assert not list(captions.captions(view, instances))
    instances[5:45, 10:30], instances[5:45, 30:40] = 200, 201  # two boards that touch in the picture
    (sample,) = captions.captions(view, instances)
    (point,) = parse_points(sample.conversations[1].text)
    assert isinstance(point, Point)
    column, row = point.to_pixel(80, 60) or (0, 0)
    assert instances[row, column] == 200 and 18 <= column <= 21
