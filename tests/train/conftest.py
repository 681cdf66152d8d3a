"""Fixtures of the training tests: a cache of their own, a model a tenth of nano's size, a benchmark."""

import copy
import json
import os
import shutil

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported, in the server that runs are forked from

import pytest
from PIL import Image

from trace_vlm.model.checkpoint import save


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint, tmp_path_factory):
    checkpoint, folder = copy.deepcopy(tiny_checkpoint), tmp_path_factory.mktemp("models") / "tiny"
    checkpoint.model.get_output_embeddings().weight.data.div_(20)  # as it was initialised
    save(checkpoint, folder)
    return folder


@pytest.fixture
def bench(scenes, tmp_path):
    """A benchmark of one question whose mask is the whole image."""
    bench = tmp_path / "bench"
    for name in ("images", "masks"):
        (bench / name).mkdir(parents=True)
    shutil.copy(min((scenes / "images").iterdir()), bench / "images/a.png")
    Image.new("L", (128, 128), 255).save(bench / "masks/7.png")
    (bench / "point_questions.jsonl").write_text(json.dumps({"question_id": 7, "image": "a.png", "text": "Where?"}))
    return bench
