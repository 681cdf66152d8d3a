"""What a checkpoint holds, in words, from its tables alone: nothing of the weights is read.

Besides the format and the sizes this says what would be missing or left over if the checkpoint were loaded now, from
this folder and with these arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.command import InputError
from . import llava_layout as layout
from .formats import Found, Kind, read_object, recognise
from .lazy_tensors import Weight
from .presets import model_folder


def describe(path: str | Path, base: str | Path | None = None, vision_tower: str | None = None) -> dict[str, str]:
    """Lines of (what, found), in the order of reading. InputError: the folder is no model, or broken."""
    found = recognise(model_folder(path, "the model"))
    lines = {"folder": str(found.folder), "format": found.kind.value}
    if found.weights:
        lines["weights"] = _sizes(found.weights)
    if found.deltas:
        lines["adapter"] = f"rank {found.adapter['r']}, alpha {found.adapter['lora_alpha']}; {_sizes(found.deltas)}"
    lines |= {name: text for name, text in _parts(found).items() if text}
    if found.kind in (Kind.LANGUAGE, Kind.VISION):
        lines["missing"] = "a projector and the other model, to start training from (see docs/checkpoints.md)"
        return lines
    return lines | _completeness(path, base, vision_tower)


def _completeness(path: str | Path, base: str | Path | None, vision_tower: str | None) -> dict[str, str]:
    from .checkpoint_plan import planned

    try:
        made = planned(path, base, vision_tower)
    except InputError as error:
        return {"missing": str(error)}
    shapes = made.shapes()
    missing, unexpected = made.gaps(shapes)
    wrong = [
        f"{made.weights[name].where} is {made.weights[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in made.weights and made.weights[name].shape != shape
    ]
    lines = {} if made.base is None else {"base": str(made.base)}
    if made.tower is not None:
        lines["tower from"] = made.tower.source
    lines["whole model"] = _sizes(made.weights)
    lines["tokenizer"] = f"{len(made.processor.tokenizer)} pieces, the image's token among them"
    return lines | {
        "missing": _some(missing),
        "unexpected": _some(unexpected),
        **({"wrong shape": _some(wrong)} if wrong else {}),
    }


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _sizes(weights: Mapping[str, Weight]) -> str:
    types: dict[str, int] = {}
    for weight in weights.values():
        types[weight.dtype] = types.get(weight.dtype, 0) + weight.count
    count, size = sum(types.values()), sum(weight.bytes for weight in weights.values())
    kinds = ", ".join(name if len(types) == 1 else f"{number:,} {name}" for name, number in types.items())
    return f"{count:,} parameters in {len(weights)} tensors, {size / 1e6:,.2f} MB, {kinds}"


def _parts(found: Found) -> dict[str, str]:
    config = found.config
    text: Mapping[str, Any] = config.get("text_config") or config
    vision: Mapping[str, Any] = config.get("vision_config") or {}
    lines = {}
    if "hidden_size" in text and found.kind is not Kind.VISION:
        lines["language model"] = (
            f"{text.get('model_type', 'llama')}: width {text['hidden_size']}, {text.get('num_hidden_layers')} layers, "
            f"{text.get('num_attention_heads')} heads, vocabulary {text.get('vocab_size')}"
        )
    if vision:
        side, patch = vision.get("image_size"), vision.get("patch_size")
        lines["vision tower"] = (
            f"CLIP: width {vision.get('hidden_size')}, {vision.get('num_hidden_layers')} layers, "
            f"{side} x {side} pixels in patches of {patch}"
        )
    elif "mm_vision_tower" in config:
        inside = found.part(layout.VISION)
        where = f"weights inside: {_sizes(inside)}" if inside else "weights elsewhere"
        lines["vision tower"] = f"{config['mm_vision_tower']}, layer {config.get('mm_vision_select_layer')}; {where}"
    projector = found.part(layout.PROJECTOR)
    if projector:
        lines["projector"] = f"{_projector(found, projector)}; {_sizes(projector)}"
    if "image_aspect_ratio" in config:
        lines["images"] = f"image_aspect_ratio {config['image_aspect_ratio']}"
    file = found.folder / "tokenizer_config.json"
    if file.is_file() and (found.folder / "tokenizer.model").is_file() and found.kind is not Kind.HF:
        lines["legacy"] = str(read_object(file).get("legacy", "not said: true")).lower()
    return lines


def _projector(found: Found, projector: Mapping[str, Weight]) -> str:
    kind = layout.projector_type(projector) or "incomplete"
    first = projector.get(layout.LINEAR + "weight") or projector.get(layout.PROJECTOR + "linear_1.weight")
    return kind if first is None else f"{kind}, {first.shape[1]} -> {first.shape[0]}"
