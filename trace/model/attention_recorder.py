"""Read the attention of chosen rows while a model runs on its fast kernels, and bias it towards the image.

A function registered with transformers' attention interface passes every layer's queries and keys to the active
recorder and calls SDPA as usual: nothing quadratic is kept, no second pass is made, and the softmax is computed only
for the rows that `ImageRecorder` (attention/: generated tokens) or `GroundingRecorder` (train/: coordinates) needs.
Tensor names carry their axes: B batch, H heads, Q query positions, K key positions, N chosen rows, P image patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "trace_recording"
ROWS = 128  # rows of a long pass whose scores are held at a time


class Recorder(Protocol):
    """Observes the attention of the layers with these indices, one call for each."""

    layers: frozenset[int]

    def observe(
        self, layer: int, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scaling: float
    ) -> None: ...


class _Ended(Exception):
    """Leaves a forward pass whose remaining layers are not needed."""


# The recorder, and the layer after which the forward pass ends.
_active: ContextVar[tuple[Recorder | None, int | None]] = ContextVar("recorder", default=(None, None))
_bias: ContextVar[tuple[float, Tensor, list[int]] | None] = ContextVar("image bias", default=None)


def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    (recorder, last), bias = _active.get(), _bias.get()
    if bias is not None and module.layer_idx in bias[2]:  # the cache of a sliding layer drops columns
        image_BK = bias[1].repeat_interleave(len(query) // len(bias[1]), dim=0)  # beams of one row
        image_BK = nn.functional.pad(image_BK, (0, key.shape[2] - image_BK.shape[1]))
        attention_mask = biased_mask(attention_mask, image_BK, bias[0], query)
    if recorder is not None and module.layer_idx in recorder.layers:
        all_keys = repeat_kv(key, module.num_key_value_groups)
        recorder.observe(module.layer_idx, query, all_keys, attention_mask, kwargs["scaling"])
        if module.layer_idx == last:
            raise _Ended
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _recording_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def biased_mask(mask: Tensor | None, image_BK: Tensor, bias: float, query_BHQD: Tensor) -> Tensor:
    """An additive mask `[B, 1, Q, K]` that raises the scores of image columns by `bias`.

    Args:
        mask: True (or 0) where a row may look; None for a causal mask.
        image_BK: True at image columns.
    """
    rows, columns = query_BHQD.shape[2], image_BK.shape[1]
    if mask is None:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query_BHQD.device).tril(columns - rows)[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query_BHQD.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask + bias * image_BK[:, None, None].to(query_BHQD.dtype)


@contextmanager
def image_bias(model: nn.Module, bias: float, image_BK: Tensor) -> Iterator[None]:
    """Run `model` with `bias` added to the scores of the image columns, in every layer with full attention.

    Args:
        bias: 0 changes nothing.
        image_BK: True at the prompt's image tokens; generated tokens follow on the right.
    """
    if not bias:
        yield
        return
    token = _bias.set((bias, image_BK, full_attention_layers(model.config.get_text_config())))
    try:
        with language_attention(model, IMPLEMENTATION):
            yield
    finally:
        _bias.reset(token)


@contextmanager
def recording(model: nn.Module, recorder: Recorder, only: bool = False) -> Iterator[None]:
    """Run `model`'s language layers with `recorder`; the attention implementation is restored afterwards.

    Args:
        only: nothing but the recorded rows is needed: the forward pass, and the block with it, ends in the last layer
            that is recorded, before that layer's output, the layers above and the head are computed.
    """
    token = _active.set((recorder, max(recorder.layers) if only else None))
    try:
        with language_attention(model, IMPLEMENTATION), suppress(_Ended):
            yield
    finally:
        _active.reset(token)


def full_attention_layers(text_config: Any) -> list[int]:
    """The layers of a language model that attend to every token before; others slide over them, or have a state."""
    kinds = getattr(text_config, "layer_types", None) or ["full_attention"] * text_config.num_hidden_layers
    return [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]


@contextmanager
def language_attention(model: nn.Module, implementation: str) -> Iterator[None]:
    """Run the language model with another attention implementation, the vision tower with its own."""
    config, text = model.config, model.config.get_text_config()
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
    before = {name: part._attn_implementation for name, part in parts.items()}
    if text._attn_implementation == implementation:
        yield
        return
    model.set_attn_implementation(before | {name: implementation for name, part in parts.items() if part is text})
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class ImageRecorder:
    """The attention of an answer's tokens to the image, in one pass over prompt and answer; a batch of one.

    The rows from the prompt's last token on are kept. Heads are reduced and rounded at once, so that a layer keeps
    `[rows, image tokens]`; the layers in `head_layers` keep `[heads, rows, image tokens]` as well.

    Args:
        image_columns: the image's tokens among the keys.
        start: the number of tokens of the prompt.
        reduction: over heads, "mean" or "max".
    """

    def __init__(
        self, layers: Sequence[int], image_columns: Sequence[int], start: int, reduction: str = "mean",
        head_layers: Sequence[int] = (), dtype: torch.dtype = torch.float16,
    ) -> None:  # fmt: skip
        self.layer_order = sorted(set(layers))  # of `attention`
        self.layers = frozenset([*layers, *head_layers])
        self._columns, self._start = torch.tensor(image_columns), start
        self._reduction, self._dtype = reduction, dtype
        self._rows: dict[int, list[Tensor]] = {layer: [] for layer in self.layer_order}
        self._heads: dict[int, list[Tensor]] = {layer: [] for layer in sorted(set(head_layers))}

    @torch.no_grad()
    def observe(self, layer: int, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scaling: float) -> None:
        first, keys = self._start - 1, key_BHKD.shape[2]
        key_HDK, columns = key_BHKD[0].float().transpose(-1, -2), self._columns.to(key_BHKD.device)
        for rows_HND in query_BHQD[0, :, first:].split(ROWS, dim=1):
            scores_HNK, rows = (rows_HND.float() * scaling) @ key_HDK, rows_HND.shape[1]
            future = torch.ones(rows, keys - first - 1, dtype=torch.bool, device=scores_HNK.device).triu_()
            scores_HNK[..., first + 1 :].masked_fill_(future, -torch.inf)
            if mask is not None:
                part = mask[0, :, first : first + rows, :keys]
                is_bool = part.dtype == torch.bool
                scores_HNK = scores_HNK.masked_fill_(~part, -torch.inf) if is_bool else scores_HNK.add_(part)
            attention_HNP = scores_HNK.softmax(-1)[..., columns]
            if layer in self._heads:
                self._heads[layer].append(attention_HNP.to(self._dtype))
            if layer in self._rows:
                reduced = attention_HNP.mean(0) if self._reduction == "mean" else attention_HNP.amax(0)
                self._rows[layer].append(reduced.to(self._dtype))
            first += rows

    def attention(self) -> Tensor:
        """`[layers, rows, image tokens]` on the CPU; with the mean, a row sums to the share of mass on the image."""
        return torch.stack([torch.cat(self._rows[layer]) for layer in self.layer_order]).cpu()

    def heads(self) -> dict[int, Tensor]:
        """`[heads, rows, image tokens]` of every layer that keeps its heads."""
        return {layer: torch.cat(rows, dim=1).cpu() for layer, rows in self._heads.items()}


class GroundingRecorder:
    """How much of one head's attention to the image is on the named object, where its coordinates are written.

    A training-only term: -log of the mass on the object's patches, softmax over the image tokens. It teaches a small
    language model to bind a name to a place, which next-token loss alone does not do in the time a CPU has.

    Args:
        rows_N2: `(batch index, position)` of every guided row.
        patches_NP: the share of each image patch that the object of the row covers, `[rows, patches]`.
        image_start_B: the position of each batch row's first image token.
    """

    def __init__(self, layer: int, head: int, rows_N2: Tensor, patches_NP: Tensor, image_start_B: Tensor) -> None:
        self.layers = frozenset([layer])
        self._head, self._rows, self._patches, self._start = head, rows_N2, patches_NP, image_start_B
        self.loss: Tensor | None = None

    def observe(self, layer: int, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scaling: float) -> None:
        batch_N, position_N = self._rows.unbind(1)
        columns_NP = self._start[batch_N][:, None] + torch.arange(self._patches.shape[1], device=self._rows.device)
        query_ND = query_BHQD[batch_N, self._head, position_N]
        key_NPD = key_BHKD[:, self._head][batch_N[:, None], columns_NP]
        log_attention_NP = ((key_NPD @ query_ND[:, :, None])[:, :, 0].float() * scaling).log_softmax(-1)
        on_object_NP = log_attention_NP + self._patches.clamp_min(1e-6).log()
        self.loss = -on_object_NP.logsumexp(-1).mean() if len(batch_N) else query_BHQD.sum() * 0.0
