"""Fixtures of the training tests: drawn views, a cache of their own, a model a tenth of nano's size, a benchmark."""

import dataclasses
import json
import os
import shutil

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported, in the server that runs are forked from

import pytest
from PIL import Image
from scenes_by_hand import draw_views

from trace_vlm.data.scenes import captions
from trace_vlm.model import build
from trace_vlm.model.checkpoint import Checkpoint, save
from trace_vlm.model.presets import PRESETS


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory, cache):
    folder = draw_views(tmp_path_factory.mktemp("scenes") / "data", views=24)
    captions.main(["--data", str(folder), "--out", str(folder / "captions.json")])
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    nano, tokenizer = PRESETS["nano-random"], build.nano_tokenizer()
    vision = nano.vision | small | {"image_size": 32, "patch_size": 8}
    preset = dataclasses.replace(nano, text=nano.text | small | {"num_key_value_heads": 2}, vision=vision)
    model = build.build_model(preset, tokenizer, seed=0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(Checkpoint(model, build.build_processor(tokenizer, model.config.vision_config), "tiny", "tiny"), folder)
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
