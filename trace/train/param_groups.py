"""Which parameters learn, and at which rate: the parts of the model, adapters, and the optimizer's groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import PARTS, Trainable, TrainConfig
from .dropout import share_dropout
from .optimizer import MuonWithAdamW

PART_PREFIXES = {"vision": ("model.vision_tower.",), "projector": ("model.multi_modal_projector.",)}
# By full names: the vision tower has matrices of the same last names, and peft's `exclude_modules` matches suffixes.
LORA_TARGETS = r"^model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"
SAVED_MODULES = {"projector": "multi_modal_projector", "vision": "vision_tower"}


def part_of(name: str) -> str:
    """Which of vision, projector and llm a parameter of the model belongs to (LoRA's wrapping included)."""
    bare = re.sub(r"^base_model\.model\.", "", name)
    return next((part for part, prefixes in PART_PREFIXES.items() if bare.startswith(prefixes)), "llm")


def choose(model: Any, config: TrainConfig) -> Any:
    """Let exactly the configured parts learn; returns the model, wrapped when there are adapters."""
    modes = config.modes
    if modes.llm == "lora":
        model = _with_lora(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_learns(name, modes))
    return model


def _learns(name: str, modes: Trainable) -> bool:
    part = part_of(name)
    mode = getattr(modes, part)
    if modes.llm != "lora":
        return mode == "full"
    if part == "llm":
        return ".lora_A." in name or ".lora_B." in name
    return mode == "full" and ".modules_to_save." in name  # the trained copy; the original beside it stays


def _with_lora(model: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    if isinstance(config.model, str):  # the adapter names its base by this
        folder = Path(config.model)
        model.name_or_path = str(folder.resolve()) if folder.exists() else config.model
    saved = [SAVED_MODULES[part] for part in ("projector", "vision") if getattr(config.modes, part) == "full"]
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=LORA_TARGETS,
            modules_to_save=saved or None,
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=False,  # ZeRO-3 wants one type: the base's; the optimizer's copy is float32 anyway
    )
    if config.lora.shared_dropout:
        share_dropout(adapted)
    return adapted


def _elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 keeps the whole number beside the shard


def learning(model: nn.Module) -> dict[str, int]:
    """The exact set of what learns: parameter name -> number of elements, ZeRO-3's shards counted whole."""
    return {name: _elements(one) for name, one in model.named_parameters() if one.requires_grad}


def summary(model: nn.Module, config: TrainConfig) -> str:
    """One line for the log: each part, how it learns, how many parameters, at which rate."""
    chosen = learning(model)
    total = sum(_elements(one) for one in model.parameters())
    told = []
    for part in reversed(PARTS):
        count = sum(number for name, number in chosen.items() if part_of(name) == part)
        mode = getattr(config.modes, part)
        rate = "" if mode == "frozen" else f" ({count / 1e6:.2f} M at {config.rate(part):g})"
        told.append(f"{part} {mode}{rate}")
    muon = f", matrices at {config.muon_learning_rate:g} by Muon" if config.optimizer == "muon" else ""
    return f"learns: {', '.join(told)}{muon}; {sum(chosen.values()) / 1e6:.2f} of {total / 1e6:.2f} M parameters"


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (or Muon with AdamW) over what may learn; each part at its own rate, no decay on vectors."""
    chosen = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    by_muon = {
        name
        for name, parameter in chosen
        if config.optimizer == "muon" and parameter.ndim == 2 and not re.search(r"embed|lm_head|head\.", name)
    }
    rest = list(_groups([(name, one) for name, one in chosen if name not in by_muon], config))
    if not by_muon:
        # On a GPU the fused step needs no temporary copies, and the same kernel exists for states kept on the CPU.
        return torch.optim.AdamW(rest, betas=(0.9, 0.999), eps=1e-8, fused=torch.cuda.is_available() or None)
    matrices = [parameter for name, parameter in chosen if name in by_muon]
    return MuonWithAdamW(matrices, rest, config.muon_learning_rate, config.muon_weight_decay)


def _groups(chosen: list[tuple[str, nn.Parameter]], config: TrainConfig) -> Iterator[dict[str, Any]]:
    for part in ("llm", "projector", "vision"):
        for decayed in (True, False):
            members = [p for name, p in chosen if part_of(name) == part and (_axes(p) >= 2) == decayed]
            if members:
                yield {
                    "params": members,
                    "lr": config.rate(part),
                    "weight_decay": config.weight_decay if decayed else 0.0,
                    "part": part,
                }


def _axes(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # a shard of ZeRO-3 is flat
