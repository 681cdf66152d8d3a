"""The published dimensions, names on the hub, where a tower is looked for, cards, generation settings, quantisation."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from checkpoints_by_hand import write_llama2_style
from transformers import GenerationConfig

from trace_vlm.model import build, presets
from trace_vlm.model.checkpoint import check_generation_config, load, save
from trace_vlm.model.convert import convert
from trace_vlm.model.model_card import card_of
from trace_vlm.model.presets import PRESETS
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json

# Vicuna (13,015,864,320 and 6,738,415,616), 64 rows more in both embeddings, CLIP-L/14-336 (303,507,456), the projector.
SIZES = {"trace-13b": 13_351_494_656, "trace-7b": 7_063_427_072, "robopoint-13b": 13_351_494_656}


@pytest.mark.parametrize("name", SIZES)
def test_big_presets_have_the_published_size_to_the_parameter(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        model = build.build_model(preset)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    assert model.config.image_seq_length == 576 and model.config.text_config.rms_norm_eps == 1e-5
    assert model.config.vision_config.hidden_act == "quick_gelu" and model.config.text_config.vocab_size == 32064


def test_nano_has_its_size():
    tokenizer = build.nano_tokenizer()
    with torch.device("meta"):
        model = build.build_model(PRESETS["nano-random"], tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_296_064


def test_a_preset_from_named_weights_has_to_have_its_dimensions(nano_folder, nano):
    model = build.build_model(PRESETS["nano-random"], weights={"model": str(nano_folder)})
    assert torch.equal(model.lm_head.weight, nano.model.lm_head.weight)
    wider = dataclasses.replace(PRESETS["nano-random"], text={**PRESETS["nano-random"].text, "hidden_size": 256})
    with pytest.raises(InputError, match="hidden_size is 128, the preset nano-random has 256"):
        build.build_model(wider, weights=str(nano_folder))
    with pytest.raises(InputError, match="expected model, or llm and vision"):
        build.build_model(PRESETS["nano-random"], weights={"llm": str(nano_folder)})


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


def test_names_on_the_hub_stand_for_every_kind_of_folder(recorded, hub, tmp_path):
    for name in ("full", "base", "lora", "projector_only"):
        hub(f"lab/{name}", recorded.folder / name)
    hub("openai/clip", recorded.folder / "clip")
    arguments = {"vision_tower": "openai/clip"}
    whole = load("lab/full", **arguments)
    assert torch.equal(whole.model.lm_head.weight, load(recorded.folder / "full").model.lm_head.weight)
    for name in ("lora", "projector_only"):
        ours = load(f"lab/{name}", base="lab/base", **arguments).model.state_dict()
        here = load(recorded.folder / name, base=recorded.folder / "base").model.state_dict()
        assert all(torch.equal(one, here[key]) for key, one in ours.items())
    with pytest.raises(InputError, match="lab/absent"):
        load("lab/absent")


def test_a_relative_tower_is_looked_for_beside_then_above_then_here(recorded, tmp_path, monkeypatch):
    for place, seed in (("own", 1), ("above", 2), ("here", 3)):
        root = tmp_path / place / "root"
        write_llama2_style(root / "model", recorded.folder / "tokenizer", seed=seed)
    model, here = tmp_path / "own" / "root" / "model", tmp_path / "here" / "root"
    monkeypatch.chdir(here)
    assert presets.model_folder("eyes/v1", "tower", model) == model.parent / "eyes" / "v1"
    shutil.copytree(model.parent / "eyes", model / "eyes")
    assert presets.model_folder("eyes/v1", "tower", model) == model / "eyes" / "v1"
    shutil.rmtree(model / "eyes")
    shutil.rmtree(model.parent / "eyes")
    assert presets.model_folder("eyes/v1", "tower", model).resolve() == here / "eyes" / "v1"
    shutil.rmtree(here / "eyes")
    with pytest.raises(InputError, match="eyes/v1"):
        presets.model_folder("eyes/v1", "tower", model)


def test_a_known_tower_inside_needs_no_network(recorded, tmp_path, monkeypatch):
    from trace_vlm.model import vision_tower

    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    config = read_json(tmp_path / "full" / "config.json")
    name = "openai/clip-vit-large-patch14-336"
    (tmp_path / "full" / "config.json").write_text(json.dumps({**config, "mm_vision_tower": name}))
    small = read_json(recorded.folder / "clip" / "config.json")["vision_config"]
    monkeypatch.setitem(vision_tower.KNOWN, name, {key: small[key] for key in vision_tower.CLIP_KEYS if key in small})
    assert torch.equal(
        load(tmp_path / "full").model.model.vision_tower.embeddings.class_embedding,
        load(recorded.folder / "full").model.model.vision_tower.embeddings.class_embedding,
    )


def test_a_tower_that_the_user_names_is_looked_for_where_the_user_is(recorded, tmp_path, monkeypatch):
    """Not beside the checkpoint, where another one of that name may lie."""
    shutil.copytree(recorded.folder / "full", tmp_path / "zoo" / "full")
    shutil.copytree(recorded.folder / "base", tmp_path / "zoo" / "clip")  # no tower at all
    shutil.copytree(recorded.folder / "clip", tmp_path / "here" / "clip")
    monkeypatch.chdir(tmp_path / "here")
    assert load(tmp_path / "zoo" / "full", vision_tower="clip").model.config.vision_config.hidden_size == 48
    convert(tmp_path / "zoo" / "full", tmp_path / "hf", vision_tower="clip")
    with pytest.raises(InputError, match=r"hf is a Hugging Face LLaVA with its own vision tower; it takes no other"):
        load(tmp_path / "hf", vision_tower="clip")


def test_a_tower_inside_is_used_where_its_name_is_a_path_of_another_machine(recorded, tmp_path, monkeypatch):
    from trace_vlm.model import vision_tower

    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    file = tmp_path / "full" / "config.json"
    small = read_json(recorded.folder / "clip" / "config.json")["vision_config"]
    name = "openai/clip-vit-large-patch14-336"
    monkeypatch.setitem(vision_tower.KNOWN, name, {key: small[key] for key in vision_tower.CLIP_KEYS if key in small})
    file.write_text(json.dumps({**read_json(file), "mm_vision_tower": "/data/weights/clip-vit-large-patch14-336"}))
    there, here = load(tmp_path / "full").model, load(recorded.folder / "full").model
    assert all(one.equal(other) for one, other in zip(there.parameters(), here.parameters(), strict=True))
    file.write_text(json.dumps({**read_json(file), "mm_vision_tower": "/data/weights/mine"}))
    with pytest.raises(InputError, match="/data/weights/mine is not found: .*; --vision-tower names another"):
        load(tmp_path / "full")


def test_another_tower_is_not_written_under_the_old_ones_name(recorded, tmp_path):
    """LLaVA's code would fetch the published tower by that name, and read the weights with its activation."""
    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    file = tmp_path / "full" / "config.json"
    file.write_text(json.dumps({**read_json(file), "mm_vision_tower": "openai/clip-vit-large-patch14-336"}))
    shutil.copytree(recorded.folder / "clip", tmp_path / "mine")
    clip = read_json(tmp_path / "mine" / "config.json")
    clip["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "mine" / "config.json").write_text(json.dumps(clip))
    convert(tmp_path / "full", tmp_path / "hf", vision_tower=str(tmp_path / "mine"))
    convert(tmp_path / "hf", tmp_path / "back", to="llava")
    assert read_json(tmp_path / "back" / "config.json")["mm_vision_tower"] == "mine"
    assert load(tmp_path / "back").model.config.vision_config.hidden_act == "gelu"


# --- the card, generation, quantisation -----------------------------------------------------------


def test_the_bases_licence_is_in_the_card(recorded, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(recorded.folder / "base", base)
    shutil.copytree(recorded.folder / "lora", tmp_path / "lora")
    shutil.copytree(recorded.folder / "clip", tmp_path / "clip")
    (base / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\n# A base\n")
    (base / "LICENSE.txt").write_text("the terms")
    convert(tmp_path / "lora", tmp_path / "made", base)
    card = (tmp_path / "made" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "llama2" and front["pipeline_tag"] == "image-text-to-text"
    assert "LLAMA 2 Community License, Copyright (c) Meta Platforms" in card
    assert (tmp_path / "made" / "LICENSE.txt").read_text() == "the terms"
    save(load(tmp_path / "made"), tmp_path / "again")  # it stays, however often the model is saved
    assert "license: llama2" in (tmp_path / "again" / "README.md").read_text()
    assert (tmp_path / "again" / "LICENSE.txt").exists()


def test_the_card_names_a_repository_and_never_a_path_of_this_machine(recorded, tmp_path, hub):
    shutil.copytree(recorded.folder / "full", tmp_path / "full")
    shutil.copytree(recorded.folder / "clip", tmp_path / "clip")
    config = read_json(tmp_path / "full" / "config.json")
    for named, front in (
        ("lmsys/vicuna-13b-v1.5", ("llama2", "lmsys/vicuna-13b-v1.5")),
        ("/home/a/b", ("unknown", None)),
    ):
        (tmp_path / "full" / "config.json").write_text(json.dumps({**config, "_name_or_path": named}))
        target = tmp_path / front[0]
        convert(tmp_path / "full", target)
        card = (target / "README.md").read_text()
        found = yaml.safe_load(card.split("---")[1])
        assert (found["license"], found.get("base_model")) == front
        assert str(tmp_path) not in card and "/home/" not in card


@pytest.mark.parametrize(
    ("name", "licence"),
    [("lmsys/vicuna-13b-v1.5", "llama2"), ("meta-llama/Llama-2-7b-chat-hf", "llama2"), ("somebody/model", None)],
)
def test_a_licence_is_known_or_said_to_be_unknown(name, licence):
    assert card_of(name, None).licence == licence


def test_sampling_settings_without_sampling_do_not_reach_the_end_of_a_training(recorded, tmp_path):
    """Vicuna's file has them; transformers refuses to save such a model."""
    write_llama2_style(tmp_path / "model", recorded.folder / "tokenizer")
    model = load(tmp_path / "model").model
    assert model.generation_config.do_sample is not True and model.generation_config.max_length == 4096
    assert model.generation_config.temperature is None or model.generation_config.temperature == 1.0
    check_generation_config(model)
    bad = SimpleNamespace(generation_config=GenerationConfig(do_sample=False, temperature=0.9))
    with pytest.raises(
        InputError, match=r"generation configuration is not valid and could not be saved: .*temperature"
    ):
        check_generation_config(bad)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantised_loading_or_a_sentence(recorded, quantize, monkeypatch):
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(
            InputError, match=rf"{quantize} needs the package bitsandbytes: bash environment_setup.sh --extras quantize"
        ):
            load(recorded.folder / "full", quantize=quantize)
        return
    model = load(recorded.folder / "full", quantize=quantize).model
    assert "Linear" + quantize.removesuffix("bit")[0] in type(model.model.language_model.layers[0].mlp.up_proj).__name__
    assert type(model.model.vision_tower.encoder.layers[0].mlp.fc1) is torch.nn.Linear
    assert type(model.model.multi_modal_projector.linear_1) is torch.nn.Linear


def test_unknown_settings_are_named(recorded):
    with pytest.raises(InputError, match="quantize is '3bit'; 8bit and 4bit are known"):
        load(recorded.folder / "full", quantize="3bit")
    with pytest.raises(InputError, match="'float31' is no type of weights"):
        load(recorded.folder / "full", dtype="float31")
    with pytest.raises(InputError, match="the device nowhere cannot be used on this machine"):
        load(recorded.folder / "full", device="nowhere")
    assert load(recorded.folder / "full", dtype="auto").model.dtype == torch.bfloat16
    # merged in float32, and still of the type that its base has
    assert load(recorded.folder / "lora", recorded.folder / "base", dtype="auto").model.dtype == torch.float16
