"""Training runs: what they change and leave, what they refuse, how a killed one continues."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from PIL import Image
from shell import ROOT
from small_benchmark import make_benchmark
from train_together import Run, changed_parts, logged, record, settings, train_config, weights

from trace_vlm.model.checkpoint import load
from trace_vlm.train import checkpoints, sft
from trace_vlm.train.config import load_config
from trace_vlm.train.train import train
from trace_vlm.train.trainer import LanguageTrainer
from trace_vlm.utils.command import InputError

CONFIGS = ROOT / "configs"
# Rows that share images, the grounding loss, Muon: what configs/train_nano.yaml uses.
NANO = {"share_image": 3, "group_by_length": False, "optimizer": "muon", "global_batch_size": 4}
NANO |= {"grounding_loss": {"weight": 0.3, "layer": 1, "head": 0}}


def test_training_changes_what_is_trainable_and_nothing_else(scenes, tiny_folder, tmp_path):
    folder = train(train_config(scenes, tiny_folder, tmp_path / "run", **NANO, trainable=["projector"]))
    assert changed_parts(weights(tiny_folder), weights(folder)) == {"multi_modal_projector"}
    run = record(folder)
    assert run["finished"] and run["steps"] == 4 and run["cpu_seconds"] > 0 and run["versions"]["torch"]
    assert json.loads((folder / "trace.json").read_text()) == {"coordinates": "unit", "reasoning": False}
    assert run["config"]["grounding_loss"] == {"weight": 0.3, "layer": 1, "head": 0}
    assert len(run["data_sha256"][str(scenes / "captions.json")]) == 64
    assert not (folder / "checkpoints").exists()
    assert len(logged(folder, "token_loss")) == len(logged(folder, "grounding_loss")) == 4


def test_twenty_steps_of_the_nano_model_follow_the_recorded_curve(scenes, tmp_path):
    overrides = [f"data={scenes / 'captions.json'}", f"image_folder={scenes}", f"output_dir={tmp_path / 'run'}"]
    overrides += ["model=nano-random", "max_steps=20", "logging_steps=1", "report_to=[]"]
    recorded = ["global_batch_size=4", "micro_batch_size=4", "share_image=6", "muon_learning_rate=0.005"]
    overrides += [*recorded, "learning_rate=1.5e-3"]
    folder = train(load_config(CONFIGS / "train_nano.yaml", overrides))
    golden = ROOT / "tests/train/golden/nano_20_steps.json"
    for name, values in json.loads(golden.read_text()).items():  # other processors round differently, and it adds up
        assert logged(folder, name)[: len(values)] == pytest.approx(values, rel=1e-3), name


def test_a_killed_run_continues_to_the_same_weights(scenes, tiny_folder, tmp_path):
    changes = NANO | {"max_steps": 16, "save_steps": 4}
    complete = train(train_config(scenes, tiny_folder, tmp_path / "complete", **changes))
    killed = Run(settings(scenes, tiny_folder, tmp_path / "killed", **changes), processes=1)
    killed.start().when_saved(4).kill()
    assert not (killed.folder / "config.json").exists()
    killed.to_its_end()
    assert record(killed.folder)["finished"] and logged(killed.folder) == logged(complete)
    assert changed_parts(weights(complete), weights(killed.folder)) == set()


def test_a_malicious_optimizer_state_is_refused_and_not_run(scenes, tiny_folder, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch '{tmp_path / 'it ran'}'",)

    run = Run(settings(scenes, tiny_folder, tmp_path / "run", max_steps=16), processes=1)
    run.start().when_saved(2).kill()
    for checkpoint in (run.folder / "checkpoints").glob("checkpoint-*"):
        torch.save({"state": Malicious()}, checkpoint / "optimizer.pt")
    (code,), (log,) = run.start().wait()
    assert code == 1 and "weights_only" in log and not (tmp_path / "it ran").exists()


def test_vision_pretraining_trains_the_tower_alone(scenes, tmp_path):
    overrides = [f"data={scenes}", f"output_dir={tmp_path / 'vision'}", "max_steps=3", "global_batch_size=4"]
    overrides += ["micro_batch_size=4", "dataloader_workers=0", "report_to=[]"]
    folder = train(load_config(CONFIGS / "nano_vision.yaml", overrides))
    changed = changed_parts(load("nano-random").model.state_dict(), weights(folder))
    assert changed == {"vision_tower", "multi_modal_projector"}  # whose first layer takes the features' scale
    assert set(record(folder)["held_out_patch_accuracy"]) == {"color", "category", "x", "y"}


def test_a_finished_run_is_not_repeated_and_changed_settings_or_data_are_refused(scenes, tiny_folder, tmp_path, capsys):
    data = shutil.copy(scenes / "captions.json", tmp_path / "data.json")
    first = train_config(scenes, tiny_folder, tmp_path / "run", data=[str(data)], max_steps=1)
    file = train(first) / "model.safetensors"
    stamp = file.stat().st_mtime_ns
    train(dataclasses.replace(first, micro_batch_size=2))  # the same steps
    assert "is finished" in capsys.readouterr().out and file.stat().st_mtime_ns == stamp
    assert not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(InputError, match=r"learning_rate: 0.001, now 0.5"):
        train(dataclasses.replace(first, learning_rate=0.5))
    data.write_text(json.dumps(json.loads(data.read_text())[::-1]))
    with pytest.raises(InputError, match=r"data: .*data\.json"):
        train(first)


def test_a_mean_over_forward_passes_fixes_their_size(scenes, tiny_folder, tmp_path):
    config = train_config(scenes, tiny_folder, tmp_path / "mean", max_steps=1, loss_norm="microbatch")
    train(config)
    with pytest.raises(InputError, match="micro_batch_size: 4, now 2"):
        train(dataclasses.replace(config, micro_batch_size=2))


def test_a_folder_with_other_files_is_left_alone(scenes, tiny_folder, tmp_path):
    file, base = tmp_path / "mine/checkpoints/weights.bin", shutil.copytree(tiny_folder, tmp_path / "base")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    for name, model in (("mine", tiny_folder), ("base", base)):
        with pytest.raises(InputError, match=f"output_dir: .*{name}"):
            train(train_config(scenes, model, tmp_path / name))
    assert file.read_bytes() == b"mine"
    assert (base / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()


def test_a_run_that_does_not_resume_ignores_the_old_checkpoints(scenes, tiny_folder, tmp_path):
    config = train_config(scenes, tiny_folder, tmp_path / "run", resume="never", max_steps=1)
    folder = train(config)
    (folder / "run.json").write_text(json.dumps(record(folder) | {"finished": False}))
    old = folder / "checkpoints" / "checkpoint-1"
    old.mkdir(parents=True)
    (old / "world.json").write_text("{}")
    train(config)
    assert record(folder)["finished"] and len(logged(folder)) == 1 and not old.exists()
    assert f"# {folder.name}\n" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("changes", "key"), [
    ({"data": ["none.json"]}, r"data: .*none\.json"), ({"data": []}, "data: is empty"),
    ({"output_dir": ""}, "output_dir"), ({"output_dir": __file__}, "cannot be written"),
    ({"image_folder": "none"}, "image_folder"),
    ({"image_folder": str(Path(__file__).parent), "model": "/nope"}, "none of .* images was found"),
    ({"grounding_loss": {"layer": 9}}, r"grounding_loss\.layer"),
    ({"template": "foo"}, "template: .*foo"), ({"evaluation": {"benchmark": "/nope"}}, r"evaluation\.benchmark"),
    ({"model": "/nope"}, "model: .*/nope"), ({"report_to": ["wandb"]}, "report_to: wandb"),
    ({"attention": "flash_attention_2"}, "attention: flash_attention_2"),
], ids=str)  # fmt: skip
def test_missing_inputs_stop_a_run_before_its_first_step(scenes, tiny_folder, tmp_path, changes, key):
    with pytest.raises(InputError, match=key):
        train(train_config(scenes, tiny_folder, tmp_path / "run", **changes))


def test_a_full_disk_and_a_full_gpu_are_explained(scenes, tiny_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        error = RuntimeError("[enforce fail] unexpected pos 448")
        patch.setattr("transformers.Trainer._save_checkpoint", Mock(side_effect=error))
        with pytest.raises(RuntimeError, match="enforce fail"):  # there is room: something else is wrong
            train(train_config(scenes, tiny_folder, tmp_path / "room"))
        patch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=4096))
        with pytest.raises(InputError, match="output_dir: .*full"):
            train(train_config(scenes, tiny_folder, tmp_path / "full"))
    with monkeypatch.context() as patch:
        error = Exception("No space left on device (os error 28)")  # of tokenizers
        patch.setattr("tokenizers.Tokenizer.save", Mock(side_effect=error))
        with pytest.raises(InputError, match="output_dir: .*full"):
            train(train_config(scenes, tiny_folder, tmp_path / "tokenizer"))
    error = torch.OutOfMemoryError("Tried to allocate 3 GiB")
    monkeypatch.setattr(LanguageTrainer, "compute_loss", Mock(side_effect=error))
    with pytest.raises(InputError, match=r"micro_batch_size: 4 .*step 1.*Tried to allocate 3 GiB"):
        train(train_config(scenes, tiny_folder, tmp_path / "gpu"))


def test_a_run_has_its_folder_alone_and_names_a_loading_process_that_is_killed(scenes, tiny_folder, tmp_path):
    arguments, changes = (scenes, tiny_folder, tmp_path / "run"), {"max_steps": 60, "dataloader_workers": 1}
    loading = Run(settings(*arguments, **changes), processes=1).start().when_saved(2)
    with pytest.raises(InputError, match="output_dir: another run"):
        train(train_config(*arguments, **changes))
    pid = loading.running[0].pid
    os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1]), signal.SIGKILL)
    codes, (log,) = loading.wait()
    assert codes == [1] and "Traceback" not in log and "loads data died" in log
    loading.to_its_end()  # the same command continues
    assert record(loading.folder)["finished"] and not (loading.folder / ".lock").exists()


@pytest.mark.parametrize("deepspeed", ["d.json", None])
def test_a_model_from_its_parts_loads_in_the_type_it_trains_in(monkeypatch, nano, tmp_path, deepspeed):
    compose = Mock(return_value=nano)
    monkeypatch.setattr(sft, "compose", compose)
    parts = {"llm": "l", "vision": "v", "projector": None}
    sft.load_for_training(train_config(tmp_path, "", tmp_path, model=parts, deepspeed=deepspeed, precision="bf16"))
    dtype = "bfloat16" if deepspeed else "float32"
    compose.assert_called_once_with(**parts, attn_implementation="sdpa", dtype=dtype)


@pytest.mark.parametrize(("loads", "changes", "used"), [
    (True, {}, "flash_attention_2"), (True, {"precision": "fp32"}, "sdpa"), (True, {"share_image": 2}, "sdpa"),
    (False, {}, "sdpa"), (False, {"attention": "flash_attention_2"}, None),  # installed, but for another torch
])  # fmt: skip
def test_flash_attention_is_used_if_it_loads(monkeypatch, tmp_path, loads, changes, used):
    """On a machine that claims a GPU and flash-attn; the kernels themselves need real ones."""

    def fake_load(model, attn_implementation, dtype):
        if attn_implementation == "flash_attention_2" and not loads:
            raise ImportError("flash_attn: undefined symbol")
        return SimpleNamespace(model=SimpleNamespace(set_attn_implementation=chosen.append))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda name: name == "flash_attn")
    monkeypatch.setattr(sft, "load", fake_load)
    config, chosen = train_config(tmp_path, "m", tmp_path, **{"precision": "bf16"} | changes), []
    with nullcontext() if used else pytest.raises(InputError, match="attention: flash_attention_2"):
        sft.load_for_training(config)
    assert [set(values.values()) for values in chosen] == ([{used}] if used else [])


@pytest.fixture
def evaluation(tmp_path):
    return {
        "benchmark": str(make_benchmark(tmp_path / "bench")),
        "steps": 2,
        "questions": 1,
        "reasoning": False,
        "max_new_tokens": 8,
    }


LORA = {"trainable": {"llm": "lora", "projector": "full"}, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}


@pytest.mark.parametrize("trained", [{"packing": True, "pack_tokens": 512}, LORA], ids=["packed", "lora"])
def test_a_benchmark_is_answered_during_training_and_changes_nothing(
    scenes, tiny_folder, evaluation, tmp_path, trained
):
    common = {"max_steps": 3, **trained}
    asked = train(train_config(scenes, tiny_folder, tmp_path / "asked", evaluation=evaluation, **common))
    plain = train(train_config(scenes, tiny_folder, tmp_path / "plain", **common))
    assert logged(asked, "point_accuracy") and len(logged(asked, "token_loss")) == 3
    assert sorted(path.name for path in (asked / "evaluation").iterdir()) == ["0000002_0.png", "0000003_0.png"]
    assert changed_parts(weights(asked), weights(plain)) == set()


def test_a_run_with_loading_workers_and_evaluation_ends_by_itself(scenes, tiny_folder, evaluation, tmp_path):
    """Workers ignore SIGTERM, by which multiprocessing ends them; the evaluation keeps a reference to the Trainer."""
    values = settings(scenes, tiny_folder, tmp_path / "run", evaluation=evaluation, dataloader_workers=2)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "trace_vlm.train.train", "--config", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert record(tmp_path / "run")["finished"]
    with Image.open(tmp_path / "run/curves.png") as curves:  # drawn here alone, see `no_curves`
        assert curves.width > 500 and len(set(curves.resize((200, 200)).convert("L").getdata())) > 10


def test_a_broken_image_of_the_benchmark_stops_a_run_before_its_first_step(scenes, tiny_folder, evaluation, tmp_path):
    image = Path(evaluation["benchmark"]) / "images/wide.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(InputError, match=r"evaluation: .*wide\.png"):
        train(train_config(scenes, tiny_folder, tmp_path / "run", evaluation=evaluation))
