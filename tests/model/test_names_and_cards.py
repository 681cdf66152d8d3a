"""Presets and their sizes, names on the hub, vision towers by name, model cards, types and quantisation."""

from __future__ import annotations

import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import GenerationConfig

from trace_vlm.model import build, vision_tower
from trace_vlm.model.checkpoint import check_generation_config, load, save
from trace_vlm.model.convert import convert
from trace_vlm.model.presets import PRESETS, hub_repository, model_folder, model_name
from trace_vlm.model.saving import make_card
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json

# Vicuna (13,015,864,320 and 6,738,415,616), 64 rows more in both embeddings, CLIP-L/14-336 (303,507,456), the projector.
SIZES = {
    "trace-13b": 13_351_494_656, "trace-7b": 7_063_427_072, "robopoint-13b": 13_351_494_656, "nano-random": 2_296_064,
}  # fmt: skip
CLIP_336 = "openai/clip-vit-large-patch14-336"


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_published_size_to_the_parameter(name):
    tokenizer = build.nano_tokenizer()
    with torch.device("meta"):
        model = build.build_model(PRESETS[name], tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    config = model.config
    if name != "nano-random":
        assert config.image_seq_length == 576 and config.text_config.rms_norm_eps == 1e-5
        assert config.vision_config.hidden_act == "quick_gelu" and config.text_config.vocab_size == 32064


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub as a download leaves it; nothing else can be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def publish(name: str, folder) -> None:  # type: ignore[no-untyped-def]
        home = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, home / "snapshots" / "0123abc")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0123abc")

    return publish


def test_names_on_the_hub_stand_for_every_kind_of_folder(recorded, hub):
    for name in ("full", "base", "lora", "projector_only"):
        hub(f"lab/{name}", recorded.folder / name)
    hub("openai/clip", recorded.folder / "clip")
    complete = load("lab/full", vision_tower="openai/clip")
    assert torch.equal(complete.model.lm_head.weight, load(recorded.folder / "full").model.lm_head.weight)
    for name in ("lora", "projector_only"):
        ours = load(f"lab/{name}", base="lab/base", vision_tower="openai/clip").model.state_dict()
        here = load(recorded.folder / name, base=recorded.folder / "base").model.state_dict()
        assert all(torch.equal(one, here[key]) for key, one in ours.items())
    with pytest.raises(InputError, match="lab/absent"):
        load("lab/absent")


def test_a_download_is_named_by_its_repository_and_a_folder_by_itself(tmp_path):
    download = tmp_path / "hub" / "models--lab--a-model" / "snapshots" / "0123abc"
    download.mkdir(parents=True)
    assert (hub_repository(download), model_name(download)) == ("lab/a-model", "a-model")
    assert (hub_repository(tmp_path), model_name(tmp_path)) == (None, tmp_path.name)
    with pytest.raises(InputError, match="a/b/c"):
        model_folder("a/b/c", "the model")


# --- vision towers --------------------------------------------------------------------------------


def test_a_relative_tower_is_looked_up_beside_then_above_then_here(tmp_path, monkeypatch):
    model, here = tmp_path / "own" / "root" / "model", tmp_path / "here"
    places = [model / "eyes" / "v1", model.parent / "eyes" / "v1", here / "eyes" / "v1"]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.chdir(here)
    for place in places:
        assert model_folder("eyes/v1", "tower", model).resolve() == place
        place.rmdir()
    with pytest.raises(InputError, match="eyes/v1"):
        model_folder("eyes/v1", "tower", model)


@pytest.mark.parametrize("named", [CLIP_336, "/data/weights/clip-vit-large-patch14-336"])
def test_weights_inside_need_no_published_tower(recorded, tmp_path, monkeypatch, named):
    """Neither for its name nor for a path on the machine where it was trained."""
    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    small = read_json(recorded.folder / "clip" / "config.json")["vision_config"]
    settings = {key: small[key] for key in vision_tower.CLIP_KEYS if key in small}
    monkeypatch.setitem(vision_tower.KNOWN, CLIP_336, settings)
    file = tmp_path / "full" / "config.json"
    file.write_text(json.dumps({**read_json(file), "mm_vision_tower": named}))
    there, here = load(tmp_path / "full").model, load(recorded.folder / "full").model
    assert all(one.equal(other) for one, other in zip(there.parameters(), here.parameters(), strict=True))
    file.write_text(json.dumps({**read_json(file), "mm_vision_tower": "/data/weights/mine"}))
    with pytest.raises(InputError, match="/data/weights/mine.*--vision-tower"):
        load(tmp_path / "full")


def test_a_tower_from_the_command_line_is_looked_up_in_the_working_directory(recorded, tmp_path, monkeypatch):
    """Not beside the checkpoint, where there may be another one of that name."""
    shutil.copytree(recorded.folder / "full", tmp_path / "zoo" / "full")
    shutil.copytree(recorded.folder / "base", tmp_path / "zoo" / "clip")  # no tower at all
    shutil.copytree(recorded.folder / "clip", tmp_path / "here" / "clip")
    monkeypatch.chdir(tmp_path / "here")
    assert load(tmp_path / "zoo" / "full", vision_tower="clip").model.config.vision_config.hidden_size == 48
    convert(tmp_path / "zoo" / "full", tmp_path / "hf", vision_tower="clip")
    with pytest.raises(InputError, match="hf .*--vision-tower"):
        load(tmp_path / "hf", vision_tower="clip")


def test_another_tower_is_not_written_under_the_published_name(recorded, tmp_path):
    """LLaVA's code would fetch the published tower by that name, and read the weights with its activation."""
    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    file = tmp_path / "full" / "config.json"
    file.write_text(json.dumps({**read_json(file), "mm_vision_tower": CLIP_336}))
    shutil.copytree(recorded.folder / "clip", tmp_path / "mine")
    clip = read_json(tmp_path / "mine" / "config.json")
    clip["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "mine" / "config.json").write_text(json.dumps(clip))
    convert(tmp_path / "full", tmp_path / "hf", vision_tower=str(tmp_path / "mine"))
    convert(tmp_path / "hf", tmp_path / "back", to="llava")
    assert read_json(tmp_path / "back" / "config.json")["mm_vision_tower"] == "mine"
    assert load(tmp_path / "back").model.config.vision_config.hidden_act == "gelu"


# --- the card, generation, quantisation -----------------------------------------------------------


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_bases_licence_is_in_the_card(recorded, tmp_path):
    for name in ("base", "lora", "clip"):
        shutil.copytree(recorded.folder / name, tmp_path / name)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\n# A base\n")
    (tmp_path / "base" / "LICENSE.txt").write_text("the terms")
    convert(tmp_path / "lora", tmp_path / "made", tmp_path / "base")
    save(load(tmp_path / "made"), tmp_path / "again")  # it stays, however often the model is saved
    for folder in (tmp_path / "made", tmp_path / "again"):
        front = front_matter(folder)
        assert front["license"] == "llama2" and front["pipeline_tag"] == "image-text-to-text"
        assert "LLAMA 2 Community License, Copyright (c) Meta Platforms" in (folder / "README.md").read_text()
        assert (folder / "LICENSE.txt").read_text() == "the terms"


@pytest.mark.parametrize(
    ("named", "licence", "base"),
    [("lmsys/vicuna-13b-v1.5", "llama2", "lmsys/vicuna-13b-v1.5"), ("/home/a/b", "unknown", None)],
)
def test_the_card_names_a_repository_and_never_a_path_of_this_machine(recorded, tmp_path, named, licence, base):
    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    shutil.copytree(recorded.folder / "clip", tmp_path / "clip")
    file = tmp_path / "full" / "config.json"
    file.write_text(json.dumps({**read_json(file), "_name_or_path": named}))
    convert(tmp_path / "full", tmp_path / "made")
    front, card = front_matter(tmp_path / "made"), (tmp_path / "made" / "README.md").read_text()
    assert (front["license"], front.get("base_model")) == (licence, base)
    assert str(tmp_path) not in card and "/home/" not in card


@pytest.mark.parametrize(("name", "licence"), [("meta-llama/Llama-2-7b-chat-hf", "llama2"), ("somebody/model", None)])
def test_a_licence_is_known_or_unknown(name, licence):
    assert make_card(name, None).licence == licence


def test_sampling_settings_without_sampling_are_dropped(recorded, tmp_path):
    """Vicuna's file has them; transformers refuses to save such a model, at the end of a training."""
    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    shutil.copytree(recorded.folder / "clip", tmp_path / "clip")
    settings = {"temperature": 0.9, "top_p": 0.6, "max_length": 4096}
    (tmp_path / "full" / "generation_config.json").write_text(json.dumps(settings))
    model = load(tmp_path / "full").model
    assert model.generation_config.do_sample is not True and model.generation_config.max_length == 4096
    assert model.generation_config.temperature is None or model.generation_config.temperature == 1.0
    check_generation_config(model)
    with pytest.raises(InputError, match="temperature"):
        check_generation_config(SimpleNamespace(generation_config=GenerationConfig(do_sample=False, temperature=0.9)))


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantised_loading_or_what_to_install(recorded, quantize):
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(InputError, match="bitsandbytes"):
            load(recorded.folder / "full", quantize=quantize)
        return
    model = load(recorded.folder / "full", quantize=quantize).model
    assert "Linear" + quantize.removesuffix("bit")[0] in type(model.model.language_model.layers[0].mlp.up_proj).__name__
    assert type(model.model.vision_tower.encoder.layers[0].mlp.fc1) is torch.nn.Linear
    assert type(model.model.multi_modal_projector.linear_1) is torch.nn.Linear


@pytest.mark.parametrize("options", [{"quantize": "3bit"}, {"dtype": "float31"}, {"device": "nowhere"}], ids=str)
def test_unknown_settings_are_named(recorded, options):
    with pytest.raises(InputError, match=next(iter(options.values()))):
        load(recorded.folder / "full", **options)


def test_the_automatic_type_is_the_stored_one(recorded):
    assert load(recorded.folder / "full", dtype="auto").model.dtype == torch.bfloat16
    # merged in float32, and still of the type that its base has
    assert load(recorded.folder / "lora", recorded.folder / "base", dtype="auto").model.dtype == torch.float16
