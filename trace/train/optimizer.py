"""Muon for the matrices, AdamW for everything else, behind one optimizer that the Trainer can schedule and save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """torch's Muon, orthogonalising in the parameters' own type and matrices of one shape together.

    torch's own step casts to bfloat16. A processor without bfloat16 arithmetic then spends 70 % of a training step of
    the nano model in the optimizer; in float32 it is 4 %. State and settings are torch's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for parameters in shapes.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        updates = []
        for parameter in parameters:
            momentum, state = group["momentum"], self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(average, momentum) if group["nesterov"] else average)
        updates_NHW = orthogonalised(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
        height, width = parameters[0].shape
        rate = group["lr"] * math.sqrt(max(1, height / width))
        for parameter, update in zip(parameters, updates_NHW, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalised(
    matrices_NHW: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: Newton-Schulz iterations as in torch's Muon, batched."""
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

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        muon_learning_rate: float,
        muon_weight_decay: float,
    ) -> None:
        muon = Muon(list(matrices), lr=muon_learning_rate, weight_decay=muon_weight_decay)
        adamw = torch.optim.AdamW(list(others), betas=(0.9, 0.98))
        super().__init__(muon.param_groups + adamw.param_groups, {"lr": adamw.defaults["lr"]})
        self._parts = (muon, adamw)
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
