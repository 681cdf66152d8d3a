"""The vision tower of a checkpoint: which weights, which configuration, which preprocessing.

A name is a CLIP folder, a CLIP repository on the hub, or `open_clip:ARCHITECTURE/PRETRAINED` (see openclip.py). Weights
that lie inside a LLaVA checkpoint are the ones that were trained with it, and win; only what they cannot say (number of
heads, activation, colours) is taken from the named tower then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.images import CLIP_MEAN, CLIP_STD
from ..utils.command import InputError
from . import llava_layout as layout
from .formats import Kind, read_object, recognise
from .lazy_tensors import Weight
from .openclip import PREFIX, SUFFIXES, open_clip_tower
from .presets import CLIP_L_336, hub_repository, model_folder

# Towers whose configuration is known without asking the hub, so that a checkpoint with its tower inside loads offline.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14-336": CLIP_L_336,
    "openai/clip-vit-large-patch14": {**CLIP_L_336, "image_size": 224},
}


@dataclass(frozen=True)
class Tower:
    """`config` are CLIPVisionConfig's arguments, `weights` go by the hub's names, `preprocessor` is CLIP's file.

    `name` may be published: it holds no path of this machine; `source` says where the tower was found here.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    preprocessor: Mapping[str, Any]


def find_tower(name: str | None, beside: Path | None, inside: Mapping[str, Weight]) -> Tower:
    """The tower called `name`, with the weights `inside` the checkpoint if there are any.

    Args:
        beside: the checkpoint that names the tower, where a relative name is looked for first; None for a name that the
            user gave.
    Raises:
        InputError: there is no name, nothing is found under it, or it is no CLIP.
    """
    if name is None:
        raise InputError(f"{beside} names no vision tower (mm_vision_tower); give one with --vision-tower")
    if inside and name in KNOWN:
        return Tower(name, "inside the checkpoint", KNOWN[name], inside, {})
    if name.startswith(PREFIX):
        config, weights, pixels = open_clip_tower(name, beside)
        spoken = f"{PREFIX}{name.removeprefix(PREFIX).partition('/')[0]}" if name.endswith(SUFFIXES) else name
        return Tower(spoken, name, config, inside or weights, pixels)
    try:
        folder = model_folder(name, "the vision tower", beside)
    except InputError as error:
        # A path of the machine where it was trained: the folder still says which published tower it was.
        known = next((one for one in KNOWN if Path(one).name == Path(name).name), None)
        if inside and known is not None:
            return Tower(known, "inside the checkpoint", KNOWN[known], inside, {})
        hint = "" if beside is None else "; --vision-tower names another"
        raise InputError(f"{error}{hint}") from None
    found = recognise(folder)
    if found.kind is not Kind.VISION and not (inside and found.config):
        raise InputError(f"{folder} is no vision tower: found {found.kind.value}, expected a CLIP")
    config = found.config.get("vision_config") or found.config
    if not isinstance(config, Mapping):
        raise InputError(f"{folder / 'config.json'}: vision_config is {config!r}; expected an object")
    settings = {key: config[key] for key in CLIP_KEYS if key in config}
    file = folder / "preprocessor_config.json"
    preprocessor = read_object(file) if file.is_file() else {}
    source = f"inside the checkpoint, configured by {folder}" if inside else str(folder)
    spoken = hub_repository(folder) or folder.resolve().name
    return Tower(spoken, source, settings, inside or found.part(layout.VISION), preprocessor)


CLIP_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor",
)  # fmt: skip


def pixel_settings(preprocessor: Mapping[str, Any], image_size: int, pad: bool) -> dict[str, Any]:
    """The arguments of transformers' LLaVA image processor for a CLIP's own preprocessing, padded to a square or not."""
    side = _side(preprocessor.get("size"), image_size)
    crop = preprocessor.get("crop_size", side)
    height, width = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
    return {
        "do_pad": pad,
        "size": {"shortest_edge": side},
        "crop_size": {"height": height, "width": width},
        "image_mean": list(preprocessor.get("image_mean", CLIP_MEAN)),
        "image_std": list(preprocessor.get("image_std", CLIP_STD)),
        "resample": preprocessor.get("resample", 3),
    }


def _side(size: Any, usual: int) -> int:
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge", size.get("height", usual)))
    return usual if size is None else int(size)
