"""Recorded attention against eager attention and against the original code's record; capture and its options."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trace_vlm.attention.capture import CaptureConfig, capture_teacher_forced, capture_while_generating
from trace_vlm.core.prompts import render_prompt
from trace_vlm.model.attention_recorder import GroundingRecorder, recording
from trace_vlm.model.checkpoint import load
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json

ORIGINAL = Path(__file__).parents[1] / "data/llava_original"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 128, 3), dtype=np.uint8))
PROMPT = render_prompt("Where is the red mug?")
EXACT = CaptureConfig(dtype="float32", heads=(1, 2, 3))


@pytest.fixture(scope="module")
def original():
    """The model, image and prompt of the recorded case, and the record."""
    (case,) = (case for case in read_json(ORIGINAL / "prompts.json") if case["name"] == "cor")
    image = Image.open(ORIGINAL / "images" / case["image"]).convert("RGB")
    return (load(ORIGINAL / "full"), image, case["prompt"]), dict(np.load(ORIGINAL / "attention.npz"))


@pytest.fixture(scope="module")
def captured(original):
    """The answer is cut off, so its last row exists only because the last token was fed in once more."""
    return capture_while_generating(*original[0], EXACT, max_new_tokens=40, min_new_tokens=40)


def by_head(captured):
    return np.stack([captured.heads[layer] for layer in captured.layers])


def test_attention_while_generating_and_teacher_forced_is_that_of_the_original_record(original, captured):
    record, forced = original[1], capture_teacher_forced(*original[0], captured.token_ids, EXACT)
    assert captured.token_ids == tuple(record["generated_ids"]) and captured.layers == (1, 2, 3)
    assert np.abs(captured.attention - record["attention"].mean(1)).max() < 1e-5
    assert max(np.abs(by_head(one) - record["attention"]).max() for one in (captured, forced)) < 1e-5
    assert np.array_equal(forced.keys, captured.keys)


def test_the_predicting_row_is_the_one_before(original, captured):
    config, record = CaptureConfig(dtype="float32", heads=(1, 2, 3), row="predict"), original[1]
    before = capture_teacher_forced(*original[0], captured.token_ids, config)
    assert np.abs(by_head(before)[:, :, 0] - record["attention_last_prompt_row"]).max() < 1e-5
    assert np.abs(by_head(before)[:, :, 1:] - record["attention"][:, :, :-1]).max() < 1e-5
    assert np.array_equal(before.keys + 1, captured.keys)


def eager_attention(nano, inputs):
    """[layers, rows, heads, queries, keys]; gradients flow."""
    nano.model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    try:
        return torch.stack(nano.model(**inputs, output_attentions=True).attentions)
    finally:
        nano.model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})


def forced(nano, tokens, *layers, **options):
    config = CaptureConfig(layers or None, **{"dtype": "float32", **options})
    return capture_teacher_forced(nano, PICTURE, PROMPT, range(5, 5 + tokens), config)


def test_an_answer_that_ends_itself_has_a_row_for_every_token(nano):
    captured = capture_while_generating(nano, PICTURE, PROMPT, EXACT, max_new_tokens=12, min_new_tokens=12)
    inputs = nano.inputs([PICTURE], [PROMPT])
    start = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([captured.token_ids])], dim=1)
    columns = (ids[0] == nano.image_token_id).nonzero()[:, 0]
    with torch.no_grad():
        rows = eager_attention(nano, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert captured.attention.shape == (3, len(captured.token_ids), 64)
    assert np.abs(captured.attention - rows[1:, 0, :, start:, columns].mean(1).numpy()).max() < 1e-6
    assert nano.model.config.text_config._attn_implementation == "sdpa"


def test_by_default_the_mean_over_heads_is_kept_in_half_precision(nano):
    exact = forced(nano, 20, 0, -1, heads=(2,))
    small = forced(nano, 20, 0, -1, dtype="float16")
    assert small.attention.dtype == np.float16 and small.heads == {} and small.layers == (0, 3)
    assert np.abs(small.attention - exact.attention).max() < 1e-3
    largest = forced(nano, 20, 2, reduction="max", heads=(2,))
    assert largest.heads[2].shape == (4, 20, 64) and np.array_equal(largest.attention[0], exact.heads[2].max(0))


def test_a_pass_longer_than_one_chunk_is_the_same(nano, monkeypatch):
    complete = forced(nano, 40)
    monkeypatch.setattr("trace_vlm.model.attention_recorder.ROWS", 7)
    assert np.abs(complete.attention - forced(nano, 40).attention).max() < 1e-6


def test_a_pass_ends_in_the_last_recorded_layer(nano):
    """The layers above it are not run, and of that one nothing but its queries and keys."""
    finished, layers = [], list(nano.model.model.language_model.layers)
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: finished.append(module)):
        early = forced(nano, 20, 0, 1)
    assert [layers.index(module) for module in finished if module in layers] == [0]
    assert np.array_equal(early.attention, forced(nano, 20, 0, 1, 3).attention[:2])


def test_an_unknown_layer_and_an_empty_answer_are_refused(nano):
    with pytest.raises(InputError, match="4"):
        capture_while_generating(nano, PICTURE, PROMPT, CaptureConfig((4,)))
    with pytest.raises(ValueError):  # noqa: PT011 (the only reason)
        capture_teacher_forced(nano, PICTURE, PROMPT, [])


def test_grounding_loss_is_the_mass_on_the_object_among_image_tokens(nano):
    inputs = nano.inputs([PICTURE, PICTURE], [PROMPT, render_prompt("Find it.")])
    starts = (inputs["input_ids"] == nano.image_token_id).int().argmax(1)
    length = inputs["input_ids"].shape[1]
    rows = torch.tensor([[0, length - 1], [1, length - 3]])
    patches = torch.zeros(2, 64)
    patches[0, :5] = patches[1, 40:44] = 1
    recorder = GroundingRecorder(2, 1, rows, patches, starts)
    with recording(nano.model, recorder):
        nano.model(**inputs, use_cache=False)
    attention = eager_attention(nano, inputs)[2]
    images = [attention[row, 1, position, starts[row] : starts[row] + 64] for row, position in rows.tolist()]
    losses = [-(image / image.sum() * patch).sum().log() for image, patch in zip(images, patches, strict=True)]
    assert torch.allclose(recorder.loss, torch.stack(losses).mean(), atol=1e-4)
    recorder.loss.backward()
    assert nano.model.model.language_model.layers[2].self_attn.q_proj.weight.grad.abs().sum() > 0
    nano.model.zero_grad()
