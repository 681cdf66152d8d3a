"""The recorded checkpoints of the original code, each once in its own format and once converted."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trace_vlm.model.checkpoint import load, main
from trace_vlm.utils.files import read_json

ORIGINAL = Path(__file__).resolve().parent.parent / "data" / "llava_original"
BASES = {"full": None, "lora": ORIGINAL / "base", "projector_only": ORIGINAL / "base"}


@pytest.fixture(scope="session")
def recorded():
    """What the original code computed: see the README of tests/data/llava_original."""
    files = [ORIGINAL / f"{name}.json" for name in ("expected", "prompts", "train_samples", "tokenization")]
    numbers, prompts, samples, strings = map(read_json, files)
    return SimpleNamespace(
        folder=ORIGINAL, bases=BASES, numbers=numbers, samples=samples, strings=strings,
        arrays=np.load(ORIGINAL / "expected.npz"), prompts={case["name"]: case for case in prompts},
        image=lambda name: Image.open(ORIGINAL / "images" / name).convert("RGB"),
    )  # fmt: skip


@pytest.fixture
def zoo(tmp_path):
    """Copies that a test may change."""
    for name in ("full", "base", "lora", "projector_only", "clip", "tokenizer"):
        shutil.copytree(ORIGINAL / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session", params=list(BASES))
def original(request):
    """(name, checkpoint) loaded from the original format."""
    return request.param, load(ORIGINAL / request.param, base=BASES[request.param])


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """name -> folder in Hugging Face's format, written by the command."""
    folder = tmp_path_factory.mktemp("converted")
    for name, base in BASES.items():
        main(["convert", str(ORIGINAL / name), str(folder / name), *(["--model-base", str(base)] if base else [])])
    return {name: folder / name for name in BASES}
