"""The recorded checkpoints of the original code, each once in its own format and once converted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trace_vlm.model.checkpoint import load, main

ORIGINAL = Path(__file__).resolve().parent.parent / "data" / "llava_original"
BASES = {"full": None, "lora": ORIGINAL / "base", "projector_only": ORIGINAL / "base"}


class Recorded:
    """What the original code computed: see the README of tests/data/llava_original."""

    folder, bases = ORIGINAL, BASES
    numbers = json.loads((ORIGINAL / "expected.json").read_text())
    arrays = np.load(ORIGINAL / "expected.npz")
    prompts = {case["name"]: case for case in json.loads((ORIGINAL / "prompts.json").read_text())}
    samples = json.loads((ORIGINAL / "train_samples.json").read_text())
    strings = json.loads((ORIGINAL / "tokenization.json").read_text())

    def image(self, name):
        return Image.open(ORIGINAL / "images" / name).convert("RGB")


@pytest.fixture(scope="session")
def recorded():
    return Recorded()


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
