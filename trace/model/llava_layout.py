"""LLaVA's layout and Hugging Face's: names of tensors and keys of config.json, in both directions.

The rest of this folder uses the names on the hub (`language_model.model.*`, `language_model.lm_head`,
`multi_modal_projector.linear_1`, `vision_tower.vision_model.*`), which transformers of every version, vLLM and SGLang
read. `hub_name` maps every other spelling to them: LLaVA's, LoRA's prefix, those of a plain Llama or CLIP, and the
names of transformers 5 in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..utils.command import InputError

VISION, PROJECTOR, TEXT = "vision_tower.vision_model.", "multi_modal_projector.", "language_model."
LINEAR = "multi_modal_projector.linear."  # LLaVA's `linear` projector; see checkpoint_plan.linear_projector
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"

T = TypeVar("T")

_RULES = [
    (re.compile(pattern), target)
    for pattern, target in (
        (r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?", VISION),
        (r"^vision_model\.", VISION),
        (r"^(?:model\.)?mm_projector\.0\.", PROJECTOR + "linear_1."),
        (r"^(?:model\.)?mm_projector\.2\.", PROJECTOR + "linear_2."),
        (r"^(?:model\.)?mm_projector\.(?=weight$|bias$)", LINEAR),
        (r"^(?:model\.)?multi_modal_projector\.", PROJECTOR),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.(?=embed_tokens\.|layers\.|norm\.)", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
    )
]
# Buffers that old versions stored and new ones compute; the text half of a CLIP model.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_CLIP_REST = re.compile(r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)")


def hub_name(name: str) -> str | None:
    """Return the hub's name of a tensor; None for derived buffers. An unknown name is returned unchanged."""
    if _DERIVED.search(name):
        return None
    name = name.removeprefix("base_model.model.")
    if name.startswith("model.model."):  # LLaVA's script saved a model that was wrapped once more
        name = name.removeprefix("model.")
    for pattern, target in _RULES:
        changed, count = pattern.subn(target, name, count=1)
        if count:
            return changed
    return name


def tower_name(name: str) -> str | None:
    """Return the hub's name of a tensor in a CLIP model's file; None for the text half."""
    if _CLIP_REST.match(name) or _DERIVED.search(name):
        return None
    return VISION + re.sub(r"^(?:vision_tower\.)?(?:vision_model\.)?", "", name)


def renamed(tensors: Mapping[str, T], new_name: Callable[[str], str | None]) -> dict[str, T]:
    """`tensors` by their new names, without those that have none."""
    return {name: tensor for old, tensor in tensors.items() if (name := new_name(old)) is not None}


def llava_name(name: str, linear: bool = False) -> str:
    """Return LLaVA's name of a tensor from the hub's name."""
    if name.startswith(VISION):
        return "model.vision_tower.vision_tower.vision_model." + name.removeprefix(VISION)
    if name.startswith(PROJECTOR):
        layer, _, kind = name.removeprefix(PROJECTOR).partition(".")
        return f"model.mm_projector.{kind}" if linear else f"model.mm_projector.{int(layer[-1]) * 2 - 2}.{kind}"
    return name.removeprefix(TEXT)


LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "bos_token_id", "eos_token_id",
    "pad_token_id", "pretraining_tp", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "attention_bias", "attention_dropout", "mlp_bias", "head_dim",
)  # fmt: skip
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
LLAVA_TYPES = ("llava", "llava_llama", "robopoint", "llama")


def llama_settings(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The keys of a Llama or LLaVA config.json that describe the language model. InputError: it is another one."""
    if config.get("model_type") not in LLAVA_TYPES:
        raise InputError(f"{file} describes a {config.get('model_type')!r} model; expected {', '.join(LLAVA_TYPES)}")
    for key in REQUIRED:
        value = config.get(key)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{file}: {key} is {value!r}; expected a positive integer, as a Llama has")
    settings = {key: config[key] for key in LLAMA_KEYS if config.get(key) is not None}
    pad = settings.get("pad_token_id")
    if not isinstance(pad, int) or not 0 <= pad < config["vocab_size"]:
        settings.pop("pad_token_id", None)
    return settings


def check_llava(config: Mapping[str, Any], file: Path) -> None:
    """Raise InputError if a LLaVA configuration is not LLaVA-1.5's architecture; it names the key."""
    kind = str(config.get("mm_projector_type", "linear"))
    if kind not in ("linear", "mlp2x_gelu"):
        raise InputError(f"{file}: mm_projector_type is {kind!r}; linear and mlp2x_gelu are supported")
    for key, usual, why in (
        ("mm_vision_select_feature", ("patch",), "only features without the class token are supported"),
        ("mm_patch_merge_type", ("flat",), "the tiles of LLaVA-1.6 are not supported"),
        ("mm_use_im_start_end", (False,), "tokens around the image are not supported"),
        ("image_aspect_ratio", ("pad", "square"), "the tiles of LLaVA-1.6 are not supported"),
        ("tune_mm_vision_resampler", (False,), "resamplers are not supported"),
        ("mm_resampler_type", (), "resamplers are not supported"),
        ("s2", (False,), "multi-scale features are not supported"),
    ):
        value = config.get(key)
        if value is not None and value not in usual:
            raise InputError(f"{file}: {key} is {value!r}; {why}")


def projector_type(names: Iterable[str]) -> str | None:
    """LLaVA's name of the projector whose tensors have these hub names; None if it is incomplete."""
    names = set(names)
    if LINEAR + "weight" in names:
        return "linear"
    return "mlp2x_gelu" if {PROJECTOR + "linear_1.weight", PROJECTOR + "linear_2.weight"} <= names else None


def llava_config_json(config: Mapping[str, Any], tower: str, linear: bool) -> dict[str, Any]:
    """LLaVA's config.json for a model with the Hugging Face configuration `config`; `tower` is `mm_vision_tower`."""
    text, kept = dict(config["text_config"]), dict(config.get("llava") or {})
    rope = dict(text.get("rope_parameters") or {})
    text["rope_theta"] = rope.pop("rope_theta", text.get("rope_theta", 10000.0))
    kind = rope.pop("rope_type", "default")
    if kind != "default":
        text["rope_scaling"] = {"type": kind, **rope}
    return {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama",
        **{key: text[key] for key in LLAMA_KEYS if key in text and key != "rope_parameters"},
        "torch_dtype": config.get("dtype"), "image_aspect_ratio": "pad", "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_vision_select_feature": "patch",
        "tokenizer_padding_side": "right", "use_mm_proj": True,
        **{key: value for key, value in kept.items() if key != "vocab_size"},
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": "linear" if linear else "mlp2x_gelu",
        "mm_vision_select_layer": config["vision_feature_layer"], "mm_vision_tower": tower,
        "vocab_size": kept.get("vocab_size", config["image_token_index"]),
    }  # fmt: skip
