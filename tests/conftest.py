"""What many tests share: one thread, and a nano model with random weights made once a session."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")  # a busy machine is no fault

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def nano():
    """A nano checkpoint with random weights; tests must not change it."""
    from trace_vlm.model.checkpoint import load

    return load("nano-random")


@pytest.fixture(scope="session")
def nano_folder(nano, tmp_path_factory):
    from trace_vlm.model.checkpoint import save

    folder = tmp_path_factory.mktemp("models") / "nano"
    save(nano, folder)
    return folder


# Of a module: while it is open, Playwright's loop runs in this thread, and nothing else could call asyncio.run.
@pytest.fixture(scope="module")
def browser():
    """The system's Chromium; tests skip where it or Playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to open the page")
    chromium = Path("/usr/bin/chromium")
    if not chromium.is_file():
        pytest.skip(f"{chromium} does not exist (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as api:
        started = api.chromium.launch(executable_path=str(chromium), args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def tiny_checkpoint():
    """The nano tokenizer under a model of two layers, random weights; 8 patches are seen, `vocab_size` is padded."""
    from trace_vlm.model import build
    from trace_vlm.model.families.llava import LlavaCheckpoint
    from trace_vlm.model.presets import Preset

    preset = Preset(
        "tiny",
        {"vocab_size": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "image_size": 32, "patch_size": 8, "projection_dim": 32},
        image_token_index=-1,
    )  # fmt: skip
    tokenizer = build.nano_tokenizer()
    model = build.build_model(preset, tokenizer, seed=1)
    model.get_output_embeddings().weight.data.mul_(20)  # far from a tie between two tokens
    return LlavaCheckpoint(model.eval(), build.build_processor(tokenizer, model.config.vision_config), "tiny", "tiny")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Drawn views with captions: data to train on."""
    from scenes_by_hand import draw_views

    from trace_vlm.data.scenes import captions

    folder = draw_views(tmp_path_factory.mktemp("scenes") / "data", views=24)
    captions.main(["--data", str(folder), "--out", str(folder / "captions.json")])
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint, tmp_path_factory):
    from trace_vlm.model.checkpoint import save

    path = tmp_path_factory.mktemp("models") / "tiny"
    save(tiny_checkpoint, path)
    return path


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """`family_folder("qwen3_vl")`: the folder of a tiny random model of that family, as transformers saves it."""
    import functools

    import tiny_models

    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: tiny_models.save(family, root / family))
