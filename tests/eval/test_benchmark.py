"""The benchmark folder: where images and masks are found, and which are refused."""

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
Questions = list[tuple[int | str, str]]


def folder_with(folder: Path, questions: Questions, masks: dict[str, int]) -> Path:
    """A benchmark whose masks, all 6 x 4, hold one pixel above 127 at the given column."""
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    for name in {image for _, image in questions}:
        Image.fromarray(np.stack([SMALL] * 3, -1)).save(folder / "images" / name)
    for name, column in masks.items():
        grey = SMALL.copy()
        grey[2, column] = 255
        Image.fromarray(grey).save(folder / "masks" / name)
    lines = [{"question_id": number, "image": image, "text": "q"} for number, image in questions]
    write_jsonl(folder / "point_questions.jsonl", lines)
    return folder


def columns(folder: Path) -> list[int]:
    benchmark = open_benchmark(folder)
    return [int(benchmark.mask(question).any(axis=0).argmax()) for question in benchmark.questions]


@pytest.mark.parametrize(
    ("questions", "masks", "expected"),
    [
        ([(7, "a.png"), (2, "a.png")], {"2.png": 2, "7.png": 5}, [5, 2]),
        ([(0, "00.png"), (3, "03.png"), (10, "10.png")], {"00.png": 1, "03.png": 2, "10.png": 3}, [1, 2, 3]),
        ([(100, "b.png"), (101, "a.png"), (102, "b.png")], {"a.png": 1, "b.png": 4}, [4, 1, 4]),
    ],
    ids=["question id", "padded question id", "image name"],
)
def test_masks_are_found(tmp_path: Path, questions: Questions, masks: dict[str, int], expected: list[int]) -> None:
    assert columns(folder_with(tmp_path, questions, masks)) == expected


def test_missing_mask_is_not_replaced_by_one_of_another_question(tmp_path: Path) -> None:
    """Question 1 is about image 2.png; its own mask is missing, and masks/2.png belongs to question 2."""
    folder = folder_with(tmp_path, [(1, "2.png"), (2, "1.png"), (3, "3.png")], {"2.png": 2, "3.png": 3})
    benchmark = open_benchmark(folder)
    with pytest.raises(InputError, match="question 1"):
        benchmark.mask(benchmark.questions[0])


@pytest.mark.parametrize(
    ("questions", "masks"),
    [
        ([(number, f"{3 - number}.png") for number in range(4)], {f"{number}.png": number for number in range(4)}),
        ([(7, "a.png"), (2, "a.png")], {"2.png": 2, "7.png": 5, "a.png": 0}),
    ],
)
def test_ambiguous_masks_need_a_rule(tmp_path: Path, questions: Questions, masks: dict[str, int]) -> None:
    folder = folder_with(tmp_path, questions, masks)
    number, image = questions[0]
    with pytest.raises(InputError, match=rf"question {number} about {image} .* {number}\.png .* {image} .*suite.json"):
        open_benchmark(folder)
    write_json(folder / "suite.json", {"masks": "question"})
    assert columns(folder) == [masks[f"{number}.png"] for number, _ in questions]
    write_json(folder / "suite.json", {"masks": "image"})
    assert columns(folder) == [masks[image] for _, image in questions]
    write_json(folder / "suite.json", {"masks": "size"})
    with pytest.raises(InputError, match='suite.json: "masks"'):
        open_benchmark(folder)


def test_bundled_benchmark_has_all_masks() -> None:
    benchmark = open_benchmark("tabletop")
    assert len(benchmark.masks) == len(benchmark.questions) > 0


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_another_unicode_form_are_the_same(tmp_path: Path, forms: tuple[str, str]) -> None:
    asked, stored = (unicodedata.normalize(form, "tass\u00e9") for form in forms)
    folder = folder_with(tmp_path, [(0, f"{asked}.png")], {f"{stored}.png": 3})
    (folder / "images" / f"{asked}.png").rename(folder / "images" / f"{stored}.png")
    benchmark = open_benchmark(folder)
    assert columns(folder) == [3] and benchmark.image_size(benchmark.questions[0]) == (6, 4)


def test_turned_image_is_measured_upright(tmp_path: Path) -> None:
    def turned(size: tuple[int, int]) -> bytes:
        exif, data = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = 6
        Image.new("RGB", size, (90, 90, 90)).save(data, "JPEG", exif=exif)
        return data.getvalue()

    folder = folder_with(tmp_path, [(0, "a.png")], {"0.png": 5})
    (folder / "images" / "a.png").write_bytes(turned((4, 6)))  # PIL goes by the content, not by the suffix
    benchmark = open_benchmark(folder)
    assert benchmark.image_size(benchmark.questions[0]) == (6, 4) and columns(folder) == [5]
    (folder / "images" / "a.png").write_bytes(turned((6, 4)))
    with pytest.raises(InputError, match=r"6 x 4 pixels, .*a.png is 4 x 6 .*EXIF"):
        benchmark.mask(benchmark.questions[0])


def test_images_and_questions_elsewhere(benchmark_folder: Path, tmp_path: Path) -> None:
    assert open_benchmark(benchmark_folder / "images").question_file == benchmark_folder / "point_questions.jsonl"
    other = (benchmark_folder / "point_questions.jsonl").rename(tmp_path / "mine.jsonl")
    benchmark = open_benchmark(None, other, benchmark_folder / "images")
    assert benchmark.mask(benchmark.questions[0]).any()
    assert open_benchmark(benchmark_folder, other).masks == benchmark.masks
    for name, images in (("tall.png", benchmark_folder), ("images/tall.png", benchmark_folder / "images")):
        write_jsonl(other, [{"question_id": 0, "image": name, "text": "q"}])
        benchmark = open_benchmark(benchmark_folder, other, images)
        assert benchmark.image_size(benchmark.questions[0]) == (33, 50)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", ".."])
def test_image_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, [(0, "a.png")], {})
    Image.fromarray(SMALL).save(tmp_path / "secret.png")
    write_jsonl(folder / "point_questions.jsonl", [{"question_id": 0, "image": name, "text": "q"}])
    benchmark = open_benchmark(folder)
    with pytest.raises(InputError, match="question 0"):
        benchmark.image_path(benchmark.questions[0])


def test_unusable_masks_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [(0, "a.png"), (1, "a.png"), (2, "a.png")], {"0.png": 0})
    Image.new("L", (6, 5), 255).save(folder / "masks" / "0.png")
    Image.new("L", (6, 4), 1).save(folder / "masks" / "1.png")
    (folder / "masks" / "2.png").write_bytes(b"no image")
    benchmark = open_benchmark(folder)
    for question, detail in zip(benchmark.questions, ["6 x 5 .*6 x 4", "empty.* 1", ""], strict=True):
        with pytest.raises(InputError, match=f"{question.question_id}.png.*{detail}"):
            benchmark.mask(question)


Write = Callable[..., Path]


def test_answers_are_paired_by_question_id(benchmark_folder: Path, write_answers: Write) -> None:
    path = write_answers({8: "(0.1, 0.1)", "3": "(0.2, 0.2)"})
    paired = pair_answers(read_answers(path), open_benchmark(benchmark_folder), path)
    assert {name: answer.text for name, answer in paired.items()} == {"8": "(0.1, 0.1)", "3": "(0.2, 0.2)"}


@pytest.mark.parametrize(
    "prompt",
    ["point to the RED mug number 3.", "  Point to\n the red  mug number 3. ", "<image>\nPOINT TO THE RED MUG NUMBER 3. "
     "YOUR ANSWER SHOULD BE FORMATTED AS A LIST."],
)  # fmt: skip
def test_prompt_in_other_case_or_spacing_is_the_same(prompt: str, benchmark_folder: Path, write_answers: Write) -> None:
    path = write_answers({3: "(0.1, 0.1)"}, prompt=prompt)
    assert pair_answers(read_answers(path), open_benchmark(benchmark_folder), path)["3"].text == "(0.1, 0.1)"


def test_answers_to_other_questions_are_refused(benchmark_folder: Path, write_answers: Write) -> None:
    benchmark = open_benchmark(benchmark_folder)
    for path, message in (
        (write_answers({99: "(0.1, 0.1)"}, "a.jsonl"), "a.jsonl .*question 99"),
        (write_answers({3: "(0.1, 0.1)"}, "b.jsonl", prompt="Point to the moon."), "b.jsonl .*question 3"),
    ):
        with pytest.raises(InputError, match=message):
            pair_answers(read_answers(path), benchmark, path)
    path = write_answers({3: "(0.1, 0.1)"})
    path.write_text(path.read_text() + path.read_text().replace("{", '{"run": 1, ', 1))
    with pytest.raises(InputError, match="answers.jsonl"):
        pair_answers(read_answers(path), benchmark, path)
