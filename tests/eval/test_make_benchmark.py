"""A benchmark of one's own, from a CSV, from LabelMe's JSON and from COCO's."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import read_samples
from trace_vlm.data.sources.check import check_set
from trace_vlm.drawing.contact_sheet import CAPTION, GAP, SIDE
from trace_vlm.eval import make_benchmark
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.eval.scoring import score, score_response
from trace_vlm.utils.command import InputError

SIZE = (40, 20)


@pytest.fixture
def photos(tmp_path):
    """An upright picture of 40 x 20 pixels, and one that is stored on its side and turned by EXIF."""
    folder, exif = tmp_path / "photos", Image.Exif()
    folder.mkdir()
    Image.new("RGB", SIZE, "teal").save(folder / "a.png")
    exif[0x112] = 6
    Image.new("RGB", SIZE[::-1], "olive").save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.fixture
def make(photos, tmp_path):
    def run(name, content, *words):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        out = tmp_path / "out"
        arguments = [str(path), "--images", str(photos), "--out", str(out), *words]
        assert make_benchmark.main(arguments) == 0
        benchmark = open_benchmark(out)
        return benchmark, [benchmark.mask(question) for question in benchmark.questions]

    return run


CSV = """id,image,instruction,kind,category,x,y
,a.png,Point to the mug.,,cups,0.5,0.5
,a.png,Point to the mug.,,cups,0.1,0.5
two,a.png,Point to the box.,box,,0.75,0.5
two,a.png,Point to the box.,box,,0.25,0.0
,turned.jpg,Point to the corner.,polygon,,0.0,0.0
,turned.jpg,Point to the corner.,polygon,,0.5,0.0
,turned.jpg,Point to the corner.,polygon,,0.0,1.0
,a.png,Point to the elephant.,none,,,
"""


def test_a_csv_of_points_boxes_polygons_and_nothing(make, tmp_path):
    benchmark, (mug, box, corner, nothing) = make("q.csv", CSV, "--radius", "0.1")
    names = [(one.question_id, one.category) for one in benchmark.questions]
    assert names == [(1, "cups"), ("two", None), (3, None), (4, None)]
    assert score([Point(0.5, 0.5), Point(0.1, 0.5), Point(0.58, 0.5), Point(0.3, 0.5), Point(0.5, 0.8)], mug) == 0.6
    assert box.sum() == 20 * 10 and box[:10, 10:30].all()
    assert (
        corner.shape == SIZE[::-1] and corner[0, :19].all() and 180 < corner.sum() < 201
    )  # the upright picture's frame
    elephant = benchmark.questions[3]
    answers = {text: score_response(parse(text), elephant, nothing) for text in ("None: no elephant.", "[(0.5, 0.5)]")}
    assert list(answers.values()) == [1, 0] and not nothing.any()
    assert benchmark.name == "out" and benchmark.questions[0].meta["source"] == "a.png"
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * (SIDE + GAP) + GAP, 150 + CAPTION + GAP)


def test_pixels_and_fractions_give_the_same_masks(make, tmp_path):
    _, (expected, *_) = make("q.csv", CSV)
    (tmp_path / "out").rename(tmp_path / "old")
    _, masks = make(
        "p.csv", "image,instruction,x_px,y_px\na.png,Point to the mug.,20,10\na.png,Point to the mug.,4,10\n"
    )
    assert (masks[0] == expected).all()


def test_labelme_shapes_of_one_label_are_one_question(make, photos, tmp_path):
    polygon = {"label": "mug", "points": [[0, 0], [10, 0], [10, 10], [0, 10]], "shape_type": "polygon"}
    box = {"label": "mug", "points": [[20, 5], [30, 10]], "shape_type": "rectangle"}
    point = {"label": "pen", "points": [[35.5, 15.5]], "shape_type": "point"}
    content = {"imagePath": "..\\photos\\a.png", "imageWidth": 40, "imageHeight": 20, "shapes": [polygon, box, point]}
    benchmark, (mug, pen) = make("a.json", content, "--instruction", "Where is the {label}?", "--radius", "0.01")
    assert [one.text for one in benchmark.questions] == ["Where is the mug?", "Where is the pen?"]
    assert [one.category for one in benchmark.questions] == ["mug", "pen"]
    assert mug.sum() == 100 + 50 and mug[:10, :10].all() and mug[5:10, 20:30].all()
    assert pen.sum() == 1 and pen[15, 35]


def coco(**changes):
    entry = {"id": 9, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]], **changes}
    return {"images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}], "annotations": [entry],
            "categories": [{"id": 3, "name": "mug"}]}  # fmt: skip


def test_coco_polygons_boxes_and_run_lengths(make, tmp_path, monkeypatch):
    content = coco()
    content["annotations"].append(
        {"id": 10, "image_id": 1, "category_id": 3, "segmentation": [], "bbox": [30, 10, 5, 5]}
    )
    benchmark, (mug,) = make("c.json", content)
    assert benchmark.questions[0].text == "Point to the mug." and mug.sum() == 100 + 25
    (tmp_path / "out").rename(tmp_path / "old")
    runs = coco(segmentation={"size": [20, 40], "counts": [0, 100, 700]})  # five columns
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(InputError, match="annotation 9: .*pip install pycocotools"):
        make("r.json", runs)

    def decode(packed):
        ones = np.arange(len(packed["counts"])) % 2
        return np.repeat(ones, packed["counts"]).reshape(packed["size"], order="F").astype(np.uint8)

    monkeypatch.setitem(sys.modules, "pycocotools", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pycocotools.mask",
                        SimpleNamespace(decode=decode, frPyObjects=lambda rle, height, width: rle))  # fmt: skip
    _, (five,) = make("r.json", runs)
    assert five.sum() == 100 and five[:, :5].all()


LINE = "image,instruction,kind,id,x,y\n"
PIXELS = LINE.replace("x,y", "x_px,y_px")


@pytest.mark.parametrize(("name", "content", "named"), [
    ("q.csv", PIXELS + "b.png,Point.,,,5,5\n", "q.csv, line 2: b.png"),
    ("q.csv", PIXELS + "a.png,Point.,,,5,5\na.png,Point.,,,12,30\n", "q.csv, line 2: point 2, .12, 30.*swapped"),
    ("q.csv", PIXELS + "a.png,Point.,,,0.5,0.25\n", "q.csv, line 2: all values are below 1; fractions go into x, y"),
    ("q.csv", PIXELS + 'a.png,Point.,,,"12,5",3\n', "q.csv, line 2: point 1 is .'12,5', '3'., not two numbers"),
    ("q.csv", LINE + "a.png,Point, please.,,,0.5,0.5\n", "q.csv, line 2 has 7 values for 6 columns"),
    ("q.csv", LINE.replace(",", ";"), "Separate columns by commas"), ("q.csv", LINE, "there are no annotations"),
    ("q.csv", LINE + "a.png,Point.,,,1.5,0.5\n", "q.csv, line 2"),
    ("q.csv", LINE + "a.png,Point.,circle,,0.5,0.5\n", "q.csv, line 2: there is no kind 'circle'"),
    ("q.csv", LINE + "a.png,Point.,polygon,,0.5,0.5\n", "q.csv, line 2: a polygon needs 3 points, not 1"),
    ("q.csv", LINE + "a.png,Point.,none,,0.5,0.5\n", "q.csv, line 2: kind none has no points"),
    ("q.csv", LINE + "a.png,A.,,7,0.5,0.5\na.png,B.,,7,0.5,0.5\n", "q.csv, line 3: the id 7 .*q.csv, line 2"),
    ("q.csv", LINE + "a.png,A.,point,,0.5,0.5\na.png,A.,box,,0.6,0.6\n", "q.csv, line 2: the kind is point"),
    ("q.csv", LINE + "a.png,A.,box,,0.501,0.5\na.png,A.,box,,0.502,0.5\n", "is empty: .*q.csv, line 2"),
    ("q.csv", LINE + "a.png,,,,0.5,0.5\n", 'q.csv, line 2: "instruction"'),
    ("q.csv", LINE + "../photos/a.png,A.,,,0.5,0.5\n", "leaves the image folder"),
    ("q.csv", LINE + "a.png,A.,runs,,0.5,0.5\n", "no kind 'runs'"),
    ("a.json", {"imagePath": "a.png", "shapes": [{"label": "x", "points": 5, "shape_type": "none"}]}, "a.json: .*'none'"),
    ("a.json", {"imagePath": "a.png", "shapes": [{"label": "x", "points": [[41, 5]], "shape_type": "point"}]},
     "a.json, shape 1: point 1, .41, 5., is outside of a.png, 40 x 20 pixels"),
    ("a.json", {"imagePath": "a.png", "shapes": [{"label": "x", "points": [], "shape_type": "line"}]},
     "a.json, shape 1: there is no kind 'line'"),
    ("a.json", {"imagePath": "a.png", "shapes": [{"points": [[1, 1]], "shape_type": "point"}]}, "a.json: 'label'"),
    ("a.json", {"imagePath": "turned.jpg", "imageWidth": 20, "imageHeight": 40,
                "shapes": [{"label": "x", "points": [[1, 1]], "shape_type": "point"}]},
     "20 x 40 pixels, upright it has 40 x 20"),
    ("a.json", {"imagePath": "a.png", "shapes": []}, "a.json: there are no annotations"),
    ("a.json", {"version": 5}, "a.json is neither"),
    ("c.json", coco(image_id=2), "c.json: image_id 2 of annotation 9 is missing or wrong"),
    ("c.json", coco(segmentation=[[0, 0, 50, 0, 50, 9]]), "annotation 9: .*outside"),
    ("c.json", coco(segmentation=[[0, 0, 1, 0]]), "annotation 9: a polygon needs 3 points"),
])  # fmt: skip
def test_mistake_is_named_and_nothing_is_written(make, tmp_path, name, content, named):
    with pytest.raises(InputError, match=named):
        make(name, content)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "photos"])


def test_other_pictures_become_training_samples_whose_points_are_right(make, photos, tmp_path):
    for number in range(8):
        Image.new("RGB", SIZE, (number, 0, 0)).save(photos / f"{number}.png")
    rows = [f"{n}.png,Point to the box.,box,{x},{y}" for n in range(8) for x, y in ((0.5, 0.0), (1.0, 1.0))]
    rows += [f"{n}.png,Point to the elephant.,none,," for n in range(8)]
    content = "\n".join(["image,instruction,kind,x,y", *rows])
    benchmark, _ = make("q.csv", content, "--train", str(tmp_path / "train.json"), "--held-out", "0.25")
    samples = list(read_samples(tmp_path / "train.json"))
    held_out = {question.meta["source"] for question in benchmark.questions}
    assert len(held_out) == 2 and len(samples) == 12 and not held_out & {sample.image for sample in samples}
    for sample in samples:
        answer = parse(sample.conversations[1].text)
        if "elephant" in sample.conversations[0].text:
            assert answer.none
        else:
            assert len(answer.points) == 5 and all(point.x >= 0.5 and point.inside for point in answer.points)
    counts = check_set(tmp_path / "train.json", photos, tmp_path / "report.jsonl", 1, False)
    assert not counts.bad
    with pytest.raises(InputError, match="train.json exists"):  # other pictures would be held out
        make("q.csv", content, "--train", str(tmp_path / "train.json"), "--seed", "1")


def test_pictures_are_held_out_only_where_there_are_two(make, tmp_path):
    with pytest.raises(InputError, match="at least two"):
        make("q.csv", "image,instruction,x,y\na.png,Point.,0.5,0.5\n", "--train", str(tmp_path / "train.json"))
    assert not (tmp_path / "train.json").exists()
