"""A key-value cache of slots, and an attention over it for tokens of many rows packed into one.

`PackedCache` is what `decoding.generate` runs the language model with: an attention function registered with
transformers stores each packed token's key and value in its own slot and column, and lets it look back over that slot.
Nothing is padded in the linear layers, and rows may bring different numbers of tokens to a pass. The cache is one block
from the start: growing it would copy all of it, and on a GPU leave holes of the old sizes.

Tensor names carry their axes: N packed tokens, S slots, H heads, L tokens of a slot in a pass, T columns, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface

from ..model.attention_recorder import biased_mask

IMPLEMENTATION = "trace_packed"
# Not cuDNN's: it plans anew for every number of columns, and each token adds one.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(slots=True)
class Packing:
    """Where the packed tokens of a pass belong: slot s gets `counts[s]` tokens from column `starts[s]` on."""

    slots: list[int]
    starts: list[int]
    counts: list[int]
    slot_N: Tensor  # number of the slot among `slots`
    offset_N: Tensor  # place among the slot's new tokens
    columns_N: Tensor
    rows_N: Tensor  # slot in the cache

    @classmethod
    def of(cls, new: dict[int, tuple[int, int]]) -> Packing:
        slots, starts = list(new), [start for start, _ in new.values()]
        counts = [count for _, count in new.values()]
        repeats = torch.tensor(counts)
        offset_N = torch.cat([torch.arange(count) for count in counts])
        return cls(
            slots,
            starts,
            counts,
            torch.arange(len(slots)).repeat_interleave(repeats),
            offset_N,
            offset_N + torch.tensor(starts).repeat_interleave(repeats),
            torch.tensor(slots).repeat_interleave(repeats),
        )

    def on(self, device: Any) -> Packing:
        if self.rows_N.device != device:
            for name in ("slot_N", "offset_N", "columns_N", "rows_N"):
                setattr(self, name, getattr(self, name).to(device))
        return self

    @property
    def part(self) -> slice | list[int]:
        """Which slots of the cache these are; as a slice, which copies nothing, where they follow one another."""
        first = self.slots[0]
        return slice(first, first + len(self.slots)) if _in_sequence(self.slots) else self.slots

    @property
    def longest(self) -> int:
        return max(self.counts)

    @property
    def columns(self) -> int:
        """Columns that any slot reaches after this pass."""
        return max(start + count for start, count in zip(self.starts, self.counts, strict=True))

    @property
    def ends(self) -> list[int]:
        """One past each slot's last packed token."""
        total, ends = 0, []
        for count in self.counts:
            total += count
            ends.append(total)
        return ends

    @property
    def from_the_start(self) -> bool:
        """Whether all of it is new: a new token then sees itself and those before it, which needs no mask."""
        return not any(self.starts) and self.longest > 1

    def mask(self, device: Any) -> Tensor | None:
        """What each new token may see, `[S, 1, L, T]`; None where all of them see all there is, or `from_the_start`."""
        if self.from_the_start or (self.longest == 1 and len(set(self.starts)) == 1):
            return None
        last_SL = torch.tensor(self.starts, device=device)[:, None] + torch.arange(self.longest, device=device)
        mask: Tensor = torch.arange(self.columns, device=device) <= last_SL[:, None, :, None]
        return mask


def _in_sequence(slots: list[int]) -> bool:
    return all(slot == place for place, slot in enumerate(slots, start=slots[0]))


class PackedCache:
    """Keys and values of every layer, `[S, H, T, D]`; columns behind a slot's length hold what is not looked at.

    Args:
        slots: rows in use; those that are done are given back with `release`.
        columns: the most tokens that a row can have.
    """

    def __init__(self, slots: int, columns: int) -> None:
        self.slots, self.columns = slots, columns
        self.packing: Packing | None = None
        self.bias = 0.0
        self.images: list[tuple[int, int]] = []  # of each slot, where a bias is asked for
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._mask: tuple[Packing | None, Tensor | None] = (None, None)

    def attend(
        self, layer: int, query_HND: Tensor, key_HND: Tensor, value_HND: Tensor, scaling: float, groups: int
    ) -> Tensor:
        """Store the new keys and values, and let every new token look back over its slot: `[N, H, D]`."""
        assert self.packing is not None
        packing = self.packing.on(key_HND.device)
        keys, values = self._room(layer, key_HND)
        keys[packing.rows_N, :, packing.columns_N] = key_HND.transpose(0, 1)
        values[packing.rows_N, :, packing.columns_N] = value_HND.transpose(0, 1)
        part = packing.part
        seen = [repeat_kv(stored[part][:, :, : packing.columns], groups) for stored in (keys, values)]
        query_NHD = query_HND.transpose(0, 1)
        if packing.longest == 1:
            query_SHLD = query_NHD[:, :, None]
        else:
            query_SHLD = query_NHD.new_zeros(
                len(packing.slots), query_HND.shape[0], packing.longest, query_HND.shape[2]
            )
            query_SHLD[packing.slot_N, :, packing.offset_N] = query_NHD
        mask = self._masked(query_SHLD)
        found_SHLD = torch.nn.functional.scaled_dot_product_attention(
            query_SHLD, *seen, attn_mask=mask, is_causal=mask is None and packing.from_the_start, scale=scaling
        )
        return found_SHLD[packing.slot_N, :, packing.offset_N]

    def _masked(self, query: Tensor) -> Tensor | None:
        """The mask of this pass, made once for all layers."""
        packing = self.packing
        assert packing is not None
        known, mask = self._mask
        if known is not packing or (mask is not None and mask.device != query.device):
            mask = packing.mask(query.device)
            if self.bias:
                spans = torch.tensor([self.images[slot] for slot in packing.slots], device=query.device)
                column_T = torch.arange(packing.columns, device=query.device)
                image_ST = (column_T >= spans[:, :1]) & (column_T < spans[:, 1:])
                mask = biased_mask(mask, image_ST, self.bias, query)
            self._mask = (packing, mask)
        return mask

    def _room(self, layer: int, like_HND: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._stored:
            shape = (self.slots, like_HND.shape[0], self.columns, like_HND.shape[2])
            # zeros, as what is not looked at takes part in a sum with weight 0, which no infinity survives
            self._stored[layer] = (like_HND.new_zeros(shape), like_HND.new_zeros(shape))
        return self._stored[layer]

    def copy(self, source: int, target: int, columns: int) -> None:
        """Give one slot the first columns of another."""
        for keys, values in self._stored.values():
            for stored in (keys, values):
                stored[target, :, :columns] = stored[source, :, :columns]

    def release(self, slot: int, columns: int) -> int:
        """Give up a slot: the last one, of which `columns` are filled, takes its place. Returns the last one's number."""
        last = self.slots - 1
        if slot != last:
            self.copy(last, slot, columns)
            if self.images:
                self.images[slot] = self.images[last]
        self.slots = last
        return last


_cache: ContextVar[PackedCache | None] = ContextVar("packed cache", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    cache = _cache.get()
    assert cache is not None, "this attention is for the loop above only"
    found_NHD = cache.attend(module.layer_idx, query[0], key[0], value[0], scaling, module.num_key_value_groups)
    return found_NHD[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """The cache makes its own."""


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


@contextmanager
def packed(model: Any, cache: PackedCache) -> Iterator[None]:
    """Run `model`'s language layers over `cache`; the attention implementation is put back after."""
    config = model.config
    before = (config.text_config._attn_implementation, config.vision_config._attn_implementation)
    model.set_attn_implementation({"text_config": IMPLEMENTATION, "vision_config": before[1]})
    token = _cache.set(cache)
    try:
        with sdpa_kernel(KERNELS):
            yield
    finally:
        _cache.reset(token)
        model.set_attn_implementation({"text_config": before[0], "vision_config": before[1]})
