"""inspect, convert and merge as a user types them: what they print, what they write, and what a kill leaves."""

import json
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from checkpoints_by_hand import edit_json
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from trace_vlm.inference.predictor import Predictor
from trace_vlm.model import convert as converting
from trace_vlm.model import lazy_tensors
from trace_vlm.model.checkpoint import load, main, save
from trace_vlm.model.presets import model_folder
from trace_vlm.model.record import reasons
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json


def tensors(folder):
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def inspect(capsys, *words):
    assert main(["inspect", *map(str, words)]) == 0
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_inspect_describes_a_folder_and_reads_no_weights(recorded, capsys, monkeypatch):
    monkeypatch.setattr(lazy_tensors.LazyTensor, "read", lambda *args: pytest.fail("weights were read"))
    lines = inspect(capsys, recorded.folder / "full")
    assert lines["format"] == "LLaVA's own, complete"
    assert lines["weights"] == "478,944 parameters in 114 tensors, 0.96 MB, bfloat16"
    assert lines["projector"].startswith("mlp2x_gelu, 48 -> 64; 7,296 parameters")
    assert lines["vision tower"].startswith("clip, layer -2; weights inside: 142,368 parameters")
    assert (lines["missing"], lines["unexpected"]) == ("nothing", "nothing")
    lines = inspect(capsys, recorded.folder / "lora")
    assert lines["adapter"].startswith("rank 8, alpha 16") and lines["base"].endswith("llava_original/base")
    assert "--model-base" in inspect(capsys, recorded.folder / "projector_only")["missing"]


def test_bundled_models_are_known_by_name(capsys, tmp_path):
    assert inspect(capsys, "nano-direct")["missing"] == "nothing"
    assert main(["convert", "nano", str(tmp_path / "made"), "--dtype", "float16"]) == 0
    assert torch.equal(load(tmp_path / "made").model.lm_head.weight, load("nano").model.lm_head.weight)


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("robopoint-v1-vicuna-v1.5-7b-lora", None, False), ("TRACE-13b", None, True), ("mine", None, True),
        ("mine", True, True), ("robopoint-mine", True, True), ("mine", False, False),
    ],
)  # fmt: skip
def test_a_model_is_asked_to_reason_if_it_was_trained_to(tmp_path, name, record, expected):
    """By its record, else by its name; the record goes with what is made of the model."""
    folder = shutil.copytree(model_folder("nano-direct", "the model"), tmp_path / name)
    (folder / "trace.json").unlink()
    if record is not None:
        (folder / "trace.json").write_text(json.dumps({"coordinates": "unit", "reasoning": record}))
    checkpoint = load(folder)
    save(checkpoint, tmp_path / "saved")
    main(["convert", str(folder), str(tmp_path / "converted")])
    found = [reasons(each) for each in (folder, tmp_path / "saved", tmp_path / "converted")]
    assert [checkpoint.reasons, *found] == [expected] * 4
    prompt = Predictor(checkpoint).predict(Image.new("RGB", (8, 8)), "Point to the mug.", max_new_tokens=1).prompt
    assert ("step by step" in prompt) == expected
    assert reasons("nano") and not reasons("nano-direct")


def test_a_merged_adapter_is_asked_as_the_adapter_was_trained(tmp_path):
    checkpoint = load("nano-direct")
    checkpoint.model, checkpoint.reasons = get_peft_model(checkpoint.model, LoraConfig(target_modules=["q_proj"])), True
    save(checkpoint, tmp_path / "adapter")
    main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--model-base", "nano-direct"])
    assert load(tmp_path / "adapter").reasons and reasons(tmp_path / "merged") and not reasons("nano-direct")


def test_the_original_layout_comes_back(converted, recorded, tmp_path):
    """The tensors are compared in test_drawn_checkpoints."""
    full, back = recorded.folder / "full", tmp_path / "back"
    assert main(["convert", str(converted["full"]), str(back), "--to", "llava"]) == 0
    config, original = read_json(back / "config.json"), read_json(full / "config.json")
    keys = ("hidden_size", "vocab_size", "image_aspect_ratio", "mm_vision_select_layer", "torch_dtype", "rope_theta")
    assert {key: config[key] for key in keys} == {key: original[key] for key in keys}
    assert read_json(back / "tokenizer_config.json")["legacy"] is False
    assert (back / "tokenizer.model").read_bytes() == (full / "tokenizer.model").read_bytes()


def test_merge_adds_the_adapter_to_its_base(recorded, converted, tmp_path):
    arguments = [str(recorded.folder / "lora"), str(tmp_path / "merged"), "--model-base", str(recorded.folder / "base")]
    assert main(["merge", *arguments]) == 0
    merged, expected = tensors(tmp_path / "merged"), tensors(converted["lora"])
    assert all(torch.equal(tensor, expected[name]) and tensor.dtype == torch.float32 for name, tensor in merged.items())


def test_another_type_on_disk_in_several_files(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_tensors, "SHARD_BYTES", 300_000)
    half = tmp_path / "half"
    assert main(["convert", str(recorded.folder / "full"), str(half), "--dtype", "float16"]) == 0
    files = {f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)}
    assert {path.name for path in half.glob("*.safetensors")} == files
    assert {tensor.dtype for tensor in tensors(half).values()} == {torch.float16}
    assert read_json(half / "config.json")["dtype"] == "float16"
    index = read_json(half / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 2 * 482016 and set(index["weight_map"].values()) == files
    after, before = (load(folder).model.lm_head.weight[:1000] for folder in (half, recorded.folder / "full"))
    assert torch.equal(after, before.half().float())


def test_saving_never_overwrites_and_leaves_nothing_half(nano, nano_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nano"):
        save(nano, nano_folder)
    monkeypatch.setattr(nano.processor, "save_pretrained", Mock(side_effect=OSError("no space left")))
    with pytest.raises(InputError, match="half"):
        save(nano, tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_folder_is_written_to(recorded, tmp_path, capsys):
    notes = tmp_path / "made" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    command = ["convert", str(recorded.folder / "full"), str(notes.parent)]
    assert run(main, command) == 2 and str(notes.parent) in capsys.readouterr().err
    assert list(notes.parent.iterdir()) == [notes]
    notes.unlink()
    assert run(main, command) == 0


def flip_a_bit(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def change_the_norm(folder):
    text = read_json(folder / "config.json")["text_config"]
    edit_json(folder / "config.json", text_config={**text, "rms_norm_eps": 1e-6})


@pytest.mark.parametrize("fault", [flip_a_bit, change_the_norm, "full disk"])
def test_a_fault_while_writing_is_noticed_and_leaves_nothing(recorded, tmp_path, monkeypatch, fault):
    real, usage = converting.write_hugging_face, shutil.disk_usage(tmp_path)

    def write(folder, *rest):
        real(folder, *rest)
        fault(folder)  # a full disk is noticed before anything is written

    monkeypatch.setattr(converting, "write_hugging_face", write)
    if fault == "full disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(InputError, match="made"):
        converting.convert(recorded.folder / "full", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_looks_complete(recorded, tmp_path):
    """The process stops in the middle of writing and is killed there; the same command then finishes."""
    slow = f"""
import time
from trace_vlm.model import saving
real = saving.write_weights
def stall(*arguments, **options):
    real(*arguments, **options)
    print("written", flush=True)
    time.sleep(600)
saving.write_weights = stall
from trace_vlm.model.checkpoint import main
main(["convert", {str(recorded.folder / "full")!r}, {str(tmp_path / "made")!r}])
"""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", slow], **streams)
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".made.") and not (left / "config.json").exists()
    with pytest.raises(InputError, match=re.escape(left.name)):
        load(left)
    assert main(["convert", str(recorded.folder / "full"), str(tmp_path / "made")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_peft_adapter_loads_as_peft_itself_loads_it(nano, nano_folder, tmp_path):
    checkpoint = load(nano_folder)
    targets = r"^model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"
    options = {"target_modules": targets, "modules_to_save": ["multi_modal_projector"], "use_rslora": True}
    checkpoint.model = get_peft_model(checkpoint.model, LoraConfig(r=4, lora_alpha=12, **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    save(checkpoint, tmp_path / "adapter")
    plain = LlavaForConditionalGeneration.from_pretrained(nano_folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    ours = load(tmp_path / "adapter").model.state_dict()
    for name, one in theirs.items():
        assert (one - ours[name]).abs().max() < 2e-6, name
    changed = [name for name, one in ours.items() if not torch.equal(one, nano.model.state_dict()[name])]
    assert changed and not any("vision_tower" in name for name in changed)
