"""Put a model together from what was found: one list of weights by the hub's names, one configuration, one processor.

Nothing is read here but tables: a `Plan` is complete before the first number leaves the disk, and every mistake that can
be seen from names and shapes (a wrong base, a missing projector, an unknown tensor) is found by then. Loading and
converting both start from a plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from ..core.prompts import IMAGE_TAG
from ..utils.command import InputError
from . import llava_layout as layout
from .build import VOCABULARY_MULTIPLE, expected_tensors, llava_configuration, random_projector
from .formats import Found, Kind, read_object, recognise, understood
from .lazy_tensors import Computed, Held, Weight, resized
from .lora import merged_weights
from .model_card import Card, card_of
from .presets import is_hub_name, model_folder, model_name
from .processor import load_processor, load_tokenizer, make_processor
from .vision_tower import Tower, find_tower, pixel_settings


@dataclass
class Plan:
    """A model before its weights are read. `source` is the folder asked for, `merged` says that an adapter is in it."""

    source: Path
    kind: Kind
    config: LlavaConfig
    weights: dict[str, Weight]
    processor: LlavaProcessor
    generation: GenerationConfig
    card: Card
    merged: bool = False
    tower: Tower | None = None
    base: Path | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that the configuration asks for. InputError: it describes no model."""
        with understood(f"the configuration of {self.source}"):
            return expected_tensors(self.config)

    def gaps(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
        """The names of tensors that are missing and of those that are unexpected."""
        return sorted(set(shapes) - set(self.weights)), sorted(set(self.weights) - set(shapes))


def plan(path: str | Path, base: str | Path | None = None, vision_tower: str | None = None) -> Plan:
    """The plan of the model at `path`, a folder or a name on the hub, in any format that is known.

    Args:
        base: of an adapter or a projector; by default the one an adapter names.
        vision_tower: instead of the one that a LLaVA checkpoint names.
    Raises:
        InputError: something is missing, broken, does not fit, or is of an unknown architecture.
    """
    return finished(planned(path, base, vision_tower))


def finished(found: Plan) -> Plan:
    """`found` itself; InputError when something is missing from it or does not belong."""
    shapes = found.shapes()
    for name, shape in shapes.items():
        weight = found.weights.get(name)
        if weight is not None and weight.shape != shape:
            wrong = "wrong base: " if found.base and Path(weight.where.partition(": ")[0]).parent == found.base else ""
            raise InputError(
                f"{wrong}{weight.where} has the shape {weight.shape}, expected {shape} after the configuration of "
                f"{found.source}"
            )
    missing, unexpected = found.gaps(shapes)
    problems = [f"lacks {name}" for name in missing] + [f"has {name} besides" for name in unexpected]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{found.source} does not make a whole model: it {', '.join(problems[:3])}{more}")
    return found


def planned(path: str | Path, base: str | Path | None, vision_tower: str | None) -> Plan:
    """As `plan`, without the comparison of names and shapes with what the configuration needs."""
    folder = model_folder(path, "the model")
    found = recognise(folder)
    if found.kind in (Kind.LANGUAGE, Kind.VISION):
        raise InputError(
            f"{folder} is a {found.kind.value}: a model to start training from needs a language model, a CLIP and a "
            "projector; give the projector's folder (mm_projector.bin with its config.json) and this as its base"
        )
    if found.kind in (Kind.HF, Kind.LLAVA) and base is not None:
        raise InputError(f"{folder} is complete ({found.kind.value}); it takes no base")
    if found.kind is Kind.PEFT:
        return _adapted(found, base, vision_tower)
    if found.kind is Kind.HF:
        return _standard(found, vision_tower)
    if found.kind is Kind.LLAVA:
        return _original(found, None, vision_tower)
    under = recognise(_base(found, base))
    if under.kind is Kind.HF:
        return _over_standard(found, under, vision_tower)
    if under.kind not in (Kind.LANGUAGE, Kind.LLAVA):
        raise InputError(f"the base {under.folder} is a {under.kind.value}; {found.folder} needs a language model")
    return _original(found, under, vision_tower)


def _base(found: Found, base: str | Path | None) -> Path:
    named = found.adapter.get("base_model_name_or_path")
    if base is not None:
        return model_folder(base, "the base model")
    if named:
        return model_folder(named, "the base model (named in adapter_config.json; --base names another)", found.folder)
    trained = found.config.get("_name_or_path")
    hint = f" (it was trained over {trained})" if trained else ""
    raise InputError(f"{found.folder} is a {found.kind.value} and needs its language model: give --base{hint}")


# --- Hugging Face's format ------------------------------------------------------------------------


def _standard(found: Found, vision_tower: str | None) -> Plan:
    if vision_tower is not None:
        raise InputError(f"{found.folder} is a {found.kind.value} with its own vision tower; it takes no other")
    with understood(found.folder):
        config = LlavaConfig.from_pretrained(found.folder)
        processor = load_processor(found.folder, config.vision_config.patch_size)
    weights = dict(found.weights)
    if _HEAD not in weights and (config.tie_word_embeddings or config.text_config.tie_word_embeddings):
        weights[_HEAD] = weights[_EMBEDDING]
    generation = generation_config(found.folder, processor.tokenizer, config)
    card = _card(found, found, [f"from: {model_name(found.folder)}"])
    return Plan(found.folder, found.kind, config, weights, processor, generation, card)


def _over_standard(found: Found, under: Found, vision_tower: str | None) -> Plan:
    """An adapter or projector in LLaVA's layout over a base that was converted before."""
    made = _standard(under, vision_tower)
    wanted, have = found.config.get("hidden_size"), made.config.text_config.hidden_size
    if wanted is not None and wanted != have:
        raise InputError(f"wrong base: {found.folder}/config.json has hidden_size {wanted}, {under.folder} has {have}")
    weights = {name: one for name, one in made.weights.items() if not name.startswith(layout.PROJECTOR)}
    weights |= {name: one for name, one in found.weights.items() if not name.startswith(layout.PROJECTOR)}
    for name in (_EMBEDDING, _HEAD):
        weights[name] = resized(weights[name], made.config.text_config.vocab_size)
    weights |= linear_projector(found.part(layout.PROJECTOR))
    weights = merged_weights(weights, replace(found, weights={}))
    made.config.projector_hidden_act = "linear" if layout.LINEAR + "weight" in found.weights else "gelu"
    return _upon(made, found, weights)


def _adapted(found: Found, base: str | Path | None, vision_tower: str | None) -> Plan:
    """A PEFT adapter over a whole model in either format, or over the parts that a training run put together."""
    file = found.folder / PARTS_FILE
    if base is None and file.is_file():
        parts = read_object(file)
        made = composed(**(parts if vision_tower is None else {**parts, "vision": vision_tower}))
    else:
        made = planned(_base(found, base), None, vision_tower)
        if made.merged:
            raise InputError(f"the base {made.source} is an adapter itself; merge it first")
    return _upon(made, found, merged_weights(made.weights, found))


def _upon(made: Plan, found: Found, weights: dict[str, Weight]) -> Plan:
    card = replace(made.card, parts=(*made.card.parts, f"{found.kind.value}: {model_name(found.folder)}"))
    return replace(
        made,
        source=found.folder,
        kind=found.kind,
        weights=weights,
        card=card,
        merged=bool(found.deltas),
        base=made.source,
    )


# --- LLaVA's format -------------------------------------------------------------------------------


def _original(found: Found, under: Found | None, vision_tower: str | None, pad: bool | None = None) -> Plan:
    whole = under or found
    llava = found.config if "mm_vision_tower" in found.config or under is None else {**whole.config, **found.config}
    sized = found if "hidden_size" in found.config else whole
    text = layout.llama_settings(sized.config, sized.folder / "config.json")
    inside = {**whole.part(layout.VISION), **found.part(layout.VISION)}
    tower = (
        find_tower(llava.get("mm_vision_tower"), found.folder, inside)
        if vision_tower is None
        else find_tower(vision_tower, None, {})
    )
    projector = found.part(layout.PROJECTOR) or whole.part(layout.PROJECTOR)
    tokenizer = load_tokenizer(whole.folder)
    rows, weights = _language_weights(found, whole, bool(text.get("tie_word_embeddings")), len(tokenizer))
    weights |= {**linear_projector(projector), **tower.weights}
    text |= {"vocab_size": weights[_EMBEDDING].shape[0], "tie_word_embeddings": False}
    with understood(f"the configuration of {tower.source}"):
        vision = CLIPVisionConfig(**tower.config)
    with understood(sized.folder / "config.json"):
        config = llava_configuration(LlamaConfig(**text), vision, tokenizer.convert_tokens_to_ids(IMAGE_TAG))
    config.vision_feature_layer = llava.get("mm_vision_select_layer", -2)
    if layout.projector_type(projector) == "linear":
        config.projector_hidden_act = "linear"
    config.llava = {**{key: llava[key] for key in _KEPT if key in llava}, "vocab_size": rows}
    if vision_tower is not None:
        config.llava["mm_vision_tower"] = tower.name
    padded = llava.get("image_aspect_ratio") == "pad" if pad is None else pad
    with understood(f"the preprocessor of {tower.source}"):
        pixels = pixel_settings(tower.preprocessor, vision.image_size, padded)
        processor = make_processor(tokenizer, vision.patch_size, pixels)
    generation = generation_config(whole.folder, tokenizer, config)
    parts = [f"language model: {model_name(whole.folder)}", f"vision tower: {tower.name}"]
    parts += [f"{found.kind.value}: {model_name(found.folder)}"] if under else []
    return Plan(
        found.folder, found.kind, config, weights, processor, generation, _card(found, whole, parts),
        merged=bool(found.deltas), tower=tower, base=under.folder if under else None,
    )  # fmt: skip


def _language_weights(found: Found, whole: Found, tied: bool, pieces: int) -> tuple[int, dict[str, Weight]]:
    """The rows of the original vocabulary, and the weights of the language model with room for the image's token.

    What belongs to no part comes along, so that it is reported.
    """
    weights = {
        name: one for name, one in {**whole.weights, **found.weights}.items() if not name.startswith(_OTHER_PARTS)
    }
    if found.deltas:
        weights = merged_weights(weights, replace(found, weights={}))
    if _EMBEDDING not in weights:
        raise InputError(f"{whole.folder} has no embedding (model.embed_tokens.weight) among its tensors")
    if _HEAD not in weights and tied:
        weights[_HEAD] = weights[_EMBEDDING]
    rows = weights[_EMBEDDING].shape[0]
    padded = math.ceil(max(rows, pieces) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in (_EMBEDDING, _HEAD):
        if name in weights and weights[name].shape[0] == rows:
            weights[name] = resized(weights[name], padded)
    return rows, weights


def composed(llm: str, vision: str, projector: str | None, seed: int) -> Plan:
    """The plan of a model to start training from: a language model, a CLIP, and a projector or a random one.

    Images are padded to a square, whatever the projector was pre-trained with.
    """
    under = recognise(model_folder(llm, "the language model"))
    if under.kind is not Kind.LANGUAGE:
        raise InputError(f"{under.folder} is a {under.kind.value}; expected a language model alone")
    config: dict[str, Any] = {"mm_vision_tower": vision, "image_aspect_ratio": "pad"}
    if projector is None:
        found = Found(under.folder, Kind.PROJECTOR, config, {})
    else:
        found = recognise(model_folder(projector, "the projector"))
        if found.kind is not Kind.PROJECTOR:
            raise InputError(f"{found.folder} is a {found.kind.value}; expected a projector (mm_projector.bin)")
        found = replace(found, config=config)
    made = _original(found, under, vision, pad=True)
    if projector is None:
        drawn = random_projector(made.config, seed).state_dict()
        made.weights |= {
            layout.PROJECTOR + name: Held(tensor, "the random projector") for name, tensor in drawn.items()
        }
    return finished(made)


PARTS_FILE = "base_parts.json"  # beside an adapter: the arguments of `composed` for the model it was trained over
_EMBEDDING = "language_model.model.embed_tokens.weight"
_HEAD = "language_model.lm_head.weight"
_OTHER_PARTS = (layout.VISION, layout.PROJECTOR)
# What LLaVA's config.json says besides the sizes, and writing that layout again should not forget.
_KEPT = (
    "mm_vision_tower", "image_aspect_ratio", "mm_use_im_patch_token", "tokenizer_model_max_length",
    "tokenizer_padding_side", "_name_or_path",
)  # fmt: skip


def linear_projector(projector: Mapping[str, Weight]) -> dict[str, Weight]:
    """LLaVA's one-layer projector as two layers: its own, no activation, and the identity; any other as it is."""
    weight = projector.get(layout.LINEAR + "weight")
    if weight is None:
        return dict(projector)
    side, where = weight.shape[0], weight.where
    bias = projector.get(layout.LINEAR + "bias")

    def identity() -> Any:
        import torch

        return torch.eye(side, dtype=getattr(torch, weight.dtype))

    def nothing() -> Any:
        import torch

        return torch.zeros(side, dtype=getattr(torch, weight.dtype))

    zeros = Computed((side,), weight.dtype, where, nothing)
    return {
        layout.PROJECTOR + "linear_1.weight": weight,
        layout.PROJECTOR + "linear_1.bias": bias or zeros,
        layout.PROJECTOR + "linear_2.weight": Computed((side, side), weight.dtype, where, identity),
        layout.PROJECTOR + "linear_2.bias": zeros,
    }


# --- checks and files beside the weights ----------------------------------------------------------


def _card(found: Found, whole: Found, parts: list[str]) -> Card:
    """By the base's folder; what the configuration was trained from helps where it is a repository's name."""
    card = card_of(str(whole.folder), whole.folder, parts)
    named = str(found.adapter.get("base_model_name_or_path") or found.config.get("_name_or_path") or "")
    if not is_hub_name(named):
        return card
    return replace(card, base=named, licence=card.licence or card_of(named, None).licence)


def generation_config(folder: Path, tokenizer: Any, config: LlavaConfig) -> GenerationConfig:
    """What generation_config.json in `folder` says, made valid, with every id that is no text forbidden.

    Vicuna's own file sets temperature and top_p without sampling, which transformers refuses to save: sampling settings
    stay only where sampling is on. Rows of the output embedding that no piece of text owns have the logit 0.
    """
    file = folder / "generation_config.json"
    with understood(file):
        return _valid(read_object(file) if file.is_file() else {}, tokenizer, config)


def generation_config_of(model: Any, tokenizer: Any) -> GenerationConfig:
    """The same for a model in memory."""
    return _valid(model.generation_config.to_diff_dict(), tokenizer, model.config)


def _valid(said: Mapping[str, Any], tokenizer: Any, config: LlavaConfig) -> GenerationConfig:
    kept = {key: said[key] for key in ("max_length", "max_new_tokens", "repetition_penalty") if said.get(key)}
    if said.get("do_sample"):
        kept |= {key: said[key] for key in ("do_sample", "temperature", "top_p", "top_k") if said.get(key) is not None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        **kept,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        suppress_tokens=no_text(tokenizer, config),
    )


def original_vocabulary(config: LlavaConfig) -> int | None:
    """Rows of the vocabulary in LLaVA's format, for a model that comes from there."""
    rows = dict(getattr(config, "llava", None) or {}).get("vocab_size")
    return None if rows is None else int(rows)


def text_ids(tokenizer: Any, config: LlavaConfig) -> set[int]:
    """Ids that text is made of: the tokenizer's, without the image's, and without a pad token that is nothing else.

    What only rounds the vocabulary up belongs to no piece of text.
    """
    original = original_vocabulary(config)
    ids = set(tokenizer.get_vocab().values()) - {int(config.image_token_index)}
    if tokenizer.pad_token_id not in (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        ids.discard(tokenizer.pad_token_id)
    return {one for one in ids if one < (original or config.text_config.vocab_size)}


def no_text(tokenizer: Any, config: LlavaConfig) -> list[int]:
    """Rows of the output that no answer may hold: all that are not `text_ids`."""
    return sorted(set(range(config.text_config.vocab_size)) - text_ids(tokenizer, config))


def held(state: Mapping[str, Any]) -> dict[str, Weight]:
    """The weights of a model in memory, by the hub's names."""
    named = {layout.hub_name(name): Held(tensor, name) for name, tensor in state.items()}
    return {name: weight for name, weight in named.items() if name is not None}
