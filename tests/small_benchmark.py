"""A benchmark of three questions about three images, whose targets are their left halves, and the scripts under test."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.utils.files import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"wide.png": (61, 40), "tall.png": (33, 50), "square.png": (37, 37)}
IDS: Mapping[int | str, str] = {0: "wide.png", 1: "tall.png", "left/2": "square.png"}


def make_benchmark(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / "images" / name)
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(folder / "masks" / Path(name).with_suffix(".jpg"), quality=100)
    write_jsonl(folder / "point_questions.jsonl", [
        {"question_id": number, "image": image, "text": f"Point left of mug {number}. {POINTS_SUFFIX}",
         "category": "unseen" if number == 1 else "seen"}
        for number, image in IDS.items()
    ])  # fmt: skip
    return folder


def script(name: str) -> ModuleType:
    """A script of visualization/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "visualization" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
