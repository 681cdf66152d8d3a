"""Which rows of an optimizer step go into one forward pass: by number, by length, or laid end to end up to a budget.

The rows of a step are chosen before this module is asked, by a shuffle alone. What happens here never changes them,
so packed, grouped and padded runs see the same rows in the same step and differ only in how much padding they pay.
Nothing here needs torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..utils.command import InputError

Bins = list[list[int]]


def in_order(rows: NDArray[np.int64], size: int) -> Bins:
    """Consecutive rows, `size` a forward pass."""
    return [rows[start : start + size].tolist() for start in range(0, len(rows), size)]


def by_length(rows: NDArray[np.int64], lengths: NDArray[np.int32], size: int) -> Bins:
    """Rows of like length together, `size` a forward pass, the longest first.

    A picture is hundreds of tokens, so that texts and pictures part by themselves.
    """
    return in_order(rows[np.argsort(-lengths[rows], kind="stable")], size)


def laid_out(rows: NDArray[np.int64], lengths: NDArray[np.int32], bins: int) -> Bins:
    """`bins` lines of almost equal length: each row, the longest first, goes to the line that is shortest so far.

    The lines come longest first, so that neighbours, which go to different processes at the same time, are alike.
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    heap = [(0, number) for number in range(bins)]
    lines: Bins = [[] for _ in range(bins)]
    for row in order.tolist():
        tokens, number = heapq.heappop(heap)
        lines[number].append(row)
        heapq.heappush(heap, (tokens + int(lengths[row]), number))
    totals = {number: tokens for tokens, number in heap}
    return [lines[number] for number in sorted(range(bins), key=lambda number: -totals[number])]


def passes_needed(
    steps: Sequence[NDArray[np.int64]], lengths: NDArray[np.int32], budget: int, processes: int, reserve: int = 0
) -> int:
    """Forward passes a step of one process, the fewest for which every line of every step keeps the budget.

    Args:
        steps: the rows of every step of the run.
        budget: tokens a line may have.
        reserve: tokens that an empty picture would add to a line without pictures.
    Raises:
        InputError: the budget is smaller than a row, or a step has fewer rows than there are lines to fill.
    """
    longest = max(int(lengths[rows].max()) for rows in steps)
    if longest + reserve > budget:
        raise InputError(f"pack_tokens: {budget} is less than the longest row, {longest + reserve} tokens; raise it")
    heaviest = max(int(lengths[rows].sum(dtype=np.int64)) for rows in steps)
    passes = max(1, -(-heaviest // (budget * processes)))
    fewest = min(len(rows) for rows in steps)
    for rows in steps:
        while _longest_line(rows, lengths, passes * processes) + reserve > budget:
            passes += 1
            if passes * processes > fewest:
                raise InputError(
                    f"pack_tokens: {fewest} rows a step do not fit {budget} tokens on {processes} processes; "
                    "raise pack_tokens or lower max_length"
                )
    if passes * processes > fewest:
        raise InputError(f"global_batch_size: {fewest} rows a step are fewer than {passes} x {processes} lines to fill")
    return passes


def _longest_line(rows: NDArray[np.int64], lengths: NDArray[np.int32], bins: int) -> int:
    return int(lengths[laid_out(rows, lengths, bins)[0]].sum())


def padding_share(steps: Sequence[Bins], lengths: NDArray[np.int32]) -> float:
    """The share of tokens that are padding when every forward pass is padded to its longest row."""
    real = padded = 0
    for bins in steps:
        for rows in bins:
            real += int(lengths[rows].sum())
            padded += int(lengths[rows].max()) * len(rows)
    return 1 - real / padded
