"""Attention of chosen rows, read out while a model runs on its fast kernels.

A function registered with transformers' attention interface hands every layer's queries and keys to the active
recorder and then calls SDPA as usual. Nothing quadratic is kept and no second pass is made: a recorder computes the
softmax only for the rows it wants. Two recorders exist: the rows of generated tokens over the image (what a person
looks at), and the rows where a coordinate is written (what the grounding loss of training acts on).

Tensor names carry their axes: B batch, H heads, Q query positions, K key positions, N chosen rows, P image patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "trace_recording"


class Recorder(Protocol):
    """What wants to see a layer's attention: the layers by index, and a call for each of them."""

    layers: frozenset[int]

    def observe(
        self, layer: int, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scaling: float
    ) -> None: ...


_active: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    recorder = _active.get()
    if recorder is not None and module.layer_idx in recorder.layers:
        recorder.observe(
            module.layer_idx, query, repeat_kv(key, module.num_key_value_groups), attention_mask, kwargs["scaling"]
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _recording_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Run `model`'s language layers so that `recorder` sees them; the attention implementation is put back after."""
    config = model.config
    before = (config.text_config._attn_implementation, config.vision_config._attn_implementation)
    if before[0] != IMPLEMENTATION:
        model.set_attn_implementation({"text_config": IMPLEMENTATION, "vision_config": before[1]})
    token = _active.set(recorder)
    try:
        yield
    finally:
        _active.reset(token)
        if before[0] != IMPLEMENTATION:
            model.set_attn_implementation({"text_config": before[0], "vision_config": before[1]})


class GenerationRecorder:
    """The attention of generated tokens to the image, collected during `generate` with a batch of one.

    Row t is where generated token t is fed in; the last token is never fed in by `generate`, so its row is absent.
    Before them comes the last row of the prompt, the one that predicts token 0.
    """

    def __init__(self, layers: Sequence[int], image_columns: slice) -> None:
        self.layers = frozenset(layers)
        self._order = sorted(self.layers)
        self._columns = image_columns
        self._rows: dict[int, list[Tensor]] = {layer: [] for layer in self._order}

    @torch.no_grad()
    def observe(self, layer: int, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scaling: float) -> None:
        scores_HK = (query_BHQD[0, :, -1:].float() @ key_BHKD[0].float().transpose(-1, -2))[:, 0] * scaling
        if mask is not None:
            row = mask[0, 0, -1]
            scores_HK = scores_HK.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores_HK + row
        self._rows[layer].append(scores_HK.softmax(-1)[:, self._columns].cpu())

    def attention(self) -> Tensor:
        """`[layers, heads, generated tokens - 1, image patches]`; a row sums to the share of mass on the image."""
        return torch.stack([torch.stack(self._rows[layer][1:], dim=1) for layer in self._order])

    def prompt_row(self) -> Tensor:
        """`[layers, heads, image patches]` of the prompt's last token."""
        return torch.stack([self._rows[layer][0] for layer in self._order])


class GroundingRecorder:
    """How much of one head's attention to the image lies on the named object, where its coordinates are written.

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
