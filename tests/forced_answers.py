"""A model made to say a given text: its weights compute everything, only the choice of tokens is not its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import render

STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": "Free space.", "output": "One point."}
COR = render(STEPS, [Point(0.2, 0.5)])


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those that begin or end one."""
    return tokenizer(text, add_special_tokens=False).input_ids


@contextmanager
def saying(checkpoint: Any, text: str | Sequence[int]) -> Iterator[None]:
    """Make every answer this text (ended), or these ids, whatever the weights want; attention is the model's own."""
    tokenizer = checkpoint.tokenizer
    ids = [*encoded(tokenizer, text), tokenizer.eos_token_id] if isinstance(text, str) else list(text)
    step = 0

    def force(_module: Any, _inputs: Any, logits: Any) -> Any:
        nonlocal step
        forced = logits.new_full(logits.shape, -1e9)
        forced[..., ids[step % len(ids)]] = 0
        step += 1
        return forced

    handle = checkpoint.model.lm_head.register_forward_hook(force)
    try:
        yield
    finally:
        handle.remove()
