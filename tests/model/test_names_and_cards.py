"""Presets and their sizes, names on the hub, vision towers by name, model cards, types and quantisation."""

import importlib.util
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from checkpoints_by_hand import edit_json
from hub_server import COMMIT, hub, run_commands
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from trace_vlm.model import build, vision_tower
from trace_vlm.model.checkpoint import check_generation_config, load, loaded_dtype, save
from trace_vlm.model.convert import convert
from trace_vlm.model.presets import ASSETS, PRESETS, default_model, model_folder, resolve_model
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json

# Vicuna (13,015,864,320 and 6,738,415,616), 64 rows more in both embeddings, CLIP-L/14-336 (303,507,456), the projector.
LARGE = {"trace-13b": 13_351_494_656, "trace-7b": 7_063_427_072, "robopoint-13b": 13_351_494_656}
SIZES = {**LARGE, "nano-random": 2_296_064}
LORA = ("lab/lora", "--model-base", "lab/base", "--vision-tower", "lab/clip")
CLIP_336, VICUNA = "openai/clip-vit-large-patch14-336", "lmsys/vicuna-13b-v1.5"


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_published_size_to_the_parameter(name):
    tokenizer = build.nano_tokenizer()
    with torch.device("meta"):
        model = build.build_model(PRESETS[name], tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    if name in LARGE:
        assert model.config.image_seq_length == 576 and model.config.text_config.rms_norm_eps == 1e-5
        assert model.config.vision_config.hidden_act == "quick_gelu"


def test_random_weights_follow_the_seed():
    tokenizer, preset = build.nano_tokenizer(), PRESETS["nano-random"]
    first, same, other = (build.build_model(preset, tokenizer, seed=seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_folder_wins_over_the_bundled_model_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("nano") == default_model() == ASSETS / "nano"
    (tmp_path / "nano").mkdir()
    assert resolve_model("nano") == "nano" and default_model() == ASSETS / "nano"


def test_a_relative_tower_is_looked_up_beside_then_above_then_here(tmp_path, monkeypatch):
    model, here = tmp_path / "own" / "root" / "model", tmp_path / "here"
    places = [folder / "eyes" / "v1" for folder in (model, model.parent, here)]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.chdir(here)
    for place in places:
        assert model_folder("eyes/v1", "tower", model).resolve() == place
        place.rmdir()
    for name in ("eyes/v1", "a/b/c"):
        with pytest.raises(InputError, match=name):
            model_folder(name, "tower", model)


@pytest.mark.parametrize("named", [CLIP_336, "/data/weights/clip-vit-large-patch14-336"])
def test_weights_inside_need_no_published_tower(recorded, zoo, monkeypatch, named):
    small = read_json(zoo / "clip" / "config.json")["vision_config"]
    known = {key: small[key] for key in vision_tower.CLIP_KEYS if key in small}
    monkeypatch.setitem(vision_tower.KNOWN, CLIP_336, known)
    edit_json(zoo / "full/config.json", mm_vision_tower=named)
    there, here = load(zoo / "full").model, load(recorded.folder / "full").model
    assert all(one.equal(other) for one, other in zip(there.parameters(), here.parameters(), strict=True))
    edit_json(zoo / "full/config.json", mm_vision_tower="/data/weights/mine")
    with pytest.raises(InputError, match="/data/weights/mine.*--vision-tower"):
        load(zoo / "full")


def test_a_tower_from_the_command_line_is_looked_up_in_the_working_directory(recorded, zoo, monkeypatch):
    """Not beside the checkpoint, where there may be another one of that name; it wins over the weights inside."""
    (zoo / "here").mkdir()
    (zoo / "clip").rename(zoo / "here" / "clip")
    shutil.copytree(recorded.folder / "base", zoo / "clip")  # no tower at all
    file = zoo / "here" / "clip" / "model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    monkeypatch.chdir(zoo / "here")
    tower = load(zoo / "full", vision_tower="clip").model.model.vision_tower
    assert (tower.embeddings.patch_embedding.weight == 0).all()
    convert(zoo / "full", zoo / "hf", vision_tower="clip")
    with pytest.raises(InputError, match="hf .*--vision-tower"):
        load(zoo / "hf", vision_tower="clip")


def test_another_tower_is_not_written_under_the_published_name(zoo):
    """LLaVA's code would fetch the published tower by that name, and read the weights with its activation."""
    edit_json(zoo / "full/config.json", mm_vision_tower=CLIP_336)
    clip = read_json(zoo / "clip/config.json")["vision_config"]
    edit_json(zoo / "clip/config.json", vision_config={**clip, "hidden_act": "gelu"})
    convert(zoo / "full", zoo / "hf", vision_tower=str(zoo / "clip"))
    convert(zoo / "hf", zoo / "back", to="llava")
    assert read_json(zoo / "back" / "config.json")["mm_vision_tower"] == "clip"
    assert load(zoo / "back").model.config.vision_config.hidden_act == "gelu"


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_bases_licence_is_in_the_card(zoo):
    (zoo / "base" / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\n# A base\n")
    (zoo / "base" / "LICENSE.txt").write_text("the terms")
    convert(zoo / "lora", zoo / "made", zoo / "base")
    save(load(zoo / "made"), zoo / "again")  # it stays, however often the model is saved
    for folder in (zoo / "made", zoo / "again"):
        front = front_matter(folder)
        assert front["license"] == "llama2" and front["pipeline_tag"] == "image-text-to-text"
        assert "LLAMA 2 Community License, Copyright (c) Meta Platforms" in (folder / "README.md").read_text()
        assert (folder / "LICENSE.txt").read_text() == "the terms"


@pytest.mark.parametrize(("named", "licence", "base"), [(VICUNA, "llama2", VICUNA), ("/home/a/b", "unknown", None)])
def test_the_card_names_a_repository_and_never_a_path_of_this_machine(zoo, named, licence, base):
    edit_json(zoo / "full/config.json", _name_or_path=named)
    convert(zoo / "full", zoo / "made")
    front, card = front_matter(zoo / "made"), (zoo / "made" / "README.md").read_text()
    assert (front["license"], front.get("base_model")) == (licence, base)
    assert str(zoo) not in card and "/home/" not in card


def test_sampling_settings_without_sampling_are_dropped(zoo):
    """Vicuna's file has them; transformers refuses to save such a model, at the end of a training."""
    write_json(zoo / "full/generation_config.json", {"temperature": 0.9, "top_p": 0.6, "max_length": 4096})
    model = load(zoo / "full").model
    assert model.generation_config.max_length == 4096
    check_generation_config(model)
    with pytest.raises(InputError, match="temperature"):
        check_generation_config(SimpleNamespace(generation_config=GenerationConfig(do_sample=False, temperature=0.9)))


@pytest.mark.parametrize(("option", "value", "message"), [
    ("quantize", "3bit", "3bit"), ("dtype", "float31", "float31"), ("device", "nowhere", "nowhere"),
    pytest.param("quantize", "8bit", "bitsandbytes", marks=pytest.mark.skipif(
        importlib.util.find_spec("bitsandbytes") is not None, reason="tests/gpu loads with it")),
])  # fmt: skip
def test_unknown_and_missing_settings_are_named(recorded, option, value, message):
    with pytest.raises(InputError, match=message):
        load(recorded.folder / "full", **{option: value})


def test_the_type_is_known_before_a_model_is_loaded(recorded, converted):
    for folder, base, dtype, expected in (
        (recorded.folder / "full", None, "auto", "bfloat16"), (converted["full"], None, "auto", "bfloat16"),
        (converted["full"], None, "float32", "float32"), (converted["full"], None, "half", "float16"),
        (recorded.folder / "lora", recorded.folder / "base", "auto", "float16"),  # merged in float32, but of its base's type
    ):  # fmt: skip
        assert loaded_dtype(folder, base, dtype) == expected
        assert load(folder, base, dtype=dtype).model.dtype == getattr(torch, expected)
    assert loaded_dtype("nano-random", None, "auto") == "float32"  # the preset: random weights
    with pytest.raises(InputError, match="int8"):
        loaded_dtype(converted["full"], None, "int8")


def test_an_adapter_its_base_and_the_tower_come_from_the_hub(recorded, converted, tmp_path):
    repositories = {f"lab/{name}": recorded.folder / name for name in ("full", "base", "lora", "clip")}
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{}")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"x" * 4096)
    with hub(repositories | {"lab/cut": tmp_path / "cut"}, "models", cut="lab/cut/model.safetensors") as (address, log):
        fetched, absent, broken = run_commands(
            address, tmp_path / "home", ["convert", LORA[0], "made", *LORA[1:]], ["convert", "lab/absent", "other"],
            ["checkpoint", "inspect", "lab/cut"])  # fmt: skip
        assert fetched[0] == 0, fetched[1]
        assert any(line.startswith(f"GET /lab/lora/resolve/{COMMIT}/non_lora_trainables.bin") for line in log)
    made, here = load_file(tmp_path / "made" / "model.safetensors"), load_file(converted["lora"] / "model.safetensors")
    assert all(one.equal(here[name]) for name, one in made.items()) and set(made) == set(here)
    card = (tmp_path / "made" / "README.md").read_text()
    assert "base_model: lab/base" in card and "vision tower: lab/clip" in card and COMMIT not in card
    # what was fetched once is enough without the hub
    again, gone = run_commands(address, tmp_path / "home", ["checkpoint", "inspect", *LORA],
                               ["checkpoint", "inspect", "lab/full"])  # fmt: skip
    assert again[0] == 0, again[1]
    for (code, error), name in ((absent, "lab/absent"), (broken, "lab/cut"), (gone, "lab/full")):
        assert code == 2 and name in error.splitlines()[-1] and "Traceback" not in error, error
