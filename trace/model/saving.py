"""Write a model as one folder: in Hugging Face's format or LLaVA's own, with a model card.

The card's licence is never guessed: it is what the base's own card says or what is known of a published name;
otherwise the card says that it is unknown. Licence files of the base are copied.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor

from ..core.prompts import IMAGE_TAG
from ..utils.command import InputError
from ..utils.config import BROKEN_YAML
from ..utils.files import write_json
from . import llava_layout as layout
from .lazy_tensors import LazyTensor, largest_type, resized, total_bytes, write_weights
from .presets import hub_repository, is_hub_name
from .processor import save_processor
from .vision_tower import KNOWN

# The licences on the cards of published bases. Vicuna 1.5 is Llama 2, and so is what is trained from it.
LICENCES = (
    (r"(^|/)vicuna-(7|13)b-v1\.5", "llama2"),
    (r"(^|/)llama-?2-", "llama2"),
    (r"(^|/)llava-v1\.5-(7|13)b", "llama2"),
    (r"(^|/)nano(-base|-random)?$", "apache-2.0"),
)
NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights "
    "Reserved."
}
# Copied from the base; the original code and other converters read the sentencepiece model.
_COPIED = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "tokenizer.model")


@dataclass(frozen=True)
class ModelCard:
    """`base` is the model that the weights come from, as a name or a path; `files` are copied."""

    base: str
    licence: str | None
    parts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def make_card(base: str, folder: Path | None, parts: Sequence[str] = ()) -> ModelCard:
    """The card of a model made from `base` in `folder` (None for a preset)."""
    # Only the name of a local folder: its path means nothing to others.
    name = base if folder is None else hub_repository(folder) or folder.resolve().name
    files = () if folder is None else tuple(sorted(file for pattern in _COPIED for file in folder.glob(pattern)))
    readme = None if folder is None else folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme and readme.is_file() else ""
    front = re.match(r"\A---\n(.*?)\n---", text, re.DOTALL)
    fields = None
    with suppress(*BROKEN_YAML):
        fields = yaml.safe_load(front[1]) if front else None
    licence = fields.get("license") if isinstance(fields, dict) else None
    if not isinstance(licence, str) or licence == "unknown":
        licence = next(
            (known for text in (name, base) for pattern, known in LICENCES if re.search(pattern, text.lower())), None
        )
    return ModelCard(name, licence, tuple(parts), files)


def write_card(folder: Path, card: ModelCard, name: str, adapter: bool = False) -> None:
    """Write README.md and copy the base's files."""
    is_repository = is_hub_name(card.base) and not Path(card.base).exists()
    front = {
        "license": card.licence or "unknown", **({"base_model": card.base} if is_repository else {}),
        "library_name": "peft" if adapter else "transformers", "pipeline_tag": "image-text-to-text",
        "tags": ["robotics", "pointing"],
    }  # fmt: skip
    licence = f"The weights come from {card.base}, which does not state a licence. Find it out before you share them."
    if card.licence:
        licence = (
            f"The weights come from {card.base} under the licence `{card.licence}`, which applies to this model too."
        )
    notice = f"\n\n{NOTICES[card.licence]}" if card.licence in NOTICES else ""
    parts = "\n".join(f"- {part}" for part in card.parts)
    text = (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n"
        f"{'A PEFT adapter over a' if adapter else 'A'} vision-language model, saved by trace-vlm.\n\n{parts}\n\n"
        f"## Licence\n\n{licence}{notice}\n\nThe training data have terms of their own.\n"
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    for file in card.files:
        shutil.copyfile(file, folder / file.name)


@dataclass(frozen=True)
class SavedModel:
    """A model as it is written: `weights` have the names of the format, `dtype` is the type on disk (None: as is)."""

    name: str
    config: LlavaConfig
    weights: Mapping[str, LazyTensor]
    processor: LlavaProcessor
    generation: GenerationConfig
    card: ModelCard
    dtype: str | None

    def write_weights(self, folder: Path) -> None:
        size = total_bytes(self.weights, self.dtype)
        with tqdm(total=size, unit="B", unit_scale=True, desc=folder.name, disable=None) as bar:
            write_weights(folder, self.weights, self.dtype, progress=bar.update)


def write_hugging_face(folder: Path, model: SavedModel) -> None:
    """Hugging Face's format: weights by the hub's names, processor, chat template, generation configuration, card."""
    model.generation.save_pretrained(folder)
    save_processor(model.processor, folder)
    write_card(folder, model.card, model.name)
    model.write_weights(folder)
    write_json(folder / "config.json", _config_json(model))


def _config_json(model: SavedModel) -> dict[str, Any]:
    """config.json, with the rotary settings as transformers 4 and the servers read them besides those of 5."""
    dtype = model.dtype or largest_type(model.weights)
    complete = model.config.to_dict()
    settings, text, vision = (
        {key: value for key, value in part.items() if key not in _UNUSED} | {"dtype": dtype}
        for part in (complete, complete["text_config"], complete["vision_config"])
    )
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:
        text["rope_theta"] = rope["rope_theta"]
    architecture = {"architectures": ["LlavaForConditionalGeneration"]}
    return architecture | settings | {"text_config": text, "vision_config": vision}


# Keys that every configuration of transformers has and no language model needs.
_UNUSED = (
    "_name_or_path", "architectures", "chunk_size_feed_forward", "id2label", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict",
)  # fmt: skip


def llava_weights(config: LlavaConfig, weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The weights by LLaVA's names, with the original rows of the vocabulary and a linear projector as one layer."""
    rows = (getattr(config, "llava", None) or {}).get("vocab_size", config.image_token_index)
    linear = config.projector_hidden_act == "linear"
    weights = {name: resized(weight, rows) if name in (layout.EMBEDDING, layout.HEAD) else weight
               for name, weight in weights.items()}  # fmt: skip
    if linear:
        names = [f"{layout.PROJECTOR}linear_{part}" for part in ("1.weight", "1.bias", "2.weight", "2.bias")]
        first, shift, second, last = (weights.pop(name) for name in names)
        matrix, left, right = second.read(), first, shift
        if not torch.equal(matrix, torch.eye(matrix.shape[0], dtype=matrix.dtype)) or last.read().any():
            # It was trained: two layers without an activation between them are one.
            first = replace(left, dtype="float32", get=lambda: second.get().float() @ left.get().float())
            shift = replace(
                right, dtype="float32", get=lambda: second.get().float() @ right.get().float() + last.get().float()
            )
        weights |= {names[0]: first, names[1]: shift}
    return {layout.llava_name(name, linear): weight for name, weight in weights.items()}


def write_llava(folder: Path, model: SavedModel) -> None:
    """LLaVA's own format, the vision tower inside; the weights come from `llava_weights`."""
    config = model.config
    if config.projector_hidden_act not in ("gelu", "linear"):
        raise InputError(f"LLaVA has no projector with the activation {config.projector_hidden_act!r}")
    tower = str((getattr(config, "llava", None) or {}).get("mm_vision_tower", ""))
    published = KNOWN.get(tower)
    if published is None or any(getattr(config.vision_config, key) != value for key, value in published.items()):
        is_path = tower and ":" not in tower and Path(tower).name not in ("", ".", "..")
        tower = Path(tower).name if is_path else "vision_tower"
        _write_tower(folder / tower, model)
    GenerationConfig.from_dict({**model.generation.to_dict(), "suppress_tokens": None}).save_pretrained(folder)
    _write_tokenizer(folder, model)
    write_card(folder, model.card, model.name)
    model.write_weights(folder)
    settings = _config_json(model)
    if not model.processor.image_processor.do_pad:
        settings["llava"] = {"image_aspect_ratio": "square"} | (settings.get("llava") or {})
    linear = config.projector_hidden_act == "linear"
    write_json(folder / "config.json", layout.llava_config_json(settings, tower, linear))


def _write_tower(folder: Path, model: SavedModel) -> None:
    """The tower as a CLIP folder inside the checkpoint: the original code reads it there."""
    folder.mkdir()
    prefix = layout.llava_name(layout.VISION)
    tower = {f"vision_model.{name.removeprefix(prefix)}": weight for name, weight in model.weights.items()
             if name.startswith(prefix)}  # fmt: skip
    pixels = model.processor.image_processor
    settings = {
        "feature_extractor_type": "CLIPFeatureExtractor", "crop_size": pixels.crop_size["height"],
        "size": pixels.size["shortest_edge"], "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "image_mean": list(pixels.image_mean), "image_std": list(pixels.image_std), "resample": int(pixels.resample),
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", settings)
    write_weights(folder, tower, model.dtype)
    changes = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"}
    write_json(folder / "config.json", model.config.vision_config.to_dict() | changes)


def _write_tokenizer(folder: Path, model: SavedModel) -> None:
    """The settings beside a copied sentencepiece model; without one, the tokenizer as transformers saves it."""
    tokenizer = model.processor.tokenizer
    if not any(file.name == "tokenizer.model" for file in model.card.files):
        tokenizer.save_pretrained(folder)
        return
    words = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "unk_token": tokenizer.unk_token}
    words["pad_token"], length = tokenizer.pad_token, tokenizer.model_max_length
    settings = {
        "tokenizer_class": "LlamaTokenizer", "legacy": tokenizer.backend_tokenizer.pre_tokenizer is None,
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "padding_side": "right",
    }  # fmt: skip
    limit = {"model_max_length": length} if length < 1e9 else {}
    write_json(folder / "tokenizer_config.json", settings | words | limit)
    write_json(folder / "special_tokens_map.json", words)
    base = set(tokenizer.all_special_tokens) | {IMAGE_TAG}
    added = {word: index for word, index in tokenizer.get_added_vocab().items() if word not in base}
    if added:
        write_json(folder / "added_tokens.json", added)
