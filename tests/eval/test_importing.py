"""Published benchmark files become folders, by name or path; what is wrong with them is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.eval import import_benchmark
from trace_vlm.eval.benchmark import open_benchmark
from trace_vlm.utils.command import InputError


def png(size: tuple[int, int], fill: int, box: tuple[int, int, int, int] | None = None) -> bytes:
    image = Image.new("L", size, fill)
    if box is not None:
        image.paste(255, box)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def where2place(**changes: Any) -> list[dict[str, Any]]:
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
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_a_parquet_file_is_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = open_benchmark(write_parquet(tmp_path / "Where2Place.parquet", where2place()))
    assert [(one.question_id, one.category) for one in suite.questions] == [(0, "seen"), (1, "unseen"), (2, "unseen")]
    assert suite.questions[1].text == "Point to mug 1." and suite.name == "Where2Place"
    columns = [int(suite.mask(question).any(0).argmax()) for question in suite.questions]
    assert columns == [0, 1, 2] and suite.image_size(suite.questions[0]) == (20, 10)
    (tmp_path / "Where2Place.parquet").touch()  # unpacked already, it is not read again
    with monkeypatch.context() as patched:
        patched.setattr(import_benchmark, "_parquet_rows", None)
        assert len(open_benchmark(tmp_path / "Where2Place.parquet").questions) == 3


def test_a_parquet_file_that_was_replaced_is_not_answered_with_its_old_folder(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "b.parquet", where2place())
    open_benchmark(path)
    write_parquet(path, where2place(question="Point to the kettle."))
    with pytest.raises(InputError, match="b was not unpacked from .*b.parquet"):
        open_benchmark(path)
    assert open_benchmark(tmp_path / "b").questions[1].text == "Point to mug 1."  # the folder itself may be meant
    (tmp_path / "b").rename(tmp_path / "old")
    assert open_benchmark(path).questions[1].text == "Point to the kettle."


def test_questions_about_one_picture_share_its_file(tmp_path: Path) -> None:
    rows = [row | {"image": {"bytes": png((20, 10), 90 + number // 2), "path": None}}
            for number, row in enumerate(where2place())]  # fmt: skip
    suite = open_benchmark(write_parquet(tmp_path / "b.parquet", rows))
    assert [question.image for question in suite.questions] == ["0.png", "0.png", "2.png"]
    assert len(list((tmp_path / "b" / "images").iterdir())) == 2 == len(set(suite.image_identities()))
    assert [int(suite.mask(question).any(0).argmax()) for question in suite.questions] == [0, 1, 2]


def test_masks_and_turned_pictures_of_a_parquet_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    deep, exif, content = np.full((10, 20), 1000, np.uint16), Image.Exif(), io.BytesIO()
    deep[:, :5] = 40000
    mask = io.BytesIO()
    Image.fromarray(deep).save(mask, "PNG")
    exif[0x112] = 6
    Image.new("RGB", (10, 20)).save(content, "JPEG", exif=exif)
    changes = {"image": {"bytes": content.getvalue(), "path": None}, "mask": {"bytes": mask.getvalue(), "path": None}}
    suite = open_benchmark(write_parquet(tmp_path / "b.parquet", where2place(**changes)))
    question = suite.questions[1]
    assert suite.image_size(question) == (20, 10)
    assert suite.mask(question).sum() == 50


def test_refspatial_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": 5, "image": png((8, 8), 50), "mask": png((8, 8), 0, (1, 1, 3, 3)), "object": "the box",
             "prompt": "Please point out the box.", "suffix": "Your answer ...", "step": 2}]  # fmt: skip
    source = write_parquet(tmp_path / "location-0.parquet", rows)
    monkeypatch.setenv("TRACE_DATASETS", str(tmp_path / "sets"))
    with pytest.raises(InputError, match="refspatial-location .*hf download BAAI"):
        open_benchmark("refspatial-location")
    out = tmp_path / "sets" / "refspatial" / "location"
    assert import_benchmark.main(["refspatial-location", "--from", str(source), "--out", str(out)]) == 0
    suite = open_benchmark("refspatial-location")
    (question,) = suite.questions
    assert question.text == "Please point out the box." and question.meta["step"] == 2
    assert suite.mask(question).sum() == 4
    assert str(out) in import_benchmark.list_benchmarks()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": {"bytes": png((20, 11), 255), "path": None}}, "mask of question 1 is 20 x 11 pixels"),
        ({"mask": {"bytes": png((20, 10), 0), "path": None}}, "mask of question 1 is empty"),
        ({"image": {"bytes": b"no image", "path": None}}, "row 1, 'image' cannot be read: cannot identify"),
        ({"image": {"bytes": png((20, 10), 90)[:-30], "path": None}}, "row 1, 'image' cannot be read"),
        ({"mask": {"bytes": png((20, 10), 90)[:-30], "path": None}}, "row 1, 'mask' cannot be read"),
        ({"question": None}, "row 1: the column 'question' must hold a text that is not empty, not None"),
        ({"question": " "}, "row 1: the column 'question' must hold a text that is not empty"),
        ({"question_id": None}, "row 1: the column 'question_id' must hold an integer or a text"),
        ({"image": {"bytes": None, "path": "x"}}, "row 1, 'image' holds no picture"),
        ({"question_id": 2}, "two questions of b.parquet have the same id"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_parquet(tmp_path / "b.parquet", where2place(**changes))
    with pytest.raises(InputError, match=message):
        open_benchmark(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b.parquet"]  # nothing half-written stays


def test_files_that_are_something_else(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="comes with the extra `train`")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="a.parquet cannot be read as parquet"):
        open_benchmark(tmp_path / "a.parquet")
    path = write_parquet(tmp_path / "c.parquet", [{"question_id": 1, "image": png((2, 2), 1)}])
    with pytest.raises(InputError, match="row 0, 'mask' holds no picture"):
        open_benchmark(path)
    path = write_parquet(tmp_path / "d.parquet", [{"name": "x"}])
    with pytest.raises(InputError, match="none of the columns question_id, id; it has name"):
        open_benchmark(path)


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
        for turn in range(2):
            paths = {f"{kind}_path": f"final_dataset\\testA\\{place}\\{image:07d}.png"
                     for kind, place in (("rgb", "image"), ("mask", "mask"))}  # fmt: skip
            records.append({"num": 100 + 2 * image + turn, "text": f"the cup {image} {turn}", **paths})
    (folder / "roborefit_testA.json").write_text(json.dumps(records))
    return folder


def test_a_drawn_part_of_roborefit_is_labelled(roborefit: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, ("0", "0", "1"), strict=True):
        words = ["roborefit", "--from", str(roborefit), "--out", str(out), "--count", "3", "--seed", seed]
        assert import_benchmark.main(words) == 0
    one, same, other = (open_benchmark(out) for out in outs)
    assert one.note == "3 questions drawn with seed 0: not the authors' subset"
    assert [q.question_id for q in one.questions] == [q.question_id for q in same.questions]
    assert [q.question_id for q in one.questions] != [q.question_id for q in other.questions]
    assert len({question.meta["source"] for question in one.questions}) == 3  # one question an image
    assert all(one.mask(question).sum() == 4 for question in one.questions)


def test_the_authors_ids_choose_the_questions(roborefit: Path, tmp_path: Path) -> None:
    ids = tmp_path / "authors.txt"
    ids.write_text("109\n0000001\n")  # a number, and an image's name
    import_benchmark.from_roborefit(roborefit, tmp_path / "out", ids)
    suite = open_benchmark(tmp_path / "out")
    assert [question.question_id for question in suite.questions] == [109, 102]
    assert suite.questions[0].text == "Point to the cup 4 1." and suite.note == "the questions of authors.txt"
    ids.write_text('["7"]')
    with pytest.raises(InputError, match="names the question '7', which is not among the 10"):
        import_benchmark.from_roborefit(roborefit, tmp_path / "other", ids)


def test_what_is_wrong_with_roborefit_is_named(roborefit: Path, tmp_path: Path) -> None:
    (roborefit / "mask" / "0000003.png").unlink()
    with pytest.raises(InputError, match=r"question 10[67] names .*mask/0000003.png, which is not below"):
        import_benchmark.from_roborefit(roborefit, tmp_path / "out")
    (roborefit / "roborefit_testA.json").write_text('[{"text": "x", "rgb_path": "../../etc/passwd"}]')
    with pytest.raises(InputError, match='question 0: "mask_path" is missing'):
        import_benchmark.from_roborefit(roborefit, tmp_path / "out")
    with pytest.raises(InputError, match="--from .* --out"):
        import_benchmark.main(["roborefit"])
    with pytest.raises(InputError, match=r"--count -3 .* at least 1"):
        import_benchmark.main(["roborefit", "--from", str(roborefit), "--out", str(tmp_path / "out"), "--count", "-3"])
    with pytest.raises(InputError, match=r"--count -3 .* at least 1"):
        import_benchmark.main(["--count", "-3"])
    with pytest.raises(InputError, match="--seed -1 at least 0"):
        import_benchmark.main(["roborefit", "--from", str(roborefit), "--out", str(tmp_path / "out"), "--seed", "-1"])
    (roborefit / "roborefit_testA.json").write_text("[]")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="is not empty"):
        import_benchmark.from_roborefit(roborefit, tmp_path / "full")
