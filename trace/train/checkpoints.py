"""Checkpoints of a running training: which one a killed run resumes from, and how another number of processes reads it.

DeepSpeed's sharded optimizer states belong to the number of processes that wrote them. Another number reads them
through its universal format, with two repairs that ZeRO needs: its parameter groups would share one step counter, which
each of them increases, and all would get the settings of the first one.

DeepSpeed's states are pickles, and loading a pickle can run any code: resume only what you wrote yourself.
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
from ..utils.files import read_json

UNFINISHED = ".unfinished"  # where a checkpoint is written before it is moved to its place
WORLD = "world.json"  # the number of processes that wrote a checkpoint, written last
FULL_DISK = 4 << 20  # bytes that are left on a full disk


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, None if there is none."""
    complete = [path for path in folder.glob("checkpoint-*") if (path / WORLD).is_file()]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn whatever the writing libraries raise on a full disk into an InputError."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (tokenizers raises the class itself)
        full = "No space left" in str(error) or shutil.disk_usage(folder).free <= FULL_DISK
        if isinstance(error, InputError) or not full:
            raise
        message = f"output_dir: the disk of {folder} is full, no model was written ({' '.join(str(error).split())})"
        raise InputError(f"{message}. Free some space; the same command continues.") from None


@contextmanager
def any_world_size(trainer: Any, checkpoint: str | None) -> Iterator[None]:
    """Let DeepSpeed load `checkpoint` inside the block, even if another number of processes wrote it."""
    folder, processes = Path(checkpoint or ""), trainer.args.world_size
    written = read_json(folder / WORLD)["processes"] if checkpoint and trainer.is_deepspeed_enabled else processes
    if written == processes:
        yield
        return
    if trainer.is_world_process_zero() and not (folder / "latest_universal").is_file():
        print(f"{folder} was written by {written} processes: converting it for {processes}")
        step = (folder / "latest").read_text().strip()
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(folder / step), "--output_folder", str(folder / f"{step}_universal")]
        conversion = subprocess.run(command, capture_output=True, text=True)
        if conversion.returncode:
            reason = (conversion.stderr.strip().splitlines() or ["unknown reason"])[-1]
            raise InputError(f"cannot convert {folder} for {processes} processes: {reason}. Use {written} processes.")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
    yield
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    rates = trainer.lr_scheduler.get_last_lr()
    for group, own, rate in zip(optimizer.param_groups, trainer.group_settings, rates, strict=True):
        group |= {**own, "lr": rate}
