"""A model made to say a given text: its weights compute everything, only the choice of tokens is not its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def encoded(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those that begin or end one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


@contextmanager
def saying(checkpoint: Any, ids: Sequence[int]) -> Iterator[None]:
    """Make `generate` answer with these ids, whatever the weights want; attention is the model's own."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Force(LogitsProcessor):
        def __init__(self) -> None:
            self.place = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            forced = scores.new_full(scores.shape, -1e9)
            forced[:, ids[self.place]] = 0
            self.place += 1
            return forced

    model = checkpoint.model
    generate = model.generate

    def forced(**options: Any) -> Any:
        others = options.pop("logits_processor", None) or []
        return generate(**options, logits_processor=LogitsProcessorList([Force(), *others]))

    model.generate = forced
    try:
        yield
    finally:
        del model.generate
