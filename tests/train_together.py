"""Training runs of the tests: settings, what they leave, processes forked from a server that has imported everything."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

CONTEXT = multiprocessing.get_context("forkserver")
# What a run imports before its first step takes longer than its steps: here once for all.
CONTEXT.set_forkserver_preload([
    "trace_vlm.train.train", "trace_vlm.train.sft", "trace_vlm.model.build", "trace_vlm.model.saving",
    "transformers.models.llava.modeling_llava", "transformers.models.clip.modeling_clip",
    "transformers.models.qwen3_vl.modeling_qwen3_vl", "matplotlib.figure", "peft", "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
])  # fmt: skip
TIMEOUT = 300.0  # seconds; what hangs is noticed, what shares a busy machine is not


def settings(scenes, model, out, /, **changes):
    """A run of a few steps on the captions of `scenes`, in this process or by `Run`."""
    return {
        "model": str(model), "data": [str(scenes / "captions.json")], "image_folder": str(scenes),
        "output_dir": str(out), "learning_rate": 1e-3, "max_steps": 4, "save_steps": 2, "save_total_limit": 2,
        "logging_steps": 1, "global_batch_size": 8, "micro_batch_size": 4, "max_length": 128, "pack_tokens": 256,
        "dataloader_workers": 0, "report_to": [], "precision": "fp32", "gradient_checkpointing": False,
    } | changes  # fmt: skip


def train_config(scenes, model, out, /, **changes):
    from trace_vlm.train.config import TrainConfig
    from trace_vlm.utils.config import build_config

    return build_config(TrainConfig, settings(scenes, model, out, **changes), "test")


def no_curves(*_):
    """Stands for `draw_training_curves`, which takes longer than the few steps of a run."""
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def first_step(config):
    """Loss and gradients of the first step of a run, as its trainer computes them."""
    import torch

    from trace_vlm.train.guards import StopSignal
    from trace_vlm.train.sft import prepare

    Path(config.output_dir).mkdir()
    trainer = prepare(config, Path(config.output_dir), StopSignal())
    loader, passes = iter(trainer.get_train_dataloader()), trainer.args.gradient_accumulation_steps
    batches, items = trainer.get_batch_samples(loader, passes, torch.device("cpu"))
    losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=items) for batch in batches]
    sum(losses).backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return sum(loss.item() for loss in losses), gradients, trainer


def logged(folder, name="loss"):
    """What a run logged under `name`, step by step."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def weights(folder):
    from trace_vlm.model.checkpoint import load

    return load(folder).model.state_dict()


def changed_parts(before, after):
    """The parts of the model (language_model, vision_tower, ...) whose weights differ."""
    return {name.split(".")[1] for name, tensor in before.items() if not tensor.equal(after[name])}


@dataclass
class Run:
    """A configuration in a file, and the folder it fills; `sabotage` is of the last process."""

    settings: dict
    processes: int = 2
    sabotage: str = ""

    def __post_init__(self):
        self.folder = Path(self.settings["output_dir"])

    def start(self):
        config = self.folder.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(self.settings))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [self.folder.with_suffix(f".{rank}.log") for rank in range(self.processes)]
        self.running = []
        for rank, log in enumerate(self.logs):
            sabotage = self.sabotage if rank == self.processes - 1 else ""
            arguments = (rank, self.processes, port, str(config), str(log), sabotage)
            self.running.append(CONTEXT.Process(target=_work, args=arguments))
            self.running[-1].start()
        return self

    def wait(self):
        """Exit codes of the processes (negative: by a signal), and what each wrote."""
        for process in self.running:
            process.join(TIMEOUT)
        late = [process for process in self.running if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        texts = [log.read_text() for log in self.logs]
        assert not late, f"{len(late)} processes hang\n" + "\n".join(texts)
        return [process.exitcode for process in self.running], texts

    def when_saved(self, step):
        while not (self.folder / f"checkpoints/checkpoint-{step}").is_dir():
            assert any(process.is_alive() for process in self.running), self.wait()[1]
            time.sleep(0.01)
        return self

    def kill(self):
        for process in self.running:
            process.kill()
        self.wait()

    def to_its_end(self):
        codes, logs = self.start().wait()
        assert codes == [0] * self.processes, "\n".join(logs)
        return self


def _work(rank, processes, port, config, log, sabotage):
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from trace_vlm.drawing import figures
    from trace_vlm.train import train
    from trace_vlm.train.dataset import RowDataset
    from trace_vlm.utils.command import run

    figures.draw_training_curves = no_curves
    fetch, calls = RowDataset.__getitem__, []

    def fail_late(self, index):
        calls.append(index)
        if len(calls) == 9:
            raise RuntimeError("the disk is gone")
        return fetch(self, index)

    if sabotage == "fail":  # when a row is fetched for the 9th time
        RowDataset.__getitem__ = fail_late
    elif sabotage == "preempted":  # before the processes meet
        train.check_inputs = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    train.exit_process(run(train.main, ["--config", config]))
