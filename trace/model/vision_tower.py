"""The vision tower of a checkpoint: weights, configuration, preprocessing.

A tower is a CLIP folder, a CLIP repository on the hub, or from open_clip:

    --vision-tower open_clip:ViT-L-14-336-quickgelu/openai          a pretrained tag: the package downloads it
    --vision-tower open_clip:ViT-L-14-336-quickgelu/weights.pt      a file (state dict; .pt, .bin or .safetensors)

Weights inside a LLaVA checkpoint were trained with it and win over the named tower's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.images import CLIP_MEAN, CLIP_STD
from ..utils.command import InputError, install_hint
from . import llava_layout as layout
from .checkpoint_formats import CheckpointKind, read_object, recognise_checkpoint
from .lazy_tensors import LazyTensor, in_memory, tensors_of
from .presets import CLIP_L_336, hub_repository, model_folder

# Towers whose configuration is known without asking the hub, so that a checkpoint with its tower inside loads offline.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14-336": CLIP_L_336,
    "openai/clip-vit-large-patch14": {**CLIP_L_336, "image_size": 224},
}
CLIP_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor",
)  # fmt: skip


@dataclass(frozen=True)
class VisionTower:
    """`config` are CLIPVisionConfig's arguments, `weights` have the hub's names, `preprocessor` is CLIP's file.

    `name` may be published: it holds no path of this machine; `source` says where the tower is here.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    weights: Mapping[str, LazyTensor]
    preprocessor: Mapping[str, Any]


def find_tower(name: str | None, beside: Path | None, inside: Mapping[str, LazyTensor]) -> VisionTower:
    """Find the tower `name`, with the weights `inside` the checkpoint if there are any.

    Args:
        beside: the checkpoint that names the tower, where a relative name is looked up first; None for a name from the
            command line.
    """
    if name is None:
        raise InputError(f"{beside} names no vision tower (mm_vision_tower). Give one with --vision-tower")
    if inside and name in KNOWN:
        return VisionTower(name, "inside the checkpoint", KNOWN[name], inside, {})
    if name.startswith(OPEN_CLIP):
        tower = open_clip_tower(name, beside)
        return replace(tower, weights=inside or tower.weights)
    try:
        folder = model_folder(name, "the vision tower", beside)
    except InputError as error:
        # A path on the machine where it was trained: the folder's name still says which published tower it was.
        known = next((published for published in KNOWN if Path(published).name == Path(name).name), None)
        if inside and known is not None:
            return VisionTower(known, "inside the checkpoint", KNOWN[known], inside, {})
        raise InputError(f"{error}{'' if beside is None else '. --vision-tower names another'}") from None
    clip = recognise_checkpoint(folder)
    if clip.kind is not CheckpointKind.VISION and not (inside and clip.config):
        raise InputError(f"{folder} is not a vision tower: it is a {clip.kind.value}, expected a CLIP")
    config = clip.config.get("vision_config") or clip.config
    if not isinstance(config, Mapping):
        raise InputError(f"{folder / 'config.json'}: vision_config is {config!r}, expected an object")
    file = folder / "preprocessor_config.json"
    return VisionTower(
        hub_repository(folder) or folder.resolve().name,
        f"inside the checkpoint, configured by {folder}" if inside else str(folder),
        {key: config[key] for key in CLIP_KEYS if key in config},
        inside or clip.part(layout.VISION),
        read_object(file) if file.is_file() else {},
    )


def pixel_settings(preprocessor: Mapping[str, Any], image_size: int, pad: bool) -> dict[str, Any]:
    """The arguments of transformers' LLaVA image processor for a CLIP's own preprocessing, padded to a square or not."""
    size = preprocessor.get("size", image_size)
    side = int(size.get("shortest_edge", size.get("height", image_size)) if isinstance(size, Mapping) else size)
    crop = preprocessor.get("crop_size", side)
    height, width = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
    mean, std = (
        list(preprocessor.get(key, usual)) for key, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
    )
    return {
        "do_pad": pad, "size": {"shortest_edge": side}, "crop_size": {"height": height, "width": width},
        "image_mean": mean, "image_std": std, "resample": preprocessor.get("resample", 3),
    }  # fmt: skip


OPEN_CLIP = "open_clip:"
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
# Widths whose heads are not 64 wide, as open_clip configures them (ViT-H, ViT-g, ViT-bigG).
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
_TENSORS = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    **{f"{old}.{kind}": f"{new}.{kind}" for old, new in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"))
       for kind in ("weight", "bias")},
}  # fmt: skip
_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def open_clip_tower(name: str, beside: Path | None = None) -> VisionTower:
    """The tower of an open_clip name. The architecture's name decides the activation: with `-quickgelu` it is
    x * sigmoid(1.702 x), otherwise GELU; nothing in a file of weights tells them apart.

    A file needs no package; a tag needs open_clip, which needs torchvision. A tag's colours are in `preprocessor`.
    """
    architecture, _, pretrained = name.removeprefix(OPEN_CLIP).partition("/")
    if not architecture or not pretrained:
        raise InputError(f"{name}: expected open_clip:ARCHITECTURE/PRETRAINED, as open_clip:ViT-L-14/openai")
    if pretrained.endswith(_SUFFIXES):
        folders = [Path()] if beside is None else [beside, beside.resolve().parent, Path()]
        file = next((folder / pretrained for folder in folders if (folder / pretrained).is_file()), None)
        if file is None:
            raise InputError(f"{name}: the file {pretrained} does not exist")
        config, weights = clip_from_open_clip(tensors_of(file), "quickgelu" in architecture, str(file))
        return VisionTower(OPEN_CLIP + architecture, name, config, weights, {})
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        hint = f"Install it ({install_hint('openclip')}), with a torchvision built for this torch, or give a file"
        raise InputError(f"{name} needs the package open_clip_torch: {error}. {hint}") from None
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained, precision="fp32")
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{name} is not available from open_clip: {str(error).splitlines()[0]}") from None
    quick_gelu = any(type(module).__name__ == "QuickGELU" for module in model.visual.modules())
    loaded = {key: in_memory(tensor, f"{name}: {key}") for key, tensor in model.state_dict().items()}
    config, weights = clip_from_open_clip(loaded, quick_gelu, name)
    colours = getattr(model.visual, "preprocess_cfg", None) or {}
    pixels = {f"image_{key}": list(colours[key]) for key in ("mean", "std") if key in colours}
    return VisionTower(name, name, config, weights, pixels)


def clip_from_open_clip(
    tensors: Mapping[str, LazyTensor], quick_gelu: bool, where: str
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """CLIPVisionConfig's arguments and CLIPVisionModel's weights from open_clip's `visual.*` tensors."""
    bare = {name.removeprefix("module."): weight for name, weight in tensors.items()}  # as several processes save it
    visual = {name.removeprefix("visual."): weight for name, weight in bare.items() if name.startswith("visual.")}
    visual.pop("proj", None)  # only the features before the projection are used
    if "conv1.weight" not in visual or "class_embedding" not in visual:
        raise InputError(f"{where} is not an open_clip vision transformer (visual.conv1, visual.class_embedding)")
    width, channels, patch, _ = visual["conv1.weight"].shape
    positions, layers = visual["positional_embedding"].shape[0] - 1, 0
    weights: dict[str, LazyTensor] = {}
    for name, weight in visual.items():
        block = re.match(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)$", name)
        if name in _TENSORS:
            weights[layout.VISION + _TENSORS[name]] = weight
        elif block is not None and block[2] in (*_BLOCK, "attn.in_proj"):
            layers = max(layers, int(block[1]) + 1)
            prefix = f"{layout.VISION}encoder.layers.{block[1]}."
            if block[2] in _BLOCK:
                weights[f"{prefix}{_BLOCK[block[2]]}.{block[3]}"] = weight
            else:
                weights |= {f"{prefix}self_attn.{letter}_proj.{block[3]}": _third(weight, index)
                            for index, letter in enumerate("qkv")}  # fmt: skip
        else:
            raise InputError(f"{where}: visual.{name} has no counterpart in CLIPVisionModel")
    return {
        "hidden_size": width, "intermediate_size": visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": layers, "num_attention_heads": width // _HEAD_WIDTHS.get(width, 64),
        "num_channels": channels, "image_size": round(positions**0.5) * patch, "patch_size": patch,
        "hidden_act": "quick_gelu" if quick_gelu else "gelu",
    }, weights  # fmt: skip


def _third(weight: LazyTensor, index: int) -> LazyTensor:
    rows = weight.shape[0] // 3
    get = lambda: weight.get()[index * rows : (index + 1) * rows]  # noqa: E731
    return replace(weight, shape=(rows, *weight.shape[1:]), get=get, shared=True)  # copied: a view would keep all three
