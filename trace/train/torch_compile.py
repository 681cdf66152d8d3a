"""`compile: true`: the insides of every layer through torch.compile, in few fused kernels instead of many small ones.

What is compiled are a layer's attention block, MLP and norms: one piece each for all layers of a kind, with the number
of tokens left open, so that lines of every length share it. Parameter names, hooks around the pieces and gradient
checkpointing, which wraps the whole layer, stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: nn.Module) -> int:
    """Compile the parts of every layer of language model and vision tower, in place; returns how many parts.

    The work itself is done when a part is first run, about a minute a process.
    """
    parts = [
        part
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for part in layer.children()
        if any(True for _ in part.parameters())
    ]
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=True)
    return len(parts)


def uncompiled() -> Any:
    """A context in which compiled layers run as they are written: answering, whose shapes are others, gains nothing."""
    return torch.compiler.set_stance("force_eager")
