"""What watches over a run: numbers that are none, spikes, pictures that cannot be read, signals."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from trace_vlm.model.checkpoint import Checkpoint, load, save
from trace_vlm.train import step_metrics as tallying
from trace_vlm.train.config import TrainConfig
from trace_vlm.train.guards import REMEMBERED, Preempted, StopSignal, TrainingStopped, Watch, broken_ids
from trace_vlm.train.step_metrics import Tally
from trace_vlm.train.train import train
from trace_vlm.utils.command import InputError
from trace_vlm.utils.config import build_config


def config(scenes, model, out, **changes):
    found = {"model": str(model), "data": [str(scenes / "captions.json")], "image_folder": str(scenes)}
    found |= {"output_dir": str(out), "precision": "fp32", "dataloader_workers": 0, "report_to": [], "max_steps": 3}
    found |= {"global_batch_size": 4, "micro_batch_size": 2, "max_length": 128, "pack_tokens": 256, "logging_steps": 1}
    return build_config(TrainConfig, found | changes, "test")


def test_a_loss_that_is_no_number_stops_with_the_samples_of_its_step(scenes, tiny_folder, tmp_path):
    checkpoint = load(tiny_folder)
    with torch.no_grad():
        checkpoint.model.lm_head.weight[7] = torch.nan
    poisoned = tmp_path / "poisoned"
    save(Checkpoint(checkpoint.model, checkpoint.processor, "poisoned", "poisoned"), poisoned)
    with pytest.raises(TrainingStopped, match="step 1: the loss or its gradient is not a finite number"):
        train(config(scenes, poisoned, tmp_path / "run"))
    found = json.loads((tmp_path / "run/not_finite.0.json").read_text())
    ids = {sample["id"] for sample in json.loads((scenes / "captions.json").read_text())}
    named = [name for one in found["forward_passes"] for name in one["ids"]]
    assert found["step"] == 1 and len(named) == 4 and set(named) <= ids
    assert not (tmp_path / "run/config.json").exists()


def test_a_spike_is_told_with_its_samples_and_the_run_goes_on(tmp_path, capsys):
    watch = Watch(tmp_path, 0)
    for step in range(REMEMBERED):
        assert watch.spikes(step, {"loss": 1.0, "grad_norm": 0.5}, [["a"]]) == []
    assert watch.spikes(60, {"loss": 1.1, "grad_norm": 4.0}, [["b", "c"], ["d"]]) == ["grad_norm"]
    (line,) = (tmp_path / "spikes.0.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 60, "loss": 1.1, "grad_norm": 4.0, "spike": ["grad_norm"], "ids": [["b", "c"], ["d"]],
    }  # fmt: skip
    assert "step 60: grad_norm 4" in capsys.readouterr().out


def test_pictures_that_cannot_be_read_are_counted_once_and_too_many_stop_the_run(tmp_path):
    watch = Watch(tmp_path, 1)
    samples = {3: ["three"], 9: ["nine", "ten"]}  # of a row; nine and ten share an image

    def names(rows: list[int]) -> list[str]:
        return [name for row in rows for name in samples[row]]

    assert watch.broken({3: "it is cut off", 9: "it is no image"}, names) == 3
    assert watch.broken({9: "it is no image"}, names) == 0
    assert broken_ids(tmp_path) == ["nine", "ten", "three"]
    watch.check_broken(2, 64)
    watch.check_broken(12, 1500)
    with pytest.raises(InputError, match="image_folder: 12 of 1000 samples .* more than 1%"):
        watch.check_broken(12, 1000)


def test_a_run_with_a_broken_picture_ends_and_names_it(scenes, tiny_folder, tmp_path):
    samples = json.loads((scenes / "captions.json").read_text())[:4]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    samples[2]["image"] = str(tmp_path / "broken.png")
    (tmp_path / "data.json").write_text(json.dumps(samples))
    folder = train(config(scenes, tiny_folder, tmp_path / "run", data=[str(tmp_path / "data.json")], packing=True))
    assert json.loads((folder / "run.json").read_text())["broken_images"] == [samples[2]["id"]]


def test_a_run_with_too_many_broken_pictures_stops(scenes, tiny_folder, tmp_path):
    samples = json.loads((scenes / "captions.json").read_text())[:12]
    for index, sample in enumerate(samples[:8]):
        sample["image"] = str(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.png").write_bytes(b"no picture")
    (tmp_path / "data.json").write_text(json.dumps(samples))
    changes = {"data": [str(tmp_path / "data.json")], "global_batch_size": 12, "group_by_length": False}
    with pytest.raises(InputError, match="image_folder: 8 of 12 samples so far have pictures that cannot be read"):
        train(config(scenes, tiny_folder, tmp_path / "run", **changes))
    assert broken_ids(tmp_path / "run") == sorted({str(sample["id"]) for sample in samples[:8]})


def test_a_signal_is_a_wish_until_the_step_ends():
    with StopSignal() as stop:
        stop.after_a_step = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_before_the_first_step_ends_the_run():
    with pytest.raises(Preempted, match="before the first step"), StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)


def test_losses_are_told_apart_by_kind_and_task():
    tally = Tally(torch.device("cpu"), 1)
    tally.add_losses(torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.tensor([4, 5, 8, -1]))
    tally.add(samples=2, tokens=60, capacity=80)
    assert tally.close_step()["loss"] == pytest.approx(7 / 3)
    told = tally.report()
    assert told["loss_reasoning"] == 1.0 and told["loss_answer"] == 3.0 and "loss_text" not in told
    assert told["loss_object_reference"] == 1.5 and told["loss_free_space"] == 4.0
    assert told["padding_share"] == pytest.approx(0.25)
    assert tally.report() == {}


def test_utilisation_is_useful_operations_over_the_peak_of_all_gpus(monkeypatch):
    clock = iter([10.0, 14.0, 14.0])
    monkeypatch.setattr(tallying.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tallying, "peak_flops", lambda device: 100.0)
    tally = Tally(torch.device("cpu"), 1)
    tally.add(samples=1, tokens=10, capacity=10, flops=160.0)
    tally.close_step()
    tally._processes = 2  # as if the sum had been made over two
    told = tally.report()
    assert told["mfu"] == pytest.approx(160 / 4 / 200) and told["tokens_per_second"] == 2.5
    names = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H20": None,
    }
    monkeypatch.undo()
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert tallying.peak_flops(torch.device("cuda")) == peak
