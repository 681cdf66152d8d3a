"""The original LLaVA layout and Hugging Face's: names of tensors and keys of config.json, in both directions.

Everything else in this folder speaks the names that lie on the hub (`language_model.model.*`, `language_model.lm_head`,
`multi_modal_projector.linear_1`, `vision_tower.vision_model.*`): transformers of every version, vLLM and SGLang read them.
`hub_name` brings any spelling to that one: LLaVA's, LoRA's prefix, a plain Llama's or CLIP's, and the names that
transformers 5 uses in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.command import InputError

VISION, PROJECTOR, TEXT = "vision_tower.vision_model.", "multi_modal_projector.", "language_model."
LINEAR = "multi_modal_projector.linear."  # of LLaVA's `linear` projector; see assemble.linear_projector

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
# Buffers that old versions stored and that are computed today; a CLIP model's half for text.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_CLIP_REST = re.compile(r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)")


def hub_name(name: str) -> str | None:
    """The hub's name of a tensor; None for one that carries nothing. An unknown name comes back as it is."""
    if _DERIVED.search(name):
        return None
    name = name.removeprefix("base_model.model.")
    if name.startswith("model.model."):  # of a model that was wrapped once more when LLaVA's script saved it
        name = name.removeprefix("model.")
    for pattern, target in _RULES:
        changed, count = pattern.subn(target, name, count=1)
        if count:
            return changed
    return name


def tower_name(name: str) -> str | None:
    """The hub's name of a tensor in the file of a CLIP model, whole or its vision half; None for the other half."""
    if _CLIP_REST.match(name) or _DERIVED.search(name):
        return None
    bare = re.sub(r"^(?:vision_tower\.)?(?:vision_model\.)?", "", name)
    return VISION + bare


def llava_name(name: str, linear: bool = False) -> str:
    """LLaVA's name of a tensor that the hub calls `name`."""
    if name.startswith(VISION):
        return "model.vision_tower.vision_tower.vision_model." + name.removeprefix(VISION)
    if name.startswith(PROJECTOR):
        rest = name.removeprefix(PROJECTOR)
        layer, _, kind = rest.partition(".")
        return f"model.mm_projector.{kind}" if linear else f"model.mm_projector.{int(layer[-1]) * 2 - 2}.{kind}"
    return name.removeprefix(TEXT)


# --- config.json ----------------------------------------------------------------------------------

LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "bos_token_id", "eos_token_id",
    "pad_token_id", "pretraining_tp", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "attention_bias", "attention_dropout", "mlp_bias", "head_dim",
)  # fmt: skip
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
LLAVA_TYPES = ("llava", "llava_llama", "robopoint", "llama")


def llama_settings(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The keys of a Llama or LLaVA config.json that describe the language model.

    Raises:
        InputError: it is another architecture, or a size is missing.
    """
    kind = config.get("model_type")
    if kind not in LLAVA_TYPES:
        names = ", ".join(LLAVA_TYPES)
        raise InputError(f"{file} describes a {kind!r} model; expected a Llama language model (model_type {names})")
    for key in REQUIRED:
        value = config.get(key)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{file}: {key} is {value!r}; expected the configuration of a Llama language model")
    settings = {key: config[key] for key in LLAMA_KEYS if config.get(key) is not None}
    pad = settings.get("pad_token_id")
    if not isinstance(pad, int) or not 0 <= pad < config["vocab_size"]:
        settings.pop("pad_token_id", None)
    return settings


def check_llava(config: Mapping[str, Any], file: Path) -> None:
    """InputError for a LLaVA configuration that is not LLaVA-1.5's architecture; each names its key."""
    kind = str(config.get("mm_projector_type", "linear"))
    if kind not in ("linear", "mlp2x_gelu"):
        raise InputError(f"{file}: mm_projector_type is {kind!r}; linear and mlp2x_gelu are read")
    for key, usual, why in (
        ("mm_vision_select_feature", ("patch",), "features without the class token are what is read"),
        ("mm_patch_merge_type", ("flat",), "LLaVA-1.6 and its tiles are another architecture"),
        ("mm_use_im_start_end", (False,), "marks around the image are not written"),
        ("image_aspect_ratio", ("pad", "square"), "LLaVA-1.6 and its tiles are another architecture"),
        ("tune_mm_vision_resampler", (False,), "a resampler is another architecture"),
        ("mm_resampler_type", (), "a resampler is another architecture"),
        ("s2", (False,), "multi-scale features are another architecture"),
    ):
        value = config.get(key)
        if value is not None and value not in usual:
            raise InputError(f"{file}: {key} is {value!r}; {why}")


def projector_type(names: Iterable[str]) -> str | None:
    """LLaVA's name for the projector whose tensors are called `names` (by the hub's names)."""
    names = set(names)
    if {LINEAR + "weight"} <= names:
        return "linear"
    return "mlp2x_gelu" if {PROJECTOR + "linear_1.weight", PROJECTOR + "linear_2.weight"} <= names else None


def llava_configuration(config: Mapping[str, Any], tower: str, linear: bool) -> dict[str, Any]:
    """LLaVA's config.json for a model whose Hugging Face configuration is `config` (as a dictionary).

    Args:
        tower: what `mm_vision_tower` says.
    """
    text, kept = dict(config["text_config"]), dict(config.get("llava") or {})
    rope = dict(text.get("rope_parameters") or {})
    text["rope_theta"] = rope.pop("rope_theta", text.get("rope_theta", 10000.0))
    kind = rope.pop("rope_type", "default")
    if kind != "default":
        text["rope_scaling"] = {"type": kind, **rope}
    written = {key: text[key] for key in LLAMA_KEYS if key in text and key != "rope_parameters"}
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **written,
        "torch_dtype": config.get("dtype"),
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
        **{key: value for key, value in kept.items() if key != "vocab_size"},
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": "linear" if linear else "mlp2x_gelu",
        "mm_vision_select_layer": config["vision_feature_layer"],
        "mm_vision_tower": tower,
        "vocab_size": kept.get("vocab_size", config["image_token_index"]),
    }
