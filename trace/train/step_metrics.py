"""What every step of training leaves behind: sums over all processes, made with one small collective a step.

Loss by what a token belongs to (the words of the reasoning, final coordinates, other text) and by the sample's task
(object reference, free space), tokens and padding, speed, memory, and the flags that stop a run: they have to be
agreed between processes, because one that leaves a step alone leaves the others hanging in a collective.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from .token_cache import KINDS, TASKS

FLAGS = ("stop", "not_finite")
COUNTS = ("samples", "tokens", "capacity", "broken", "flops")
CELLS = len(TASKS) * len(KINDS)
# Dense bf16, as published by the maker; of names that contain each other the longer one comes first.
GPU_PEAK_FLOPS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12,
    "L40S": 362e12,
}  # fmt: skip


class Tally:
    """Sums of one step, and of the steps since the last log entry."""

    def __init__(self, device: torch.device, processes: int) -> None:
        self._device, self._processes = device, processes
        self._step: dict[str, float] = {}
        self._cells = torch.zeros(2, CELLS, dtype=torch.float64, device=device)
        self._window: dict[str, float] = {}
        self._window_cells = torch.zeros(2, CELLS, dtype=torch.float64)
        self._since = time.monotonic()
        self.total: dict[str, float] = dict.fromkeys(COUNTS, 0.0)

    def add(self, **counts: float) -> None:
        """Count something of this process in the current step."""
        for name, value in counts.items():
            self._step[name] = self._step.get(name, 0.0) + value

    def add_losses(self, losses: Tensor, kinds: Tensor) -> None:
        """Losses of single tokens, and for each `task * len(KINDS) + kind` (-1: not counted)."""
        known, where = (kinds >= 0).double(), kinds.clamp_min(0)  # no selection: its size would be waited for on a GPU
        self._cells[0].index_add_(0, where, losses.double() * known)
        self._cells[1].index_add_(0, where, known)

    def close_step(self) -> dict[str, float]:
        """Sum over the processes; flags and counts of the step, and its mean loss over tokens."""
        names = FLAGS + COUNTS
        mine = torch.tensor([self._step.get(name, 0.0) for name in names], dtype=torch.float64, device=self._device)
        whole = torch.cat([mine, self._cells.flatten()])
        if self._processes > 1:
            torch.distributed.all_reduce(whole)
        values = whole.cpu()
        found = dict(zip(names, values[: len(names)].tolist(), strict=True))
        cells = values[len(names) :].view(2, CELLS)
        self._step = {}
        self._cells.zero_()
        self._window_cells += cells
        for name in COUNTS:
            self._window[name] = self._window.get(name, 0.0) + found[name]
            self.total[name] += found[name]
        found["loss"] = float(cells[0].sum() / cells[1].sum()) if cells[1].sum() > 0 else 0.0
        return found

    def report(self) -> dict[str, float]:
        """What the log gets about the steps since the last report."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        window, cells = self._window, self._window_cells.clone()
        self._window, self._since = {}, time.monotonic()
        self._window_cells.zero_()
        if not window.get("tokens"):
            return {}
        told = {
            **_losses(cells),
            "samples_per_second": window["samples"] / seconds,
            "tokens_per_second": window["tokens"] / seconds,
            "padding_share": 1 - window["tokens"] / window["capacity"],
            "memory_gib": peak_memory(self._device) / 2**30,
        }
        peak = peak_flops(self._device)
        if peak:
            told["mfu"] = window["flops"] / seconds / (peak * self._processes)
        return told


def _losses(cells: Tensor) -> Mapping[str, float]:
    sums, counts = cells.view(2, len(TASKS), len(KINDS))
    told: dict[str, float] = {}
    for names, axis in ((KINDS, 0), (TASKS, 1)):
        for name, loss, count in zip(names, sums.sum(axis).tolist(), counts.sum(axis).tolist(), strict=True):
            if count:
                told[f"loss_{name}"] = loss / count
    return told


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that was allocated on a GPU, or the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in GPU_PEAK_FLOPS.items() if part in name), None)
