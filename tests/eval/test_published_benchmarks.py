"""Published files become benchmark folders, by name or path; mistakes in them are named."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from trace_vlm.core.images import rasterize_polygon
from trace_vlm.core.reasoning import parse
from trace_vlm.eval import published_benchmarks
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.eval.scoring import score_response
from trace_vlm.utils.command import InputError


def png(size, fill, box=None):
    image, data = Image.new("L", size, fill), io.BytesIO()
    if box is not None:
        image.paste(255, box)
    image.save(data, "PNG")
    return data.getvalue()


def picture(data):
    """A picture as a column of parquet holds it."""
    return {"bytes": data, "path": None}


def where2place(**changes):
    """Three rows; the mask of row n begins in column n. `changes` go into row 1."""
    rows = [
        {"question_id": number, "question": f"Point to mug {number}.", "question_type": kind,
         "image": picture(png((20, 10), 90)), "mask": picture(png((20, 10), 0, (number, 0, number + 3, 4)))}
        for number, kind in enumerate(["seen", "unseen", "unseen"])
    ]  # fmt: skip
    rows[1] |= changes
    return rows


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow", reason="comes with the extra `train`")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def columns(benchmark):
    return [int(benchmark.mask(question).any(0).argmax()) for question in benchmark.questions]


def test_parquet_file_is_unpacked_once_and_again_when_replaced(tmp_path):
    path = write_parquet(tmp_path / "Where2Place.parquet", where2place())
    benchmark = open_benchmark(path)
    parts = [(question.question_id, question.category) for question in benchmark.questions]
    assert parts == [(0, "seen"), (1, "unseen"), (2, "unseen")] and benchmark.name == "Where2Place"
    assert columns(benchmark) == [0, 1, 2] and benchmark.image_size(benchmark.questions[0]) == (20, 10)
    benchmark.question_file.write_text(benchmark.question_file.read_text().replace("mug 1", "kettle 1"))
    path.touch()
    assert open_benchmark(path).questions[1].text == "Point to kettle 1."
    write_parquet(path, where2place(question="Point to the pan."))
    with pytest.raises(InputError, match=r"Where2Place.parquet"):  # the folder may hold edits
        open_benchmark(path)
    folder = path.with_suffix("")
    assert open_benchmark(folder).questions[1].text == "Point to kettle 1."  # it may be meant itself
    folder.rename(tmp_path / "old")
    assert open_benchmark(path).questions[1].text == "Point to the pan."


def test_pictures_are_read_as_those_of_a_folder(tmp_path):
    """Two rows share an image, one is turned by EXIF, its mask has 16 bits."""
    deep, exif, image, mask = np.full((10, 20), 1000, np.uint16), Image.Exif(), io.BytesIO(), io.BytesIO()
    deep[:, 1:6] = 40000
    Image.fromarray(deep).save(mask, "PNG")
    exif[0x112] = 6
    Image.new("RGB", (10, 20)).save(image, "JPEG", exif=exif)
    rows = where2place(image=picture(image.getvalue()), mask=picture(mask.getvalue()))
    benchmark = open_benchmark(write_parquet(tmp_path / "b.parquet", rows))
    names = [question.image for question in benchmark.questions]
    assert names[0] == names[2] and len(set(benchmark.image_identities())) == 2 == len(set(names))
    question = benchmark.questions[1]
    assert benchmark.image_size(question) == (20, 10) and benchmark.mask(question).sum() == 50
    assert columns(benchmark) == [0, 1, 2]


def test_refspatial_is_found_by_name(tmp_path, monkeypatch):
    rows = [{"id": 5, "image": png((8, 8), 50), "mask": png((8, 8), 0, (1, 1, 3, 3)), "object": "the box",
             "prompt": "Please point out the box.", "suffix": "Your answer ...", "step": 2}]  # fmt: skip
    source = write_parquet(tmp_path / "location-0.parquet", rows)
    monkeypatch.setenv("TRACE_DATASETS", str(tmp_path / "sets"))
    with pytest.raises(InputError, match="refspatial-location .*hf download"):
        open_benchmark("refspatial-location")
    out = tmp_path / "sets" / "refspatial" / "location"
    assert published_benchmarks.main(["refspatial-location", "--from", str(source), "--out", str(out)]) == 0
    benchmark = open_benchmark("refspatial-location")
    (question,) = benchmark.questions
    assert question.text == "Please point out the box." and question.meta["step"] == 2
    assert benchmark.mask(question).sum() == 4 and str(out) in published_benchmarks.list_benchmarks()


@pytest.mark.parametrize(("changes", "named"), [
    ({"mask": picture(png((20, 11), 255))}, "question 1 is 20 x 11"),
    ({"mask": picture(png((20, 10), 0))}, "question 1"), ({"image": picture(b"no image")}, "row 1, 'image'"),
    ({"mask": picture(png((20, 10), 90)[:-30])}, "row 1, 'mask'"),
    ({"image": {"bytes": None, "path": "x"}}, "row 1, 'image'"), ({"question": " "}, "row 1: .*'question'"),
    ({"question_id": None}, "row 1: .*'question_id'"),
    ({"question_id": 2}, "b.parquet"),  # twice
])  # fmt: skip
def test_mistake_in_a_row_is_named(tmp_path, changes, named):
    path = write_parquet(tmp_path / "b.parquet", where2place(**changes))
    with pytest.raises(InputError, match=named):
        open_benchmark(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written stays
    path.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="b.parquet"):
        open_benchmark(path)


@pytest.fixture
def roborefit(tmp_path):
    """Five images with two questions each, as the authors' folder names them."""
    folder = tmp_path / "final_dataset" / "testA"
    records = []
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    for image in range(5):
        Image.new("RGB", (9, 6), (image, 0, 0)).save(folder / "image" / f"{image:07d}.png")
        (folder / "mask" / f"{image:07d}.png").write_bytes(png((9, 6), 0, (image, 0, image + 2, 2)))
        paths = {f"{key}_path": f"final_dataset\\testA\\{name}\\{image:07d}.png"
                 for key, name in (("rgb", "image"), ("mask", "mask"))}  # fmt: skip
        records += [{"num": 100 + 2 * image + turn, "text": f"the cup {image} {turn}", **paths} for turn in range(2)]
    (folder / "roborefit_testA.json").write_text(json.dumps(records))
    return folder


def test_drawn_part_of_roborefit_is_labelled(roborefit, tmp_path):
    drawn = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        words = ["roborefit", "--from", str(roborefit), "--out", str(tmp_path / name), "--count", "3", "--seed", seed]
        assert published_benchmarks.main(words) == 0
        drawn.append(open_benchmark(tmp_path / name))
    first, same, other = ([question.question_id for question in benchmark.questions] for benchmark in drawn)
    assert first == same != other and drawn[0].note == "3 questions drawn with seed 0: not the authors' subset"
    assert len({question.meta["source"] for question in drawn[0].questions}) == 3  # one question per image
    assert all(drawn[0].mask(question).sum() == 4 for question in drawn[0].questions)


def test_ids_choose_the_questions(roborefit, tmp_path):
    ids = tmp_path / "authors.txt"
    ids.write_text("109\n0000001\n")  # a number, and an image's name
    published_benchmarks.from_roborefit(roborefit, tmp_path / "out", ids)
    benchmark = open_benchmark(tmp_path / "out")
    assert [question.question_id for question in benchmark.questions] == [109, 102]
    assert benchmark.questions[0].text == "Point to the cup 4 1." and benchmark.note == "the questions of authors.txt"
    ids.write_text('["7"]')
    with pytest.raises(InputError, match=r"authors.txt .*'7'"):
        published_benchmarks.from_roborefit(roborefit, tmp_path / "other", ids)


def test_mistakes_in_roborefit_are_named(roborefit, tmp_path):
    out, records = tmp_path / "out", roborefit / "roborefit_testA.json"
    (roborefit / "mask" / "0000003.png").unlink()
    with pytest.raises(InputError, match=r"question 10[67] .*mask/0000003.png"):
        published_benchmarks.from_roborefit(roborefit, out)
    records.write_text('[{"text": "x", "rgb_path": "../../etc/passwd"}]')
    with pytest.raises(InputError, match='question 0: "mask_path"'):
        published_benchmarks.from_roborefit(roborefit, out)
    out.mkdir()
    (out / "x").touch()
    records.write_text("[]")
    with pytest.raises(InputError, match=str(out)):
        published_benchmarks.from_roborefit(roborefit, out)
    for words, named in ((["roborefit"], "--from"), (["--count", "-3"], "--count"), (["--seed", "-1"], "--seed")):
        with pytest.raises(InputError, match=named):
            published_benchmarks.main(words)


# --- benchmarks with score rules of their own ---------------------------------------------------------------------

POLYGON = "[(0.1, 0.0), (0.6, 0.0), (0.6, 0.5), (0.1, 0.5)]"


def robospatial(**changes):
    """A row of each kind, two of configuration; `changes` go into the last one, which asks for a point."""
    image, words = (
        picture(png((20, 10), 90)),
        "Pinpoint several points right of the rug. Your answer should be formatted",
    )
    rows = [("configuration", "Is the cup left of the bowl? Answer yes or no.", "Yes"),
            ("compatibility", "Can the cup fit above the counter?", "No "),
            ("configuration", "Is the bowl left of the cup? Answer yes or no.", "No"),
            ("context", f"{words} as a list of tuples.", POLYGON)]  # fmt: skip
    rows = [{"category": category, "question": question, "answer": answer, "img": image, "depth_image": image, "mask": None}
            for category, question, answer in rows]  # fmt: skip
    rows[-1] |= changes
    return rows


def test_robospatial_home_has_two_rules(tmp_path):
    write_parquet(tmp_path / "configuration-0.parquet", robospatial()[:3])
    write_parquet(tmp_path / "context-0.parquet", robospatial()[3:])
    out = tmp_path / "out"
    assert published_benchmarks.main(["robospatial-home", "--from", str(tmp_path), "--out", str(out)]) == 0
    benchmark = open_benchmark(out)
    first, fits, second, context = benchmark.questions
    assert [one.question_id for one in benchmark.questions] == [
        "configuration-0", "compatibility-0", "configuration-1", "context-0"]  # fmt: skip
    assert [one.meta.get("answer") for one in (first, fits, second)] == ["yes", "no", "no"]
    assert fits.text == "Can the cup fit above the counter? Answer yes or no." and fits.category == "compatibility"
    assert all(benchmark.region(one) is None for one in (first, fits, second)) and list(benchmark.masks) == [
        "context-0"
    ]
    assert context.text == "Pinpoint several points right of the rug." and context.meta["rule"] == "first point"
    assert context.meta["polygon"][1] == [0.6, 0.0] and context.meta["suffix"].startswith("Your answer should")
    mask = benchmark.mask(context)
    assert mask.sum() == 10 * 5 and mask[:5, 2:12].all()  # the pixels whose centres are inside
    scores = {text: score_response(parse(text), context, mask) for text in ("(0.5, 0.4)", "(0.7, 0.4), (0.5, 0.4)")}
    assert list(scores.values()) == [1, 0]


@pytest.mark.parametrize(("changes", "named"), [
    ({"answer": "maybe"}, "row 3: the answer must be yes, no"), ({"answer": "[(0.1, 0.2), (0.3, 0.4)]"}, "row 3"),
    ({"answer": "[(2, 2), (3, 2), (3, 3)]"}, "context-0 is empty: .*row 3"), ({"question": ""}, "row 3: .*'question'"),
    ({"img": None}, "row 3, 'img'"),
])  # fmt: skip
def test_mistake_in_robospatial_is_named(tmp_path, changes, named):
    path = write_parquet(tmp_path / "b.parquet", robospatial(**changes))
    with pytest.raises(InputError, match=named):
        published_benchmarks.from_parquet([path], tmp_path / "out", "robospatial-home")
    assert list(tmp_path.iterdir()) == [path]


def test_even_odd_polygon_is_that_of_the_authors_test_at_pixel_centres():
    def inside(x, y, corners):  # the ray-casting test of the authors' script
        crossed = False
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            crossed ^= (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0
        return crossed

    rng = np.random.default_rng(0)
    for corners in (rng.uniform(-0.2, 1.2, (count, 2)).tolist() for count in (3, 4, 5, 9)):  # they cross themselves
        region = rasterize_polygon(corners, (23, 17))
        expected = [[inside((x + 0.5) / 23, (y + 0.5) / 17, corners) for x in range(23)] for y in range(17)]
        assert region.tolist() == expected


@pytest.mark.parametrize(("rows", "name", "category"), [
    ([{"question_id": 7, "problem": "Where is the mug grasped?", "category_type": "mug"}], "part-affordance", "mug"),
    ([{"id": 7, "scene": "outdoor", "object": "the car", "prompt": "Point at the car.", "suffix": "...", "step": 3}],
     "refspatial-expand-location", "outdoor"),
])  # fmt: skip
def test_parquet_layouts_with_other_names(tmp_path, rows, name, category):
    pictures = {"image": picture(png((20, 10), 90)), "mask": picture(png((20, 10), 0, (1, 1, 4, 4)))}
    path = write_parquet(tmp_path / "train-0.parquet", [row | pictures for row in rows])
    assert published_benchmarks.main([name, "--from", str(path), "--out", str(tmp_path / "out")]) == 0
    benchmark = open_benchmark(tmp_path / "out")
    (question,) = benchmark.questions
    assert question.text == rows[0].get("problem", rows[0].get("prompt")) and question.category == category
    assert benchmark.mask(question).sum() == 9 and question.meta.get("step") == rows[0].get("step")


@pytest.fixture
def point_bench(tmp_path):
    """A counting question whose mask has half the size of its picture, a spatial one, and one without a mask."""
    folder, records = tmp_path / "download", []
    for number, (category, side) in enumerate([("counting", 10), ("spatial", 20), ("spatial", 20)]):
        for part, data in (("images", png((20, 20), number)), ("masks", png((side, side), 0, (0, 0, side // 2, side)))):
            path = folder / f"selected_{part}" / category / f"{number} é.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        records.append({"image_filename": f"{number} é.png", "mask_filename": f"{number} é.png", "category": category,
                        "user_input": f"Point to all {number}.", "count": 2})  # fmt: skip
    del records[2]["mask_filename"]
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def test_point_bench_scales_masks_and_counts_points(point_bench, tmp_path):
    out = tmp_path / "out"
    assert published_benchmarks.main(["point-bench", "--from", str(point_bench), "--out", str(out)]) == 0
    benchmark = open_benchmark(out)
    counting, spatial = benchmark.questions
    assert benchmark.note == "masks scaled to the size of their pictures: 1"
    assert [benchmark.mask(one).sum() for one in benchmark.questions] == [200, 200]
    assert (counting.meta, counting.category) == ({"rule": "all points", "count": 2}, "counting")
    assert spatial.meta == {"rule": "first point"}
    for text, expected in (("[(0.1, 0.1), (0.2, 0.2)]", [1, 1]), ("[(0.1, 0.1)]", [0, 1]), ("[(0.9, 0.1)]", [0, 0])):
        scores = [score_response(parse(text), one, benchmark.mask(one)) for one in benchmark.questions]
        assert scores == expected


@pytest.mark.parametrize(("changes", "named"), [
    ({"count": 0}, 'data.json, question 0: "count"'), ({"user_input": ""}, 'data.json, question 0: "user_input"'),
    ({"image_filename": "../x.png"}, "data.json, question 0 names selected_images/counting/../x.png"),
    ({"mask_filename": "none.png"}, "data.json, question 0 names selected_masks/counting/none.png"),
])  # fmt: skip
def test_mistake_in_point_bench_is_named(point_bench, tmp_path, changes, named):
    records = json.loads((point_bench / "data.json").read_text())
    records[0] |= changes
    (point_bench / "data.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=named):
        published_benchmarks.from_point_bench(point_bench, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_list_names_the_facts_of_every_benchmark(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACE_DATASETS", str(tmp_path))
    assert published_benchmarks.main([]) == 0
    blocks = dict(
        block.split(":", 1) for block in capsys.readouterr().out.replace("\n  ", " ").splitlines() if ":" in block
    )
    for name, known in published_benchmarks.PUBLISHED.items():
        facts = (known.hub, known.size, known.licence, known.rule, known.unconfirmed, str(known.questions))
        assert all(fact in blocks[name] for fact in facts), name
        assert known.fetch == "" or f"--out datasets/{known.folder}" in known.fetch or name == "where2place"
    assert "here: " in blocks["tabletop"] and "not here. hf download PointArena/" in blocks["point-bench"]
