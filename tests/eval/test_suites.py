"""Where the image and the mask of a question are found, and what is refused."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from trace_vlm.core.records import read_answers
from trace_vlm.eval.benchmark import open_benchmark, pair_answers
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import write_json, write_jsonl

SMALL = np.zeros((4, 6), np.uint8)


def folder_with(tmp_path: Path, questions: list[tuple[int | str, str]], masks: dict[str, int]) -> Path:
    """A benchmark whose masks, all 6 x 4, hold one pixel above 127 at the given column."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(exist_ok=True)
    for name in {image for _, image in questions}:
        Image.fromarray(np.stack([SMALL] * 3, -1)).save(tmp_path / "images" / name)
    for name, column in masks.items():
        grey = SMALL.copy()
        grey[2, column] = 255
        Image.fromarray(grey).save(tmp_path / "masks" / name)
    lines = [{"question_id": number, "image": image, "text": "q"} for number, image in questions]
    write_jsonl(tmp_path / "point_questions.jsonl", lines)
    return tmp_path


def columns(folder: Path) -> list[int]:
    suite = open_benchmark(folder)
    return [int(suite.mask(question).any(axis=0).argmax()) for question in suite.questions]


def test_masks_by_question_id(tmp_path: Path) -> None:
    assert columns(folder_with(tmp_path, [(7, "a.png"), (2, "a.png")], {"2.png": 2, "7.png": 5})) == [5, 2]


def test_masks_by_padded_question_id(tmp_path: Path) -> None:
    questions = [(number, f"{number:02d}.png") for number in (0, 3, 10)]
    assert columns(folder_with(tmp_path, questions, {"00.png": 1, "03.png": 2, "10.png": 3})) == [1, 2, 3]


def test_masks_by_image_where_ids_name_none(tmp_path: Path) -> None:
    questions: list[tuple[int | str, str]] = [(100, "b.png"), (101, "a.png"), (102, "b.png")]
    assert columns(folder_with(tmp_path, questions, {"a.png": 1, "b.png": 4})) == [4, 1, 4]


def test_a_lost_mask_is_not_replaced_by_one_of_another_question(tmp_path: Path) -> None:
    """Question 1 is about image 2.png; its own mask is lost, and masks/2.png is that of question 2."""
    folder = folder_with(tmp_path, [(1, "2.png"), (2, "1.png"), (3, "3.png")], {"2.png": 2, "3.png": 3})
    suite = open_benchmark(folder)
    with pytest.raises(InputError, match="question 1 has no mask"):
        suite.mask(suite.questions[0])


@pytest.mark.parametrize(
    ("questions", "masks"),
    [
        ([(number, f"{3 - number}.png") for number in range(4)], {f"{number}.png": number for number in range(4)}),
        ([(7, "a.png"), (2, "a.png")], {"2.png": 2, "7.png": 5, "a.png": 0}),
    ],
)
def test_masks_that_may_be_named_after_ids_or_images_are_refused(
    tmp_path: Path, questions: list[tuple[int | str, str]], masks: dict[str, int]
) -> None:
    folder = folder_with(tmp_path, questions, masks)
    number, image = questions[0]
    with pytest.raises(
        InputError, match=rf"question {number} about {image} may be {number}\.png .* or {image} .*suite"
    ):
        open_benchmark(folder)
    write_json(folder / "suite.json", {"masks": "question"})
    assert columns(folder) == [masks[f"{number}.png"] for number, _ in questions]
    write_json(folder / "suite.json", {"masks": "image"})
    assert columns(folder) == [masks[image] for _, image in questions]
    write_json(folder / "suite.json", {"masks": "size"})
    with pytest.raises(InputError, match='"masks" must be "question" or "image"'):
        open_benchmark(folder)


def test_bundled_benchmarks_pair_by_either_rule() -> None:
    folder = Path(__file__).parents[2] / "data_samples" / "tabletop"
    suite = open_benchmark(folder)
    assert len(suite.masks) == len(suite.questions)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_another_unicode_form_are_the_same(tmp_path: Path, forms: tuple[str, str]) -> None:
    asked, stored = (unicodedata.normalize(form, "tass\u00e9") for form in forms)
    assert asked != stored
    folder = folder_with(tmp_path, [(0, f"{asked}.png")], {f"{stored}.png": 3})
    (folder / "images" / f"{asked}.png").rename(folder / "images" / f"{stored}.png")
    suite = open_benchmark(folder)
    assert columns(folder) == [3] and suite.image_size(suite.questions[0]) == (6, 4)


def test_images_are_found_where_checks_and_training_find_them(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [(0, "a.png")], {})
    for name, image_folder in (("a.png", folder), ("images/a.png", folder / "images")):
        write_jsonl(folder / "point_questions.jsonl", [{"question_id": 0, "image": name, "text": "q"}])
        suite = open_benchmark(folder, image_folder=image_folder)
        assert suite.image_size(suite.questions[0]) == (6, 4)


def test_masks_are_binarised(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [(0, "a.png")], {"0.png": 5})
    grey = np.array([[0, 100, 127, 128, 200, 255]] * 4, np.uint8)
    Image.fromarray(grey).save(folder / "masks" / "0.png")
    suite = open_benchmark(folder)
    mask = suite.mask(suite.questions[0])
    assert mask.dtype == bool and mask[0].tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 256, 32767, 32768, 40000, 65535], np.uint16),
        ([0, 256, 32767, 32768, 40000, 65535], np.int32),
        ([0, 0.1, 0.49, 0.51, 0.8, 1], np.float32),
        ([0, 100, 127, 128, 200, 255], np.uint16),  # eight bits in a file of sixteen
        ([0, 100, 127, 128, 200, 255], np.float32),
    ],
)
def test_masks_of_more_bits_are_cut_at_half_of_their_range(tmp_path: Path, values: list[float], kind: type) -> None:
    folder = folder_with(tmp_path, [(0, "a.png")], {"0.png": 5})
    Image.fromarray(np.array([values] * 4, kind)).save(folder / "masks" / "0.png", format="TIFF")
    suite = open_benchmark(folder)
    assert suite.mask(suite.questions[0])[0].tolist() == [False, False, False, True, True, True]


def turned(size: tuple[int, int], orientation: int) -> bytes:
    """A JPEG of `size` as stored, which people see turned."""
    exif, data = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", size, (90, 90, 90)).save(data, "JPEG", exif=exif)
    return data.getvalue()


def test_a_turned_picture_is_measured_as_people_see_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [(0, "a.png")], {"0.png": 5})
    (folder / "images" / "a.png").write_bytes(turned((4, 6), 6))  # PIL goes by the content, not by the suffix
    suite = open_benchmark(folder)
    assert suite.image_size(suite.questions[0]) == (6, 4) and columns(folder) == [5]
    (folder / "images" / "a.png").write_bytes(turned((6, 4), 6))
    with pytest.raises(InputError, match="is 6 x 4 pixels, its image a.png is 4 x 6 .*EXIF"):
        suite.mask(suite.questions[0])


def test_published_command_names_the_images_folder(benchmark_folder: Path) -> None:
    assert open_benchmark(benchmark_folder / "images").question_file == benchmark_folder / "point_questions.jsonl"


def test_question_file_elsewhere(benchmark_folder: Path, tmp_path: Path) -> None:
    other = (benchmark_folder / "point_questions.jsonl").rename(tmp_path / "mine.jsonl")
    suite = open_benchmark(None, other, benchmark_folder / "images")
    assert suite.mask(suite.questions[0]).any()
    assert open_benchmark(benchmark_folder, other).masks == suite.masks


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", ".."])
def test_an_image_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, [(0, "a.png")], {})
    Image.fromarray(SMALL).save(tmp_path / "secret.png")
    write_jsonl(folder / "point_questions.jsonl", [{"question_id": 0, "image": name, "text": "q"}])
    suite = open_benchmark(folder)
    with pytest.raises(InputError, match="question 0 .*lies outside"):
        suite.image_path(suite.questions[0])


def test_what_is_wrong_with_a_mask_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [(0, "a.png"), (1, "a.png"), (2, "a.png")], {"0.png": 0})
    Image.new("L", (6, 5), 255).save(folder / "masks" / "0.png")
    Image.new("L", (6, 4), 1).save(folder / "masks" / "1.png")
    (folder / "masks" / "2.png").write_bytes(b"no image")
    suite = open_benchmark(folder)
    for question, message in zip(suite.questions, ["6 x 5 pixels.*6 x 4", "empty.*largest is 1", "cannot be read"],
                                 strict=True):  # fmt: skip
        with pytest.raises(InputError, match=f"{question.question_id}.png.*{message}"):
            suite.mask(question)


def test_answers_are_paired_by_question_id(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    suite = open_benchmark(benchmark_folder)
    path = write_answers({8: "(0.1, 0.1)", "3": "(0.2, 0.2)"})
    found = pair_answers(read_answers(path), suite, path)
    assert {name: answer.text for name, answer in found.items()} == {"8": "(0.1, 0.1)", "3": "(0.2, 0.2)"}


@pytest.mark.parametrize(
    "prompt",
    ["point to the RED mug number 3.", "  Point to\n the red  mug number 3. ", "<image>\nPOINT TO THE RED MUG NUMBER 3. "
     "YOUR ANSWER SHOULD BE FORMATTED AS A LIST."],
)  # fmt: skip
def test_a_prompt_in_other_case_or_spacing_asks_the_same(
    prompt: str, benchmark_folder: Path, write_answers: Callable[..., Path]
) -> None:
    suite = open_benchmark(benchmark_folder)
    path = write_answers({3: "(0.1, 0.1)"}, prompt=prompt)
    assert pair_answers(read_answers(path), suite, path)["3"].text == "(0.1, 0.1)"


def test_answers_to_other_questions_are_refused(benchmark_folder: Path, write_answers: Callable[..., Path]) -> None:
    suite = open_benchmark(benchmark_folder)
    path = write_answers({99: "(0.1, 0.1)"})
    with pytest.raises(InputError, match="question 99, which is not among the 6 questions"):
        pair_answers(read_answers(path), suite, path)
    path = write_answers({3: "(0.1, 0.1)"}, prompt="Point to the moon.")
    with pytest.raises(InputError, match="Point to the moon.*another benchmark"):
        pair_answers(read_answers(path), suite, path)
    path.write_text(path.read_text() + path.read_text().replace("{", '{"run": 1, ', 1))
    with pytest.raises(InputError):
        pair_answers(read_answers(path), suite, path)
