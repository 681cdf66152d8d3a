"""A benchmark of three odd-sized images, and a tiny model with random weights, on disk and in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.utils.files import write_jsonl

SIZES = {"wide.png": (61, 40), "tall.png": (33, 50), "square.png": (37, 37)}


def make_benchmark(folder: Path) -> Path:
    """Six questions with ids 3 to 8, two an image, in no order of images; the region is the image's left half."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / "images" / name)
    lines = []
    for number, name in enumerate([*SIZES, *SIZES]):
        question_id = number + 3
        width, height = SIZES[name]
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{question_id}.png")
        kind = "direct" if number % 2 else "free"
        meta = {"kind": kind, "shortcuts": {"left_edge": [0.0, 0.5], "midpoint": [0.9, 0.9] if number == 0 else None}}
        text = "Point to " + " ".join(["the red mug"] * (1 + number % 4)) + f" number {question_id}."
        category = "unseen" if number >= 4 else "seen"
        lines.append({"question_id": question_id, "image": name, "text": text, "category": category, "meta": meta})
    write_jsonl(folder / "point_questions.jsonl", lines)
    return folder


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    return make_benchmark(tmp_path / "bench")


@pytest.fixture
def write_answers(tmp_path: Path) -> Callable[..., Path]:
    """Write an answers file: question id -> text, with further fields for every line."""

    def write(texts: Mapping[Any, str], name: str = "answers.jsonl", **fields: Any) -> Path:
        path = tmp_path / name
        write_jsonl(path, [{"question_id": number, "text": text, **fields} for number, text in texts.items()])
        return path

    return write
