"""What a run leaves beside its checkpoints: the log with its clocks, the model, the curves, the summary."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..core.records import write_json, write_jsonl
from .guards import broken_ids
from .trainer import Prepared

CURVES = ("loss", "token_loss", "grounding_loss", "loss_reasoning", "loss_answer", "loss_text", "learning_rate")
CURVES += ("grad_norm", "point_accuracy", "tokens_per_second")
LAST = ("config.json", "adapter_config.json")  # without it the folder is no model yet


class Clock(TrainerCallback):
    """Keeps `log.jsonl`: every logged step with its seconds of wall clock and of CPU, over resumes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = [entry for entry in state.log_history if "cpu_seconds" in entry]
        self._base = (before[-1]["seconds"], before[-1]["cpu_seconds"]) if before else (0.0, 0.0)
        self._start = (time.monotonic(), time.process_time())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kw: Any) -> None:
        if not state.log_history or not state.is_world_process_zero:
            return
        state.log_history[-1] |= {
            "seconds": round(self._base[0] + time.monotonic() - self._start[0], 2),
            "cpu_seconds": round(self._base[1] + time.process_time() - self._start[1], 2),
        }
        write_jsonl(self._path, state.log_history)


def finish(prepared: Prepared, folder: Path, record: Mapping[str, Any], seconds: float) -> None:
    """Save the model into the run's folder, then say that the run is whole. All processes take part."""
    unfinished = folder / ".model"
    if prepared.trainer.is_world_process_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
    prepared.save(unfinished)
    if not prepared.trainer.is_world_process_zero():
        return
    history = prepared.trainer.state.log_history
    for file in sorted(unfinished.iterdir(), key=lambda path: path.name in LAST):
        os.replace(file, folder / file.name)
    unfinished.rmdir()
    write_curves(history, folder)
    timed = next((entry for entry in reversed(history) if "cpu_seconds" in entry), {})
    broken = broken_ids(folder)
    if broken:
        print(f"{len(broken)} samples had pictures that cannot be read; nothing was learned from them")
    done = {
        "finished": True,
        "steps": prepared.trainer.state.global_step,
        "processes": prepared.trainer.args.world_size,
        "seconds": timed.get("seconds", round(seconds, 2)),
        "cpu_seconds": timed.get("cpu_seconds"),
        "broken_images": broken,
        **prepared.notes,
    }
    write_json(folder / "run.json", {**record, **done})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def write_curves(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    """The curves of every logged step as a picture."""
    from ..drawing.canvas import save
    from ..drawing.figures import training_curves

    shown = [name for name in CURVES if any(name in entry for entry in history)]
    save(training_curves({folder.name: history}, shown), folder / "curves.png")
