"""Pre-training texts say what is true of their view."""

import json
import re

import numpy as np
from PIL import Image
from scenes_by_hand import CAMERA, draw_views

from trace_vlm.core.points import Point, parse_points
from trace_vlm.core.records import read_samples
from trace_vlm.data.scenes import captions


def test_every_text_is_true_and_the_same_again(tmp_path):
    folder = draw_views(tmp_path / "data", views=30, size=(128, 96))
    for out in ("captions.json", "again.json"):
        assert captions.main(["--data", str(folder), "--out", str(folder / out)]) == 0
    assert (folder / "again.json").read_bytes() == (folder / "captions.json").read_bytes()
    views = {view["view"]: view for view in map(json.loads, (folder / "views.jsonl").read_text().splitlines())}
    kinds = set()
    for sample in read_samples(folder / "captions.json"):
        view = views[sample.meta["view"]]
        question, answer = (turn.text for turn in sample.conversations)
        instances = np.asarray(Image.open(folder / view["instances"]))
        things = {item["name"]: item for item in view["objects"]}
        kinds.add(kind := sample.id.split("_")[2])
        places = [point.to_pixel(128, 96) for point in parse_points(answer) if isinstance(point, Point)]
        seen = [int(instances[row, column]) for column, row in filter(None, places)]
        if kind == "free":
            assert seen == [1]
            continue
        named = [name for name in sorted(things, key=question.find) if name in question]
        assert seen == [things[name]["instance"] for name in named][: len(seen)]
        if kind == "relate":
            (x0, y0, _), (x1, y1, _) = (things[name]["position"] for name in named)
            away = {"to the left of": x1 - x0, "to the right of": x0 - x1, "in front of": y1 - y0, "behind": y0 - y1}
            assert away[re.search(r"lies (.*) the", answer)[1]] == max(away.values())
    assert kinds == {"name", "point", "relate", "free"}


def test_freest_spot_lies_on_one_surface():
    view = {"view": "0_0", "image": "i.png", "instances": "n.png", "objects": [], "camera": CAMERA}
    instances = np.zeros((60, 80), np.uint8)
    assert not list(captions.captions(view, instances))
    instances[5:45, 10:30], instances[5:45, 30:40] = 200, 201  # two boards that touch in the picture
    (sample,) = captions.captions(view, instances)
    column, row = parse_points(sample.conversations[1].text)[0].to_pixel(80, 60)
    assert instances[row, column] == 200 and 18 <= column <= 21
