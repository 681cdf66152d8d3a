"""Attention for packed rows: each row sees itself and none of the others, without a mask of the batch's squared length.

Registered with transformers' attention interface as `IMPLEMENTATION`; a packed batch brings its `PackedRows`. On a GPU
in half precision the batch goes through `torch.nn.attention.varlen`; elsewhere each row goes through SDPA alone.
Axes in tensor names: B batch (always 1), H heads, T tokens, D dimensions of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .config import TrainConfig
from .dataset import branch_visibility

IMPLEMENTATION = "trace_varlen"


class PackedRows:
    """Where each row of a packed batch ends, and the branch of every token (None: rows without branches)."""

    def __init__(self, ends: Sequence[int], branch_BT: Tensor | None, device: torch.device) -> None:
        self.rows = list(pairwise((0, *ends)))
        self.longest = max(end - start for start, end in self.rows)
        self.bounds = torch.tensor((0, *ends), dtype=torch.int32, device=device)
        self.has_branches = branch_BT is not None
        self.masks: list[Tensor | None] = [None] * len(self.rows)  # None where causality suffices
        if branch_BT is not None:
            rows = [branch_BT[:, start:end] for start, end in self.rows]
            self.masks = [branch_visibility(row) if int(row.max()) > 1 else None for row in rows]


@torch.compiler.disable  # PackedRows is no tensor, and the kernel stands alone anyway
def packed_attention(
    module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, attention_mask: None, scaling: float,
    dropout: float = 0.0, packed_rows: PackedRows | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Return `[B, T, H, D]` of a packed batch; ValueError for a batch without `packed_rows`."""
    if packed_rows is None:
        raise ValueError(f"attention {IMPLEMENTATION!r} is for packed batches only")
    kind = query_BHTD.device.type
    if torch.is_autocast_enabled(kind):  # the rotary embedding leaves queries and keys in float32
        half = torch.get_autocast_dtype(kind)
        query_BHTD, key_BHTD, value_BHTD = (tensor.to(half) for tensor in (query_BHTD, key_BHTD, value_BHTD))
    grouped = query_BHTD.shape[1] != key_BHTD.shape[1]
    if uses_varlen(query_BHTD) and not packed_rows.has_branches:
        varlen = varlen_kernel()
        assert varlen is not None
        out_THD = varlen(
            *(tensor[0].transpose(0, 1) for tensor in (query_BHTD, key_BHTD, value_BHTD)),
            packed_rows.bounds, packed_rows.bounds, packed_rows.longest, packed_rows.longest,
            scale=scaling, window_size=(-1, 0), **({"enable_gqa": True} if grouped else {}),
        )  # fmt: skip
        return out_THD[None], None
    outputs, options = [], dict[str, Any](dropout_p=dropout, scale=scaling, enable_gqa=grouped)
    for (start, end), mask in zip(packed_rows.rows, packed_rows.masks, strict=True):
        row = (tensor[:, :, start:end] for tensor in (query_BHTD, key_BHTD, value_BHTD))
        attend = functional.scaled_dot_product_attention
        outputs.append(attend(*row, attn_mask=mask, is_causal=mask is None, **options))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def uses_varlen(tensor: Tensor) -> bool:
    """Return whether `torch.nn.attention.varlen` takes this tensor: it has kernels for half precision on GPUs only."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and varlen_kernel() is not None


def describe_kernel(config: TrainConfig) -> str:
    """Return what computes the attention of this run's packed batches here, for the log."""
    if not torch.cuda.is_available() or config.precision != "bf16" or varlen_kernel() is None:
        return "SDPA row by row"
    return "torch varlen" + (", SDPA where rows share an image" if config.share_image > 1 else "")


@lru_cache
def varlen_kernel() -> Callable[..., Any] | None:
    """Return torch's kernel if it supports causal windows and a scale (torch 2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters) else None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *args, **kwargs: None)
