"""Plan a model from checkpoint folders: one list of weights by the hub's names, one configuration, one processor.

Only tables are read: a `CheckpointPlan` is complete before the first weight leaves the disk, and mistakes that show in
names and shapes (a wrong base, a missing projector, an unknown tensor) are found by then. Loading and converting both
start from a plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from ..core.prompts import IMAGE_TAG
from ..utils.command import InputError
from . import llava_layout as layout
from .build import VOCABULARY_MULTIPLE, expected_tensors, llava_configuration, random_projector
from .checkpoint_formats import CheckpointFolder, CheckpointKind, input_errors, read_object, recognise_checkpoint
from .lazy_tensors import LazyTensor, in_memory, resized
from .llava_layout import EMBEDDING, HEAD
from .presets import is_hub_name, model_folder, model_name
from .processor import load_processor, load_tokenizer, make_processor
from .saving import ModelCard, make_card
from .vision_tower import VisionTower, find_tower, pixel_settings

PARTS_FILE = "base_parts.json"  # beside an adapter: the arguments of `plan_parts` for the model it was trained over
# The keys of LLaVA's config.json, besides the sizes, that are written back.
_KEPT = (
    "mm_vision_tower", "image_aspect_ratio", "mm_use_im_patch_token", "tokenizer_model_max_length",
    "tokenizer_padding_side", "_name_or_path",
)  # fmt: skip


@dataclass
class CheckpointPlan:
    """A model before its weights are read; `source` is the folder asked for, `merged` says that it has a LoRA."""

    source: Path
    kind: CheckpointKind
    config: LlavaConfig
    weights: dict[str, LazyTensor]
    processor: LlavaProcessor
    generation: GenerationConfig
    card: ModelCard
    merged: bool = False
    tower: VisionTower | None = None
    base: Path | None = None

    def problems(self) -> dict[str, list[str]]:
        """The tensors that are missing, unexpected, or of the wrong shape. InputError: the configuration is invalid."""
        with input_errors(f"the configuration of {self.source}"):
            shapes = expected_tensors(self.config)
        wrong = []
        for name, shape in shapes.items():
            weight = self.weights.get(name)
            if weight is not None and weight.shape != shape:
                in_base = self.base is not None and Path(weight.where.partition(": ")[0]).parent == self.base
                wrong.append(f"{'wrong base: ' if in_base else ''}{weight.where} is {weight.shape}, expected {shape}")
        missing, unexpected = sorted(shapes.keys() - self.weights.keys()), sorted(self.weights.keys() - shapes.keys())
        return {"wrong shape": wrong, "missing": missing, "unexpected": unexpected}

    def checked(self) -> CheckpointPlan:
        """The plan itself. InputError: a tensor is missing, unexpected, or has the wrong shape."""
        for problem, names in self.problems().items():
            if names:
                raise InputError(f"{self.source} is not a complete model: {problem}: {some_of(names)}")
        return self


def some_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def plan_checkpoint(
    path: str | Path, base: str | Path | None = None, vision_tower: str | None = None, check: bool = True
) -> CheckpointPlan:
    """Plan the model at `path`, a folder, a bundled model or a name on the hub, in any known format.

    Args:
        base: of an adapter or a projector; by default the one an adapter names.
        vision_tower: instead of the one that a LLaVA checkpoint names.
        check: compare names and shapes with what the configuration needs.
    """
    source = recognise_checkpoint(model_folder(path, "the model"))
    folder, kind = source.folder, source.kind
    if kind in (CheckpointKind.LANGUAGE, CheckpointKind.VISION):
        parts = "a language model, a CLIP and a projector (mm_projector.bin with its config.json)"
        raise InputError(f"{folder} is a {kind.value}; a model needs {parts}. Give the projector with --model-base")
    if kind in (CheckpointKind.HUGGING_FACE, CheckpointKind.LLAVA):
        if base is not None:
            raise InputError(f"{folder} is complete ({kind.value}). Leave out the base")
        plan = _plan_hugging_face if kind is CheckpointKind.HUGGING_FACE else _plan_llava
        result = plan(source, vision_tower=vision_tower)
    elif kind is CheckpointKind.PEFT:
        result = _plan_peft(source, base, vision_tower)
    else:
        under = recognise_checkpoint(_base_folder(source, base))
        if under.kind not in (CheckpointKind.HUGGING_FACE, CheckpointKind.LANGUAGE, CheckpointKind.LLAVA):
            raise InputError(f"the base {under.folder} is a {under.kind.value}; {folder} needs a language model")
        plan = _plan_over_hugging_face if under.kind is CheckpointKind.HUGGING_FACE else _plan_llava
        result = plan(source, under, vision_tower)
    return result.checked() if check else result


def _base_folder(source: CheckpointFolder, base: str | Path | None) -> Path:
    if base is not None:
        return model_folder(base, "the base model")
    named = source.adapter.get("base_model_name_or_path")
    if named:
        role = "the base model (from adapter_config.json; --model-base names another)"
        return model_folder(named, role, source.folder)
    trained = source.config.get("_name_or_path")
    hint = f" (it was trained over {trained})" if trained else ""
    raise InputError(f"{source.folder} is a {source.kind.value} and needs its language model. Give --model-base{hint}")


def _plan_hugging_face(source: CheckpointFolder, vision_tower: str | None) -> CheckpointPlan:
    folder = source.folder
    if vision_tower is not None:
        raise InputError(f"{folder} is a {source.kind.value} with its own vision tower. Leave out --vision-tower")
    with input_errors(folder):
        config = LlavaConfig.from_pretrained(folder)
        processor = load_processor(folder, config.vision_config.patch_size)
    weights = dict(source.weights)
    if HEAD not in weights and (config.tie_word_embeddings or config.text_config.tie_word_embeddings):
        weights[HEAD] = weights[EMBEDDING]
    generation = _generation_config(folder, processor.tokenizer, config)
    card = _card(source, source, [f"from: {model_name(folder)}"])
    return CheckpointPlan(folder, source.kind, config, weights, processor, generation, card)


def _plan_over_hugging_face(source: CheckpointFolder, under: CheckpointFolder, tower: str | None) -> CheckpointPlan:
    """An adapter or projector in LLaVA's layout over a base that was converted before."""
    plan = _plan_hugging_face(under, tower)
    size, width = source.config.get("hidden_size"), plan.config.text_config.hidden_size
    if size not in (None, width):
        raise InputError(f"wrong base: {source.folder} has hidden_size {size}, {under.folder} has {width}")
    both = {**plan.weights, **source.weights}
    weights = {name: weight for name, weight in both.items() if not name.startswith(layout.PROJECTOR)}
    for name in (EMBEDDING, HEAD):
        weights[name] = resized(weights[name], plan.config.text_config.vocab_size)
    weights |= linear_projector(source.part(layout.PROJECTOR))
    plan.config.projector_hidden_act = "linear" if layout.LINEAR + "weight" in source.weights else "gelu"
    return _adapted(plan, source, merge_lora(weights, source))


def _plan_peft(source: CheckpointFolder, base: str | Path | None, vision_tower: str | None) -> CheckpointPlan:
    """A PEFT adapter over a complete model in either format, or over the parts that a training run composed."""
    file = source.folder / PARTS_FILE
    if base is None and file.is_file():
        plan = plan_parts(**(read_object(file) | ({"vision": vision_tower} if vision_tower else {})))
    else:
        plan = plan_checkpoint(_base_folder(source, base), None, vision_tower, check=False)
        if plan.merged:
            raise InputError(f"the base {plan.source} is an adapter itself. Merge it first")
    return _adapted(plan, source, merge_lora({**plan.weights, **source.weights}, source))


def _adapted(plan: CheckpointPlan, source: CheckpointFolder, weights: dict[str, LazyTensor]) -> CheckpointPlan:
    parts = (*plan.card.parts, f"{source.kind.value}: {model_name(source.folder)}")
    return replace(
        plan, source=source.folder, kind=source.kind, weights=weights, card=replace(plan.card, parts=parts),
        merged=bool(source.lora), base=plan.source,
    )  # fmt: skip


def _plan_llava(
    source: CheckpointFolder, under: CheckpointFolder | None = None, vision_tower: str | None = None,
    pad: bool | None = None,
) -> CheckpointPlan:  # fmt: skip
    """A complete LLaVA checkpoint, or an adapter or projector over `under`; `pad` overrides image_aspect_ratio."""
    base = under or source
    llava = source.config if "mm_vision_tower" in source.config or under is None else {**base.config, **source.config}
    sized = source if "hidden_size" in source.config else base
    text = layout.llama_settings(sized.config, sized.folder / "config.json")
    if vision_tower is None:
        inside = {**base.part(layout.VISION), **source.part(layout.VISION)}
        tower = find_tower(llava.get("mm_vision_tower"), source.folder, inside)
    else:
        tower = find_tower(vision_tower, None, {})
    projector = source.part(layout.PROJECTOR) or base.part(layout.PROJECTOR)
    tokenizer = load_tokenizer(base.folder)
    # Unknown tensors are included, so that they are reported.
    language = {name: weight for name, weight in {**base.weights, **source.weights}.items()
                if not name.startswith((layout.VISION, layout.PROJECTOR))}  # fmt: skip
    weights = merge_lora(language, source)
    if EMBEDDING not in weights:
        raise InputError(f"{base.folder} has no embedding (model.embed_tokens.weight)")
    if HEAD not in weights and text.get("tie_word_embeddings"):
        weights[HEAD] = weights[EMBEDDING]
    rows = weights[EMBEDDING].shape[0]  # of the original vocabulary, without the image token
    padded = math.ceil(max(rows, len(tokenizer)) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    for name in (EMBEDDING, HEAD):
        if name in weights and weights[name].shape[0] == rows:
            weights[name] = resized(weights[name], padded)
    weights |= {**linear_projector(projector), **tower.weights}
    text |= {"vocab_size": padded, "tie_word_embeddings": False}
    with input_errors(f"the configuration of {tower.source}"):
        vision = CLIPVisionConfig(**tower.config)
    with input_errors(sized.folder / "config.json"):
        config = llava_configuration(LlamaConfig(**text), vision, tokenizer.convert_tokens_to_ids(IMAGE_TAG))
    config.vision_feature_layer = llava.get("mm_vision_select_layer", -2)
    if layout.projector_type(projector) == "linear":
        config.projector_hidden_act = "linear"
    config.llava = {**{key: llava[key] for key in _KEPT if key in llava}, "vocab_size": rows}
    if vision_tower is not None:
        config.llava["mm_vision_tower"] = tower.name
    with input_errors(f"the preprocessor of {tower.source}"):
        padded = llava.get("image_aspect_ratio") == "pad" if pad is None else pad
        pixels = pixel_settings(tower.preprocessor, vision.image_size, padded)
        processor = make_processor(tokenizer, vision.patch_size, pixels)
    parts = [f"language model: {model_name(base.folder)}", f"vision tower: {tower.name}"]
    parts += [f"{source.kind.value}: {model_name(source.folder)}"] if under else []
    return CheckpointPlan(
        source.folder, source.kind, config, weights, processor, _generation_config(base.folder, tokenizer, config),
        _card(source, base, parts), bool(source.lora), tower, under.folder if under else None,
    )  # fmt: skip


def plan_parts(llm: str, vision: str, projector: str | None, seed: int) -> CheckpointPlan:
    """Plan a model to start training from: a language model, a CLIP, and a projector or a random one.

    Images are padded to a square, whatever the projector was pre-trained with.
    """
    under = recognise_checkpoint(model_folder(llm, "the language model"))
    if under.kind is not CheckpointKind.LANGUAGE:
        raise InputError(f"{under.folder} is a {under.kind.value}; expected a language model alone")
    config: dict[str, Any] = {"mm_vision_tower": vision, "image_aspect_ratio": "pad"}
    source = CheckpointFolder(under.folder, CheckpointKind.PROJECTOR, config, {})
    if projector is not None:
        source = replace(recognise_checkpoint(model_folder(projector, "the projector")), config=config)
        if source.kind is not CheckpointKind.PROJECTOR:
            raise InputError(f"{source.folder} is a {source.kind.value}; expected a projector (mm_projector.bin)")
    plan = _plan_llava(source, under, vision, pad=True)
    if projector is None:
        for name, tensor in random_projector(plan.config, seed).state_dict().items():
            plan.weights[layout.PROJECTOR + name] = in_memory(tensor, "the random projector")
    return plan.checked()


def linear_projector(projector: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """LLaVA's one-layer projector as two layers: its own, no activation, and the identity; others unchanged."""
    weight = projector.get(layout.LINEAR + "weight")
    if weight is None:
        return dict(projector)
    side, dtype = weight.shape[0], getattr(torch, weight.dtype)
    zeros = LazyTensor((side,), weight.dtype, weight.where, lambda: torch.zeros(side, dtype=dtype))
    identity = LazyTensor((side, side), weight.dtype, weight.where, lambda: torch.eye(side, dtype=dtype))
    bias = projector.get(layout.LINEAR + "bias") or zeros
    layers = {"linear_1.weight": weight, "linear_1.bias": bias, "linear_2.weight": identity, "linear_2.bias": zeros}
    return {layout.PROJECTOR + name: tensor for name, tensor in layers.items()}


_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<which>[AB])(?:\.default)?\.weight$")


def merge_lora(base: dict[str, LazyTensor], source: CheckpointFolder) -> dict[str, LazyTensor]:
    """The weights of `base` with the LoRA of `source` added, one matrix at a time: W + alpha / r * B A, in float32."""
    weights, factors = dict(base), {}
    for name, weight in source.lora.items():
        match = _FACTOR.match(name)
        if match is None:
            raise InputError(f"{weight.where} is not supported; only plain LoRA (lora_A, lora_B) is")
        factors.setdefault(match["module"], {})[match["which"]] = weight
    for module, pair in factors.items():
        where, target = next(iter(pair.values())).where, layout.hub_name(f"{module}.weight")
        if len(pair) != 2:
            raise InputError(f"{where} has no partner: LoRA needs lora_A and lora_B of {module}")
        if target is None or target not in base:
            raise InputError(f"wrong base: it has no tensor for {where}")
        weight, down, up = base[target], pair["A"], pair["B"]
        if len(down.shape) != 2 or len(up.shape) != 2 or not down.shape[0] or up.shape[1] != down.shape[0]:
            raise InputError(f"{where}: lora_A {down.shape} and lora_B {up.shape} of {module} have no product")
        if weight.shape != (up.shape[0], down.shape[1]):
            product = (up.shape[0], down.shape[1])
            raise InputError(f"wrong base: {weight.where} has the shape {weight.shape}, {where} needs {product}")
        weights[target] = _sum(weight, down, up, _lora_scale(source.adapter, module, down.shape[0]))
    return weights


def _sum(weight: LazyTensor, down: LazyTensor, up: LazyTensor, scale: float) -> LazyTensor:
    get = lambda: torch.addmm(*(factor.get().float() for factor in (weight, up, down)), alpha=scale)  # noqa: E731
    return LazyTensor(weight.shape, "float32", weight.where, get, disk_dtype=weight.disk_dtype or weight.dtype)


def _lora_scale(adapter: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, with the module's own alpha if `alpha_pattern` gives one."""
    alpha = float(adapter["lora_alpha"])
    for pattern, value in (adapter.get("alpha_pattern") or {}).items():
        try:
            matches = re.match(rf"(?:.*\.)?(?:{pattern})$", module)
        except re.error:
            raise InputError(f"alpha_pattern of the adapter: {pattern!r} is not a regular expression") from None
        if matches is not None:
            alpha = float(value)
            break
    return alpha / (rank**0.5 if adapter.get("use_rslora") else rank)


def _card(source: CheckpointFolder, base: CheckpointFolder, parts: list[str]) -> ModelCard:
    """The card by the base's folder, with the name of the repository it was trained from if a configuration says it."""
    card = make_card(str(base.folder), base.folder, parts)
    named = str(source.adapter.get("base_model_name_or_path") or source.config.get("_name_or_path") or "")
    licence = card.licence or make_card(named, None).licence
    return replace(card, base=named, licence=licence) if is_hub_name(named) else card


def _generation_config(folder: Path, tokenizer: Any, config: LlavaConfig) -> GenerationConfig:
    file = folder / "generation_config.json"
    with input_errors(file):
        return valid_generation_config(read_object(file) if file.is_file() else {}, tokenizer, config)


def valid_generation_config(settings: Mapping[str, Any], tokenizer: Any, config: LlavaConfig) -> GenerationConfig:
    """`settings` of a generation_config.json made valid, with all ids that are no text suppressed.

    Vicuna's own file sets temperature and top_p without sampling, which transformers refuses to save: sampling settings
    are kept only if sampling is on. Rows of the output embedding without a piece of text have the logit 0.
    """
    names = ["max_length", "max_new_tokens", "repetition_penalty"]
    names += ["do_sample", "temperature", "top_p", "top_k"] if settings.get("do_sample") else []
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return GenerationConfig(
        **{key: settings[key] for key in names if settings.get(key) is not None}, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end, pad_token_id=end if pad is None else pad, suppress_tokens=suppressed_ids(tokenizer, config),
    )  # fmt: skip


def original_vocab_size(config: LlavaConfig) -> int | None:
    """Rows of the vocabulary in LLaVA's format, for a model from there."""
    return (getattr(config, "llava", None) or {}).get("vocab_size")


def suppressed_ids(tokenizer: Any, config: LlavaConfig) -> list[int]:
    """Ids that no answer may contain: the image's, and those that only round the vocabulary up."""
    return sorted(set(range(config.text_config.vocab_size)) - text_ids(tokenizer, config))


def text_ids(tokenizer: Any, config: LlavaConfig) -> set[int]:
    """The ids of text: the tokenizer's, without the image's and without a pad token that is nothing else.

    Ids that only round the vocabulary up are no text.
    """
    ids = set(tokenizer.get_vocab().values()) - {int(config.image_token_index)}
    if tokenizer.pad_token_id not in (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        ids.discard(tokenizer.pad_token_id)
    limit = original_vocab_size(config) or config.text_config.vocab_size
    return {token for token in ids if token < limit}
