"""The benchmark folder: where images and masks are found, and which are refused."""

import unicodedata

import pytest
from PIL import Image

from trace_vlm.core.records import read_answers
from trace_vlm.eval.benchmark import open_benchmark, pair_answers
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import write_json, write_jsonl


def columns(folder):
    benchmark = open_benchmark(folder)
    return [int(benchmark.mask(question).any(axis=0).argmax()) for question in benchmark.questions]


@pytest.mark.parametrize(("questions", "masks", "expected"), [
    ({7: "a.png", 2: "a.png"}, {"2.png": 2, "7.png": 5}, [5, 2]),
    ({0: "00.png", 3: "03.png", 10: "10.png"}, {"00.png": 1, "03.png": 2, "10.png": 3}, [1, 2, 3]),
    ({100: "b.png", 101: "a.png", 102: "b.png"}, {"a.png": 1, "b.png": 4}, [4, 1, 4]),
], ids=["question id", "padded question id", "image name"])  # fmt: skip
def test_masks_are_found(write_benchmark, questions, masks, expected):
    assert columns(write_benchmark(questions, masks)) == expected


def test_missing_mask_is_not_replaced_by_one_of_another_question(write_benchmark):
    """Question 1 is about image 2.png; its own mask is missing, and masks/2.png belongs to question 2."""
    folder = write_benchmark({1: "2.png", 2: "1.png", 3: "3.png"}, {"2.png": 2, "3.png": 3})
    benchmark = open_benchmark(folder)
    with pytest.raises(InputError, match="question 1"):
        benchmark.mask(benchmark.questions[0])


@pytest.mark.parametrize(("questions", "masks"), [
    ({number: f"{3 - number}.png" for number in range(4)}, {f"{number}.png": number for number in range(4)}),
    ({7: "a.png", 2: "a.png"}, {"2.png": 2, "7.png": 5, "a.png": 0}),
])  # fmt: skip
def test_ambiguous_masks_need_a_rule(write_benchmark, questions, masks):
    folder = write_benchmark(questions, masks)
    number, image = next(iter(questions.items()))
    with pytest.raises(InputError, match=rf"question {number} .* {number}\.png .* {image} .*suite.json"):
        open_benchmark(folder)
    write_json(folder / "suite.json", {"masks": "question"})
    assert columns(folder) == [masks[f"{number}.png"] for number in questions]
    write_json(folder / "suite.json", {"masks": "image"})
    assert columns(folder) == [masks[image] for image in questions.values()]
    write_json(folder / "suite.json", {"masks": "size"})
    with pytest.raises(InputError, match=r'suite\.json .*"masks"'):
        open_benchmark(folder)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_another_unicode_form_are_the_same(write_benchmark, forms):
    asked, stored = (unicodedata.normalize(form, "tass\u00e9") for form in forms)
    folder = write_benchmark({0: f"{asked}.png"}, {f"{stored}.png": 3})
    (folder / "images" / f"{asked}.png").rename(folder / "images" / f"{stored}.png")
    benchmark = open_benchmark(folder)
    assert columns(folder) == [3] and benchmark.image_size(benchmark.questions[0]) == (6, 4)


def test_turned_image_is_measured_upright(write_benchmark):
    exif, folder = Image.Exif(), write_benchmark({0: "a.png"}, {"0.png": 5})
    exif[274] = 6
    Image.new("RGB", (4, 6)).save(folder / "images" / "a.png", exif=exif)
    benchmark = open_benchmark(folder)
    assert benchmark.image_size(benchmark.questions[0]) == (6, 4) and columns(folder) == [5]
    Image.new("RGB", (6, 4)).save(folder / "images" / "a.png", exif=exif)
    with pytest.raises(InputError, match="a.png .*EXIF"):
        benchmark.mask(benchmark.questions[0])


def test_images_and_questions_elsewhere(bench, tmp_path):
    assert open_benchmark(bench / "images").question_file == bench / "point_questions.jsonl"
    other = (bench / "point_questions.jsonl").rename(tmp_path / "mine.jsonl")
    benchmark = open_benchmark(None, other, bench / "images")
    assert benchmark.mask(benchmark.questions[0]).any()
    assert open_benchmark(bench, other).masks == benchmark.masks
    for name, images in (("tall.png", bench), ("images/tall.png", bench / "images")):
        write_jsonl(other, [{"question_id": 0, "image": name, "text": "q"}])
        benchmark = open_benchmark(bench, other, images)
        assert benchmark.image_size(benchmark.questions[0]) == (33, 50)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", ".."])
def test_image_outside_the_folder_is_refused(bench, tmp_path, name):
    Image.new("L", (6, 4)).save(tmp_path / "secret.png")
    write_jsonl(bench / "point_questions.jsonl", [{"question_id": 0, "image": name, "text": "q"}])
    benchmark = open_benchmark(bench)
    with pytest.raises(InputError, match="question 0"):
        benchmark.image_path(benchmark.questions[0])


def test_unusable_masks_are_named(write_benchmark):
    folder = write_benchmark({0: "a.png", 1: "a.png", 2: "a.png"}, {"0.png": 0})
    Image.new("L", (6, 5), 255).save(folder / "masks" / "0.png")
    Image.new("L", (6, 4), 1).save(folder / "masks" / "1.png")
    (folder / "masks" / "2.png").write_bytes(b"no image")
    benchmark = open_benchmark(folder)
    for question, detail in zip(benchmark.questions, ["6 x 5 .*6 x 4", "empty.* 1", ""], strict=True):
        with pytest.raises(InputError, match=f"{question.question_id}.png.*{detail}"):
            benchmark.mask(question)


@pytest.mark.parametrize(("number", "fields"), [
    (8, {}), ("3", {}), (3, {"prompt": "  Point to\n the RED  mug number 3. "}),
    (3, {"prompt": "<image>\nPOINT TO THE RED MUG NUMBER 3. YOUR ANSWER SHOULD BE FORMATTED AS A LIST."}),
])  # fmt: skip
def test_answers_are_paired_by_question_id_and_prompt(number, fields, bench, write_answers):
    path = write_answers({number: "(0.1, 0.1)"}, **fields)
    assert pair_answers(read_answers(path), open_benchmark(bench), path)[str(number)].text == "(0.1, 0.1)"


def test_answers_to_other_questions_are_refused(bench, write_answers):
    benchmark = open_benchmark(bench)
    for number, fields in ((99, {}), (3, {"prompt": "Point to the moon."})):
        path = write_answers({number: "(0.1, 0.1)"}, **fields)
        with pytest.raises(InputError, match=f"answers.jsonl .*question {number}"):
            pair_answers(read_answers(path), benchmark, path)
    path = write_answers({3: "(0.1, 0.1)"})  # of two runs
    path.write_text(path.read_text() + path.read_text().replace("{", '{"run": 1, ', 1))
    with pytest.raises(InputError, match="answers.jsonl"):
        pair_answers(read_answers(path), benchmark, path)
