"""What only a GPU can show: kernels against each other, half precision, quantised weights, training in bfloat16.

pytest -m requires_gpu tests/gpu
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from shell import ROOT
from train_together import logged

from trace_vlm import Predictor
from trace_vlm.core.prompts import question_text, render_prompt
from trace_vlm.model.attention_recorder import ImageRecorder, recording
from trace_vlm.model.checkpoint import load
from trace_vlm.model.presets import ASSETS, resolve_model
from trace_vlm.train import varlen_attention
from trace_vlm.utils.files import read_json

pytestmark = [pytest.mark.requires_gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ORIGINAL = ROOT / "tests/data/llava_original"
PLAIN = ("grounding_loss=null", "optimizer=adamw", "learning_rate=1e-4", "precision=bf16")
PACKED = (*PLAIN, "packing=true", "pack_tokens=1024", "max_length=512")


@pytest.fixture(scope="module")
def pictures():
    coarse = np.random.default_rng(0).integers(0, 255, (12, 6, 8, 3), np.uint8)
    return [Image.fromarray(pixels).resize((160, 120)) for pixels in coarse]


def test_varlen_attention_is_sdpa_row_by_row_forward_and_backward(monkeypatch):
    results = []
    for varlen in (True, False):
        generator = torch.Generator("cuda").manual_seed(0)
        rows = varlen_attention.PackedRows((300, 317, 900), None, torch.device("cuda"))
        options = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
        tensors = [torch.randn(1, 8, 900, 64, **options).requires_grad_() for _ in range(3)]
        assert varlen_attention.uses_varlen(tensors[0])
        if not varlen:
            monkeypatch.setattr(varlen_attention, "uses_varlen", lambda tensor: False)
        out, _ = varlen_attention.packed_attention(torch.nn.Module(), *tensors, None, 0.125, packed_rows=rows)
        out.square().sum().backward()
        results.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).float().norm() / expected.float().norm() < 1e-2


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("float16", 2e-2), ("bfloat16", 1e-1)])
@pytest.mark.parametrize("name", ["full", "lora"])
def test_logits_of_the_original_code_in_every_precision(name, dtype, bound):
    base = None if name == "full" else ORIGINAL / "base"
    checkpoint = load(ORIGINAL / name, base=base, dtype=dtype, device="cuda")
    cases, arrays = read_json(ORIGINAL / "expected.json")["cases"], np.load(ORIGINAL / "expected.npz")
    for prompt in read_json(ORIGINAL / "prompts.json"):
        image = Image.open(ORIGINAL / "images" / prompt["image"]).convert("RGB")
        positions, expected = cases[prompt["name"]]["logit_positions"], arrays[f"{name}__{prompt['name']}__logits"]
        with torch.no_grad():
            logits = checkpoint.model(**checkpoint.inputs([image], [prompt["prompt"]])).logits[0, positions]
        error = np.abs(logits[:, : checkpoint.text_vocab_size].float().cpu().numpy() - expected).max()
        assert error / np.abs(expected).max() < bound, prompt["name"]


@pytest.mark.parametrize(("quantize", "bound"), [("8bit", 0.999), ("4bit", 0.98)])
def test_quantised_weights_answer_nearly_as_the_whole_ones(quantize, bound, pictures):
    pytest.importorskip("bitsandbytes")
    options = {"dtype": "float16", "device": "cuda"}
    complete, small = (load(resolve_model("nano"), **options, quantize=bits) for bits in (None, quantize))
    prompts = [render_prompt(question_text("Point to the red mug.", False))] * len(pictures)
    with torch.no_grad():
        expected, ours = (one.model(**one.inputs(pictures, prompts)).logits[:, -1].float() for one in (complete, small))
    assert {type(module).__name__ for module in small.model.modules()} & {"Linear8bitLt", "Linear4bit"}
    assert type(small.model.model.vision_tower.encoder.layers[0].mlp.fc1) is torch.nn.Linear
    assert torch.cosine_similarity(expected, ours, dim=-1).min() > bound


def test_answers_in_float32_are_those_of_the_cpu_in_any_batch(pictures):
    texts = ["Point to the red mug.", "Find free space left of the blue box.", "Point to the can."] * 4
    on_cpu = [one.text for one in Predictor.load("nano").predict(pictures, texts)]
    predictor = Predictor.load("nano", device="cuda", dtype="float32")
    assert [one.text for one in predictor.predict(pictures, texts, batch_size=12)] == on_cpu
    assert [one.text for one in predictor.predict(pictures, texts, batch_size=1)] == on_cpu


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_points_where_something_is(dtype):
    samples = read_json(ASSETS / "demo" / "samples.json")
    predictor = Predictor.load("nano", device="cuda", dtype=dtype)
    images = [ASSETS / "demo" / sample["image"] for sample in samples]
    assert all(one.response.points for one in predictor.predict(images, [sample["instruction"] for sample in samples]))


@pytest.fixture
def losses_of(scenes, tmp_path):
    """Train configs/train_nano.yaml with changes for six steps and return their losses."""

    def run(name, *changes):
        command = [
            sys.executable, "-P", "-m", "trace_vlm.train.train", "--config", ROOT / "configs/train_nano.yaml", "--set",
            f"model={ROOT / 'trace/assets/nano'}", f"data=[{scenes / 'captions.json'}]", f"image_folder={scenes}",
            f"output_dir={tmp_path / name}", "max_steps=6", "save_steps=3", "logging_steps=1", "share_image=1",
            "report_to=[]", "global_batch_size=16", "micro_batch_size=8", "dataloader_workers=2", *changes,
        ]  # fmt: skip
        environment = {**os.environ, "TRACE_CACHE": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        losses = logged(tmp_path / name)
        assert len(losses) == 6 and np.isfinite(losses).all()
        return losses

    return run


def test_the_nano_recipe_trains_in_float32_with_its_grounding_loss(losses_of):
    losses_of("nano")


@pytest.mark.parametrize(("first", "second"), [(PLAIN, PACKED), (PACKED, (*PACKED, "compile=true"))],
                         ids=["packed as padded", "compiled as uncompiled"])  # fmt: skip
def test_bfloat16_training_gives_the_same_losses(losses_of, first, second):
    assert losses_of("second", *second) == pytest.approx(losses_of("first", *first), abs=0.03)


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("trained", ["full", "lora"])
def test_deepspeed_trains_saves_and_loads(losses_of, tmp_path, zero, trained):
    pytest.importorskip("deepspeed")
    settings = [f"deepspeed={ROOT / f'configs/deepspeed/zero{zero}.json'}", "gradient_checkpointing=true"]
    settings += ["trainable={llm: lora, projector: full}", "lora={r: 8, alpha: 16}"] if trained == "lora" else []
    losses_of("run", *PLAIN, *settings)
    assert load(tmp_path / "run").model is not None


@pytest.mark.parametrize("name", ["nano", "qwen3_vl"])
def test_attention_captured_on_the_gpu_is_the_cpus(name, family_folder, pictures):
    maps = []
    for device in ("cpu", "cuda"):
        checkpoint = load(resolve_model(name) if name == "nano" else family_folder(name), device=device)
        inputs = checkpoint.inputs(pictures[:1], [checkpoint.prompt("Point to the red mug.")])
        columns = (inputs["input_ids"][0] == checkpoint.image_token_id).nonzero()[:, 0].tolist()
        layers = range(checkpoint.text_config.num_hidden_layers)
        recorder = ImageRecorder(layers, columns, inputs["input_ids"].shape[1], dtype=torch.float32)
        with recording(checkpoint.model, recorder), torch.no_grad():
            checkpoint.model(**inputs)
        maps.append(recorder.attention())
    assert (maps[0] - maps[1]).abs().max() < 1e-5
