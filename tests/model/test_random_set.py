"""Checkpoints that nobody wrote down: every kind, drawn from a seed, against the same arithmetic in plain torch."""

from __future__ import annotations

import checkpoints_by_hand as hand
import pytest
import torch
from PIL import Image
from random_checkpoints import KINDS, draw

from trace_vlm.core.prompts import Rendered, encode, render_prompt
from trace_vlm.model.checkpoint import load
from trace_vlm.model.convert import convert

PROMPT = render_prompt("Where is the blue bowl, really? 3.5")


def logits(checkpoint, image):
    """(pixels, logits over the original's vocabulary), in float32."""
    inputs = checkpoint.inputs([image], [PROMPT])
    with torch.no_grad():
        found = checkpoint.model(**inputs).logits[0, :, : checkpoint.text_vocab_size]
    return inputs["pixel_values"].float(), found.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_whatever_is_drawn_computes_what_it_means(seed, kind, tmp_path, recorded):
    drawn = draw(seed, kind, tmp_path, recorded.folder / "tokenizer")
    image = Image.effect_noise((40 + 7 * seed, 60), 60).convert("RGB")
    checkpoint = load(drawn.source, base=drawn.base)
    pixels, got = logits(checkpoint, image)
    ids = encode(checkpoint.tokenizer, Rendered(PROMPT, ())).input_ids
    assert checkpoint.text_vocab_size == drawn.shape.vocabulary
    assert (got - hand.original_logits(drawn.shape, drawn.text, drawn.tower, ids, pixels)).abs().max() < 5e-5
    if drawn.base is not None and "LLaVA" in kind:  # the same over the base in Hugging Face's format
        convert(drawn.base, tmp_path / "base")
        assert torch.equal(logits(load(drawn.source, base=tmp_path / "base"), image)[1], got)
    convert(drawn.source, tmp_path / "hf", drawn.base)
    convert(tmp_path / "hf", tmp_path / "back", to="llava")
    for folder in ("hf", "back"):
        again = load(tmp_path / folder)
        assert encode(again.tokenizer, Rendered(PROMPT, ())).input_ids == ids
        assert all(torch.equal(one, other) for one, other in zip(logits(again, image), (pixels, got), strict=True))
    for dtype, near in (("float16", 0.05), ("bfloat16", 0.5)):
        narrow = load(drawn.source, base=drawn.base, dtype=dtype)
        assert narrow.model.dtype == getattr(torch, dtype)
        assert (logits(narrow, image)[1] - got).abs().max() < near
