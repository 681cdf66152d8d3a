"""Several processes without DeepSpeed, as torchrun starts them: the same steps, SIGTERM, failing together."""

import json
import os
import signal

import pytest
import torch
from train_together import Run, changed_parts, logged, settings, weights

from trace_vlm.cli import main as trace_vlm
from trace_vlm.train.checkpoints import last_checkpoint


def test_two_processes_make_the_steps_of_one(scenes, tiny_folder, tmp_path):
    changes = {"share_image": 3, "group_by_length": False, "optimizer": "muon", "max_length": 96}
    changes |= {"grounding_loss": {"weight": 0.3, "layer": 1, "head": 0}, "dataloader_workers": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, folder in ((1, one), (2, two)):
        Run(settings(scenes, tiny_folder, folder, **changes), processes).to_its_end()
    for name in ("token_loss", "grounding_loss", "samples_per_second"):
        assert len(logged(two, name)) == 4
    assert logged(two) == pytest.approx(logged(one), abs=1e-5)
    first, second = weights(one), weights(two)
    assert all(torch.allclose(tensor, second[name], atol=1e-4) for name, tensor in first.items())


def test_a_trained_tower_goes_through_every_step(scenes, tiny_folder, tmp_path):
    """Its last layer is never read, and would be waited for."""
    changes = {"trainable": {"llm": "lora", "vision": "full"}, "lora": {"r": 2, "alpha": 4}, "precision": "bf16"}
    run = Run(settings(scenes, tiny_folder, tmp_path / "run", packing=True, **changes)).to_its_end()
    changed = changed_parts(weights(tiny_folder), weights(run.folder))
    assert changed == {"language_model", "multi_modal_projector", "vision_tower"}


def test_ctrl_c_in_one_process_saves_in_both_and_the_same_command_continues(scenes, tiny_folder, tmp_path):
    changes = {"max_steps": 24, "save_steps": 6}
    changes |= {"trainable": {"llm": "lora"}, "lora": {"r": 2, "alpha": 4, "dropout": 0.1}}
    complete = Run(settings(scenes, tiny_folder, tmp_path / "complete", **changes)).to_its_end()
    cut = Run(settings(scenes, tiny_folder, tmp_path / "cut", **changes)).start().when_saved(6)
    os.kill(cut.running[1].pid, signal.SIGINT)
    codes, logs = cut.wait()
    assert codes == [143, 143] and "Ctrl-C" in logs[1], logs
    # Adapter and projector load while training is not over.
    changed = changed_parts(weights(tiny_folder), weights(last_checkpoint(cut.folder / "checkpoints")))
    assert changed == {"language_model", "multi_modal_projector"}
    cut.to_its_end()
    assert logged(cut.folder) == logged(complete.folder) and len(logged(complete.folder)) == 24
    assert changed_parts(weights(complete.folder), weights(cut.folder)) == set()
    assert (cut.folder / "adapter_config.json").is_file() and not (cut.folder / "model.safetensors").exists()
    assert trace_vlm(["convert", str(cut.folder), str(tmp_path / "merged")]) == 0
    assert changed_parts(weights(cut.folder), weights(tmp_path / "merged")) == set()


def test_sigterm_before_the_first_step_ends_all_with_its_code(scenes, tiny_folder, tmp_path):
    codes, logs = Run(settings(scenes, tiny_folder, tmp_path / "run"), sabotage="preempted").start().wait()
    assert codes == [143, 143] and "before the first step" in logs[1]


def test_a_process_that_fails_takes_the_others_down_with_its_own_error(scenes, tiny_folder, tmp_path):
    run = Run(settings(scenes, tiny_folder, tmp_path / "run"), sabotage="fail")
    codes, logs = run.start().wait()
    assert 0 not in codes and "process 1 of 2" in logs[1] and "RuntimeError: the disk is gone" in logs[1]
    assert "failure.json" in logs[0] and "Traceback" not in logs[0]
    assert "the disk is gone" in json.loads((run.folder / "failure.json").read_text())["error"]
