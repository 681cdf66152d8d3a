"""Checkpoints of every kind, drawn from a seed, against stock transformers with the drawn tensors; their memory."""

import json
import subprocess
import sys

import checkpoints_by_hand as hand
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trace_vlm.core.prompts import Rendered, encode, render_prompt
from trace_vlm.model.checkpoint import compose, load, save
from trace_vlm.model.convert import convert

PROMPT = render_prompt("Where is the blue bowl, really? 3.5")
LARGE = hand.Shape(width=1024, mlp=2816, layers=6, heads=8, groups=8, vision=64, vision_heads=4)
MEMORY = """
import ctypes, gc, json, re, sys
from pathlib import Path
from trace_vlm.model.checkpoint import load
from trace_vlm.model.convert import convert
def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
warm, source, target = sys.argv[1:]
def run(work, folder, to):
    return convert(folder, to) if work == "convert" else load(folder, dtype=work)
peaks = {}
for work in ("convert", "float16", "float32"):
    run(work, warm, target + "-warm-" + work)  # a tiny one first: libraries, caches and buffers are in place
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    made = run(work, source, target)
    peaks[work] = memory("VmHWM") - before
    del made
print(json.dumps(peaks))
"""


def logits(checkpoint, image):
    """(pixels, logits over the original's vocabulary), in float32."""
    inputs = checkpoint.inputs([image], [PROMPT])
    with torch.no_grad():
        output = checkpoint.model(**inputs).logits[0, :, : checkpoint.text_vocab_size]
    return inputs["pixel_values"].float(), output.float()


def ids_of(checkpoint):
    return encode(checkpoint.tokenizer, Rendered(PROMPT, ())).input_ids


@pytest.mark.parametrize("kind", hand.KINDS)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_a_drawn_checkpoint_computes_what_its_tensors_mean(seed, kind, tmp_path, recorded):
    drawn = hand.draw_checkpoint(seed, kind, tmp_path, recorded.folder / "tokenizer")
    image = Image.effect_noise((40 + 7 * seed, 60), 60).convert("RGB")
    checkpoint = load(drawn.source, base=drawn.base)
    pixels, result = logits(checkpoint, image)
    ids = ids_of(checkpoint)
    assert checkpoint.text_vocab_size == drawn.shape.vocabulary
    assert (result - hand.original_logits(drawn.shape, drawn.text, drawn.tower, ids, pixels)).abs().max() < 5e-5
    if drawn.base is not None and "LLaVA" in kind:  # the same over the base in Hugging Face's format
        convert(drawn.base, tmp_path / "base")
        assert torch.equal(logits(load(drawn.source, base=tmp_path / "base"), image)[1], result)
    convert(drawn.source, tmp_path / "hf", drawn.base)
    convert(tmp_path / "hf", tmp_path / "back", to="llava")
    for folder in ("hf", "back"):
        again = load(tmp_path / folder)
        assert ids_of(again) == ids
        assert all(torch.equal(one, other) for one, other in zip(logits(again, image), (pixels, result), strict=True))
    if kind == "whole":  # there and back again is bit for bit
        back = load_file(tmp_path / "back" / "model.safetensors")
        original = drawn.text | hand.inside_names(drawn.tower)
        original = {name: tensor for name, tensor in original.items() if not name.endswith("inv_freq")}
        assert set(back) == set(original)
        for name, tensor in original.items():
            assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    for dtype, near in (("float16", 0.05), ("bfloat16", 0.5)):
        narrow = load(drawn.source, base=drawn.base, dtype=dtype)
        assert narrow.model.dtype == getattr(torch, dtype)
        assert (logits(narrow, image)[1] - result).abs().max() < near


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "mlp2x_gelu"])
def test_parts_to_start_training_from(linear, tmp_path, recorded):
    """A plain language model, a CLIP, and LLaVA's pre-trained projector, whose own images were not padded."""
    shape, llm, pretrained = hand.Shape(), tmp_path / "llm", tmp_path / "pretrained"
    text, tower = hand.draw_tensors(shape, 5, torch.float16, linear)
    hand.write_tokenizer(llm, recorded.folder / "tokenizer", legacy=False)
    save_file({name: one for name, one in text.items() if "mm_projector" not in name}, llm / "model.safetensors")
    (llm / "config.json").write_text(json.dumps(hand.llama_config(shape)))
    hand.write_clip(tmp_path / "clip", shape, tower)
    pretrained.mkdir()
    torch.save({name: one for name, one in text.items() if "mm_projector" in name}, pretrained / "mm_projector.bin")
    made = compose(str(llm), str(tmp_path / "clip"), str(pretrained))
    pixels, result = logits(made, recorded.image("tall.png"))
    assert made.processor.image_processor.do_pad
    assert (result - hand.original_logits(shape, text, tower, ids_of(made), pixels)).abs().max() < 5e-5
    save(made, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved"), recorded.image("tall.png"))[1], result)
    config = {**hand.llava_config(shape, "../clip", linear), "image_aspect_ratio": "square"}
    (pretrained / "config.json").write_text(json.dumps(config))
    loaded = load(pretrained, base=llm)
    assert not loaded.processor.image_processor.do_pad  # as the original treats images for that configuration
    assert torch.equal(loaded.model.lm_head.weight, made.model.lm_head.weight)


def test_rows_of_the_vocabulary_without_a_piece_are_kept(zoo):
    for file in sorted((zoo / "full").glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            tensors[name] = torch.cat([tensors[name], torch.ones_like(tensors[name][:5])])
        save_file(tensors, file)
    hand.edit_json(zoo / "full/config.json", vocab_size=1005)
    convert(zoo / "full", zoo / "hf")
    convert(zoo / "hf", zoo / "back", to="llava")
    back = load_file(zoo / "back" / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert len(back[name]) == 1005 and (back[name][1000:] == 1).all()


def test_loading_holds_the_weights_once_and_converting_not_at_all(recorded, tmp_path):
    """The peak of a process of its own, on 160 MB in .bin shards; the small checkpoint is there to warm up."""
    big, command = tmp_path / "big", [sys.executable, "-c", MEMORY, str(recorded.folder / "full")]
    text, tower = hand.draw_tensors(LARGE, 3, torch.float16, linear=True)
    tensors = {name: one for name, one in (text | hand.inside_names(tower)).items() if not name.endswith("inv_freq")}
    hand.write_tokenizer(big, recorded.folder / "tokenizer", legacy=False)
    hand.write_shards(big, sorted(tensors), tensors, 2, "bin")
    (big / "config.json").write_text(json.dumps(hand.llava_config(LARGE, "../eyes", linear=True)))
    hand.write_clip(tmp_path / "eyes", LARGE, tower)
    done = subprocess.run([*command, big, tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    size = sum(tensor.nbytes for tensor in tensors.values())
    peaks = {work: peak / size for work, peak in json.loads(done.stdout.splitlines()[-1]).items()}
    assert 0.9 < peaks["float16"] <= 1.15 and 1.8 < peaks["float32"] <= 2 * 1.15 and peaks["convert"] <= 0.5
