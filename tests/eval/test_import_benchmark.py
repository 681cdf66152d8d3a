"""Published files become benchmark folders, by name or path; mistakes in them are named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.eval import import_benchmark
from trace_vlm.eval.benchmark import Benchmark, open_benchmark
from trace_vlm.utils.command import InputError


def png(size: tuple[int, int], fill: int, box: tuple[int, int, int, int] | None = None) -> bytes:
    image = Image.new("L", size, fill)
    if box is not None:
        image.paste(255, box)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def where2place(**changes: Any) -> list[dict[str, Any]]:
    """Three rows; the mask of row n begins in column n. `changes` go into row 1."""
    rows = [
        {"question_id": number, "question": f"Point to mug {number}.", "question_type": kind,
         "image": {"bytes": png((20, 10), 90), "path": None},
         "mask": {"bytes": png((20, 10), 0, (number, 0, number + 3, 4)), "path": None}}
        for number, kind in enumerate(["seen", "unseen", "unseen"])
    ]  # fmt: skip
    rows[1] |= changes
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="comes with the extra `train`")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def columns(benchmark: Benchmark) -> list[int]:
    return [int(benchmark.mask(question).any(0).argmax()) for question in benchmark.questions]


def test_parquet_file_is_unpacked_once(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "Where2Place.parquet", where2place())
    benchmark = open_benchmark(path)
    assert [(one.question_id, one.category) for one in benchmark.questions] == [
        (0, "seen"), (1, "unseen"), (2, "unseen")]  # fmt: skip
    assert benchmark.questions[1].text == "Point to mug 1." and benchmark.name == "Where2Place"
    assert columns(benchmark) == [0, 1, 2] and benchmark.image_size(benchmark.questions[0]) == (20, 10)
    edited = benchmark.question_file.read_text().replace("mug 1", "kettle 1")
    benchmark.question_file.write_text(edited)
    path.touch()
    assert open_benchmark(path).questions[1].text == "Point to kettle 1."


def test_replaced_parquet_file_does_not_use_its_old_folder(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "b.parquet", where2place())
    open_benchmark(path)
    write_parquet(path, where2place(question="Point to the kettle."))
    with pytest.raises(InputError, match=r"b.parquet"):
        open_benchmark(path)
    assert open_benchmark(tmp_path / "b").questions[1].text == "Point to mug 1."  # the folder itself may be meant
    (tmp_path / "b").rename(tmp_path / "old")
    assert open_benchmark(path).questions[1].text == "Point to the kettle."


def test_questions_about_one_image_share_its_file(tmp_path: Path) -> None:
    rows = [row | {"image": {"bytes": png((20, 10), 90 + number // 2), "path": None}}
            for number, row in enumerate(where2place())]  # fmt: skip
    benchmark = open_benchmark(write_parquet(tmp_path / "b.parquet", rows))
    assert [question.image for question in benchmark.questions] == ["0.png", "0.png", "2.png"]
    assert len(list((tmp_path / "b" / "images").iterdir())) == 2 == len(set(benchmark.image_identities()))
    assert columns(benchmark) == [0, 1, 2]


def test_masks_and_turned_images_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    deep, exif, image, mask = np.full((10, 20), 1000, np.uint16), Image.Exif(), io.BytesIO(), io.BytesIO()
    deep[:, :5] = 40000
    Image.fromarray(deep).save(mask, "PNG")
    exif[0x112] = 6
    Image.new("RGB", (10, 20)).save(image, "JPEG", exif=exif)
    changes = {"image": {"bytes": image.getvalue(), "path": None}, "mask": {"bytes": mask.getvalue(), "path": None}}
    benchmark = open_benchmark(write_parquet(tmp_path / "b.parquet", where2place(**changes)))
    question = benchmark.questions[1]
    assert benchmark.image_size(question) == (20, 10) and benchmark.mask(question).sum() == 50


def test_refspatial_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": 5, "image": png((8, 8), 50), "mask": png((8, 8), 0, (1, 1, 3, 3)), "object": "the box",
             "prompt": "Please point out the box.", "suffix": "Your answer ...", "step": 2}]  # fmt: skip
    source = write_parquet(tmp_path / "location-0.parquet", rows)
    monkeypatch.setenv("TRACE_DATASETS", str(tmp_path / "sets"))
    with pytest.raises(InputError, match="refspatial-location .*hf download"):
        open_benchmark("refspatial-location")
    out = tmp_path / "sets" / "refspatial" / "location"
    assert import_benchmark.main(["refspatial-location", "--from", str(source), "--out", str(out)]) == 0
    benchmark = open_benchmark("refspatial-location")
    (question,) = benchmark.questions
    assert question.text == "Please point out the box." and question.meta["step"] == 2
    assert benchmark.mask(question).sum() == 4 and str(out) in import_benchmark.list_benchmarks()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": {"bytes": png((20, 11), 255), "path": None}}, "question 1 is 20 x 11"),
        ({"mask": {"bytes": png((20, 10), 0), "path": None}}, "question 1 is empty"),
        ({"image": {"bytes": b"no image", "path": None}}, "row 1, 'image'"),
        ({"image": {"bytes": png((20, 10), 90)[:-30], "path": None}}, "row 1, 'image'"),
        ({"mask": {"bytes": png((20, 10), 90)[:-30], "path": None}}, "row 1, 'mask'"),
        ({"image": {"bytes": None, "path": "x"}}, "row 1, 'image'"),
        ({"question": None}, "row 1: .*'question'"),
        ({"question": " "}, "row 1: .*'question'"),
        ({"question_id": None}, "row 1: .*'question_id'"),
        ({"question_id": 2}, "b.parquet"),  # twice
    ],
)
def test_mistake_in_a_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_parquet(tmp_path / "b.parquet", where2place(**changes))
    with pytest.raises(InputError, match=message):
        open_benchmark(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b.parquet"]  # nothing half-written stays


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    write_parquet(tmp_path / "c.parquet", [{"question_id": 1, "image": png((2, 2), 1)}])
    write_parquet(tmp_path / "d.parquet", [{"name": "x"}])
    for name, message in (("a", "a.parquet"), ("c", "row 0, 'mask'"), ("d", "question_id, id; .*name")):
        with pytest.raises(InputError, match=message):
            open_benchmark(tmp_path / f"{name}.parquet")


@pytest.fixture
def roborefit(tmp_path: Path) -> Path:
    """Five images with two questions each, as the authors' folder names them."""
    folder = tmp_path / "final_dataset" / "testA"
    records = []
    for name in ("image", "mask"):
        (folder / name).mkdir(parents=True)
    for image in range(5):
        Image.fromarray(np.full((6, 9, 3), image, np.uint8)).save(folder / "image" / f"{image:07d}.png")
        (folder / "mask" / f"{image:07d}.png").write_bytes(png((9, 6), 0, (image, 0, image + 2, 2)))
        paths = {f"{kind}_path": f"final_dataset\\testA\\{place}\\{image:07d}.png"
                 for kind, place in (("rgb", "image"), ("mask", "mask"))}  # fmt: skip
        records += [{"num": 100 + 2 * image + turn, "text": f"the cup {image} {turn}", **paths} for turn in range(2)]
    (folder / "roborefit_testA.json").write_text(json.dumps(records))
    return folder


def test_drawn_part_of_roborefit_is_labelled(roborefit: Path, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        words = ["roborefit", "--from", str(roborefit), "--out", str(tmp_path / name), "--count", "3", "--seed", seed]
        assert import_benchmark.main(words) == 0
        drawn.append(open_benchmark(tmp_path / name))
    first, same, other = ([question.question_id for question in benchmark.questions] for benchmark in drawn)
    assert first == same != other and drawn[0].note == "3 questions drawn with seed 0: not the authors' subset"
    assert len({question.meta["source"] for question in drawn[0].questions}) == 3  # one question per image
    assert all(drawn[0].mask(question).sum() == 4 for question in drawn[0].questions)


def test_ids_choose_the_questions(roborefit: Path, tmp_path: Path) -> None:
    ids = tmp_path / "authors.txt"
    ids.write_text("109\n0000001\n")  # a number, and an image's name
    import_benchmark.from_roborefit(roborefit, tmp_path / "out", ids)
    benchmark = open_benchmark(tmp_path / "out")
    assert [question.question_id for question in benchmark.questions] == [109, 102]
    assert benchmark.questions[0].text == "Point to the cup 4 1." and benchmark.note == "the questions of authors.txt"
    ids.write_text('["7"]')
    with pytest.raises(InputError, match=r"authors.txt .*'7'"):
        import_benchmark.from_roborefit(roborefit, tmp_path / "other", ids)


def test_mistakes_in_roborefit_are_named(roborefit: Path, tmp_path: Path) -> None:
    out, records = tmp_path / "out", roborefit / "roborefit_testA.json"
    (roborefit / "mask" / "0000003.png").unlink()
    with pytest.raises(InputError, match=r"question 10[67] .*mask/0000003.png"):
        import_benchmark.from_roborefit(roborefit, out)
    records.write_text('[{"text": "x", "rgb_path": "../../etc/passwd"}]')
    with pytest.raises(InputError, match='question 0: "mask_path"'):
        import_benchmark.from_roborefit(roborefit, out)
    out.mkdir()
    (out / "x").touch()
    records.write_text("[]")
    with pytest.raises(InputError, match=str(out)):
        import_benchmark.from_roborefit(roborefit, out)
    for words, message in (
        (["roborefit"], "--from .*--out"),
        (["--count", "-3"], "--count -3"),
        (["--seed", "-1"], "-1"),
    ):
        with pytest.raises(InputError, match=message):
            import_benchmark.main(words)
