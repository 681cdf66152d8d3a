"""Saving and loading: complete or not at all, readable by plain transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AddedToken, AutoProcessor, LlamaTokenizer

from trace_vlm.core.prompts import TEMPLATES, Rendered, encode, question_text, render_prompt
from trace_vlm.model import build
from trace_vlm.model.checkpoint import load, save
from trace_vlm.model.convert import convert
from trace_vlm.model.presets import PRESETS
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 128, 3), dtype=np.uint8))
QUESTION = question_text("Point to the red mug.", reasoning=True)


def logits(checkpoint):
    with torch.no_grad():
        return checkpoint.model(**checkpoint.inputs([PICTURE], [render_prompt(QUESTION)])).logits


def test_a_saved_model_comes_back(nano, nano_folder):
    again = load(nano_folder)
    assert torch.equal(logits(nano), logits(again))
    assert again.name == "nano"


def test_saving_never_overwrites_and_leaves_nothing_half(nano, nano_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nano"):
        save(nano, nano_folder)

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(nano.processor, "save_pretrained", full_disk)
    with pytest.raises(InputError, match="half"):
        save(nano, tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_random_weights_follow_the_seed():
    tokenizer = build.nano_tokenizer()
    one, two, other = (
        build.build_model(PRESETS["nano-random"], tokenizer, seed=seed).lm_head.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_batches_are_padded_on_the_left(nano):
    prompts = [render_prompt("Find it."), render_prompt(QUESTION)]
    batch = nano.inputs([PICTURE, PICTURE], prompts)
    lengths = batch["attention_mask"].sum(1)
    assert lengths[0] < lengths[1] == batch["input_ids"].shape[1]
    alone = nano.inputs([PICTURE], prompts[:1])["input_ids"][0]
    assert batch["input_ids"][0, -len(alone) :].tolist() == alone.tolist()


# What earlier versions of this package wrote beside a tokenizer without the normalizer: a space follows the image.
OLD_TEMPLATE = (
    "{{ '" + TEMPLATES["vicuna_v1"].system.replace("'", "\\'") + " ' }}{% for message in messages %}"
    "{{ 'USER: <image> \\n' + message['content'][1]['text'] + ' ASSISTANT:' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def old_llama(recorded, tmp_path_factory):
    """A folder with a Llama tokenizer and the old chat template."""
    folder = tmp_path_factory.mktemp("old") / "llama"
    convert(recorded.folder / "full", folder)
    (folder / "chat_template.jinja").write_text(OLD_TEMPLATE)
    tokenizer = LlamaTokenizer.from_pretrained(recorded.folder / "full", legacy=False, add_bos_token=True)
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=True)])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["bundled", "converted", "saved"])
@pytest.mark.parametrize("name", ["nano", "nano-base", "llama", "old nano"])
def test_chat_template_and_raw_prompt_give_the_ids_of_training(name, how, old_llama, tmp_path):
    bundled = Path(build.__file__).parents[1] / "assets"
    source = old_llama if name == "llama" else bundled / name.removeprefix("old ")
    if name == "old nano":
        shutil.copytree(source, tmp_path / "old")
        source = tmp_path / "old"
        state = read_json(source / "tokenizer.json")
        write_json(source / "tokenizer.json", {**state, "normalizer": None})
        (source / "chat_template.jinja").write_text(OLD_TEMPLATE)
    loaded, folder = load(source), source
    if how == "bundled" and name not in ("nano", "nano-base"):
        pytest.skip("what lies there is what earlier versions wrote")
    if how == "converted":
        convert(source, folder := tmp_path / "made")
    if how == "saved":
        save(loaded, folder := tmp_path / "made")
    question = "Find free space left of the mug."
    text = render_prompt(question)
    expected = loaded.expand_image_tokens(encode(loaded.tokenizer, Rendered(text, ())).input_ids)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    for asked in (text, processor.apply_chat_template([turn])):
        assert processor(images=PICTURE, text=asked, return_tensors="pt")["input_ids"][0].tolist() == expected
