"""What only a GPU can show: kernels against each other, half precision, quantised weights, training in bfloat16.

pytest -m requires_gpu tests/gpu
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes_by_hand import draw_views

pytestmark = [
    pytest.mark.requires_gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROOT = Path(__file__).parents[2]
ORIGINAL = ROOT / "tests/data/llava_original"
CASES = ["plain", "cor", "two_turn", "eval_template", "two_turn_tall"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from trace_vlm.data.scenes import captions

    folder = draw_views(tmp_path_factory.mktemp("scenes") / "data", views=24)
    captions.main(["--data", str(folder), "--out", str(folder / "captions.json")])
    return folder


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, 6, 8, 3), np.uint8)
    return [Image.fromarray(one).resize((160, 120)) for one in coarse]


def _lines(dtype: torch.dtype) -> tuple[list[torch.Tensor], object]:
    from trace_vlm.train import varlen_attention

    generator = torch.Generator("cuda").manual_seed(0)
    rows = varlen_attention.PackedRows((300, 317, 900), None, torch.device("cuda"))
    made = [torch.randn(1, 8, 900, 64, device="cuda", dtype=dtype, generator=generator) for _ in range(3)]
    return [one.requires_grad_() for one in made], rows


def test_varlen_attention_is_sdpa_row_by_row_forward_and_backward(monkeypatch):
    from trace_vlm.train import varlen_attention

    found = []
    for varlen in (True, False):
        tensors, rows = _lines(torch.bfloat16)
        assert varlen_attention.uses_varlen(tensors[0])
        if not varlen:
            monkeypatch.setattr(varlen_attention, "uses_varlen", lambda tensor: False)
        out, _ = varlen_attention.packed_attention(torch.nn.Module(), *tensors, None, 0.125, packed_rows=rows)
        out.square().sum().backward()
        found.append([out.detach(), *(one.grad for one in tensors)])
    for one, other in zip(*found, strict=True):
        assert (one - other).float().norm() / other.float().norm() < 1e-2


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("float16", 2e-2), ("bfloat16", 1e-1)])
@pytest.mark.parametrize("name", ["full", "lora"])
def test_logits_of_the_original_code_in_every_precision(name, dtype, bound):
    from trace_vlm.model.checkpoint import load

    base = None if name == "full" else ORIGINAL / "base"
    checkpoint = load(ORIGINAL / name, base=base, dtype=dtype, device="cuda")
    prompts = {one["name"]: one for one in json.loads((ORIGINAL / "prompts.json").read_text())}
    said = json.loads((ORIGINAL / "expected.json").read_text())["cases"]
    arrays = np.load(ORIGINAL / "expected.npz")
    for case in CASES:
        image = Image.open(ORIGINAL / "images" / prompts[case]["image"]).convert("RGB")
        inputs = checkpoint.inputs([image], [prompts[case]["prompt"]])
        with torch.no_grad():
            logits = checkpoint.model(**inputs).logits[0, said[case]["logit_positions"], : checkpoint.text_vocab_size]
        expected = arrays[f"{name}__{case}__logits"]
        error = np.abs(logits.float().cpu().numpy() - expected).max() / np.abs(expected).max()
        print(f"{name} {dtype} {case}: {error:.2e} of the largest logit")
        assert error < bound


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantised_weights_answer_nearly_as_the_whole_ones(quantize, pictures):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    from trace_vlm.model.checkpoint import load
    from trace_vlm.model.presets import resolve_model

    folder = resolve_model("nano-base")
    whole, small = load(folder, dtype="float16", device="cuda"), load(folder, dtype="float16", device="cuda",
                                                                      quantize=quantize)  # fmt: skip
    from trace_vlm.core.prompts import question_text, render_prompt

    prompts = [render_prompt(question_text("Point to the red mug.", False))] * len(pictures)
    with torch.no_grad():
        one, other = (model.model(**model.inputs(pictures, prompts)).logits[:, -1].float() for model in (whole, small))
    kinds = {type(module).__name__ for module in small.model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    assert torch.cosine_similarity(one, other, dim=-1).min() > (0.999 if quantize == "8bit" else 0.98)


def test_answers_in_float32_are_those_of_the_cpu_in_any_batch(pictures):
    from trace_vlm import Predictor

    texts = ["Point to the red mug.", "Find free space left of the blue box.", "Point to the can."] * 4
    on_cpu = [one.text for one in Predictor.load("nano-base").predict(pictures, texts)]
    predictor = Predictor.load("nano-base", device="cuda", dtype="float32")
    assert [one.text for one in predictor.predict(pictures, texts, batch_size=12)] == on_cpu
    assert [one.text for one in predictor.predict(pictures, texts, batch_size=1)] == on_cpu


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_answers_can_be_read(pictures, dtype):
    from trace_vlm import Predictor

    texts = ["Point to the red mug."] * len(pictures)
    plain = Predictor.load("nano-base", device="cuda", dtype="float32").predict(pictures, texts)
    half = Predictor.load("nano-base", device="cuda", dtype=dtype).predict(pictures, texts)
    same = sum(one.text == other.text for one, other in zip(plain, half, strict=True))
    print(f"{dtype}: {same} of {len(texts)} answers as in float32")
    assert all(one.response.points for one in half)


def _train(scenes: Path, out: Path, *changes: str) -> dict[str, object]:
    command = [
        sys.executable, "-P", "-m", "trace_vlm.train.train", "--config", str(ROOT / "configs/train_nano.yaml"), "--set",
        f"model={ROOT / 'trace/assets/nano-base'}", f"data=[{scenes / 'captions.json'}]", f"image_folder={scenes}",
        f"output_dir={out}", "max_steps=6", "save_steps=3", "logging_steps=1", "share_image=1", "report_to=[]",
        "global_batch_size=16", "micro_batch_size=8", "dataloader_workers=2", *changes,
    ]  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TRACE_CACHE": str(out.parent)}
    if any(change.startswith("deepspeed") for change in changes):
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    print(done.stdout[-600:])
    return {entry["step"]: entry["loss"] for entry in logged if "loss" in entry}


def test_the_nano_recipe_trains_in_float32_with_its_grounding_loss(scenes, tmp_path):
    losses = _train(scenes, tmp_path / "nano")
    assert len(losses) == 6 and all(np.isfinite(list(losses.values())))


PLAIN = ("grounding_loss=null", "optimizer=adamw", "learning_rate=1e-4", "precision=bf16")


def test_packed_bfloat16_training_follows_padded(scenes, tmp_path):
    padded = _train(scenes, tmp_path / "padded", *PLAIN)
    packed = _train(scenes, tmp_path / "packed", *PLAIN, "packing=true", "pack_tokens=1024", "max_length=512")
    for step, loss in padded.items():
        assert packed[step] == pytest.approx(loss, abs=0.03)


def test_compiled_bfloat16_training_follows_uncompiled(scenes, tmp_path):
    packing = ("packing=true", "pack_tokens=1024", "max_length=512")
    plain = _train(scenes, tmp_path / "plain", *PLAIN, *packing)
    compiled = _train(scenes, tmp_path / "compiled", *PLAIN, *packing, "compile=true")
    for step, loss in plain.items():
        assert compiled[step] == pytest.approx(loss, abs=0.03)


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("trained", ["full", "lora"])
def test_deepspeed_trains_saves_and_loads(scenes, tmp_path, zero, trained):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    from trace_vlm.model.checkpoint import load

    settings = [f"deepspeed={ROOT / f'configs/deepspeed/zero{zero}.json'}", "gradient_checkpointing=true"]
    settings += ["trainable={llm: lora, projector: full}", "lora={r: 8, alpha: 16}"] if trained == "lora" else []
    losses = _train(scenes, tmp_path / "run", *PLAIN, *settings)
    assert len(losses) == 6 and all(np.isfinite(list(losses.values())))
    assert load(tmp_path / "run").model is not None


def test_attention_captured_on_the_gpu_is_the_cpus(pictures):
    from trace_vlm.core.prompts import question_text, render_prompt
    from trace_vlm.model.attention_recorder import ImageRecorder, recording
    from trace_vlm.model.checkpoint import load
    from trace_vlm.model.presets import resolve_model

    maps = []
    for device in ("cpu", "cuda"):
        checkpoint = load(resolve_model("nano-base"), device=device)
        inputs = checkpoint.inputs(pictures[:1], [render_prompt(question_text("Point to the red mug.", False))])
        start = int((inputs["input_ids"][0] == checkpoint.image_token_id).int().argmax())
        recorder = ImageRecorder(range(4), slice(start, start + checkpoint.patches_per_side**2), dtype=torch.float32)
        with recording(checkpoint.model, recorder), torch.no_grad():
            checkpoint.model(**inputs)
        maps.append(recorder.attention())
    assert (maps[0] - maps[1]).abs().max() < 1e-5
