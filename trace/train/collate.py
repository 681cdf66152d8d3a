"""Rows as a batch, in two ways that compute the same: padded to the longest, or laid end to end.

Padded, rows stand under each other, `[rows, tokens]`, with a four-dimensional mask only where a row has branches.
Packed, they stand behind each other in one line, `[1, tokens]`; positions start anew at each row, and `row_ends` tells
the attention (`trace.train.varlen_attention`) where one ends, so that none sees another.

What depends on the labels alone is computed here, in a worker: on a GPU each such question would make the processor
wait for everything before it.

A batch without any picture, in data that has pictures elsewhere, gets an empty one whose tokens nothing sees: the
vision tower then runs in every process at every step, as the collective operations of ZeRO expect.

Tensor names carry their axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.prompts import IGNORE


class Collator:
    """Batches of rows from `RowDataset`.

    Args:
        pad_token_id: what a padded batch is filled with.
        blank: pixels `[3, side, side]` for batches without a picture, and the ids of its tokens; None when no batch
            has pictures.
        packed: lay the rows end to end.
    """

    def __init__(
        self,
        pad_token_id: int,
        blank: tuple[Tensor, Sequence[int]] | None = None,
        packed: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._pad, self._blank, self._packed, self._dtype = pad_token_id, blank, packed, dtype

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        pictured = any("pixel_values" in row for row in rows)
        items = list(rows)
        if self._blank is not None and not pictured:
            items = self._with_blank(items)
        batch = self._in_line(items) if self._packed else self._side_by_side(items)
        pixels = [row["pixel_values"] for row in items if "pixel_values" in row]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        if "guides" in rows[0]:
            numbers = [torch.full_like(row["guides"][0], index) for index, row in enumerate(rows)]
            positions = [row["guides"][0] for row in rows]
            batch["guided_rows"] = torch.stack([torch.cat(numbers), torch.cat(positions)], dim=1)
            batch["guided_patches"] = torch.cat([row["guides"][1] for row in rows])
        batch["rows"] = [row["row"] for row in rows]
        labelled_BT = batch["labels"][:, 1:] != IGNORE
        # Where a logit is wanted: position t predicts the label at t + 1. A forward pass with nothing to learn has a
        # loss of 0 at some position, so that every process runs the model.
        columns = labelled_BT.any(0).nonzero()[:, 0]
        batch["columns"] = columns if len(columns) else torch.zeros(1, dtype=torch.long)
        batch["learned"] = int(labelled_BT.sum())
        batch["broken"] = {row["row"]: row["broken"] for row in rows if "broken" in row}
        batch["tokens"] = sum(len(row["input_ids"]) for row in rows)
        return batch

    def _with_blank(self, rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The empty picture behind the shortest row, which is causal and never sees it."""
        assert self._blank is not None
        pixels, ids = self._blank
        shortest = min(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        row, tokens = rows[shortest], torch.tensor(list(ids))
        nothing = torch.full_like(tokens, IGNORE)
        added = {"input_ids": tokens, "labels": nothing, "kinds": torch.full_like(tokens, -1)}
        added |= {"position_ids": torch.arange(len(tokens)), "branch": torch.full_like(tokens, int(row["branch"][-1]))}
        longer = {name: torch.cat([row[name], tensor]) for name, tensor in added.items()}
        return [*rows[:shortest], {**row, **longer, "pixel_values": pixels}, *rows[shortest + 1 :]]

    def _side_by_side(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        def padded(name: str, value: int) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

        batch: dict[str, Any] = {
            "input_ids": padded("input_ids", self._pad),
            "labels": padded("labels", IGNORE),
            "kinds": padded("kinds", -1),
            "position_ids": padded("position_ids", 0),
        }
        branch_BT = padded("branch", -1)
        shared = int(branch_BT.max()) > 1
        batch["attention_mask"] = self._branch_mask(branch_BT) if shared else (branch_BT >= 0).long()
        return batch

    def _in_line(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = ("input_ids", "labels", "kinds", "position_ids", "branch")
        batch: dict[str, Any] = {name: torch.cat([row[name] for row in rows])[None] for name in names}
        ends = torch.tensor([len(row["input_ids"]) for row in rows]).cumsum(0)
        batch["labels"][0, ends[:-1]] = IGNORE  # nothing predicts a row's first token
        batch["kinds"][0, ends[:-1]] = -1
        batch["row_ends"] = ends.tolist()
        if int(batch["branch"].max()) <= 1:
            del batch["branch"]
        return batch

    def _branch_mask(self, branch_BT: Tensor) -> Tensor:
        """`[batch, 1, tokens, tokens]`, 0 or the type's lowest value: causal, within a branch or to the beginning."""
        allowed = branch_visibility(branch_BT)
        mask = torch.zeros(allowed.shape, dtype=self._dtype)
        return mask.masked_fill(~allowed, torch.finfo(self._dtype).min)


def branch_visibility(branch_BT: Tensor) -> Tensor:
    """`[B, 1, T, T]`, true where a query (third axis) may see a key: causal, in its own branch or the beginning."""
    length = branch_BT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_BT.device).tril()
    visible = (branch_BT[:, :, None] == branch_BT[:, None, :]) | (branch_BT[:, None, :] == 0)
    itself = torch.eye(length, dtype=torch.bool, device=branch_BT.device)  # padding sees itself: no empty softmax
    return ((visible & causal) | itself)[:, None]
