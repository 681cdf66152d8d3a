"""Models of the nano model's kind in other sizes, with random weights, for the benchmarks beside this file."""

from __future__ import annotations

import dataclasses
from typing import Any

from trace_vlm.model import build
from trace_vlm.model.families.llava import LlavaCheckpoint
from trace_vlm.model.presets import PRESETS


def small(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> LlavaCheckpoint:
    """The nano preset with some fields of its two configurations changed."""
    nano = PRESETS["nano-random"]
    preset = dataclasses.replace(nano, text={**nano.text, **(text or {})}, vision={**nano.vision, **(vision or {})})
    tokenizer = build.nano_tokenizer()
    model = build.build_model(preset, tokenizer)
    return LlavaCheckpoint(model, build.build_processor(tokenizer, model.config.vision_config), "small", "small")
