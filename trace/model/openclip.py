"""A vision tower from open_clip, as weights and configuration of transformers' CLIPVisionModel.

    --vision-tower open_clip:ViT-L-14-336-quickgelu/openai          a pretrained tag: the package downloads it
    --vision-tower open_clip:ViT-L-14-336-quickgelu/weights.pt      a file (state dict; .pt, .bin or .safetensors)

The architecture's name matters: with `-quickgelu` the activation is x * sigmoid(1.702 x), without it GELU, and nothing
in a file of weights tells them apart. A file needs no package; a tag needs open_clip, and open_clip needs torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.command import InputError, install_hint
from .lazy_tensors import Computed, Held, Weight, tensors_of
from .llava_layout import VISION

PREFIX = "open_clip:"
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
# Widths whose heads are not 64 wide, as open_clip configures them (ViT-H, ViT-g, ViT-bigG).
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


def open_clip_tower(name: str, beside: Path | None = None) -> tuple[dict[str, Any], dict[str, Weight], dict[str, Any]]:
    """CLIPVisionConfig's arguments, the weights by the hub's names, and CLIP's preprocessor file, of an open_clip name.

    The preprocessor file says a tag's colours; for a file of weights, which has none, it is empty: OpenAI's are taken.

    Raises:
        InputError: the name lacks a part, the package is missing, or it is no plain vision transformer.
    """
    architecture, _, pretrained = name.removeprefix(PREFIX).partition("/")
    if not architecture or not pretrained:
        raise InputError(
            f"{name}: expected open_clip:ARCHITECTURE/PRETRAINED, e.g. open_clip:ViT-L-14-336-quickgelu/openai"
        )
    if pretrained.endswith(SUFFIXES):
        places = [Path()] if beside is None else [beside, beside.resolve().parent, Path()]
        file = next((place / pretrained for place in places if (place / pretrained).is_file()), None)
        if file is None:
            raise InputError(f"{name}: the file {pretrained} does not exist")
        return *map_tower(tensors_of(file), "quickgelu" in architecture, str(file)), {}
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            f"{name} needs the package open_clip_torch: {install_hint('openclip')} ({error}); or give a file"
        ) from None
    except RuntimeError as error:  # torchvision's compiled operators, built for another torch
        raise InputError(
            f"{name}: open_clip needs a torchvision that fits this torch: {error}; or give a file"
        ) from None
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained, precision="fp32")
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{name} cannot be had from open_clip: {str(error).splitlines()[0]}") from None
    quick = any(type(module).__name__ == "QuickGELU" for module in model.visual.modules())
    weights = {key: Held(tensor, f"{name}: {key}") for key, tensor in model.state_dict().items()}
    colours = getattr(model.visual, "preprocess_cfg", None) or {}
    pixels = {f"image_{key}": list(colours[key]) for key in ("mean", "std") if key in colours}
    return *map_tower(weights, quick, name), pixels


def map_tower(found: Mapping[str, Weight], quick_gelu: bool, where: str) -> tuple[dict[str, Any], dict[str, Weight]]:
    """open_clip's `visual.*` tensors as CLIPVisionModel's.

    Raises:
        InputError: tensors of another architecture (a ResNet, layer scale, attention pooling ...), named.
    """
    bare = {name.removeprefix("module."): one for name, one in found.items()}  # as several processes save it
    visual = {name.removeprefix("visual."): one for name, one in bare.items() if name.startswith("visual.")}
    visual.pop("proj", None)  # only the features before the projection are used
    if "conv1.weight" not in visual or "class_embedding" not in visual:
        raise InputError(f"{where} holds no vision transformer of open_clip (visual.conv1, visual.class_embedding)")
    width, channels, patch, _ = visual["conv1.weight"].shape
    positions = visual["positional_embedding"].shape[0] - 1
    layers = 1 + max(int(match[1]) for name in visual if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name)))
    weights: dict[str, Weight] = {}
    for name, weight in visual.items():
        for target, made in _mapped(name, weight):
            if target is None:
                raise InputError(f"{where}: visual.{name} has no counterpart in CLIPVisionModel")
            weights[VISION + target] = made
    config = {
        "hidden_size": width,
        "intermediate_size": visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTHS.get(width, 64),
        "num_channels": channels,
        "image_size": round(positions**0.5) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu" if quick_gelu else "gelu",
    }
    return config, weights


_PLAIN = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _mapped(name: str, weight: Weight) -> list[tuple[str | None, Weight]]:
    if name in _PLAIN:
        return [(_PLAIN[name], weight)]
    for old, new in (("ln_pre.", "pre_layrnorm."), ("ln_post.", "post_layernorm.")):
        if name.startswith(old):
            return [(new + name.removeprefix(old), weight)]
    match = re.match(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)$", name)
    if match is None:
        return [(None, weight)]
    layer, part, kind = match.groups()
    prefix = f"encoder.layers.{layer}."
    if part == "attn.in_proj":
        return [
            (f"{prefix}self_attn.{letter}_proj.{kind}", _third(weight, index)) for index, letter in enumerate("qkv")
        ]
    return [(f"{prefix}{_BLOCK[part]}.{kind}" if part in _BLOCK else None, weight)]


def _third(weight: Weight, index: int) -> Weight:
    rows = weight.shape[0] // 3
    return Computed(
        (rows, *weight.shape[1:]),
        weight.dtype,
        weight.where,
        lambda: weight.read()[index * rows : (index + 1) * rows].contiguous(),
    )
