"""Which parameters learn, at which learning rate, by which optimizer (AdamW, or Muon for matrices)."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.families.base import PARTS, num_elements, part_of
from .config import TrainConfig


def lora_targets(model: Any) -> dict[str, nn.Linear]:
    """Return the matrices that get adapters, by name: every linear of the language model's layers."""
    root = next(name for name, module in model.named_modules() if module is model.get_decoder())
    named = model.get_decoder().layers.named_modules()
    return {f"{root}.layers.{name}": module for name, module in named if isinstance(module, nn.Linear)}


def saved_modules(model: Any, part: str) -> list[str]:
    """Return the largest modules of a part, by names without `model.`; PEFT saves them complete, and no ModuleList."""
    names: list[str] = []
    for name, module in model.named_modules():
        parts = {part_of(f"{name}.{weight}") for weight, _ in module.named_parameters()}
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if name and parts == {part} and not inside and not isinstance(module, nn.ModuleList):
            names.append(name)
    return [name.removeprefix("model.") for name in names]


def set_trainable(model: Any, config: TrainConfig) -> Any:
    """Make exactly the configured parts trainable; return the model, wrapped by PEFT if there are adapters."""
    lora = config.lora  # None unless the language model gets adapters
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        if isinstance(config.model, str):  # the adapter names its base by this
            folder = Path(config.model)
            model.name_or_path = str(folder.resolve()) if folder.exists() else config.model
        full = [part for part in ("projector", "vision") if getattr(config.modes, part) == "full"]
        saved = [name for part in full for name in saved_modules(model, part)]
        # By full names: the vision tower has matrices of the same last names. As a pattern, which PEFT does not shorten.
        targets = sorted({re.sub(r"\.\d+\.", r".\\d+.", name).replace(".", r"\.") for name in lora_targets(model)})
        settings = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=f"^({'|'.join(targets)})$",
            modules_to_save=saved or None, task_type="CAUSAL_LM",
        )  # fmt: skip
        # ZeRO-3 needs one type, the base's; the optimizer's copy is float32 anyway.
        torch.manual_seed(config.seed)  # the adapters' first numbers; the Trainer, which comes later, seeds again
        # PEFT reads an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        model = get_peft_model(model, settings, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained = getattr(config.modes, part) == "full"
        if lora is not None and part == "llm":
            trained = ".lora_A." in name or ".lora_B." in name
        elif lora is not None:
            trained = trained and ".modules_to_save." in name  # the trained copy, not the original beside it
        parameter.requires_grad_(trained)
    return model


def trainable_parameters(model: nn.Module, frozen: bool = False) -> dict[str, int]:
    """Return the trainable parameters (or all): name -> elements, ZeRO-3's shards counted complete (`ds_numel`)."""
    parameters = {name: p for name, p in model.named_parameters() if frozen or p.requires_grad}
    return {name: num_elements(parameter) for name, parameter in parameters.items()}


def describe_trainable(model: nn.Module, config: TrainConfig) -> str:
    trained, total, parts = trainable_parameters(model), sum(trainable_parameters(model, frozen=True).values()), []
    for part in reversed(PARTS):
        count = sum(number for name, number in trained.items() if part_of(name) == part)
        mode = getattr(config.modes, part)
        rate = "" if mode == "frozen" else f" ({count / 1e6:.2f} M at {config.learning_rate_of(part):g})"
        parts.append(f"{part} {mode}{rate}")
    muon = f", matrices at {config.muon_learning_rate:g} by Muon" if config.optimizer == "muon" else ""
    return f"trains: {', '.join(parts)}{muon}; {sum(trained.values()) / 1e6:.2f} of {total / 1e6:.2f} M parameters"


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW (or Muon with AdamW), each part at its own learning rate, without weight decay on vectors."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = []
    if config.optimizer == "muon":
        names = [n for n, p in trained.items() if p.ndim == 2 and not re.search(r"embed|lm_head|head\.", n)]
        matrices = [trained.pop(name) for name in names]
    groups: list[dict[str, Any]] = []
    for part in reversed(PARTS):
        for decay, is_matrix in ((config.weight_decay, True), (0.0, False)):
            own = [parameter for name, parameter in trained.items() if part_of(name) == part]
            # ds_shape: a shard of ZeRO-3 is flat
            members = [p for p in own if (len(getattr(p, "ds_shape", p.shape)) >= 2) == is_matrix]
            if members:
                rate = config.learning_rate_of(part)
                groups.append({"params": members, "lr": rate, "weight_decay": decay, "part": part})
    if matrices:
        muon = Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.muon_weight_decay)
        return MuonWithAdamW(muon, groups)
    # On a GPU the fused step needs no temporary copies, and the same kernel exists for states kept on the CPU.
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=torch.cuda.is_available() or None)


class Muon(torch.optim.Muon):
    """torch's Muon, orthogonalizing in the parameters' own type, and matrices of one shape together.

    torch's step casts to bfloat16. A CPU without bfloat16 arithmetic then spends 70 % of a training step of the nano
    model in the optimizer; in float32 it is 4 %. State and settings are torch's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for (height, width), parameters in shapes.items():
                updates, momentum = [], group["momentum"]
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                    average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                    updates.append(parameter.grad.lerp(average, momentum) if group["nesterov"] else average)
                steps = group["ns_coefficients"], group["ns_steps"], group["eps"]
                rate = group["lr"] * math.sqrt(max(1, height / width))
                for parameter, update in zip(parameters, orthogonalize(torch.stack(updates), *steps), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalize(matrices_NHW: Tensor, coefficients: Sequence[float], steps: int, eps: float = 1e-7) -> Tensor:
    """Return roughly the nearest semi-orthogonal matrices: Newton-Schulz iterations as in torch's Muon, batched."""
    a, b, c = coefficients
    tall = matrices_NHW.shape[1] > matrices_NHW.shape[2]
    x = matrices_NHW.mT if tall else matrices_NHW
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's optimizers as one. Parameter groups are shared with them, so a schedule reaches both."""

    def __init__(self, muon: Muon, others: list[dict[str, Any]]) -> None:
        adamw = torch.optim.AdamW(others, betas=(0.9, 0.98))
        super().__init__(muon.param_groups + adamw.param_groups, {"lr": adamw.defaults["lr"]})
        self._optimizers = (muon, adamw)
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for optimizer in self._optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self._optimizers, state_dict["parts"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()
