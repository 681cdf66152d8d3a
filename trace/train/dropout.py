"""`lora.shared_dropout: true`: adapters that read the same input see it through the same mask of dropout.

PEFT draws a mask for each matrix. Queries, keys and values read one input, gate and up another: with one mask for each
input (as loralib's merged queries, keys and values have it) four masks a layer are drawn and four masked inputs kept
for the backward pass, instead of seven. Without dropout (`lora.dropout: 0`) the inputs themselves are kept, once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # the first of them is called first


class _Input:
    """What the adapters of one input see of it while they are at it: kept by nothing longer than they need it."""

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self.left = 0  # readers that are still to come
        self.seen: torch.Tensor | None = None
        self.masked: torch.Tensor | None = None

    def through(self, values: torch.Tensor, share: float) -> torch.Tensor:
        if self.left == 0 or self.seen is not values:  # also when a pass was broken off among its readers
            self.seen, self.masked, self.left = values, functional.dropout(values, share), self.readers
        masked = self.masked
        assert masked is not None
        self.left -= 1
        if self.left == 0:
            self.seen = self.masked = None
        return masked


class SharedDropout(nn.Module):
    """Dropout of `share` whose mask is that of the other readers of the same tensor."""

    def __init__(self, share: float, source: _Input) -> None:
        super().__init__()
        self.share = share
        self.source = source

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.source.through(values, self.share) if self.training else values


def share_dropout(model: nn.Module) -> int:
    """Let adapters (PEFT's, with dropout) on matrices of the same input share its mask, in place.

    Returns the number of inputs that are shared.
    """
    shared = 0
    for parent in list(model.modules()):
        for names in SAME_INPUT:
            adapted = [layer for name in names if hasattr(layer := getattr(parent, name, None), "lora_dropout")]
            if len(adapted) < 2:
                continue
            source = _Input(len(adapted))
            for layer in adapted:
                layer.cast_input_dtype_enabled = False  # autocast casts by itself; a copy would not be the same tensor
                for name, dropout in layer.lora_dropout.items():
                    layer.lora_dropout[name] = SharedDropout(dropout.p, source)
            shared += 1
    return shared
