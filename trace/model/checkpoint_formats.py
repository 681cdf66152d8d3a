"""How a checkpoint is recognised: by the names of its tensors and its configuration, never by its folder's name.

kind          content                                                needs
HUGGING_FACE  Hugging Face's LLaVA format                            -
LLAVA         LLaVA's own format, complete                           a vision tower, unless its weights are inside
LLAVA_LORA    LLaVA's LoRA: adapter + non_lora_trainables            base, vision tower
PROJECTOR     mm_projector.bin with LLaVA's config.json              base, vision tower
PEFT          an adapter over a model in Hugging Face's format       base
LANGUAGE      a Llama or Vicuna                                      vision tower, projector
VISION        a CLIP                                                 language model, projector
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..utils.command import InputError
from ..utils.files import read_json
from . import llava_layout as layout
from .lazy_tensors import LazyTensor, tensors_of, weights_in

CLIP_TYPES = ("clip", "clip_vision_model")


class CheckpointKind(Enum):
    HUGGING_FACE = "Hugging Face LLaVA"
    LLAVA = "LLaVA's own, complete"
    LLAVA_LORA = "LoRA in LLaVA's layout"
    PROJECTOR = "projector in LLaVA's layout"
    PEFT = "PEFT adapter over a Hugging Face LLaVA"
    LANGUAGE = "language model alone"
    VISION = "CLIP alone"


@dataclass(frozen=True)
class CheckpointFolder:
    """A recognised folder. `weights` have the hub's names; `lora` are an adapter's factors by their own names."""

    folder: Path
    kind: CheckpointKind
    config: Mapping[str, Any]
    weights: Mapping[str, LazyTensor]
    adapter: Mapping[str, Any] = field(default_factory=dict)  # adapter_config.json
    lora: Mapping[str, LazyTensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, LazyTensor]:
        return {name: weight for name, weight in self.weights.items() if name.startswith(prefix)}


def recognise_checkpoint(folder: Path) -> CheckpointFolder:
    """Read the tables of a folder and decide what kind of checkpoint it is."""
    file = folder / "config.json"
    config = read_object(file) if file.is_file() else {}
    if config:
        _check_architecture(config, file)
    if (folder / "adapter_config.json").is_file():
        return _recognise_adapter(folder, config)
    projector = folder / "mm_projector.bin"
    if not config and not projector.is_file():
        raise InputError(f"{folder} is not a model: it has neither config.json nor adapter_config.json")
    raw = weights_in(folder)
    if projector.is_file():
        raw = {**tensors_of(projector), **raw}
    if not raw:
        raise InputError(f"{folder} has no weights: expected model.safetensors, pytorch_model.bin or mm_projector.bin")
    hub_name = layout.tower_name if config.get("model_type") in CLIP_TYPES else layout.hub_name
    weights = layout.renamed(raw, hub_name)
    kind = _kind(weights, config, folder)
    if kind is CheckpointKind.LLAVA and "text_config" not in config:
        layout.check_llava(config, file)
    return CheckpointFolder(folder, kind, config, weights)


def _kind(weights: Mapping[str, LazyTensor], config: Mapping[str, Any], folder: Path) -> CheckpointKind:
    text, projector, vision = (
        any(name.startswith(prefix) for name in weights) for prefix in (layout.TEXT, layout.PROJECTOR, layout.VISION)
    )
    if text and not config:
        raise InputError(f"{folder} has no config.json, which gives the sizes of the model")
    if "text_config" in config and config.get("model_type") == "llava":
        return CheckpointKind.HUGGING_FACE
    if text and projector:
        return CheckpointKind.LLAVA
    if text:
        if "mm_vision_tower" in config or vision:
            raise InputError(f"{folder} has no projector: neither a tensor model.mm_projector.* nor mm_projector.bin")
        return CheckpointKind.LANGUAGE
    if projector or vision:
        return CheckpointKind.PROJECTOR if projector else CheckpointKind.VISION
    names = ", ".join(sorted(weights)[:3])
    raise InputError(f"{folder} is not a LLaVA model, projector, Llama or CLIP: its tensors are {names}, ...")


def _check_architecture(config: Mapping[str, Any], file: Path) -> None:
    kind = config.get("model_type")
    if kind == "llava" and "text_config" in config:
        for part, expected in (("text_config", "llama"), ("vision_config", "clip_vision_model")):
            settings = config.get(part) or {}
            if not isinstance(settings, dict):
                raise InputError(f"{file}: {part} is {settings!r}, expected an object")
            if settings.get("model_type") not in (None, expected):
                raise InputError(f"{file}: {part} has the type {settings['model_type']!r}, expected {expected!r}")
        strategy = config.get("vision_feature_select_strategy", "default")
        if strategy != "default":
            raise InputError(f"{file}: vision_feature_select_strategy is {strategy!r}; only 'default' is supported")
    elif kind not in (*layout.LLAVA_TYPES, *CLIP_TYPES):
        raise InputError(f"{file} describes a {kind!r} model; expected 'llava', 'llava_llama', 'llama' or 'clip'")


def _recognise_adapter(folder: Path, config: Mapping[str, Any]) -> CheckpointFolder:
    file = folder / "adapter_config.json"
    adapter = read_object(file)
    _check_adapter(adapter, file)
    raw = weights_in(folder, ("adapter_model",))
    if not raw:
        raise InputError(f"{folder} has an adapter_config.json but neither adapter_model.safetensors nor .bin")
    lora = {name: weight for name, weight in raw.items() if ".lora_" in name}
    complete = {name.replace(".modules_to_save", ""): weight for name, weight in raw.items() if name not in lora}
    hugging_face = any(".language_model." in name or "multi_modal_projector" in name for name in raw)
    extra = folder / "non_lora_trainables.bin"
    if extra.is_file():
        complete = {**tensors_of(extra), **complete}
    elif not hugging_face and not any("mm_projector" in name for name in complete):
        raise InputError(f"{extra} is missing: it holds the projector (LLaVA's training script writes both files)")
    weights = layout.renamed(complete, layout.hub_name)
    if "multi_modal_projector" in (adapter.get("modules_to_save") or []) and not layout.projector_type(weights):
        raise InputError(f"{file} lists multi_modal_projector in modules_to_save, but the weights do not contain it")
    if config and not hugging_face:
        layout.check_llava(config, folder / "config.json")
    kind = CheckpointKind.PEFT if hugging_face else CheckpointKind.LLAVA_LORA
    return CheckpointFolder(folder, kind, config, weights, adapter, lora)


def _check_adapter(adapter: Mapping[str, Any], file: Path) -> None:
    if adapter.get("peft_type") not in (None, "LORA"):
        raise InputError(f"{file}: peft_type is {adapter['peft_type']!r}; only LORA is supported")
    for key in ("use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora"):
        if adapter.get(key):
            raise InputError(f"{file}: {key} is not supported; only plain LoRA is")
    start = str(adapter.get("init_lora_weights")).lower()
    if start.startswith(("pissa", "olora", "corda", "loftq")):  # they subtract the first product from the base
        hint = "Save it as plain LoRA (PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        raise InputError(f"{file}: init_lora_weights is {start!r}, which changes the base too. {hint}")
    if not isinstance(adapter.get("r"), int) or not isinstance(adapter.get("lora_alpha"), int | float):
        raise InputError(f"{file} has no r and lora_alpha, which PEFT's LoRA configuration has")
    patterns = adapter.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(isinstance(alpha, int | float) for alpha in patterns.values()):
        raise InputError(f"{file}: alpha_pattern is {patterns!r}; expected name pattern -> alpha")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError: it is absent, broken, or another type."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object")
    return content


@contextmanager
def input_errors(source: Path | str) -> Iterator[None]:
    """Turn what transformers raises about the files of `source` into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{source} cannot be used: {reason or type(error).__name__}") from None
