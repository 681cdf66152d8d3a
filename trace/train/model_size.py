"""How many parameters, floating-point operations and bytes a model takes: plain arithmetic on its dimensions.

No torch here: the plan is made before anything is installed or downloaded. Operations count a multiplication and an
addition as two; what gradient checkpointing computes a second time is not useful work and is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.command import InputError
from .config import Trainable


@dataclass(frozen=True)
class Dimensions:
    """The numbers of LlamaConfig and CLIPVisionConfig that cost anything."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int  # of the tower
    vision_used: int  # up to the layer whose features are read
    vision_mlp: int
    vision_side: int  # patches along a side
    patch: int

    @property
    def image_tokens(self) -> int:
        return self.vision_side**2

    @property
    def layer_params(self) -> int:
        kv = self.hidden * self.kv_heads // self.heads
        return 2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.mlp

    @property
    def llm_params(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return 2 * self.vocabulary * self.hidden + self.layers * self.layer_params + norms

    @property
    def projector_params(self) -> int:
        return (self.vision_hidden + 1) * self.hidden + (self.hidden + 1) * self.hidden

    @property
    def vision_params(self) -> int:
        width, mlp = self.vision_hidden, self.vision_mlp
        layer = 4 * width * (width + 1) + 2 * width * mlp + width + mlp + 4 * width
        embeddings = width + 3 * self.patch**2 * width + (self.image_tokens + 1) * width
        return embeddings + self.vision_layers * layer + 4 * width  # and two layer norms

    def lora_params(self, rank: int) -> int:
        """Of adapters on all seven matrices of every layer."""
        kv = self.hidden * self.kv_heads // self.heads
        sides = 4 * self.hidden + 2 * (self.hidden + kv) + 3 * (self.hidden + self.mlp)
        return self.layers * rank * sides


def dimensions(text: Mapping[str, Any], vision: Mapping[str, Any], where: str) -> Dimensions:
    """From the keyword arguments of the two configurations; InputError names `where` when one is missing."""
    try:
        return Dimensions(
            hidden=text["hidden_size"],
            layers=text["num_hidden_layers"],
            mlp=text["intermediate_size"],
            heads=text["num_attention_heads"],
            kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
            vocabulary=text["vocab_size"],
            vision_hidden=vision["hidden_size"],
            vision_layers=vision["num_hidden_layers"],
            vision_used=vision["num_hidden_layers"] - 1,
            vision_mlp=vision["intermediate_size"],
            vision_side=vision["image_size"] // vision["patch_size"],
            patch=vision["patch_size"],
        )
    except KeyError as error:
        raise InputError(f"{where} lacks {error}; a configuration of a LLaVA model was expected") from None
    except (TypeError, ZeroDivisionError):
        raise InputError(f"{where} has a dimension that is no number; a LLaVA model's was expected") from None


def trained_params(size: Dimensions, modes: Trainable, rank: int) -> int:
    llm = {"full": size.llm_params, "lora": size.lora_params(rank), "frozen": 0}[modes.llm]
    projector = size.projector_params if modes.projector == "full" else 0
    return llm + projector + (size.vision_params if modes.vision == "full" else 0)


def total_params(size: Dimensions, modes: Trainable, rank: int) -> int:
    adapters = size.lora_params(rank) if modes.llm == "lora" else 0
    return size.llm_params + size.projector_params + size.vision_params + adapters


@dataclass(frozen=True)
class Work:
    """What a forward pass meets: tokens, the sum of squared row lengths, learned tokens, images."""

    tokens: float
    squares: float
    learned: float
    images: float


def forward_flops(size: Dimensions, work: Work) -> tuple[float, float]:
    """(language model and projector, vision tower) operations of one forward pass."""
    matrices = 2 * size.layer_params * size.layers * work.tokens
    attention = 2 * work.squares * size.hidden * size.layers  # causal: half of 4 T^2 h
    head = 2 * size.hidden * size.vocabulary * work.learned
    projector = 2 * size.projector_params * size.image_tokens * work.images
    width, patches = size.vision_hidden, size.image_tokens + 1
    layer = 2 * (4 * width**2 + 2 * width * size.vision_mlp) * patches + 4 * patches**2 * width
    stem = 2 * 3 * size.patch**2 * width * size.image_tokens
    return matrices + attention + head + projector, work.images * (size.vision_layers * layer + stem)


def training_flops(size: Dimensions, work: Work, modes: Trainable, rank: int = 0) -> float:
    """Useful operations of a forward and a backward pass.

    A backward pass costs one forward for the gradients that flow through and one for those of the weights. Frozen
    matrices need the first only, and a frozen tower in front of everything needs neither. Adapters of `rank` need both.
    """
    llm, vision = forward_flops(size, work)
    through = 2.0 if modes.llm != "full" else 3.0
    adapters = 3.0 * 2 * size.lora_params(rank) * work.tokens if modes.llm == "lora" else 0.0
    return through * llm + adapters + (3.0 if modes.vision == "full" else 1.0) * vision
