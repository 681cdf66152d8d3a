"""Several processes without DeepSpeed, as torchrun starts them: the same steps, SIGTERM, failing together."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from train_together import Run

from trace_vlm.model.checkpoint import load
from trace_vlm.train.checkpoints import last_checkpoint


def settings(scenes, base, out, **changes):
    found = {
        "model": str(base), "data": [str(scenes / "captions.json")], "image_folder": str(scenes),
        "output_dir": str(out), "learning_rate": 1e-3, "max_steps": 4, "save_steps": 100, "save_total_limit": 2,
        "logging_steps": 1, "global_batch_size": 8, "micro_batch_size": 4, "max_length": 96, "dataloader_workers": 0,
        "report_to": [], "precision": "fp32", "gradient_checkpointing": False,
    }  # fmt: skip
    return found | changes


def logged(folder, name="loss"):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def test_two_processes_make_the_steps_of_one(scenes, tiny_folder, tmp_path):
    changes = {"share_image": 3, "group_by_length": False, "optimizer": "muon"}
    changes |= {"grounding_loss": {"weight": 0.3, "layer": 1, "head": 0}, "dataloader_workers": 1}
    one, two = (tmp_path / name for name in ("one", "two"))
    Run(settings(scenes, tiny_folder, one, **changes), processes=1).to_its_end()
    Run(settings(scenes, tiny_folder, two, **changes), processes=2).to_its_end()
    for name in ("token_loss", "grounding_loss", "samples_per_second"):
        assert len(logged(two, name)) == 4
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), abs=1e-5)
    first, second = (load(folder).model.state_dict() for folder in (one, two))
    assert all(torch.allclose(tensor, second[name], atol=1e-4) for name, tensor in first.items())


def test_a_tower_that_learns_goes_through_every_step(scenes, tiny_folder, tmp_path):
    """Its last layer is never read, and would be waited for."""
    changes = {"trainable": {"llm": "lora", "vision": "full"}, "lora": {"r": 2, "alpha": 4}, "precision": "bf16"}
    run = Run(settings(scenes, tiny_folder, tmp_path / "run", packing=True, pack_tokens=256, **changes))
    run.to_its_end()
    before, after = load(tiny_folder).model.state_dict(), load(run.folder).model.state_dict()
    changed = {name.split(".")[1] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"language_model", "multi_modal_projector", "vision_tower"}


def test_sigterm_to_one_process_saves_in_both_and_the_same_command_continues(scenes, tiny_folder, tmp_path):
    lora = {"trainable": {"llm": "lora"}, "lora": {"r": 2, "alpha": 4, "dropout": 0.1}}
    lora |= {"max_steps": 24, "save_steps": 6}
    whole = Run(settings(scenes, tiny_folder, tmp_path / "whole", **lora))
    whole.to_its_end()
    cut = Run(settings(scenes, tiny_folder, tmp_path / "cut", **lora))
    started = cut.start().when(lambda: (cut.folder / "checkpoints/checkpoint-6").is_dir())
    os.kill(started.processes[1].pid, signal.SIGTERM)
    ended = started.wait()
    assert ended.codes == [143, 143], ended.logs
    assert "the same command continues" in ended.logs[0]
    names = {part.split(".")[0] for part in _saved(last_checkpoint(cut.folder / "checkpoints"))}
    assert names == {"language_model", "multi_modal_projector"}  # adapter and projector, while training is not over
    cut.to_its_end()
    assert logged(cut.folder) == logged(whole.folder) and len(logged(whole.folder)) == 24
    first, second = (load(folder).model.state_dict() for folder in (whole.folder, cut.folder))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _saved(folder):
    from safetensors import safe_open

    assert load(folder).model is not None
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return [name.removeprefix("base_model.model.model.") for name in file.keys()]  # noqa: SIM118


def test_sigterm_before_the_first_step_ends_all_with_its_code(scenes, tiny_folder, tmp_path):
    ended = Run(settings(scenes, tiny_folder, tmp_path / "run"), sabotage="preempted").start().wait()
    assert ended.codes == [143, 143] and "stopped by SIGTERM before the first step" in ended.logs[1]


def test_a_process_that_fails_takes_the_others_down_with_its_own_error_first(scenes, tiny_folder, tmp_path):
    run = Run(settings(scenes, tiny_folder, tmp_path / "run"), sabotage="fail 9")
    ended = run.start().wait()
    assert 0 not in ended.codes and ended.seconds < 60
    assert "process 1 of 2" in ended.logs[1] and "RuntimeError: the disk is gone" in ended.logs[1]
    assert "another process failed" in ended.logs[0] and "Traceback" not in ended.logs[0]
    assert "the disk is gone" in json.loads((run.folder / "failure.json").read_text())["error"]
