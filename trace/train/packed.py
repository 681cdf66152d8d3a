"""Attention for rows laid end to end in one line: each sees itself, none sees another, and nothing is paid for that.

Registered with transformers' attention interface under `IMPLEMENTATION`; a packed batch brings its `Line`. On a GPU in
half precision the line goes through `torch.nn.attention.varlen` as it is; elsewhere each row goes through SDPA alone,
so that no mask of the line's squared length is ever made.

Tensor names carry their axes: B batch (always 1), H heads, T tokens of the line, D dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ..data.collate import branch_visibility

IMPLEMENTATION = "trace_line"


@dataclass(frozen=True)
class Line:
    """Where each row of a line ends, and which branch of its row a token is in (None: rows without branches)."""

    ends: tuple[int, ...]
    branch_BT: Tensor | None
    device: torch.device

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        return list(pairwise((0, *self.ends)))

    @cached_property
    def longest(self) -> int:
        return max(end - start for start, end in self.rows)

    @cached_property
    def bounds(self) -> Tensor:
        return torch.tensor((0, *self.ends), dtype=torch.int32, device=self.device)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """For each row the mask of its branches, None where plain causality says all."""
        if self.branch_BT is None:
            return [None] * len(self.rows)
        pieces = [self.branch_BT[:, start:end] for start, end in self.rows]
        return [branch_visibility(piece) if int(piece.max()) > 1 else None for piece in pieces]


def packed_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    line: Line | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`[B, T, H, D]` of a line. ValueError for a batch that brings no `line`."""
    if line is None:
        raise ValueError(f"attention {IMPLEMENTATION!r} is for packed batches only")
    if uses_varlen(query_BHTD) and line.branch_BT is None:
        return _varlen(query_BHTD, key_BHTD, value_BHTD, scaling, line), None
    grouped = query_BHTD.shape[1] != key_BHTD.shape[1]
    parts = []
    for (start, end), mask in zip(line.rows, line.masks, strict=True):
        row = slice(start, end)
        parts.append(
            functional.scaled_dot_product_attention(
                query_BHTD[:, :, row],
                key_BHTD[:, :, row],
                value_BHTD[:, :, row],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def uses_varlen(tensor: Tensor) -> bool:
    """Whether `torch.nn.attention.varlen` takes this: it has kernels for half precision on GPUs only."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


def _varlen(query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scaling: float, line: Line) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_THD, key_THD, value_THD = (one[0].transpose(0, 1) for one in (query_BHTD, key_BHTD, value_BHTD))
    out_THD = varlen_attn(
        query_THD, key_THD, value_THD, line.bounds, line.bounds, line.longest, line.longest,
        scale=scaling, window_size=(-1, 0), enable_gqa=query_THD.shape[1] != key_THD.shape[1],
    )  # fmt: skip
    return out_THD[None]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
