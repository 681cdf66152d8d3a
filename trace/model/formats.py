"""What a folder holds, recognised by what lies in it: the names of its tensors and its configuration, never its own name.

The kinds, and what each needs besides itself:

    HF          Hugging Face's LLaVA format                          nothing
    LLAVA       LLaVA's own format, complete                         a vision tower, unless its weights are inside
    LLAVA_LORA  LLaVA's LoRA: adapter + non_lora_trainables          base, vision tower
    PROJECTOR   mm_projector.bin with LLaVA's config.json            base, vision tower
    PEFT        an adapter over a model in Hugging Face's format     base
    LANGUAGE    a Llama or Vicuna alone                              vision tower, projector
    VISION      a CLIP alone                                         everything else
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
from .lazy_tensors import Weight, tensors_of, weights_in


class Kind(Enum):
    HF = "Hugging Face LLaVA"
    LLAVA = "LLaVA's own, complete"
    LLAVA_LORA = "LoRA in LLaVA's layout"
    PROJECTOR = "projector in LLaVA's layout"
    PEFT = "PEFT adapter over a Hugging Face LLaVA"
    LANGUAGE = "language model alone"
    VISION = "CLIP alone"


@dataclass(frozen=True)
class Found:
    """A recognised folder. `weights` go by the hub's names; an adapter's own tensors by theirs."""

    folder: Path
    kind: Kind
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    adapter: Mapping[str, Any] = field(default_factory=dict)
    deltas: Mapping[str, Weight] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Weight]:
        return {name: weight for name, weight in self.weights.items() if name.startswith(prefix)}


def recognise(folder: Path) -> Found:
    """What `folder` holds.

    Raises:
        InputError: it is no folder, no model, incomplete, or of an architecture that is not read.
    """
    if not folder.is_dir():
        raise InputError(f"the model {folder} is no folder")
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, config)
    projector = folder / "mm_projector.bin"
    if not config and not projector.is_file():
        raise InputError(f"{folder} is no model: it holds neither config.json nor adapter_config.json")
    if config:
        _known(config, folder / "config.json")
    raw = weights_in(folder)
    if projector.is_file():
        raw = {**tensors_of(projector), **raw}
    if not raw:
        raise InputError(
            f"{folder} holds no weights: expected model.safetensors, pytorch_model.bin or mm_projector.bin"
        )
    if config.get("model_type") in ("clip", "clip_vision_model"):
        named = {layout.tower_name(name): weight for name, weight in raw.items()}
    else:
        named = {layout.hub_name(name): weight for name, weight in raw.items()}
    weights = {name: weight for name, weight in named.items() if name is not None}
    kind = _kind(weights, config, folder)
    if kind is Kind.LLAVA and "text_config" not in config:
        layout.check_llava(config, folder / "config.json")
    return Found(folder, kind, config, weights)


def _kind(weights: Mapping[str, Weight], config: Mapping[str, Any], folder: Path) -> Kind:
    text = any(name.startswith(layout.TEXT) for name in weights)
    projector = any(name.startswith(layout.PROJECTOR) for name in weights)
    vision = any(name.startswith(layout.VISION) for name in weights)
    if text and not config:
        raise InputError(f"{folder} has no config.json; without it the sizes of the model are not known")
    if "text_config" in config and config.get("model_type") == "llava":
        return Kind.HF
    if text and projector:
        return Kind.LLAVA
    if text:
        if "mm_vision_tower" in config or vision:
            raise InputError(
                f"{folder} has no projector: its configuration is LLaVA's, but no tensor is called "
                "model.mm_projector.* and there is no mm_projector.bin"
            )
        return Kind.LANGUAGE
    if projector:
        return Kind.PROJECTOR
    if vision:
        return Kind.VISION
    some = ", ".join(sorted(weights)[:3])
    raise InputError(f"{folder} is no LLaVA model, projector, Llama or CLIP: its tensors are called {some}, ...")


def _known(config: Mapping[str, Any], file: Path) -> None:
    kind = config.get("model_type")
    if kind == "llava" and "text_config" in config:
        for part, expected in (("text_config", ("llama",)), ("vision_config", ("clip_vision_model",))):
            said = config.get(part) or {}
            if not isinstance(said, dict):
                raise InputError(f"{file}: its {part} is {said!r}; expected an object")
            found = said.get("model_type")
            if found not in expected and found is not None:
                raise InputError(f"{file}: its {part} is of type {found!r}; expected {expected[0]!r}")
        chosen = config.get("vision_feature_select_strategy", "default")
        if chosen != "default":
            raise InputError(
                f"{file}: vision_feature_select_strategy is {chosen!r}; 'default' (no class token) is read"
            )
    elif kind in layout.LLAVA_TYPES or kind in ("clip", "clip_vision_model"):
        return
    else:
        raise InputError(
            f"{file} describes a {kind!r} model; expected 'llava' (Hugging Face's or LLaVA's own format), "
            "'llava_llama', 'llama' or 'clip'"
        )


# Ways to start a LoRA that take its first product out of the base's own weights.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def _adapter(folder: Path, config: Mapping[str, Any]) -> Found:
    file = folder / "adapter_config.json"
    adapter = read_object(file)
    kind = adapter.get("peft_type")
    if kind not in (None, "LORA"):
        raise InputError(f"{file}: peft_type is {kind!r}; LORA is read")
    for key in ("use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora"):
        if adapter.get(key):
            raise InputError(f"{file}: {key} is not read; plain LoRA is")
    start = str(adapter.get("init_lora_weights")).lower()
    if start.startswith(_CHANGE_THE_BASE):
        raise InputError(
            f"{file}: init_lora_weights is {start!r}, which changes the base too; save the adapter as plain LoRA "
            "(PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    if not isinstance(adapter.get("r"), int) or not isinstance(adapter.get("lora_alpha"), int | float):
        raise InputError(f"{file} has no r and lora_alpha; expected PEFT's configuration of a LoRA")
    patterns = adapter.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(isinstance(alpha, int | float) for alpha in patterns.values()):
        raise InputError(f"{file}: alpha_pattern is {patterns!r}; expected an alpha for each pattern of names")
    if config:
        _known(config, folder / "config.json")
    raw = weights_in(folder, ("adapter_model",))
    if not raw:
        raise InputError(f"{folder} has an adapter_config.json but neither adapter_model.safetensors nor .bin")
    deltas = {name: weight for name, weight in raw.items() if ".lora_" in name}
    whole = {name.replace(".modules_to_save", ""): weight for name, weight in raw.items() if name not in deltas}
    ours = any(".language_model." in name or "multi_modal_projector" in name for name in raw)
    extra = folder / "non_lora_trainables.bin"
    if extra.is_file():
        whole = {**tensors_of(extra), **whole}
    elif not ours and not any("mm_projector" in name for name in whole):
        raise InputError(
            f"{extra} is missing: the adapter's projector is in that file (LLaVA's training script writes both); "
            "without it the model would see nothing"
        )
    named = {layout.hub_name(name): weight for name, weight in whole.items()}
    weights = {name: weight for name, weight in named.items() if name is not None}
    if "multi_modal_projector" in (adapter.get("modules_to_save") or []) and not layout.projector_type(weights):
        raise InputError(f"{file} says that the adapter holds multi_modal_projector; its weights do not")
    if config and not ours:
        layout.check_llava(config, folder / "config.json")
    return Found(folder, Kind.PEFT if ours else Kind.LLAVA_LORA, config, weights, adapter, deltas)


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError: it is absent, broken, or holds something else."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} must hold a JSON object")
    return found


@contextmanager
def understood(source: Path | str) -> Iterator[None]:
    """What transformers does not accept in the files of `source`, as one sentence."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{source} cannot be used: {reason or type(error).__name__}") from None
