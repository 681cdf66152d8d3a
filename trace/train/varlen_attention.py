"""Attention for rows laid end to end in one line: each sees itself, none sees another, and nothing is paid for that.

Registered with transformers' attention interface under `IMPLEMENTATION`; a packed batch brings its `Line`. On a GPU in
half precision the line goes through `torch.nn.attention.varlen` as it is; elsewhere each row goes through SDPA alone,
so that no mask of the line's squared length is ever made.

Tensor names carry their axes: B batch (always 1), H heads, T tokens of the line, D dimensions of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .collate import branch_visibility
from .config import TrainConfig

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


@torch.compiler.disable  # a line is no tensor, and its kernel stands alone anyway
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
    kind = query_BHTD.device.type
    if torch.is_autocast_enabled(kind):  # the rotary embedding leaves queries and keys in float32
        half = torch.get_autocast_dtype(kind)
        query_BHTD, key_BHTD, value_BHTD = (one.to(half) for one in (query_BHTD, key_BHTD, value_BHTD))
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
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and _varlen_kernel() is not None


def kernel(config: TrainConfig) -> str:
    """What computes the attention of this run's lines here, for the log."""
    if not torch.cuda.is_available() or config.precision != "bf16" or _varlen_kernel() is None:
        return "SDPA row by row"
    return "torch varlen" + (", SDPA where rows share an image" if config.share_image > 1 else "")


@lru_cache
def _varlen_kernel() -> Callable[..., Any] | None:
    """torch's, where it has one that knows causal windows and a scale (torch 2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters) else None


def _varlen(query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scaling: float, line: Line) -> Tensor:
    varlen = _varlen_kernel()
    assert varlen is not None  # `uses_varlen`
    query_THD, key_THD, value_THD = (one[0].transpose(0, 1) for one in (query_BHTD, key_BHTD, value_BHTD))
    shared = {"enable_gqa": True} if query_THD.shape[1] != key_THD.shape[1] else {}
    bounds, longest = line.bounds, line.longest
    out_THD = varlen(
        query_THD, key_THD, value_THD, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), **shared
    )
    return out_THD[None]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
