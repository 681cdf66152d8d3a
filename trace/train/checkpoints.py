"""Checkpoints while training goes on: written whole, found again, and read by another number of processes.

Sharded optimizer states of DeepSpeed belong to the number of processes that wrote them. Another number reads them
through DeepSpeed's universal format, with two repairs that ZeRO needs there: its parameter groups would share one
step counter, which each of them then raises, and all would get the settings of the first one.

DeepSpeed's states are pickles, and reading a pickle can run anything: resume only what you wrote yourself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..utils.command import InputError
from ..utils.files import read_json, write_json

UNFINISHED = ".unfinished"
WORLD = "world.json"
NO_ROOM = 4 << 20  # bytes


def note_world(checkpoint: Path, processes: int) -> None:
    write_json(checkpoint / WORLD, {"processes": processes})


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; what a kill left half written lies elsewhere and is not looked at."""
    found = [path for path in folder.glob("checkpoint-*") if (path / WORLD).is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """What writes inside fails in as many ways as it uses libraries; an InputError where the disk has no room."""
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(folder).free > NO_ROOM:
            raise
        raise InputError(
            f"output_dir: the disk of {folder} is full, the model could not be written ({' '.join(str(error).split())}); "
            "make room, and the same command continues from the last save"
        ) from None


@contextmanager
def universal(trainer: Any, checkpoint: str | None) -> Iterator[None]:
    """Inside, DeepSpeed loads `checkpoint` although another number of processes wrote it."""
    if checkpoint is None or not trainer.is_deepspeed_enabled:
        yield
        return
    written = read_json(Path(checkpoint) / WORLD)["processes"]
    if written == trainer.args.world_size:
        yield
        return
    if trainer.is_world_process_zero():
        print(f"{checkpoint} was written by {written} processes, now there are {trainer.args.world_size}: converting")
        _convert(Path(checkpoint))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    settings: list[dict[str, Any]] = []
    created = trainer.create_optimizer

    def noting() -> Any:
        optimizer = created()
        settings[:] = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return optimizer

    trainer.create_optimizer = noting
    try:
        yield
    finally:
        del trainer.create_optimizer
    _repair(_innermost(trainer.optimizer), settings, trainer.lr_scheduler.get_last_lr())


def _convert(checkpoint: Path) -> None:
    if (checkpoint / "latest_universal").is_file():
        return
    step = (checkpoint / "latest").read_text().strip()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(checkpoint / step), "--output_folder", str(checkpoint / f"{step}_universal")]
    done = subprocess.run([*command, *folders], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{checkpoint} cannot be converted for another number of processes: {reason}")


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _repair(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]], rates: list[float]) -> None:
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    for group, own, rate in zip(optimizer.param_groups, settings, rates, strict=True):
        group.update(own)
        group["lr"] = rate
