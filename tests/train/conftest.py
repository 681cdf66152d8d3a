"""What the tests of training share: a few drawn views, and a cache of their own."""

from __future__ import annotations

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported, in the server that runs are forked from

import pytest
from scenes_by_hand import draw_views

from trace_vlm.data.scenes import captions


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Tokenised records of the tests go to a folder of theirs."""
    before = os.environ.get("TRACE_CACHE")
    os.environ["TRACE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TRACE_CACHE"]
    else:
        os.environ["TRACE_CACHE"] = before


@pytest.fixture(scope="session")
def scenes(tmp_path_factory, cache):
    folder = draw_views(tmp_path_factory.mktemp("scenes") / "data", views=24)
    captions.main(["--data", str(folder), "--out", str(folder / "captions.json")])
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A model of the nano model's kind, a tenth of its size: what several processes train in seconds."""
    import dataclasses

    from trace_vlm.model import build
    from trace_vlm.model.checkpoint import Checkpoint, save
    from trace_vlm.model.presets import PRESETS

    nano = PRESETS["nano-random"]
    text = {**nano.text, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**nano.vision, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "image_size": 32}
    preset = dataclasses.replace(
        nano, text={**text, "num_key_value_heads": 2}, vision={**vision, "num_attention_heads": 2, "patch_size": 8}
    )
    tokenizer = build.nano_tokenizer()
    model = build.build_model(preset, tokenizer, seed=0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(Checkpoint(model, build.build_processor(tokenizer, model.config.vision_config), "tiny", "tiny"), folder)
    return folder
