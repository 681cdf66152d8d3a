"""What stops a run, and what its steps report: losses that are not finite, spikes, broken images, signals, metrics."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from train_together import record, train_config

from trace_vlm.model.checkpoint import load, save
from trace_vlm.model.families.llava import LlavaCheckpoint
from trace_vlm.train import step_metrics
from trace_vlm.train.guards import SPIKE_WINDOW, Preempted, StopSignal, TrainingGuard, TrainingStopped, broken_ids
from trace_vlm.train.step_metrics import StepMetrics, peak_flops
from trace_vlm.train.train import train
from trace_vlm.utils.command import InputError


def test_ctrl_c_asks_to_save_and_a_second_one_ends_at_once():
    with StopSignal() as stop:
        stop.stepping = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and stop.name == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with StopSignal(), pytest.raises(Preempted, match="Ctrl-C before the first step"):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_not_finite_stops_with_the_samples_of_its_step(scenes, tiny_folder, tmp_path):
    checkpoint = load(tiny_folder)
    with torch.no_grad():
        checkpoint.model.lm_head.weight[7] = torch.nan
    save(LlavaCheckpoint(checkpoint.model, checkpoint.processor, "poisoned", "poisoned"), tmp_path / "poisoned")
    with pytest.raises(TrainingStopped, match="step 1"):
        train(train_config(scenes, tmp_path / "poisoned", tmp_path / "run"))
    report = json.loads((tmp_path / "run/not_finite.0.json").read_text())
    ids = {sample["id"] for sample in json.loads((scenes / "captions.json").read_text())}
    named = [name for forward in report["forward_passes"] for name in forward["ids"]]
    assert report["step"] == 1 and len(named) == 8 and set(named) <= ids
    assert not (tmp_path / "run/config.json").exists()


def test_a_spike_is_logged_with_its_samples(tmp_path, capsys):
    guard = TrainingGuard(tmp_path, 0)
    for step in range(SPIKE_WINDOW):
        assert guard.check_spikes(step, {"loss": 1.0, "grad_norm": 0.5}, [["a"]]) == []
    assert guard.check_spikes(60, {"loss": 1.1, "grad_norm": 4.0}, [["b", "c"], ["d"]]) == ["grad_norm"]
    (line,) = (tmp_path / "spikes.0.jsonl").read_text().splitlines()
    expected = {"step": 60, "loss": 1.1, "grad_norm": 4.0, "spike": ["grad_norm"], "ids": [["b", "c"], ["d"]]}
    assert json.loads(line) == expected
    assert "step 60: grad_norm 4" in capsys.readouterr().out


def test_broken_images_are_counted_once_and_too_many_stop_the_run(tmp_path):
    guard = TrainingGuard(tmp_path, 1)
    samples = {3: ["three"], 9: ["nine", "ten"]}  # of a row; nine and ten share an image

    def names(rows):
        return [name for row in rows for name in samples[row]]

    assert guard.record_broken({3: "it is cut off", 9: "it is no image"}, names) == 3
    assert guard.record_broken({9: "it is no image"}, names) == 0
    assert broken_ids(tmp_path) == ["nine", "ten", "three"]
    guard.check_broken(2, 64)
    guard.check_broken(12, 1500)
    with pytest.raises(InputError, match="image_folder: 12 of 1000"):
        guard.check_broken(12, 1000)


def test_a_run_with_a_broken_image_names_it(scenes, tiny_folder, tmp_path):
    samples = json.loads((scenes / "captions.json").read_text())[:4]
    (tmp_path / "data").symlink_to(scenes)
    for sample in samples:
        sample["image"] = f"data/{sample['image']}"
    (tmp_path / "broken.png").write_bytes(b"no image")
    samples[2]["image"] = "broken.png"
    (tmp_path / "data.json").write_text(json.dumps(samples))
    changes = {"data": [str(tmp_path / "data.json")], "image_folder": str(tmp_path), "packing": True, "max_steps": 1}
    folder = train(train_config(scenes, tiny_folder, tmp_path / "run", **changes, global_batch_size=4))
    assert record(folder)["broken_images"] == [samples[2]["id"]]


def test_losses_are_separated_by_kind_and_task():
    metrics = StepMetrics(torch.device("cpu"), 1)
    metrics.add_losses(torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.tensor([4, 5, 8, -1]))
    metrics.add(samples=2, tokens=60, capacity=80)
    assert metrics.close_step()["loss"] == pytest.approx(7 / 3)
    entries = metrics.report()
    assert entries["loss_reasoning"] == 1.0 and entries["loss_answer"] == 3.0 and "loss_text" not in entries
    assert entries["loss_object_reference"] == 1.5 and entries["loss_free_space"] == 4.0
    assert entries["padding_share"] == pytest.approx(0.25)
    assert metrics.report() == {}


def test_mfu_is_useful_operations_over_the_peak_of_all_gpus(monkeypatch):
    clock = iter([10.0, 14.0, 14.0])
    with monkeypatch.context() as patch:
        patch.setattr(step_metrics.time, "monotonic", lambda: next(clock))
        patch.setattr(step_metrics, "peak_flops", lambda device: 100.0)
        patch.setattr(torch.distributed, "all_reduce", lambda sums: None)
        metrics = StepMetrics(torch.device("cpu"), 2)
        metrics.add(samples=1, tokens=10, capacity=10, flops=160.0)
        metrics.close_step()
        entries = metrics.report()
    assert entries["mfu"] == pytest.approx(160 / 4 / 200) and entries["tokens_per_second"] == 2.5


@pytest.mark.parametrize(("name", "peak"), [("H100 80GB HBM3", 989e12), ("H100 PCIe", 756e12), ("?", None)])
def test_the_peak_of_a_gpu_is_that_of_its_form(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak


def test_a_process_says_what_failed_also_on_a_full_disk(tmp_path):
    code = """if True:
        import resource, sys
        from pathlib import Path
        from trace_vlm.train.guards import end_together
        from trace_vlm.utils.command import InputError

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # stands for the full disk
        with end_together(Path(sys.argv[1]), 0, 2):
            raise InputError("the disk is full")"""
    done = subprocess.run([sys.executable, "-P", "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "error: the disk is full" in done.stderr and "Traceback" not in done.stderr
