"""Muon for the matrices, AdamW for everything else, behind one optimizer that the Trainer can schedule and save."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two of torch's optimizers as one. Parameter groups are shared with them, so a schedule reaches both."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        muon_learning_rate: float,
        muon_weight_decay: float = 0.05,
    ) -> None:
        muon = torch.optim.Muon(list(matrices), lr=muon_learning_rate, weight_decay=muon_weight_decay)
        adamw = torch.optim.AdamW(list(others), betas=(0.9, 0.98))
        super().__init__(muon.param_groups + adamw.param_groups, {})
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
