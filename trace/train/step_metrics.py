"""Metrics of every training step: sums over all processes (one small collective a step), and the log they go to.

Loss by what a token belongs to (reasoning, final coordinates, other text) and by the sample's task, tokens and padding,
speed, memory, and the flags that stop a run: processes have to agree on those, because one that leaves a step alone
leaves the others waiting in a collective.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..utils.files import write_jsonl
from .token_cache import KINDS, TASKS

COUNTS = ("samples", "tokens", "capacity", "broken", "flops")
NAMES = ("stop", "not_finite", *COUNTS)
CELLS = len(TASKS) * len(KINDS)
# Dense bf16, as published by NVIDIA; of names that contain each other the longer one comes first.
GPU_PEAK_FLOPS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12,
    "L40S": 362e12,
}  # fmt: skip
CURVES = ("loss", "token_loss", "grounding_loss", "loss_reasoning", "loss_answer", "loss_text", "learning_rate")
CURVES += ("grad_norm", "point_accuracy", "tokens_per_second")
CURVES += ("reward", *(f"reward_{part}" for part in ("format", "mask", "count", "distinct", "place")), "reward_std")
CURVES += ("frac_reward_zero_std", "kl", "entropy", "clip_ratio/region_mean", "completions/mean_length")
CURVES += ("distinct_points", "true_places", "true_first_step", "answer_tokens")


class StepMetrics:
    """Sums of one step, and of the steps since the last log entry."""

    def __init__(self, device: torch.device, processes: int) -> None:
        self._device, self._processes = device, processes
        self._step = dict.fromkeys(NAMES, 0.0)
        self._cells = torch.zeros(2, CELLS, dtype=torch.float64, device=device)  # loss, tokens
        self._window = dict.fromkeys(COUNTS, 0.0)
        self._window_cells = torch.zeros(2, CELLS, dtype=torch.float64)
        self._since = time.monotonic()
        self.total = dict.fromkeys(COUNTS, 0.0)

    def add(self, **counts: float) -> None:
        for name, value in counts.items():
            self._step[name] += value

    def add_losses(self, losses: Tensor, kinds: Tensor) -> None:
        """Add the losses of single tokens, each with its `task * len(KINDS) + kind` (-1: not counted)."""
        known, cells = (kinds >= 0).double(), kinds.clamp_min(0)  # no selection: on a GPU its size would be waited for
        self._cells[0].index_add_(0, cells, losses.double() * known)
        self._cells[1].index_add_(0, cells, known)

    def close_step(self) -> dict[str, float]:
        """Sum over the processes; return flags and counts of the step, and its mean loss over tokens."""
        own = torch.tensor([self._step[name] for name in NAMES], dtype=torch.float64, device=self._device)
        sums = torch.cat([own, self._cells.flatten()])
        if self._processes > 1:
            torch.distributed.all_reduce(sums)
        counts, cells = sums.cpu().split([len(NAMES), 2 * CELLS])
        result, cells = dict(zip(NAMES, counts.tolist(), strict=True)), cells.view(2, CELLS)
        self._step = dict.fromkeys(NAMES, 0.0)
        self._cells.zero_()
        self._window_cells += cells
        for name in COUNTS:
            self._window[name] += result[name]
            self.total[name] += result[name]
        result["loss"] = float(cells[0].sum() / cells[1].sum()) if cells[1].sum() > 0 else 0.0
        return result

    def report(self) -> dict[str, float]:
        """Return the log entries of the steps since the last report."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        window, (losses, counts) = self._window, self._window_cells.clone().view(2, len(TASKS), len(KINDS))
        self._window, self._since = dict.fromkeys(COUNTS, 0.0), time.monotonic()
        self._window_cells.zero_()
        if not window["tokens"]:
            return {}
        by_name = [*zip(KINDS, losses.sum(0), counts.sum(0), strict=True)]
        by_name += zip(TASKS, losses.sum(1), counts.sum(1), strict=True)
        entries = {f"loss_{name}": float(loss / count) for name, loss, count in by_name if count}
        entries |= {f"{name}_per_second": window[name] / seconds for name in ("samples", "tokens")}
        entries["padding_share"] = 1 - window["tokens"] / window["capacity"]
        entries["memory_gib"] = peak_memory(self._device) / 2**30
        if peak := peak_flops(self._device):
            entries["mfu"] = window["flops"] / seconds / (peak * self._processes)
        return entries


def peak_memory(device: torch.device) -> float:
    """Return bytes: the peak of allocated memory on a GPU, or of the process's resident memory on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def peak_flops(device: torch.device) -> float | None:
    """Return the published peak of a GPU in FLOP/s, None if it is unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in GPU_PEAK_FLOPS.items() if part in name), None)


class LogWriter(TrainerCallback):
    """Write `log.jsonl`: every logged step with its seconds of wall clock and of CPU, summed over resumptions."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = next((entry for entry in reversed(state.log_history) if "cpu_seconds" in entry), {})
        self._begin = time.monotonic() - last.get("seconds", 0.0)
        self._cpu_begin = time.process_time() - last.get("cpu_seconds", 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kw: Any) -> None:
        if state.log_history and state.is_world_process_zero:
            seconds, cpu_seconds = time.monotonic() - self._begin, time.process_time() - self._cpu_begin
            state.log_history[-1] |= {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
            write_jsonl(self._path, state.log_history)


def write_curves(history: Sequence[Mapping[str, float]], folder: Path) -> None:
    from ..drawing.canvas import save_figure
    from ..drawing.figures import draw_training_curves

    shown = [name for name in CURVES if any(name in entry for entry in history)]
    save_figure(draw_training_curves({folder.name: history}, shown), folder / "curves.png")
