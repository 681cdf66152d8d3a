"""Two processes under DeepSpeed: saved, killed, resumed, gathered, loaded, merged."""

from __future__ import annotations

import json
import os
import signal
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed", reason="DeepSpeed comes with --gpu")

from train_together import Run

from trace_vlm.cli import main as trace_vlm
from trace_vlm.model.checkpoint import load
from trace_vlm.train import plan
from trace_vlm.train.checkpoints import last_checkpoint
from trace_vlm.train.config import TrainConfig
from trace_vlm.train.model_size import total_params, trained_params
from trace_vlm.utils.config import build_config

ROOT = Path(__file__).parents[2]
FULL = {"trainable": {"llm": "full", "projector": "full"}}
LORA = {"trainable": {"llm": "lora", "projector": "full"}, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}


def settings(scenes, base, out, zero, precision, trained, **changes):
    found = {
        "model": str(base), "data": [str(scenes / "captions.json")], "image_folder": str(scenes),
        "output_dir": str(out), "learning_rate": 1e-3, "learning_rates": {"projector": 5e-4}, "warmup_ratio": 0.2,
        "max_steps": 4, "save_steps": 2, "save_total_limit": 2, "logging_steps": 1, "global_batch_size": 8,
        "micro_batch_size": 2, "packing": True, "pack_tokens": 160, "max_length": 96, "dataloader_workers": 0,
        "report_to": [], "precision": precision, "deepspeed": str(ROOT / f"configs/deepspeed/zero{zero}.json"),
    }  # fmt: skip
    return found | trained | changes


def losses(folder):
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in logged if "loss" in entry}


def weights(folder):
    return load(folder).model.state_dict()


def same(one, two):
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def saved(run, step):
    return lambda: (run.folder / "checkpoints" / f"checkpoint-{step}").is_dir()


def test_zero3_lora_in_bf16_ends_on_sigterm_and_continues_bit_for_bit(scenes, tiny_folder, tmp_path):
    longer = {"max_steps": 8, "save_steps": 3}
    whole = Run(settings(scenes, tiny_folder, tmp_path / "whole", 3, "bf16", LORA, **longer))
    whole.to_its_end()
    cut = Run(settings(scenes, tiny_folder, tmp_path / "cut", 3, "bf16", LORA, **longer))
    started = cut.start().when(saved(cut, 3))
    os.kill(started.processes[1].pid, signal.SIGTERM)  # one process is told; both have to agree
    ended = started.wait()
    assert ended.codes == [143, 143], ended.logs
    assert "the same command continues" in ended.logs[0]
    last = last_checkpoint(cut.folder / "checkpoints")
    assert load(last).model is not None  # adapter, projector and processor, while training is not over
    assert not (cut.folder / "adapter_config.json").exists()
    cut.to_its_end()
    assert losses(cut.folder) == losses(whole.folder) and len(losses(whole.folder)) == 8
    assert same(weights(whole.folder), weights(cut.folder))
    assert trace_vlm(["convert", str(whole.folder), str(tmp_path / "merged")]) == 0
    merged, base = weights(tmp_path / "merged"), weights(tiny_folder)
    changed = {name.split(".")[1] for name, tensor in base.items() if not torch.equal(tensor, merged[name])}
    assert changed == {"language_model", "multi_modal_projector"}


def test_zero2_full_in_fp32_survives_kill_9_of_one_process(scenes, tiny_folder, tmp_path):
    whole = Run(settings(scenes, tiny_folder, tmp_path / "whole", 2, "fp32", FULL, packing=False))
    whole.to_its_end()
    cut = Run(settings(scenes, tiny_folder, tmp_path / "cut", 2, "fp32", FULL, packing=False))
    started = cut.start().when(saved(cut, 2))
    for process in started.processes:
        process.kill()
    started.wait()
    assert not (cut.folder / "config.json").exists()
    cut.to_its_end()
    assert losses(cut.folder) == losses(whole.folder)
    assert same(weights(whole.folder), weights(cut.folder))
    assert json.loads((cut.folder / "run.json").read_text())["finished"]


def test_a_process_that_fails_before_all_have_met_takes_the_others_down(scenes, tiny_folder, tmp_path):
    run = Run(settings(scenes, tiny_folder, tmp_path / "run", 2, "bf16", LORA), sabotage="early")
    ended = run.start().wait()
    assert ended.codes == [1, 2] and ended.seconds < 60
    assert "image_folder: is not on this node" in ended.logs[1] and "another process failed" in ended.logs[0]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_compiled_layers_learn_the_same_under_deepspeed(scenes, tiny_folder, tmp_path, zero):
    trained = LORA | {"lora": {**LORA["lora"], "dropout": 0.0}}
    found = []
    for compiled in (False, True):
        folder = tmp_path / f"compiled_{compiled}"
        run = Run(settings(scenes, tiny_folder, folder, zero, "fp32", trained, compile=compiled))
        run.to_its_end()
        found.append(losses(folder))
        assert load(folder).model is not None
    for step, (loss, norm) in found[0].items():
        assert found[1][step] == (pytest.approx(loss, abs=1e-5), pytest.approx(norm, rel=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_compiled_layers_with_shared_dropout_resume_bit_for_bit(scenes, tiny_folder, tmp_path, zero):
    trained = LORA | {"lora": {**LORA["lora"], "shared_dropout": True}}
    whole = Run(settings(scenes, tiny_folder, tmp_path / "whole", zero, "bf16", trained, compile=True))
    whole.to_its_end()
    cut = Run(settings(scenes, tiny_folder, tmp_path / "cut", zero, "bf16", trained, compile=True))
    started = cut.start().when(saved(cut, 2))
    for process in started.processes:
        process.kill()
    started.wait()
    cut.to_its_end()
    assert losses(cut.folder) == losses(whole.folder)
    assert same(weights(whole.folder), weights(cut.folder))


MATRIX = list(product((2, 3), ("fp32", "bf16"), (FULL, LORA)))


def named(value):
    return {2: "zero2", 3: "zero3"}.get(value) if isinstance(value, int) else value if isinstance(value, str) else None


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "precision", "trained"), MATRIX, ids=lambda v: named(v) or v["trainable"]["llm"])
def test_every_pair_resumes_bit_for_bit_and_on_another_number_of_processes(
    scenes, tiny_folder, tmp_path, zero, precision, trained
):
    trained = trained | ({"lora": {**LORA["lora"], "dropout": 0.0}} if "lora" in trained else {})
    whole = Run(settings(scenes, tiny_folder, tmp_path / "whole", zero, precision, trained))
    whole.to_its_end()
    cut = Run(settings(scenes, tiny_folder, tmp_path / "cut", zero, precision, trained))
    started = cut.start().when(saved(cut, 2))
    for process in started.processes:
        process.kill()
    started.wait()
    other = tmp_path / "other"
    other.mkdir()
    for part in ("run.json", "trainable.json"):
        (other / part).write_bytes((cut.folder / part).read_bytes())
    (cut.folder / "checkpoints").rename(tmp_path / "kept")
    for target in (cut.folder, other):
        _copy(tmp_path / "kept/checkpoint-2", target / "checkpoints/checkpoint-2")
    assert load(tmp_path / "kept/checkpoint-2").model is not None  # gathered while training went on
    _check_size(cut.settings, tmp_path / "kept/checkpoint-2")
    cut.to_its_end()
    assert losses(cut.folder) == losses(whole.folder)
    assert same(weights(whole.folder), weights(cut.folder))
    if "lora" in trained:
        assert trace_vlm(["convert", str(cut.folder), str(tmp_path / "merged")]) == 0
        assert same(weights(cut.folder), weights(tmp_path / "merged"))
    alone = Run(settings(scenes, tiny_folder, other, zero, precision, trained), processes=1)
    alone.to_its_end()
    apart = [abs(a[0] - b[0]) for a, b in zip(losses(other).values(), losses(whole.folder).values(), strict=True)]
    print(f"zero{zero} {precision} {trained['trainable']['llm']}: other world {max(apart):.1e}")
    assert max(apart) < (1e-5 if precision == "fp32" else 1e-2)


def _check_size(settings, checkpoint):
    """The plan's bytes of a checkpoint are those of its tensors; tiny ones leave room for what surrounds them."""
    config = build_config(TrainConfig, settings, "test")
    _, size = plan.model_dimensions(config)
    rank = config.lora.r if config.lora else 0
    total, trained = total_params(size, config.modes, rank), trained_params(size, config.modes, rank)
    found = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.suffix in (".safetensors", ".pt"))
    expected = plan._checkpoint_bytes(config, total, trained)
    print(f"checkpoint: {found} bytes, planned {expected}")
    assert expected < found < (1.3 if config.modes.llm == "full" else 3.5) * expected


def _copy(source, target):
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)
