"""LoRA, merged while the base is read: one matrix at a time, W + alpha / r * B A, in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..utils.command import InputError
from . import llava_layout as layout
from .formats import Found
from .lazy_tensors import Computed, Weight

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<which>[AB])(?:\.default)?\.weight$")


def merged_weights(base: Mapping[str, Weight], found: Found) -> dict[str, Weight]:
    """The weights of `base` with the adapter `found` in them: its factors added, its whole tensors put in their place.

    Raises:
        InputError: a factor without its partner, for a tensor that the base does not have, or of another size.
    """
    weights = {**base, **found.weights}
    factors: dict[str, dict[str, Weight]] = {}
    for name, weight in found.deltas.items():
        match = _FACTOR.match(name)
        if match is None:
            raise InputError(f"{weight.where} is not read; plain LoRA (lora_A, lora_B) is")
        factors.setdefault(str(match["module"]), {})[str(match["which"])] = weight
    for module, pair in factors.items():
        target = layout.hub_name(f"{module}.weight")
        one = next(iter(pair.values()))
        if len(pair) != 2:
            raise InputError(f"{one.where} has no partner: LoRA needs lora_A and lora_B of {module}")
        if target is None or target not in base:
            raise InputError(f"wrong base: it has no tensor for {one.where}")
        weight, down, up = base[target], pair["A"], pair["B"]
        if len(down.shape) != 2 or len(up.shape) != 2 or not down.shape[0] or up.shape[1] != down.shape[0]:
            raise InputError(f"{one.where}: lora_A {down.shape} and lora_B {up.shape} of {module} make no product")
        if weight.shape != (up.shape[0], down.shape[1]):
            raise InputError(
                f"wrong base: {weight.where} has the shape {weight.shape}, the adapter's {one.where} is made for "
                f"{(up.shape[0], down.shape[1])}"
            )
        scale = _scale(found.adapter, module, down.shape[0])
        weights[target] = _merged(weight, down, up, scale)
    return weights


def _scale(adapter: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, by the module's own alpha where `alpha_pattern` gives one."""
    alpha = float(adapter["lora_alpha"])
    for pattern, value in (adapter.get("alpha_pattern") or {}).items():
        if _matches(pattern, module):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if adapter.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None
    except re.error:
        raise InputError(f"alpha_pattern of the adapter: {pattern!r} is no pattern of names") from None


def _merged(weight: Weight, down: Weight, up: Weight, scale: float) -> Weight:
    def make() -> Any:
        import torch

        return torch.addmm(weight.read().float(), up.read().float(), down.read().float(), alpha=scale)

    return Computed(weight.shape, "float32", weight.where, make, weight)
