"""Write a model as one folder that appears whole or not at all, in Hugging Face's format or in LLaVA's own.

The folder is written under another name beside its place, `config.json` last, and renamed at the end: a kill leaves
something hidden that no loader takes for a model, and the next run sweeps it away.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor

from ..core.prompts import IMAGE_TAG
from ..utils.command import InputError
from ..utils.files import write_json
from . import llava_layout as layout
from .lazy_tensors import Computed, Weight, resized
from .model_card import Card, write_card
from .processor import save_processor
from .vision_tower import KNOWN
from .weight_files import largest_type, planned_bytes, write_weights


def write_standard(
    folder: Path,
    name: str,
    config: LlavaConfig,
    weights: Mapping[str, Weight],
    processor: LlavaProcessor,
    generation: GenerationConfig,
    card: Card,
    dtype: str | None,
) -> None:
    """Hugging Face's format: weights by the hub's names, processor, chat template, generation configuration, card."""
    generation.save_pretrained(folder)
    save_processor(processor, folder)
    write_card(folder, card, name)
    write_named(folder, weights, dtype)
    write_json(folder / "config.json", standard_configuration(config, dtype or largest_type(weights)))


def standard_configuration(config: LlavaConfig, dtype: str) -> dict[str, Any]:
    """config.json, with the rotary settings in the words of transformers 4 and of the servers besides those of 5."""
    whole = config.to_dict()
    parts = {name: _without_noise(whole.pop(name)) | {"dtype": dtype} for name in ("text_config", "vision_config")}
    rope = dict(parts["text_config"].get("rope_parameters") or {})
    if "rope_theta" in rope:
        parts["text_config"]["rope_theta"] = rope["rope_theta"]
    return {"architectures": ["LlavaForConditionalGeneration"], **_without_noise(whole), "dtype": dtype, **parts}


# What every configuration of transformers says and no language model needs.
_NOISE = (
    "_name_or_path", "architectures", "chunk_size_feed_forward", "id2label", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict",
)  # fmt: skip


def _without_noise(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOISE}


def write_named(folder: Path, weights: Mapping[str, Weight], dtype: str | None) -> None:
    """The weights under the names they are given by, with a bar where somebody watches."""
    with tqdm(total=planned_bytes(weights, dtype), unit="B", unit_scale=True, desc=folder.name, disable=None) as bar:
        write_weights(folder, weights, dtype, progress=bar.update)


# --- LLaVA's own format ---------------------------------------------------------------------------


def llava_weights(config: LlavaConfig, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The same weights by LLaVA's names, the vocabulary cut to the original's rows, a linear projector as one layer."""
    kept = dict(getattr(config, "llava", None) or {})
    rows = int(kept.get("vocab_size", config.image_token_index))
    linear = config.projector_hidden_act == "linear"
    found = dict(weights)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        found[name] = resized(found[name], rows)
    if linear:
        found = _one_layer(found)
    return {layout.llava_name(name, linear): weight for name, weight in found.items()}


def _one_layer(weights: dict[str, Weight]) -> dict[str, Weight]:
    import torch

    names = {part: f"{layout.PROJECTOR}linear_{part}" for part in ("1.weight", "1.bias", "2.weight", "2.bias")}
    first, shift, second, last = (weights.pop(name) for name in names.values())
    matrix = second.read()
    if torch.equal(matrix, torch.eye(matrix.shape[0], dtype=matrix.dtype)) and not last.read().any():
        return {**weights, names["1.weight"]: first, names["1.bias"]: shift}

    def product() -> torch.Tensor:  # it was trained: two layers without anything between them are one
        return second.read().float() @ first.read().float()

    def moved() -> torch.Tensor:
        return second.read().float() @ shift.read().float() + last.read().float()

    return {
        **weights,
        names["1.weight"]: Computed(first.shape, "float32", first.where, product),
        names["1.bias"]: Computed(shift.shape, "float32", shift.where, moved),
    }


def write_llava(
    folder: Path,
    name: str,
    config: LlavaConfig,
    weights: Mapping[str, Weight],
    processor: LlavaProcessor,
    generation: GenerationConfig,
    card: Card,
    dtype: str | None,
) -> None:
    """LLaVA's own format, the vision tower inside; `weights` come from `llava_weights`."""
    if config.projector_hidden_act not in ("gelu", "linear"):
        raise InputError(f"LLaVA has no projector with the activation {config.projector_hidden_act!r}")
    tower = _tower_name(config)
    if tower not in KNOWN:
        _write_tower(folder / tower, config, weights, processor, dtype)
    sampling = GenerationConfig.from_dict({**generation.to_dict(), "suppress_tokens": None})
    sampling.save_pretrained(folder)
    _write_tokenizer(folder, processor, card)
    write_card(folder, card, name)
    write_named(folder, weights, dtype)
    linear = config.projector_hidden_act == "linear"
    whole = standard_configuration(config, dtype or largest_type(weights))
    if not processor.image_processor.do_pad:
        whole["llava"] = {"image_aspect_ratio": "square", **dict(whole.get("llava") or {})}
    write_json(folder / "config.json", layout.llava_configuration(whole, tower, linear))


def _tower_name(config: LlavaConfig) -> str:
    """What `mm_vision_tower` will say: a published tower's name, or a folder's inside the checkpoint."""
    named = str(dict(getattr(config, "llava", None) or {}).get("mm_vision_tower", ""))
    if named in KNOWN and all(getattr(config.vision_config, key) == value for key, value in KNOWN[named].items()):
        return named
    plain = named and ":" not in named and Path(named).name not in ("", ".", "..")
    return Path(named).name if plain else "vision_tower"


def _write_tower(
    folder: Path, config: LlavaConfig, weights: Mapping[str, Weight], processor: LlavaProcessor, dtype: str | None
) -> None:
    """The tower as a CLIP folder beside the checkpoint: the original code takes it from there."""
    folder.mkdir()
    prefix = layout.llava_name(layout.VISION)
    tower = {
        f"vision_model.{name.removeprefix(prefix)}": one for name, one in weights.items() if name.startswith(prefix)
    }
    pixels = processor.image_processor
    side = pixels.size["shortest_edge"]
    settings = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": pixels.crop_size["height"],
        "size": side,
        **dict.fromkeys(("do_center_crop", "do_normalize", "do_resize"), True),
        "image_mean": list(pixels.image_mean),
        "image_std": list(pixels.image_std),
        "resample": int(pixels.resample),
    }
    write_json(folder / "preprocessor_config.json", settings)
    write_weights(folder, tower, dtype)
    vision = config.vision_config.to_dict()
    write_json(
        folder / "config.json", {**vision, "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    )


def _write_tokenizer(folder: Path, processor: LlavaProcessor, card: Card) -> None:
    """The sentencepiece model with its settings where there is one; otherwise the tokenizer as transformers saves it."""
    tokenizer = processor.tokenizer
    if not any(file.name == "tokenizer.model" for file in card.files):
        tokenizer.save_pretrained(folder)
        return
    words = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "unk_token": tokenizer.unk_token}
    legacy = tokenizer.backend_tokenizer.pre_tokenizer is None
    length = tokenizer.model_max_length
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "pad_token": tokenizer.pad_token,
        **words,
        **({"model_max_length": length} if length < 1e9 else {}),
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {**words, "pad_token": tokenizer.pad_token})
    base = set(tokenizer.all_special_tokens) | {IMAGE_TAG}
    added = {word: index for word, index in tokenizer.get_added_vocab().items() if word not in base}
    if added:
        write_json(folder / "added_tokens.json", added)
