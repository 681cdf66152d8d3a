"""The order of training: which rows make a step, and which of them each process takes in each forward pass.

A function of the seed, the epoch and the step alone. The rows of a step do not depend on how many processes there
are, on packing or on grouping, so a run continues on another number of GPUs with the same steps. The rows left over
at the end of an epoch, fewer than a step, are not used in it; the next shuffle leaves out others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..utils.command import InputError
from .batching import Bins, by_length, in_order, laid_out, passes_needed

Layout = Literal["in_order", "by_length", "packed"]


@dataclass(frozen=True)
class Order:
    """Steps of rows. `steps` is what the whole run will take: packing looks ahead at the lines it has to fill."""

    lengths: NDArray[np.int32]
    rows_a_step: int
    seed: int
    layout: Layout
    micro: int  # rows a forward pass, unless packed
    processes: int
    steps: int
    budget: int = 0  # tokens a line, when packed
    reserve: int = 0

    @property
    def steps_an_epoch(self) -> int:
        return len(self.lengths) // self.rows_a_step

    def passes(self) -> int:
        """Forward passes a step of one process."""
        if self.layout != "packed":
            return self.rows_a_step // (self.micro * self.processes)
        return passes_needed([*self._all()], self.lengths, self.budget, self.processes, self.reserve)

    def _all(self) -> Iterator[NDArray[np.int64]]:
        done, epoch = 0, 0
        while done < self.steps:
            order = self.shuffled(epoch)
            for step in range(min(self.steps_an_epoch, self.steps - done)):
                yield order[step * self.rows_a_step : (step + 1) * self.rows_a_step]
            done, epoch = done + self.steps_an_epoch, epoch + 1

    def shuffled(self, epoch: int) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(len(self.lengths), generator=generator).numpy()

    def bins(self, rows: NDArray[np.int64], passes: int) -> Bins:
        """The rows of each forward pass of each process: process p takes numbers p, p + processes, ..."""
        if self.layout == "packed":
            return laid_out(rows, self.lengths, passes * self.processes)
        if self.layout == "by_length":
            return by_length(rows, self.lengths, self.micro)
        return in_order(rows, self.micro)


class ProcessBatches:
    """The batches of one process, as a DataLoader's `batch_sampler`.

    Raises:
        InputError: there are fewer rows than a step takes.
    """

    def __init__(self, order: Order, process: int, passes: int) -> None:
        if order.steps_an_epoch < 1:
            raise InputError(f"global_batch_size: {order.rows_a_step} is more than the {len(order.lengths)} rows")
        self.order, self.process, self.passes, self.epoch = order, process, passes, 0

    @property
    def batch_sampler(self) -> ProcessBatches:
        """Itself: the Trainer looks for `set_epoch` here."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.order.steps_an_epoch * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order.shuffled(self.epoch)
        for step in range(self.order.steps_an_epoch):
            rows = order[step * self.order.rows_a_step : (step + 1) * self.order.rows_a_step]
            yield from self.order.bins(rows, self.passes)[self.process :: self.order.processes]
