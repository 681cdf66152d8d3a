"""Write a checkpoint of any known format as one folder and verify it, or describe what a folder holds.

Weights go from file to file, one tensor at a time: converting a 13B model needs the disk, not the memory. The command
is `python -m trace.model.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import LlavaConfig

from ..core.prompts import Rendered, encode, render_prompt
from ..utils.command import InputError
from ..utils.files import new_folder, refuse_existing
from . import llava_layout as layout
from .checkpoint_formats import CheckpointFolder, CheckpointKind, read_object, recognise_checkpoint
from .checkpoint_plan import CheckpointPlan, plan_checkpoint, some_of
from .lazy_tensors import LazyTensor, differences, total_bytes, weights_in
from .presets import model_folder
from .record import reasons, write_record
from .saving import SavedModel, llava_weights, write_hugging_face, write_llava


def convert(
    source: str | Path, target: str | Path, base: str | Path | None = None, dtype: str | None = None,
    vision_tower: str | None = None, to: str = "hf",
) -> CheckpointPlan:  # fmt: skip
    """Write the model at `source` to `target` and compare it with its source; return the plan it was written from.

    Args:
        dtype: of the numbers on disk. By default each tensor's own, so that nothing is lost; float32 if an adapter is
            merged, whose sums have no type of their own.
        to: "hf" (Hugging Face's format) or "llava" (LLaVA's own).
    Raises:
        InputError: the source cannot be read, the target is not empty, or the result differs from the source.
    """
    target = Path(target)
    refuse_existing(target)
    plan = plan_checkpoint(source, base, vision_tower)
    dtype = dtype or ("float32" if plan.merged else None)
    weights = plan.weights if to == "hf" else llava_weights(plan.config, plan.weights)
    model = SavedModel(target.name, plan.config, weights, plan.processor, plan.generation, plan.card, dtype)
    with new_folder(target, total_bytes(weights, dtype)) as folder:
        (write_hugging_face if to == "hf" else write_llava)(folder, model)
        write_record(folder, "unit", reasons(source))
        _verify(folder, model)
    return plan


def _verify(folder: Path, model: SavedModel) -> None:
    """Read a written folder again. InputError: a tensor, a deciding setting, token ids or pixels differ."""
    wrong = next(differences(weights_in(folder), model.weights, model.dtype), None)
    if wrong is not None:
        raise InputError(f"{folder} does not read back as it was written: {wrong}. Is the disk in order?")
    again = plan_checkpoint(folder)
    if _deciding(again.config) != _deciding(model.config):
        raise InputError(f"{folder} has another configuration when it is read back")
    prompt = Rendered(render_prompt("Find the 3rd naïve mug."), ())
    image = Image.effect_noise((64, 48), 64).convert("RGB")
    ids = [encode(each.processor.tokenizer, prompt).input_ids for each in (model, again)]
    pixels = [each.processor.image_processor(image)["pixel_values"][0] for each in (model, again)]
    if ids[0] != ids[1] or (pixels[0] != pixels[1]).any():
        raise InputError(f"{folder} gives other tokens or pixels than the source when it is read back")


def _deciding(config: LlavaConfig) -> list[Any]:
    """The settings that decide the numbers and do not show in the tensors' shapes."""
    keys = (
        (config, ("image_token_index", "vision_feature_layer", "projector_hidden_act")),
        (config.text_config, ("num_attention_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters")),
        (config.vision_config, ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size")),
    )
    return [getattr(part, key) for part, names in keys for key in names]


def describe_checkpoint(
    path: str | Path, base: str | Path | None = None, vision_tower: str | None = None
) -> dict[str, str]:
    """What a checkpoint holds, and what would be missing or unexpected if it were loaded; reads no weights."""
    source = recognise_checkpoint(model_folder(path, "the model"))
    lines = {"folder": str(source.folder), "format": source.kind.value}
    if source.weights:
        lines["weights"] = _sizes(source.weights)
    if source.lora:
        lines["adapter"] = f"rank {source.adapter['r']}, alpha {source.adapter['lora_alpha']}; {_sizes(source.lora)}"
    lines |= _describe_parts(source)
    if source.kind in (CheckpointKind.LANGUAGE, CheckpointKind.VISION):
        return lines | {"missing": "a projector and the other model, to start training from (see docs/checkpoints.md)"}
    try:
        plan = plan_checkpoint(path, base, vision_tower, check=False)
    except InputError as error:
        return lines | {"missing": str(error)}
    lines |= {"base": str(plan.base)} if plan.base else {}
    lines |= {"tower from": plan.tower.source} if plan.tower else {}
    lines["complete model"] = _sizes(plan.weights)
    lines["tokenizer"] = f"{len(plan.processor.tokenizer)} pieces, including the image token"
    return lines | {problem: some_of(names) or "nothing" for problem, names in plan.problems().items()}


def _sizes(weights: Mapping[str, LazyTensor]) -> str:
    counts: dict[str, int] = {}
    for weight in weights.values():
        counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.count
    types = ", ".join(name if len(counts) == 1 else f"{count:,} {name}" for name, count in counts.items())
    size = total_bytes(weights, None) / 1e6
    return f"{sum(counts.values()):,} parameters in {len(weights)} tensors, {size:,.2f} MB, {types}"


def _describe_parts(source: CheckpointFolder) -> dict[str, str]:
    config, lines = source.config, {}
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    if "hidden_size" in text and source.kind is not CheckpointKind.VISION:
        layers, heads, rows = (text.get(key) for key in ("num_hidden_layers", "num_attention_heads", "vocab_size"))
        size = f"width {text['hidden_size']}, {layers} layers, {heads} heads, vocabulary {rows}"
        lines["language model"] = f"{text.get('model_type', 'llama')}: {size}"
    if vision:
        side, width, layers = (vision.get(key) for key in ("image_size", "hidden_size", "num_hidden_layers"))
        lines["vision tower"] = (
            f"CLIP: width {width}, {layers} layers, {side} x {side} pixels in patches of {vision.get('patch_size')}"
        )
    elif "mm_vision_tower" in config:
        inside = source.part(layout.VISION)
        where = f"weights inside: {_sizes(inside)}" if inside else "weights elsewhere"
        lines["vision tower"] = f"{config['mm_vision_tower']}, layer {config.get('mm_vision_select_layer')}; {where}"
    projector = source.part(layout.PROJECTOR)
    if projector:
        first = projector.get(layout.LINEAR + "weight") or projector.get(layout.PROJECTOR + "linear_1.weight")
        shape = f", {first.shape[1]} -> {first.shape[0]}" if first is not None else ""
        lines["projector"] = f"{layout.projector_type(projector) or 'incomplete'}{shape}; {_sizes(projector)}"
    if "image_aspect_ratio" in config:
        lines["images"] = f"image_aspect_ratio {config['image_aspect_ratio']}"
    file, pieces = source.folder / "tokenizer_config.json", source.folder / "tokenizer.model"
    if file.is_file() and pieces.is_file() and source.kind is not CheckpointKind.HUGGING_FACE:
        lines["legacy"] = str(read_object(file).get("legacy", "not set, so true")).lower()
    return lines
