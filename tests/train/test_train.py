"""Training: what learns, what a configuration refuses, a killed run that continues, what is saved."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from train_together import Run

from trace_vlm.cli import main as trace_vlm
from trace_vlm.model.checkpoint import load
from trace_vlm.train import checkpoints, sft
from trace_vlm.train.config import TrainConfig, load_config
from trace_vlm.train.optimizer import MuonWithAdamW
from trace_vlm.train.param_groups import choose, learning, make_optimizer, part_of, summary
from trace_vlm.train.train import train
from trace_vlm.train.trainer import LanguageTrainer
from trace_vlm.utils.command import InputError
from trace_vlm.utils.config import build_config

CONFIGS = Path(__file__).parents[2] / "configs"


def settings(scenes, out, model="nano-random", **changes):
    found = yaml.safe_load((CONFIGS / "nano_projector.yaml").read_text())
    found |= {"model": str(model), "data": [str(scenes / "captions.json")], "image_folder": str(scenes)}
    found |= {"output_dir": str(out), "max_steps": 6, "save_steps": 2, "logging_steps": 1, "global_batch_size": 4}
    found |= {"micro_batch_size": 4, "share_image": 3, "dataloader_workers": 0, "report_to": []}
    return found | changes


def config(scenes, out, **changes):
    return build_config(TrainConfig, settings(scenes, out, **changes), "test")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_opens_with_its_command(path):
    first = path.read_text().splitlines()
    assert any("trace.train.train" in line or "scripts/" in line for line in first[:6] if line.startswith("#"))
    load_config(path, ["output_dir=out"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learnig_rate=1", "unknown key learnig_rate"),
        ("learning_rate=fast", "learning_rate"),
        ("max_steps=1.5", "max_steps"),
        ("precision=fp64", "precision"),
        ("global_batch_size=10", "global_batch_size: 10 is no multiple"),
        ("micro_batch_size=0", "micro_batch_size: 0 is not positive"),
        ("trainable=[projektor]", "trainable: .*projektor"),
        ("grounding_loss.wait=1", "unknown key grounding_loss.wait"),
        ("trainable={llm: adapters}", "trainable.llm"),
        ("trainable={llm: frozen, projector: frozen}", "nothing would learn"),
        ("learning_rates.vision=1", "learning_rates.vision: is given, but the vision is frozen"),
        ("lora.r=8", "grounding_loss: does not go with lora"),
        ("gradient_checkpointing=true", "grounding_loss: does not go with gradient_checkpointing"),
        ("max_steps=0", "max_steps: 0 is neither positive nor -1"),
        ("warmup_ratio=100", "warmup_ratio: 100.0 is no share of the steps"),
        ("learning_rate=0", "learning_rate: 0.0 is not positive"),
        ("weight_decay=-1", "weight_decay: -1.0 is neither 0 nor a positive number"),
        ("lr_schedule=cosin", "lr_schedule"),
        ("report_to=wandbb", "report_to"),
        ("evaluation={benchmark: b, steps: 0}", "evaluation.steps: 0 is not positive"),
        ("packing=true", "grounding_loss: does not go with packing"),
        ("deepspeed=a.json", "muon does not go with deepspeed"),
        ("learning_rates.projector=1e-4", "learning_rates: do not go with optimizer: muon"),
        ("learning_rate=.nan", "learning_rate"),
        ("max_grad_norm=.inf", "max_grad_norm"),
        ("weight_decay=.nan", "weight_decay"),
        ("muon_learning_rate=-1", "muon_learning_rate: -1.0 is not positive"),
        ("seed=-1", "seed: -1 is neither 0 nor a positive number"),
        ("data=[1, 2]", r"data"),
        ("optimizer", "expected key=value"),
    ],
)
def test_a_wrong_setting_is_named(override, said):
    with pytest.raises(InputError, match=said):
        load_config(CONFIGS / "train_nano.yaml", ["data=a.json", "output_dir=o", override])


def test_a_rate_of_a_part_is_positive():
    with pytest.raises(InputError, match=r"learning_rates\.projector: -0.0001 is not positive"):
        load_config(CONFIGS / "train_7b_lora.yaml", ["learning_rates.projector=-1e-4"])


def test_overrides_reach_into_sections():
    loaded = load_config(
        CONFIGS / "train_nano.yaml", ["output_dir=o", "grounding_loss.weight=0.5", "learning_rate=2e-6"]
    )
    assert loaded.grounding_loss.weight == 0.5 and loaded.grounding_loss.layer == 2
    assert loaded.learning_rate == 2e-6


def test_accumulation_is_derived_or_refused():
    loaded = load_config(CONFIGS / "train_nano.yaml", ["output_dir=o", "global_batch_size=32", "micro_batch_size=8"])
    assert (loaded.accumulation(1), loaded.accumulation(2)) == (4, 2)
    with pytest.raises(InputError, match="8 x 3; none is"):
        loaded.accumulation(3)
    with pytest.raises(InputError, match="8 x 8; micro_batch_size=4 is"):
        loaded.accumulation(8)


PREFIXES = {
    "vision": "model.vision_tower",
    "projector": "model.multi_modal_projector",
    "llm": ("model.language", "lm_head"),
}


@pytest.mark.parametrize(
    "trainable",
    [
        ["vision"], ["projector"], ["projector", "llm"], ["vision", "projector", "llm"],
        {"llm": "full"}, {"llm": "frozen", "projector": "full"}, {"vision": "full"},
    ],
    ids=str,
)  # fmt: skip
def test_exactly_the_named_parts_learn(trainable):
    chosen = build_config(
        TrainConfig, {"model": "nano-random", "data": "d", "output_dir": "o", "trainable": trainable}, "test"
    )
    model = choose(load("nano-random").model, chosen)
    expected = {
        name for name, _ in model.named_parameters() if any(name.startswith(PREFIXES[part]) for part in chosen.learns)
    }
    assert set(learning(model)) == expected and expected
    if isinstance(trainable, list):
        assert set(chosen.learns) == set(trainable)


def test_adapters_and_the_projector_learn_each_at_its_rate():
    found = {
        "model": "nano-random",
        "data": "d",
        "output_dir": "o",
        "trainable": {"llm": "lora"},
        "lora": {"r": 2, "alpha": 4},
    }
    found |= {"learning_rate": 2e-4, "learning_rates": {"projector": 2e-5}, "weight_decay": 0.1}
    chosen = build_config(TrainConfig, found, "test")
    model = choose(load("nano-random").model, chosen)
    names = set(learning(model))
    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == 4 * 7 * 2 and all(".language_model.layers." in name for name in adapters)
    assert {name.split("default.")[1] for name in names - adapters} == {
        "linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias",
    }  # fmt: skip
    groups = make_optimizer(model, chosen).param_groups
    assert [(one["part"], one["lr"], one["weight_decay"]) for one in groups] == [
        ("llm", 2e-4, 0.1), ("projector", 2e-5, 0.1), ("projector", 2e-5, 0.0),
    ]  # fmt: skip
    assert summary(model, chosen).startswith("learns: llm lora (0.02 M at 0.0002), projector full (0.03 M at 2e-05)")


def test_training_changes_what_learns_and_nothing_else(scenes, tmp_path):
    before = load("nano-random").model.state_dict()
    folder = train(config(scenes, tmp_path / "run", trainable=["projector"]))
    after = load(folder).model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (part_of(name) != "projector"), name
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"] and record["steps"] == 6 and record["cpu_seconds"] > 0
    assert record["config"]["grounding_loss"] == {"weight": 0.3, "layer": 2, "head": 0}
    assert list(record["data_sha256"].values())[0]
    assert (folder / "curves.png").stat().st_size > 1000
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "token_loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert not (folder / "checkpoints").exists()


def test_a_finished_run_is_not_repeated_and_another_configuration_is_refused(scenes, tmp_path, capsys):
    first = config(scenes, tmp_path / "run", max_steps=1)
    train(first)
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    train(first)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="learning_rate: 0.0015, now 0.5"):
        train(config(scenes, tmp_path / "run", max_steps=1, learning_rate=0.5))


def test_a_folder_with_something_else_in_it_is_left_alone(scenes, nano_folder, tmp_path):
    mine = tmp_path / "mine"
    (mine / "checkpoints").mkdir(parents=True)
    (mine / "checkpoints" / "weights.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"output_dir: .*mine holds checkpoints and no run\.json"):
        train(config(scenes, mine))
    assert (mine / "checkpoints" / "weights.bin").read_bytes() == b"mine"
    base = tmp_path / "base"
    shutil.copytree(nano_folder, base)
    before = (base / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"output_dir: .*base holds"):
        train(config(scenes, base, model=base))
    assert (base / "model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="output_dir: is empty"):
        train(config(scenes, ""))


def test_data_that_changed_since_the_run_began_are_noticed(scenes, tiny_folder, tmp_path):
    data = tmp_path / "data.json"
    data.write_text((scenes / "captions.json").read_text())
    changes = {"model": tiny_folder, "data": [str(data)], "max_steps": 1, "grounding_loss": None}
    train(config(scenes, tmp_path / "run", **changes))
    data.write_text(json.dumps(json.loads(data.read_text())[::-1]))
    with pytest.raises(InputError, match=r"data: .*data\.json is not what it was when the run in .*run began"):
        train(config(scenes, tmp_path / "run", **changes))


HOLD = "import sys; from pathlib import Path; from trace_vlm.utils.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_one_run_at_a_time_has_the_folder(scenes, tiny_folder, tmp_path):
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="output_dir: another run is at work in"):
            train(config(scenes, tmp_path / "run", model=tiny_folder, max_steps=1, grounding_loss=None))
        other.kill()
    assert train(config(scenes, tmp_path / "run", model=tiny_folder, max_steps=1, grounding_loss=None)) is not None
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_run_that_shall_not_resume_leaves_nothing_of_the_old_one(scenes, tiny_folder, tmp_path):
    changes = {"model": tiny_folder, "max_steps": 1, "grounding_loss": None, "resume": "never"}
    folder = train(config(scenes, tmp_path / "run", **changes))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))
    old = folder / "checkpoints" / "checkpoint-1"
    old.mkdir(parents=True)
    (old / "world.json").write_text("{}")
    seen = []
    saving = LanguageTrainer._save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageTrainer, "_save_checkpoint", lambda *a: (seen.append(old.exists()), saving(*a))[1])
        train(config(scenes, tmp_path / "run", **changes))
    assert seen == [False]


def test_what_a_mean_over_forward_passes_depends_on_may_not_change(scenes, tiny_folder, tmp_path):
    changes = {"model": tiny_folder, "max_steps": 1, "grounding_loss": None}
    train(config(scenes, tmp_path / "step", **changes))
    train(config(scenes, tmp_path / "step", **changes, micro_batch_size=2))
    train(config(scenes, tmp_path / "mean", **changes, loss_norm="microbatch"))
    with pytest.raises(InputError, match="micro_batch_size: 4, now 2"):
        train(config(scenes, tmp_path / "mean", **changes, loss_norm="microbatch", micro_batch_size=2))


def test_a_part_of_an_epoch_has_the_trainers_number_of_steps(scenes, tmp_path):
    longer = config(scenes, tmp_path, max_steps=-1, epochs=1.5, global_batch_size=4)
    assert (longer.steps(13), longer.steps(16), longer.steps(2)) == (5, 6, 1)  # 1.5 x 3 is 4.5, begun steps count


def test_a_full_disk_is_one_sentence(scenes, tiny_folder, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 448 vs 342")

    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("transformers.Trainer._save_checkpoint", full)
    changes = {"model": tiny_folder, "max_steps": 1, "grounding_loss": None}
    with pytest.raises(RuntimeError, match="enforce fail"):  # there is room: something else is wrong
        train(config(scenes, tmp_path / "room", **changes))
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: room._replace(free=4096))
    with pytest.raises(InputError, match=r"output_dir: the disk of .*full is full, .*continues from the last save"):
        train(config(scenes, tmp_path / "full", **changes))


def test_a_killed_run_continues_to_the_same_weights(scenes, tmp_path):
    whole = train(config(scenes, tmp_path / "whole", max_steps=8))
    killed = Run(settings(scenes, tmp_path / "killed", max_steps=8), processes=1)
    started = killed.start().when(lambda: (killed.folder / "checkpoints/checkpoint-4").is_dir())
    started.processes[0].kill()
    assert started.wait().codes == [-signal.SIGKILL]
    assert not (killed.folder / "config.json").exists()
    killed.to_its_end()
    assert json.loads((killed.folder / "run.json").read_text())["finished"]
    one, two = load(whole).model.state_dict(), load(killed.folder).model.state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_lora_is_a_standard_adapter_with_the_projector(scenes, nano_folder, tmp_path):
    folder = train(
        config(
            scenes, tmp_path / "lora", model=str(nano_folder), grounding_loss=None, optimizer="adamw",
            lora={"r": 4, "alpha": 8, "dropout": 0.0}, max_steps=3,
        )
    )  # fmt: skip
    assert (folder / "adapter_config.json").is_file() and not (folder / "model.safetensors").exists()
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any("multi_modal_projector" in name for name in names)
    assert not any("vision_tower" in name for name in names)
    assert trace_vlm(["convert", str(folder), str(tmp_path / "merged")]) == 0
    merged, base = load(tmp_path / "merged").model.state_dict(), load(nano_folder).model.state_dict()
    changed = {part_of(name) for name, tensor in base.items() if not torch.equal(tensor, merged[name])}
    assert changed == {"llm", "projector"}


def test_the_vision_stand_in_trains_the_tower_alone(scenes, tmp_path):
    found = yaml.safe_load((CONFIGS / "nano_vision.yaml").read_text())
    found |= {"data": [str(scenes)], "output_dir": str(tmp_path / "vision"), "max_steps": 3, "global_batch_size": 4}
    found |= {"micro_batch_size": 4, "dataloader_workers": 0, "report_to": []}
    folder = train(build_config(TrainConfig, found, "test"))
    before, after = load("nano-random").model.state_dict(), load(folder).model.state_dict()
    changed = {part_of(name) for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"vision", "projector"}  # the projector's first layer takes the features' scale
    assert set(json.loads((folder / "run.json").read_text())["held_out_patch_accuracy"]) == {
        "color",
        "category",
        "x",
        "y",
    }


def test_missing_inputs_stop_a_run_before_it_starts(scenes, tmp_path):
    with pytest.raises(InputError, match=r"data: the file .*none\.json does not exist"):
        train(config(scenes, tmp_path / "a", data=[str(tmp_path / "none.json")]))
    with pytest.raises(InputError, match="image_folder"):
        train(config(scenes, tmp_path / "b", image_folder=str(tmp_path / "none")))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        train(config(scenes, tmp_path / "file"))
    with pytest.raises(InputError, match="grounding_loss.layer: 9 is none of the model's 0 to 3"):
        train(config(scenes, tmp_path / "c", grounding_loss={"layer": 9}))
    with pytest.raises(InputError, match="data: is empty"):
        train(config(scenes, tmp_path / "f", data=[]))
    with pytest.raises(InputError, match="template: unknown conversation template 'foo'"):
        train(config(scenes, tmp_path / "g", template="foo"))
    with pytest.raises(InputError, match=r"evaluation\.benchmark: the folder /nope does not exist"):
        train(config(scenes, tmp_path / "h", evaluation={"benchmark": "/nope"}))
    with pytest.raises(InputError, match="model: the folder /nope does not exist"):
        train(config(scenes, tmp_path / "i", model="/nope"))
    with pytest.raises(InputError, match="report_to: wandb is not installed; pip install wandb"):
        train(config(scenes, tmp_path / "d", report_to=["wandb"]))
    with pytest.raises(InputError, match="attention: flash_attention_2 needs a GPU"):
        train(config(scenes, tmp_path / "e", attention="flash_attention_2"))


def test_too_little_memory_on_a_gpu_is_one_sentence(scenes, tiny_folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(LanguageTrainer, "compute_loss", full)
    with pytest.raises(InputError, match=r"micro_batch_size: 4 does not fit .*\(step 1\); .* Tried to allocate 3 GiB"):
        train(config(scenes, tmp_path / "run", model=tiny_folder, grounding_loss=None))


@pytest.mark.parametrize(("deepspeed", "precision"), [("d.json", "bf16"), ("d.json", "fp32"), (None, "bf16")])
def test_a_model_from_its_parts_loads_in_the_type_it_trains_in(monkeypatch, nano, deepspeed, precision):
    asked = []
    monkeypatch.setattr(sft, "compose", lambda **options: asked.append(options) or nano)
    parts = {"llm": "l", "vision": "v", "projector": None}
    found = {"model": parts, "data": "d", "output_dir": "o", "deepspeed": deepspeed, "precision": precision}
    sft.load_for_training(build_config(TrainConfig, found, "test"))
    half = deepspeed is not None and precision == "bf16"
    assert asked == [{**parts, "attn_implementation": "sdpa", "dtype": "bfloat16" if half else "float32"}]


@pytest.mark.parametrize(
    ("loads", "changes", "said"),
    [
        (True, {}, "attention: flash_attention_2"),
        (False, {}, "attention: sdpa"),  # installed, but of another build
        (True, {"precision": "fp32"}, "attention: sdpa"),
        (True, {"share_image": 2}, "attention: sdpa"),
        (True, {"attention": "sdpa"}, "attention: sdpa"),
    ],
)
def test_flash_attention_is_taken_when_it_loads_and_the_log_says_what_is(monkeypatch, loads, changes, said):
    """On a machine that says it has a GPU and flash-attn; its kernels themselves need the real ones."""
    taken, told = [], []

    class Model:
        def set_attn_implementation(self, chosen):
            taken.append(chosen)

    def fake_load(config, name):
        if name == sft.FLASH and not loads:
            raise ImportError("flash_attn: undefined symbol")
        return type("Loaded", (), {"model": Model()})()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda name: name == "flash_attn")
    monkeypatch.setattr(sft, "_load", fake_load)
    found = {"model": "m", "data": "d", "output_dir": "o", "precision": "bf16"} | changes
    sft.load_for_training(build_config(TrainConfig, found, "test"), told.append)
    assert told == [said] and set(taken[0].values()) == {said.removeprefix("attention: ")}


def test_flash_attention_that_does_not_load_is_an_error_where_it_was_asked_for(monkeypatch):
    def refuse(config, name):
        raise ImportError("flash_attn: undefined symbol")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sft, "_load", refuse)
    found = {"model": "m", "data": "d", "output_dir": "o", "attention": sft.FLASH}
    with pytest.raises(InputError, match="attention: flash_attention_2 cannot be used here: .*undefined symbol"):
        sft.load_for_training(build_config(TrainConfig, found, "test"))


def test_both_optimizers_step_save_and_follow_one_schedule():
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))
    optimizer = MuonWithAdamW([matrix], [{"params": [vector], "lr": 0.1}], 0.02, 0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def step():
        (matrix.sum() + vector.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]
    state = json.dumps(optimizer.state_dict(), default=lambda value: value.tolist())
    again = MuonWithAdamW([matrix], [{"params": [vector], "lr": 0.1}], 0.02, 0.05)
    again.load_state_dict(optimizer.state_dict())
    assert json.dumps(again.state_dict(), default=lambda value: value.tolist()) == state
    assert [group["lr"] for group in again.param_groups] == [0.01, 0.05]
    before = matrix.detach().clone()
    step()
    assert not torch.equal(before, matrix)


def test_twenty_steps_of_the_nano_model_follow_the_recorded_curve(scenes, tmp_path):
    """Rows that share images, the grounding loss, Muon: `configs/train_nano.yaml` from random weights, recorded."""
    overrides = [f"data={scenes / 'captions.json'}", f"image_folder={scenes}", f"output_dir={tmp_path / 'run'}"]
    overrides += ["model=nano", "max_steps=20", "logging_steps=1", "report_to=[]"]
    folder = train(load_config(CONFIGS / "train_nano.yaml", overrides))
    golden = json.loads((Path(__file__).parent / "golden/nano_20_steps.json").read_text())
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for name, values in golden.items():
        found = [entry[name] for entry in logged if "token_loss" in entry]
        assert found == pytest.approx(values, rel=1e-3), name  # other processors round differently, and it adds up


@pytest.fixture
def bench(scenes, tmp_path):
    bench = tmp_path / "bench"
    (bench / "images").mkdir(parents=True)
    (bench / "masks").mkdir()
    picture = sorted((scenes / "images").iterdir())[0]
    shutil.copy(picture, bench / "images/a.png")
    Image.new("L", (128, 128), 255).save(bench / "masks/7.png")
    (bench / "point_questions.jsonl").write_text(json.dumps({"question_id": 7, "image": "a.png", "text": "Where?"}))
    return bench


def test_a_benchmark_is_answered_while_training_goes_on(scenes, tiny_folder, bench, tmp_path):
    evaluation = {"benchmark": str(bench), "steps": 2, "questions": 1, "reasoning": False, "max_new_tokens": 8}
    common = {"grounding_loss": None, "optimizer": "adamw", "max_steps": 3, "share_image": 1, "global_batch_size": 8}
    common |= {"packing": True, "pack_tokens": 512, "max_length": 128}
    asked = train(config(scenes, tmp_path / "asked", model=tiny_folder, evaluation=evaluation, **common))
    plain = train(config(scenes, tmp_path / "plain", model=tiny_folder, **common))
    logged = [json.loads(line) for line in (asked / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "point_accuracy" in entry] == [2, 3]
    assert [entry["step"] for entry in logged if "token_loss" in entry] == [1, 2, 3]
    assert sorted(path.name for path in (asked / "evaluation").iterdir()) == ["0000002_7.png", "0000003_7.png"]
    one, two = load(asked).model.state_dict(), load(plain).model.state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())  # asking changes nothing


def test_a_loading_process_that_is_killed_is_named_and_the_same_command_continues(scenes, tiny_folder, tmp_path):
    changes = {"grounding_loss": None, "optimizer": "adamw", "max_steps": 60, "save_steps": 2, "dataloader_workers": 1}
    loading = Run(settings(scenes, tmp_path / "run", model=tiny_folder, **changes), processes=1)
    started = loading.start().when(lambda: (loading.folder / "checkpoints/checkpoint-2").is_dir())
    pid = started.processes[0].pid
    loader = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1]
    os.kill(int(loader), signal.SIGKILL)
    ended = started.wait()
    assert ended.codes == [1] and "Traceback" not in ended.logs[0]
    assert re.search(
        r"error: a process that loads data died \(.+\); the same command continues from the last checkpoint",
        ended.logs[0],
    )
    loading.to_its_end()
    assert json.loads((loading.folder / "run.json").read_text())["finished"]


def test_a_broken_picture_of_the_benchmark_stops_a_run_before_its_first_step(scenes, tiny_folder, bench, tmp_path):
    (bench / "images" / "a.png").write_bytes((bench / "images" / "a.png").read_bytes()[:60])
    evaluation = {"benchmark": str(bench), "steps": 2, "questions": 1}
    with pytest.raises(InputError, match=r"evaluation: the image .*a\.png cannot be read"):
        train(
            config(scenes, tmp_path / "run", model=tiny_folder, evaluation=evaluation, grounding_loss=None, max_steps=3)
        )


def test_a_run_with_loader_workers_and_evaluation_ends_by_itself(scenes, tiny_folder, bench, tmp_path):
    """Workers do not hear SIGTERM, by which multiprocessing ends them; the evaluation holds on to the Trainer."""
    evaluation = {"benchmark": str(bench), "steps": 2, "questions": 1, "reasoning": False, "max_new_tokens": 8}
    changes = {"grounding_loss": None, "optimizer": "adamw", "max_steps": 2, "dataloader_workers": 2}
    found = settings(scenes, tmp_path / "run", model=tiny_folder, evaluation=evaluation, **changes)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(found))
    command = [sys.executable, "-m", "trace_vlm.train.train", "--config", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"]
