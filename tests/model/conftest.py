"""The recorded checkpoints of the original code, each once in its own format and once converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ORIGINAL = Path(__file__).resolve().parent.parent / "data" / "llava_original"
BASES = {"full": None, "lora": ORIGINAL / "base", "projector_only": ORIGINAL / "base"}


class Recorded:
    """What the original code computed: see the README of tests/data/llava_original."""

    folder = ORIGINAL
    bases = BASES
    numbers: Any = json.loads((ORIGINAL / "expected.json").read_text())
    arrays: Any = np.load(ORIGINAL / "expected.npz")
    prompts: Any = {case["name"]: case for case in json.loads((ORIGINAL / "prompts.json").read_text())}
    samples: Any = json.loads((ORIGINAL / "train_samples.json").read_text())
    strings: Any = json.loads((ORIGINAL / "tokenization.json").read_text())

    def image(self, name: str) -> Image.Image:
        return Image.open(ORIGINAL / "images" / name).convert("RGB")


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Copies that a test may change."""
    for name in ("full", "base", "lora", "projector_only", "clip", "tokenizer"):
        shutil.copytree(ORIGINAL / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session", params=list(BASES))
def original(request):  # type: ignore[no-untyped-def]
    """(name, checkpoint) loaded from the original format."""
    from trace_vlm.model.checkpoint import load

    return request.param, load(ORIGINAL / request.param, base=BASES[request.param])


@pytest.fixture(scope="session")
def converted(tmp_path_factory):  # type: ignore[no-untyped-def]
    """name -> folder in Hugging Face's format, written by the command."""
    from trace_vlm.model.checkpoint import main

    folder = tmp_path_factory.mktemp("converted")
    for name, base in BASES.items():
        extra = [] if base is None else ["--model-base", str(base)]
        assert main(["convert", str(ORIGINAL / name), str(folder / name), *extra]) == 0
    return {name: folder / name for name in BASES}
