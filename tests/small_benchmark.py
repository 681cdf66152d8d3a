"""A benchmark of three questions about three images, whose targets are their left halves, and the scripts under test."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from trace_vlm.core.prompts import POINTS_SUFFIX
from trace_vlm.utils.files import read_jsonl, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"wide.png": (61, 40), "tall.png": (33, 50), "square.png": (37, 37)}
IDS = {0: "wide.png", 1: "tall.png", "left/2": "square.png"}


def picture(seed, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


def left_half(size=(60, 40)):
    return np.broadcast_to(np.arange(size[0]) < size[0] // 2, size[::-1])


def write_pictures(folder, sizes):
    """Write images/ and masks/ (JPEG, as Where2Place has them)."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed, (name, size) in enumerate(sizes.items()):
        picture(seed, size).save(folder / "images" / name)
        mask = Image.fromarray(left_half(size).astype(np.uint8) * 255)
        mask.save(folder / "masks" / Path(name).with_suffix(".jpg"), quality=100)


def make_benchmark(folder):
    write_pictures(folder, SIZES)
    write_jsonl(folder / "point_questions.jsonl", [
        {"question_id": number, "image": image, "text": f"Point left of mug {number}. {POINTS_SUFFIX}",
         "category": "unseen" if number == 1 else "seen"}
        for number, image in IDS.items()
    ])  # fmt: skip
    return folder


def lines(path):
    return [record for _, record in read_jsonl(path)]


def script(name):
    """A script of visualization/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "visualization" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
