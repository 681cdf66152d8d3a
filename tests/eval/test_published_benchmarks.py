"""Published files become benchmark folders, by name or path; mistakes in them are named."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from trace_vlm.eval import published_benchmarks
from trace_vlm.eval.benchmark import open_benchmark
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
