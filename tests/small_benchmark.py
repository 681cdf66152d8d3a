"""A benchmark of three questions about three images, whose targets are their left halves, and the scripts under test."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.utils.files import read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"wide.png": (61, 40), "tall.png": (33, 50), "square.png": (37, 37)}
IDS: Mapping[int | str, str] = {0: "wide.png", 1: "tall.png", "left/2": "square.png"}


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


def left_half(size: tuple[int, int] = (60, 40)) -> np.ndarray:
    return np.broadcast_to(np.arange(size[0]) < size[0] // 2, size[::-1])


def write_pictures(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Write images/ and masks/ (JPEG, as Where2Place has them)."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed, (name, size) in enumerate(sizes.items()):
        picture(seed, size).save(folder / "images" / name)
        mask = Image.fromarray(left_half(size).astype(np.uint8) * 255)
        mask.save(folder / "masks" / Path(name).with_suffix(".jpg"), quality=100)


def make_benchmark(folder: Path) -> Path:
    write_pictures(folder, SIZES)
    write_jsonl(folder / "point_questions.jsonl", [
        {"question_id": number, "image": image, "text": f"Point left of mug {number}. {POINTS_SUFFIX}",
         "category": "unseen" if number == 1 else "seen"}
        for number, image in IDS.items()
    ])  # fmt: skip
    return folder


def lines(path: Path) -> list[Any]:
    return [record for _, record in read_jsonl(path)]


def script(name: str) -> ModuleType:
    """A script of visualization/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "visualization" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
