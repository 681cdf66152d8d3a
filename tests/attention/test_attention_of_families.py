"""Recorded attention of models of every family, laid over the padded square, and the command on one of them."""

import json

import numpy as np
import pytest
import torch
from forced_answers import COR, saying
from small_benchmark import make_benchmark, picture, script
from tiny_models import FAMILIES

from trace_vlm.attention import interventions, results
from trace_vlm.attention.capture import CaptureConfig, capture_while_generating
from trace_vlm.attention.steps import attention_by_step
from trace_vlm.core.points import Point
from trace_vlm.inference.predictor import Predictor
from trace_vlm.model.attention_recorder import language_attention
from trace_vlm.model.checkpoint import load
from trace_vlm.utils.command import InputError, run
from trace_vlm.utils.files import read_json

PICTURE = picture(3, (140, 90))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_eager_attention(family, family_folder):
    checkpoint = load(family_folder(family))
    prompt, config = checkpoint.prompt("Point to the mug."), CaptureConfig(dtype="float32", heads=(1,))
    captured = capture_while_generating(checkpoint, PICTURE, prompt, config, max_new_tokens=9, min_new_tokens=9)
    inputs, answer = checkpoint.inputs([PICTURE], [prompt]), torch.tensor([captured.token_ids])
    start = inputs["input_ids"].shape[1]
    for name in [name for name, tensor in inputs.items() if tensor.shape == inputs["input_ids"].shape]:
        more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}.get(name, torch.zeros_like(answer))
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    columns = (inputs["input_ids"][0] == checkpoint.image_token_id).nonzero()[:, 0]
    with torch.no_grad(), language_attention(checkpoint.model, "eager"):
        eager = checkpoint.model(**inputs, output_attentions=True).attentions[-1][0, :, start:][..., columns].numpy()
    assert len(captured.token_ids) == 9 and captured.image_tokens == len(columns)
    laid = eager @ captured.weights
    assert np.abs(captured.heads[1] - laid).max() < 1e-5 and np.abs(captured.attention[-1] - laid.mean(0)).max() < 1e-5
    uniform = attention_by_step(checkpoint, captured, PICTURE).uniform[-1]
    assert np.isnan(uniform) or uniform == pytest.approx((len(columns) / captured.keys).mean())


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_a_layer_without_full_attention_is_refused(family, family_folder):
    checkpoint = load(family_folder(family))
    assert CaptureConfig().resolve(checkpoint.model) == ([1], [])
    with pytest.raises(InputError, match=r"layer 0 .*\[1\]"):
        CaptureConfig((0, 1)).resolve(checkpoint.model)


def test_the_command_draws_and_edits_answers_in_the_models_convention(family_folder, tmp_path, monkeypatch):
    text = COR.replace("[(0.200, 0.500)]", json.dumps([{"point_2d": [200, 500], "label": "target"}]))
    checkpoint, bench, out = load(family_folder("qwen3_vl")), make_benchmark(tmp_path / "bench"), tmp_path / "out"
    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *_: cls(checkpoint)))
    words = ["--model", family_folder("qwen3_vl"), "--data", bench, "--out", out, "--end-idx", 1]
    with saying(checkpoint, text):
        assert run(script("attention_map").main, list(map(str, words))) == 0
    (record,) = results.read_records(out)
    assert record.points == (Point(0.2, 0.5),) and record.accuracy == 1.0 and record.text == text
    maps, _ = results.read_maps(out, record)
    assert maps.shape == (5, 24, 24) and record.numbers["mean"]["distance"][-1] is not None
    monkeypatch.setattr(interventions, "continue_generation", lambda *given: [f"{part}\n{text}" for part in given[3]])
    assert run(script("attention_map").main, [*map(str, words), "--resume", "--intervene"]) == 0
    effects = {effect["kind"]: effect for effect in read_json(out / results.EFFECTS)["effects"]}
    assert effects["control"]["distance"]["mean"] == pytest.approx(0) and effects["direction"]["unreadable"] == 0
