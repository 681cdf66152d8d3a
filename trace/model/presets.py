"""The models, as configurations: exact dimensions, and the names their parts have on the hub.

A preset says nothing about weights; `build` makes a model of it with random ones, `checkpoint` loads existing ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..utils.command import InputError

CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


def _vicuna(hidden: int, layers: int, heads: int, mlp: int) -> dict[str, Any]:
    return {
        "vocab_size": 32064,  # 32000 pieces, the image placeholder, and padding to a multiple of 64
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }


VICUNA_13B = _vicuna(5120, 40, 40, 13824)
VICUNA_7B = _vicuna(4096, 32, 32, 11008)


@dataclass(frozen=True, slots=True)
class Preset:
    """`text` and `vision` are the keyword arguments of LlamaConfig and CLIPVisionConfig."""

    name: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    image_token_index: int = 32000
    sources: Mapping[str, str] = field(default_factory=dict)  # part -> name on the hub


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "trace-13b",
            VICUNA_13B,
            CLIP_L_336,
            sources={
                "llm": "lmsys/vicuna-13b-v1.5",
                "vision": "openai/clip-vit-large-patch14-336",
                "projector": "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-13b-v1.5",
            },
        ),
        Preset(
            "trace-7b",
            VICUNA_7B,
            CLIP_L_336,
            sources={
                "llm": "lmsys/vicuna-7b-v1.5",
                "vision": "openai/clip-vit-large-patch14-336",
                "projector": "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5",
            },
        ),
        Preset(
            "robopoint-13b",
            VICUNA_13B,
            CLIP_L_336,
            sources={"model": "wentao-yuan/robopoint-v1-vicuna-v1.5-13b"},
        ),
        # Small enough to train on two CPU cores. Its vocabulary is fitted to the nano tokenizer by `build`.
        Preset(
            "nano",
            {
                "vocab_size": 0,
                "hidden_size": 128,
                "intermediate_size": 352,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
            },
            {
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 5,
                "num_attention_heads": 4,
                "image_size": 128,
                "patch_size": 16,
                "projection_dim": 128,
            },
            image_token_index=-1,
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset called `name`; InputError lists the known ones."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
