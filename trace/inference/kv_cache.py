"""A key-value cache of slots, and an attention over it for tokens of many rows packed into one.

An attention function registered with transformers stores each packed token's key and value in its own slot and column,
and attends to that slot. Nothing is padded in the linear layers. The cache is one block from the start: growing it would
copy all of it, and leave holes of the old sizes on a GPU.

Tensor names carry their axes: N packed tokens, S slots, H heads, L tokens of a slot in a pass, T columns, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface

from ..model.attention_recorder import biased_mask, language_attention

IMPLEMENTATION = "trace_packed"
# Not cuDNN's: it plans anew for every number of columns, and each token adds one.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(slots=True)
class PackedTokens:
    """The tokens of a pass: slot s gets `counts[s]` tokens from column `starts[s]` on."""

    slots: list[int]
    starts: list[int]
    counts: list[int]
    longest: int  # of `counts`
    columns: int  # that any slot reaches after this pass
    slot_N: Tensor  # index of the slot among `slots`
    offset_N: Tensor  # index among the slot's new tokens
    columns_N: Tensor
    rows_N: Tensor  # slot in the cache

    @classmethod
    def of(cls, new: dict[int, tuple[int, int]], device: Any) -> PackedTokens:
        """From slot -> (first column, number of tokens)."""
        slots, starts = list(new), [start for start, _ in new.values()]
        counts = [count for _, count in new.values()]
        repeats = torch.tensor(counts)
        offset_N = torch.cat([torch.arange(count) for count in counts])
        return cls(
            slots, starts, counts, max(counts), max(map(sum, new.values())),
            torch.arange(len(slots)).repeat_interleave(repeats), offset_N,
            offset_N + torch.tensor(starts).repeat_interleave(repeats), torch.tensor(slots).repeat_interleave(repeats),
        ).on(device)  # fmt: skip

    def on(self, device: Any) -> PackedTokens:
        """Move the indices, for a model on several devices."""
        if self.rows_N.device != device:
            for name in ("slot_N", "offset_N", "columns_N", "rows_N"):
                setattr(self, name, getattr(self, name).to(device))
        return self

    @property
    def cache_rows(self) -> slice | list[int]:
        """The slots as an index into the cache; a slice, which copies nothing, if they are consecutive."""
        first = self.slots[0]
        consecutive = self.slots == list(range(first, first + len(self.slots)))
        return slice(first, first + len(self.slots)) if consecutive else self.slots

    @property
    def from_the_start(self) -> bool:
        """Whether nothing was stored before: a new token then sees itself and those before it, without a mask."""
        return not any(self.starts) and self.longest > 1


class PackedCache:
    """Keys and values of every layer, `[S, H, T, D]`; columns past a slot's length are masked."""

    def __init__(self, slots: int, columns: int) -> None:
        self.slots, self.columns = slots, columns  # slots in use (see `release`), most tokens of a row
        self.packing: PackedTokens | None = None
        self.bias = 0.0
        self.images: list[tuple[int, int]] = []  # first image column and one past the last, of each slot, for the bias
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._mask: tuple[PackedTokens | None, Tensor | None] = (None, None)

    def attend(
        self, layer: int, query_HND: Tensor, key_HND: Tensor, value_HND: Tensor, scaling: float, groups: int
    ) -> Tensor:
        """Store the new keys and values, and let every new token attend to its slot: `[N, H, D]`."""
        assert self.packing is not None
        packing = self.packing.on(key_HND.device)
        if layer not in self._stored:
            shape = (self.slots, key_HND.shape[0], self.columns, key_HND.shape[2])
            # zeros: masked columns take part in a sum with weight 0, which no infinity survives
            self._stored[layer] = (key_HND.new_zeros(shape), key_HND.new_zeros(shape))
        keys, values = self._stored[layer]
        keys[packing.rows_N, :, packing.columns_N] = key_HND.transpose(0, 1)
        values[packing.rows_N, :, packing.columns_N] = value_HND.transpose(0, 1)
        part = packing.cache_rows
        seen = [repeat_kv(stored[part][:, :, : packing.columns], groups) for stored in (keys, values)]
        query_NHD = query_HND.transpose(0, 1)
        if packing.longest == 1:
            query_SHLD = query_NHD[:, :, None]
        else:
            shape = (len(packing.slots), query_HND.shape[0], packing.longest, query_HND.shape[2])
            query_SHLD = query_NHD.new_zeros(shape)
            query_SHLD[packing.slot_N, :, packing.offset_N] = query_NHD
        mask = self._pass_mask(packing, query_SHLD)
        output_SHLD = torch.nn.functional.scaled_dot_product_attention(
            query_SHLD, *seen, attn_mask=mask, is_causal=mask is None and packing.from_the_start, scale=scaling
        )
        return output_SHLD[packing.slot_N, :, packing.offset_N]

    def _pass_mask(self, packing: PackedTokens, query: Tensor) -> Tensor | None:
        """What each new token may see, `[S, 1, L, T]`, made once for all layers; None if no mask is needed."""
        (known, mask), device = self._mask, query.device
        if known is not packing or (mask is not None and mask.device != device):
            mask, column_T = None, torch.arange(packing.columns, device=device)
            if not packing.from_the_start and (packing.longest > 1 or len(set(packing.starts)) > 1):
                new_L = torch.arange(packing.longest, device=device)
                mask = column_T <= (torch.tensor(packing.starts, device=device)[:, None] + new_L)[:, None, :, None]
            if self.bias:
                spans = torch.tensor([self.images[slot] for slot in packing.slots], device=device)
                image_ST = (column_T >= spans[:, :1]) & (column_T < spans[:, 1:])
                mask = biased_mask(mask, image_ST, self.bias, query)
            self._mask = (packing, mask)
        return mask

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copy the first columns of one slot to another."""
        for stored in chain.from_iterable(self._stored.values()):
            stored[target, :, :columns] = stored[source, :, :columns]

    def release(self, slot: int, columns: int) -> None:
        """Give up a slot: the last one, of which `columns` are filled, takes its place."""
        self.slots -= 1
        if slot != self.slots:
            self.copy(self.slots, slot, columns)
            if self.images:
                self.images[slot] = self.images[self.slots]


_cache: ContextVar[PackedCache | None] = ContextVar("packed cache", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    cache = _cache.get()
    assert cache is not None, "this attention runs inside `packed` only"
    output_NHD = cache.attend(module.layer_idx, query[0], key[0], value[0], scaling, module.num_key_value_groups)
    return output_NHD[None], None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)  # the cache makes its own


@contextmanager
def packed(model: Any, cache: PackedCache) -> Iterator[None]:
    """Run `model`'s language layers over `cache`; the attention implementation is restored afterwards."""
    token = _cache.set(cache)
    try:
        with language_attention(model, IMPLEMENTATION), sdpa_kernel(KERNELS):
            yield
    finally:
        _cache.reset(token)
