"""Other shapes, other files: against the same arithmetic in plain torch, and there and back again bit for bit."""

from __future__ import annotations

import json
import shutil

import checkpoints_by_hand as second
import pytest
import torch
from safetensors.torch import load_file, save_file

from trace_vlm.core.images import pad_to_square
from trace_vlm.core.prompts import Rendered, encode, render_prompt
from trace_vlm.model.checkpoint import compose, load, main
from trace_vlm.model.convert import convert

PROMPT = render_prompt("Where is the blue bowl?")
WRITERS = {
    "llama2": (second.LLAMA2, second.write_llama2_style),
    "vicuna": (second.VICUNA, second.write_vicuna_style),
}


@pytest.fixture(scope="module", params=list(WRITERS))
def drawn(request, tmp_path_factory, recorded):
    """(shape, folder in LLaVA's format, language model and projector, vision tower)."""
    shape, write = WRITERS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "zoo" / "a model"
    text, tower = write(folder, recorded.folder / "tokenizer")
    return shape, folder, text, tower


def logits(checkpoint, image):
    inputs = checkpoint.inputs([image], [PROMPT])
    with torch.no_grad():
        return inputs["pixel_values"], checkpoint.model(**inputs).logits[0, :, : checkpoint.text_vocab_size]


def expected(shape, text, tower, checkpoint, pixels):
    ids = encode(checkpoint.tokenizer, Rendered(PROMPT, ())).input_ids
    return second.original_logits(shape, text, tower, ids, pixels)


def test_logits_are_those_of_the_same_arithmetic_in_plain_torch(drawn, recorded):
    shape, folder, text, tower = drawn
    checkpoint = load(folder)
    pixels, got = logits(checkpoint, recorded.image("tall.png"))
    assert pixels.shape[-1] == shape.image
    assert (got - expected(shape, text, tower, checkpoint, pixels)).abs().max() < 5e-5
    padded = pad_to_square(recorded.image("tall.png"))
    assert torch.equal(pixels, checkpoint.pixels([padded]))


def test_there_and_back_again_is_bit_for_bit(drawn, tmp_path, recorded):
    shape, folder, text, tower = drawn
    assert main(["convert", str(folder), str(tmp_path / "hf")]) == 0
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "back"), "--to", "llava"]) == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    whole = {name: tensor for name, tensor in text.items() if not name.endswith("inv_freq")}
    whole |= {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}
    assert set(back) == set(whole)
    for name, tensor in whole.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    config, before = (json.loads((one / "config.json").read_text()) for one in (tmp_path / "back", folder))
    for key in ("mm_projector_type", "vocab_size", "hidden_size", "rope_theta", "rms_norm_eps", "mm_hidden_size"):
        assert config[key] == before[key], key
    (first, one), (second_pixels, two) = (
        logits(load(each), recorded.image("wide.png")) for each in (folder, tmp_path / "back")
    )
    assert torch.equal(first, second_pixels) and torch.equal(one, two)


def lora_over(folder, text, tensors, rank=4, alpha=16, seed=9, names=("q_proj", "down_proj")):
    """LLaVA's LoRA folder over `text`, and the weights that it means."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    factors, merged = {}, dict(text)
    for name, weight in text.items():
        module = name.removesuffix(".weight")
        if module.endswith(names):
            down = torch.randn(rank, weight.shape[1], generator=generator) * 0.05
            up = torch.randn(weight.shape[0], rank, generator=generator) * 0.05
            factors |= {
                f"base_model.model.{module}.lora_A.weight": down,
                f"base_model.model.{module}.lora_B.weight": up,
            }
            merged[name] = weight.float() + alpha / rank * up @ down
    torch.save(factors, folder / "adapter_model.bin")
    torch.save({f"base_model.model.{name}": one for name, one in tensors.items()}, folder / "non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "base_model_name_or_path": "../gone"})
    )
    return merged | tensors


@pytest.mark.parametrize("converted_base", [False, True], ids=["base in LLaVA's format", "base converted"])
def test_lora_in_llavas_layout_over_a_whole_llava(drawn, tmp_path, recorded, converted_base):
    shape, folder, text, tower = drawn
    projector = {name: one.float() * 2 for name, one in text.items() if "mm_projector" in name}
    merged = lora_over(tmp_path / "lora", text, projector)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "lora" / "config.json").write_text(json.dumps({**config, "mm_vision_tower": str(tmp_path / "eyes")}))
    second.write_clip(tmp_path / "eyes", shape, tower)
    base = folder
    if converted_base:
        base = tmp_path / "hf"
        convert(folder, base)
    checkpoint = load(tmp_path / "lora", base=base)
    pixels, got = logits(checkpoint, recorded.image("wide.png"))
    assert (got - expected(shape, merged, tower, checkpoint, pixels)).abs().max() < 5e-5


def test_parts_to_start_training_from(drawn, tmp_path, recorded):
    """A plain language model, a CLIP, and LLaVA's pre-trained projector, whose own images were not padded."""
    shape, folder, text, tower = drawn
    llm = tmp_path / "llm"
    llm.mkdir()
    plain = {name: one for name, one in text.items() if "mm_projector" not in name}
    save_file({name: one.contiguous() for name, one in plain.items()}, llm / "model.safetensors")
    (llm / "config.json").write_text(json.dumps(second.llama_config(shape)))
    second.write_tokenizer(llm, recorded.folder / "tokenizer", legacy=False)
    second.write_clip(tmp_path / "clip", shape, tower)
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    torch.save({name: one for name, one in text.items() if "mm_projector" in name}, pretrained / "mm_projector.bin")
    made = compose(str(llm), str(tmp_path / "clip"), str(pretrained))
    pixels, got = logits(made, recorded.image("tall.png"))
    assert made.processor.image_processor.do_pad
    assert (got - expected(shape, text, tower, made, pixels)).abs().max() < 5e-5
    linear = "model.mm_projector.weight" in text
    config = {**second.llava_config(shape, "../clip", linear), "image_aspect_ratio": "square"}
    (pretrained / "config.json").write_text(json.dumps(config))
    loaded = load(pretrained, base=llm)
    assert not loaded.processor.image_processor.do_pad  # as the original treats images for that configuration
    assert torch.equal(loaded.model.lm_head.weight, made.model.lm_head.weight)


def test_rows_of_the_vocabulary_that_no_piece_owns_are_kept(drawn, tmp_path):
    """Some checkpoints come with more rows than their tokenizer has pieces."""
    shape, folder, text, _ = drawn
    wide = tmp_path / "wide"
    shutil.copytree(folder.parent, tmp_path / "zoo")
    shutil.move(tmp_path / "zoo" / folder.name, wide)
    for pattern in ("*.bin", "*.safetensors", "*.index.json"):
        for file in wide.glob(pattern):
            file.unlink()
    if (tmp_path / "zoo" / "eyes").exists():
        shutil.move(tmp_path / "zoo" / "eyes", tmp_path / "eyes")
    more = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        more[name] = torch.cat([text[name], torch.ones(5, shape.width, dtype=text[name].dtype)])
    save_file({name: one.contiguous() for name, one in {**text, **more}.items()}, wide / "model.safetensors")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "vocab_size": 1005}))
    convert(wide, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", to="llava")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert torch.equal(back["lm_head.weight"], more["lm_head.weight"])
