"""inspect, convert and merge as a user types them: what they say, what they write, and what a kill leaves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trace_vlm.cli import main as trace_vlm
from trace_vlm.model import convert as converting
from trace_vlm.model import lazy_tensors, weight_files
from trace_vlm.model.checkpoint import load, main, save
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def test_inspect_says_what_a_folder_holds_and_reads_no_weights(recorded, capsys, monkeypatch):
    monkeypatch.setattr(lazy_tensors.Stored, "read_into", lambda *args: pytest.fail("weights were read"))
    assert main(["inspect", str(recorded.folder / "full")]) == 0
    said = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["format"] == "LLaVA's own, complete"
    assert said["weights"] == "478,944 parameters in 114 tensors, 0.96 MB, bfloat16"
    assert said["projector"].startswith("mlp2x_gelu, 48 -> 64; 7,296 parameters")
    assert said["vision tower"].startswith("clip, layer -2; weights inside: 142,368 parameters")
    assert (said["missing"], said["unexpected"]) == ("nothing", "nothing")
    assert main(["inspect", str(recorded.folder / "lora")]) == 0
    said = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["adapter"].startswith("rank 8, alpha 16") and said["base"].endswith("llava_original/base")
    assert main(["inspect", str(recorded.folder / "projector_only")]) == 0
    assert "needs its language model: give --base" in capsys.readouterr().out


def test_the_original_layout_comes_back_bit_for_bit(converted, recorded, tmp_path):
    assert main(["convert", str(converted["full"]), str(tmp_path / "back"), "--to", "llava"]) == 0
    before, after = tensors(recorded.folder / "full"), tensors(tmp_path / "back")
    assert set(before) == set(after)
    for name, one in before.items():
        assert after[name].dtype == one.dtype and torch.equal(after[name], one), name
    config, original = (read_json(one / "config.json") for one in (tmp_path / "back", recorded.folder / "full"))
    asked = ("hidden_size", "vocab_size", "image_aspect_ratio", "mm_vision_select_layer", "torch_dtype", "rope_theta")
    assert {key: config[key] for key in asked} == {key: original[key] for key in asked}
    assert read_json(tmp_path / "back" / "tokenizer_config.json")["legacy"] is False
    model = (tmp_path / "back" / "tokenizer.model").read_bytes()
    assert model == (recorded.folder / "full" / "tokenizer.model").read_bytes()
    # and it loads without anything around it: the tower it names lies in the folder
    again, once = load(tmp_path / "back"), load(recorded.folder / "full")
    assert all(
        torch.equal(one, other) for one, other in zip(again.model.parameters(), once.model.parameters(), strict=True)
    )


def test_merge_is_the_adapter_in_its_base(recorded, converted, tmp_path):
    arguments = [str(recorded.folder / "lora"), str(tmp_path / "merged"), "--base", str(recorded.folder / "base")]
    assert main(["merge", *arguments]) == 0
    merged, loaded = tensors(tmp_path / "merged"), tensors(converted["lora"])
    assert all(torch.equal(one, loaded[name]) for name, one in merged.items())
    assert {one.dtype for one in merged.values()} == {torch.float32}
    with pytest.raises(SystemExit):
        main(["merge", str(recorded.folder / "lora"), str(tmp_path / "other")])


def test_another_type_on_disk_and_several_files(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files.write_weights, "__defaults__", (None, 300_000, lambda count: None))
    assert main(["convert", str(recorded.folder / "full"), str(tmp_path / "half"), "--dtype", "float16"]) == 0
    files = sorted(path.name for path in (tmp_path / "half").glob("*.safetensors"))
    assert len(files) == 4 and files[0] == "model-00001-of-00004.safetensors"
    assert {one.dtype for one in tensors(tmp_path / "half").values()} == {torch.float16}
    assert read_json(tmp_path / "half" / "config.json")["dtype"] == "float16"
    index = read_json(tmp_path / "half" / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == 2 * 482016 and set(index["weight_map"].values()) == set(files)
    assert torch.equal(
        load(tmp_path / "half").model.lm_head.weight[:1000],
        load(recorded.folder / "full").model.lm_head.weight[:1000].half().float(),
    )


def test_nothing_is_overwritten(recorded, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    assert run(main, ["convert", str(recorded.folder / "full"), str(tmp_path / "there")]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert run(main, ["convert", str(recorded.folder / "full"), str(tmp_path / "empty")]) == 0


def test_a_disk_that_lies_is_noticed(recorded, tmp_path, monkeypatch):
    real = weight_files._write_file

    def flipped(path, *rest):
        real(path, *rest)
        with open(path, "r+b") as file:
            file.seek(-3, os.SEEK_END)
            last = file.read(1)
            file.seek(-3, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))

    monkeypatch.setattr(weight_files, "_write_file", flipped)
    with pytest.raises(InputError, match="does not read back as it was written: .* holds other numbers"):
        converting.convert(recorded.folder / "full", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_computes_something_else_is_noticed(recorded, tmp_path, monkeypatch):
    from trace_vlm.model import saving

    real = saving.standard_configuration

    def other(config, dtype):
        whole = real(config, dtype)
        whole["text_config"]["rms_norm_eps"] = 1e-6
        return whole

    monkeypatch.setattr(saving, "standard_configuration", other)
    with pytest.raises(InputError, match="does not compute the same when it is read back"):
        converting.convert(recorded.folder / "full", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_two_that_write_one_folder_do_not_mix(recorded, tmp_path, monkeypatch):
    real = converting.verify

    def overtaken(*arguments):
        real(*arguments)
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "config.json").write_text("the other's")

    monkeypatch.setattr(converting, "verify", overtaken)
    assert run(main, ["convert", str(recorded.folder / "full"), str(tmp_path / "made")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["config.json"]


def test_a_full_disk_is_said_before_anything_is_written(recorded, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(InputError, match=r"needs 0\.0 GB, 0\.0 GB are free"):
        converting.convert(recorded.folder / "full", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_nothing_that_looks_whole(recorded, tmp_path):
    """The process stops in the middle of writing, is killed there, and the same command then finishes."""
    slow = f"""
import sys, time
from trace_vlm.model import weight_files
real = weight_files._write_file
def stall(path, *rest):
    real(path, *rest)
    print("written", flush=True)
    time.sleep(600)
weight_files._write_file = stall
from trace_vlm.model.checkpoint import main
main(["convert", {str(recorded.folder / "full")!r}, {str(tmp_path / "made")!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".made.") and not (left / "config.json").exists()
    with pytest.raises(InputError, match="is no model"):
        load(left)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert main(["convert", str(recorded.folder / "full"), str(tmp_path / "made")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_both_spellings_are_one_command_and_its_help_is_instant(recorded, tmp_path, capsys):
    assert trace_vlm(["convert", str(recorded.folder / "full"), str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'made'} (from LLaVA's own, complete)")
    assert trace_vlm(["checkpoint", "inspect", str(tmp_path / "made")]) == 0
    assert "Hugging Face LLaVA" in capsys.readouterr().out
    script = (
        "import sys, runpy; sys.argv = ['checkpoint', 'convert', '--help']\n"
        "try: runpy.run_module('trace_vlm.model.checkpoint', run_name='__main__')\n"
        "except SystemExit: print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: trace.model.checkpoint convert" in done.stdout and done.stdout.endswith("[]\n")


def test_a_peft_adapter_loads_as_peft_itself_loads_it(nano, nano_folder, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlavaForConditionalGeneration

    checkpoint = load(nano_folder)
    targets = r"^model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=targets, modules_to_save=["multi_modal_projector"], use_rslora=True
    )
    checkpoint.model = get_peft_model(checkpoint.model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save(checkpoint, tmp_path / "adapter")
    plain = LlavaForConditionalGeneration.from_pretrained(nano_folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    ours = load(tmp_path / "adapter").model.state_dict()
    for name, one in theirs.items():
        assert (one - ours[name]).abs().max() < 2e-6, name
    changed = [name for name, one in ours.items() if not torch.equal(one, nano.model.state_dict()[name])]
    assert changed and not any("vision_tower" in name for name in changed)
