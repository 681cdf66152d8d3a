"""A model made to say a given text: its weights compute everything, only the choice of tokens is not its own."""

import itertools
from contextlib import contextmanager

from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import render

STEPS = {"reference": "The mug.", "target": "Left of it.", "subtype": "Free space.", "output": "One point."}
COR = render(STEPS, [Point(0.2, 0.5)])


def encoded(tokenizer, text):
    """The tokens of a text, without those that begin or end one."""
    return tokenizer(text, add_special_tokens=False).input_ids


@contextmanager
def saying(checkpoint, text):
    """Make every answer this text (ended), or these ids, whatever the weights want; attention is the model's own."""
    tokenizer = checkpoint.tokenizer
    ids = [*encoded(tokenizer, text), tokenizer.eos_token_id] if isinstance(text, str) else list(text)
    following = itertools.cycle(ids)

    def force(_module, _inputs, logits):
        forced = logits.new_full(logits.shape, -1e9)
        forced[..., next(following)] = 0
        return forced

    with checkpoint.model.lm_head.register_forward_hook(force):
        yield
