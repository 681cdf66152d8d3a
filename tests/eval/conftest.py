"""A benchmark of three odd-sized images, plain ones, and answers to them."""

import numpy as np
import pytest
from PIL import Image
from small_benchmark import SIZES

from trace_vlm.utils.files import write_jsonl


def make_folder(folder):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def bench(tmp_path):
    """Six questions with ids 3 to 8, two an image, in no order of images; the region is the image's left half."""
    folder, rng, lines = make_folder(tmp_path / "bench"), np.random.default_rng(0), []
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / "images" / name)
    for number, name in enumerate([*SIZES, *SIZES]):
        mask = Image.new("L", SIZES[name])
        mask.paste(255, (0, 0, SIZES[name][0] // 2, SIZES[name][1]))
        mask.save(folder / "masks" / f"{number + 3}.png")
        shortcuts = {"left_edge": [0.0, 0.5], "midpoint": [0.9, 0.9] if number == 0 else None}
        text = "Point to " + " ".join(["the red mug"] * (1 + number % 4)) + f" number {number + 3}."
        lines.append({"question_id": number + 3, "image": name, "text": text,
                      "category": "unseen" if number >= 4 else "seen",
                      "meta": {"kind": "direct" if number % 2 else "free", "shortcuts": shortcuts}})  # fmt: skip
    write_jsonl(folder / "point_questions.jsonl", lines)
    return folder


@pytest.fixture
def write_benchmark(tmp_path):
    """Write a benchmark: question id -> image file, mask file -> the column where its region begins (all: left half)."""

    def write(questions, masks=None, size=(6, 4), folder="b", greys=range(99)):
        folder = make_folder(tmp_path / folder)
        for image, grey in zip(questions.values(), greys, strict=False):
            Image.new("RGB", size, (grey, 0, 0)).save(folder / "images" / image)
        for name, column in (masks or dict.fromkeys((f"{number}.png" for number in questions), 0)).items():
            mask = Image.new("L", size)
            mask.paste(255, (column, 0, size[0] if masks else size[0] // 2, size[1]))
            mask.save(folder / "masks" / name)
        lines = [{"question_id": number, "image": image, "text": "q"} for number, image in questions.items()]
        write_jsonl(folder / "point_questions.jsonl", lines)
        return folder

    return write


@pytest.fixture
def write_answers(tmp_path):
    # question id -> text, with further fields for every line
    def write(texts, name="answers.jsonl", **fields):
        lines = [{"question_id": number, "text": text, **fields} for number, text in texts.items()]
        write_jsonl(tmp_path / name, lines)
        return tmp_path / name

    return write
