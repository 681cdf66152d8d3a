"""The recorders against eager attention, and against the recorded shapes of a generation."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from trace_vlm.attention import GenerationRecorder, GroundingRecorder, recording
from trace_vlm.prompts import render_prompt

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 128, 3), dtype=np.uint8))


def eager_attention(model, inputs):
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    try:
        with torch.no_grad():
            return torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0]
    finally:
        model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})


def image_columns(nano, ids):
    columns = (ids[0] == nano.image_token_id).nonzero()[:, 0]
    return slice(int(columns[0]), int(columns[-1]) + 1)


def test_rows_recorded_while_generating_equal_eager_attention(nano):
    inputs = nano.inputs([PICTURE], [render_prompt("Where is the red mug?")])
    columns = image_columns(nano, inputs["input_ids"])
    recorder = GenerationRecorder([0, 3], columns)
    with recording(nano.model, recorder), torch.no_grad():
        ids = nano.model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = eager_attention(nano.model, whole)[[0, 3], :, :, columns]
    start = inputs["input_ids"].shape[1]
    assert recorder.attention().shape == (2, 4, 11, 64)
    assert torch.allclose(recorder.attention(), expected[:, :, start:-1], atol=1e-6)
    assert torch.allclose(recorder.prompt_row(), expected[:, :, start - 1], atol=1e-6)
    assert nano.model.config.text_config._attn_implementation == "sdpa"


def test_grounding_loss_is_the_mass_on_the_object_among_image_tokens(nano):
    inputs = nano.inputs([PICTURE, PICTURE], [render_prompt("Where is the red mug?"), render_prompt("Find it.")])
    starts = (inputs["input_ids"] == nano.image_token_id).int().argmax(1)
    length = inputs["input_ids"].shape[1]
    rows = torch.tensor([[0, length - 1], [1, length - 3]])
    patches = torch.zeros(2, 64)
    patches[0, :5] = 1
    patches[1, 40:44] = 1
    recorder = GroundingRecorder(2, 1, rows, patches, starts)
    with recording(nano.model, recorder):
        nano.model(**inputs, use_cache=False)
    nano.model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    attention = nano.model(**inputs, output_attentions=True).attentions[2]
    nano.model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    wanted = []
    for (row, position), patch in zip(rows.tolist(), patches, strict=True):
        image = attention[row, 1, position, starts[row] : starts[row] + 64]
        wanted.append(-(image / image.sum() * patch).sum().log())
    assert torch.allclose(recorder.loss, torch.stack(wanted).mean(), atol=1e-4)
    recorder.loss.backward()
    query = nano.model.model.language_model.layers[2].self_attn.q_proj.weight
    assert query.grad is not None and query.grad.abs().sum() > 0
    nano.model.zero_grad()
