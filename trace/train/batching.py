"""Which rows make an optimizer step, and which of them each process takes in each forward pass.

A step's rows depend on the seed, the epoch and the step alone: not on the number of processes, on packing or on
grouping, which only decide how much padding is paid. A run therefore continues on another number of GPUs with the same
steps. Rows left over at the end of an epoch, fewer than a step, are not used in it; the next shuffle leaves out others.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.command import InputError

Batches = list[list[int]]
Layout = Literal["in_order", "by_length", "packed"]


def batch_rows(rows: NDArray[np.int64], size: int, lengths: NDArray[np.int32] | None = None) -> Batches:
    """Split rows into batches of `size`, in their order, or by length if `lengths` are given, longest first.

    An image is hundreds of tokens, so by length texts and images separate by themselves.
    """
    order = rows if lengths is None else rows[np.argsort(-lengths[rows], kind="stable")]
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def pack_rows(rows: NDArray[np.int64], lengths: NDArray[np.int32], count: int) -> Batches:
    """Distribute rows over `count` batches of almost equal length: the longest row goes to the shortest batch so far.

    Batches come longest first, so that neighbours, which different processes take at the same time, are similar.
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    heap = [(0, number) for number in range(count)]
    batches: Batches = [[] for _ in range(count)]
    for row in order.tolist():
        tokens, number = heapq.heappop(heap)
        batches[number].append(row)
        heapq.heappush(heap, (tokens + int(lengths[row]), number))
    totals = {number: tokens for tokens, number in heap}
    return [batches[number] for number in sorted(range(count), key=lambda number: -totals[number])]


@dataclass(frozen=True)
class BatchSchedule:
    """The rows of every step of a run. Packing looks ahead at all `steps`, because every step must fit its passes.

    Raises:
        InputError: there are fewer rows than a step takes.
    """

    lengths: NDArray[np.int32]
    rows_a_step: int
    seed: int
    layout: Layout
    micro_batch: int  # rows a forward pass, unless packed
    processes: int
    steps: int
    budget: int = 0  # tokens of a packed batch
    reserve: int = 0  # tokens that a blank image adds to a batch without images

    def __post_init__(self) -> None:
        if self.steps_an_epoch < 1:
            rows = len(self.lengths)
            raise InputError(f"global_batch_size: {self.rows_a_step} is more than the {rows} rows. Lower it.")

    @property
    def steps_an_epoch(self) -> int:
        return len(self.lengths) // self.rows_a_step

    def passes(self) -> int:
        """Return the forward passes of one process in a step; packed, the fewest for which all batches keep the budget.

        Raises:
            InputError: the budget is smaller than a row, or a step has fewer rows than batches.
        """
        if self.layout != "packed":
            return self.rows_a_step // (self.micro_batch * self.processes)
        budget, epochs = self.budget, range(-(-self.steps // self.steps_an_epoch))
        steps = [rows for epoch in epochs for rows in self.steps_of(epoch)][: self.steps]
        longest = max(int(self.lengths[rows].max()) for rows in steps) + self.reserve
        if longest > budget:
            raise InputError(f"pack_tokens: {budget} is less than the longest row, {longest} tokens. Raise it.")
        heaviest = max(int(self.lengths[rows].sum(dtype=np.int64)) for rows in steps)
        passes = max(1, -(-heaviest // (budget * self.processes)))
        for rows in steps:
            while passes * self.processes <= self.rows_a_step:
                first = pack_rows(rows, self.lengths, passes * self.processes)[0]  # the longest
                if int(self.lengths[first].sum()) + self.reserve <= budget:
                    break
                passes += 1
        if passes * self.processes > self.rows_a_step:
            problem = f"{self.rows_a_step} rows a step do not fill {passes} x {self.processes} packed batches"
            advice = "Raise pack_tokens or global_batch_size, or lower max_length."
            raise InputError(f"pack_tokens: {problem} of {budget} tokens. {advice}")
        return passes

    def steps_of(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        for step in range(self.steps_an_epoch):
            yield order[step * self.rows_a_step : (step + 1) * self.rows_a_step]

    def batches(self, rows: NDArray[np.int64], passes: int) -> Batches:
        """Return the batches of a step: process p takes numbers p, p + processes, ..."""
        if self.layout == "packed":
            return pack_rows(rows, self.lengths, passes * self.processes)
        return batch_rows(rows, self.micro_batch, self.lengths if self.layout == "by_length" else None)


class ProcessBatchSampler:
    """The batches of one process, as a DataLoader's `batch_sampler`."""

    def __init__(self, schedule: BatchSchedule, process: int, passes: int) -> None:
        self.schedule, self.process, self.passes, self.epoch = schedule, process, passes, 0
        self.batch_sampler = self  # the Trainer looks for `set_epoch` here

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.schedule.steps_an_epoch * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.schedule.steps_of(self.epoch):
            yield from self.schedule.batches(rows, self.passes)[self.process :: self.schedule.processes]
