"""Saving and loading: complete or not at all, readable by plain transformers."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from small_benchmark import picture
from transformers import AddedToken, AutoProcessor, LlamaTokenizer

from trace_vlm.core.prompts import TEMPLATES, Rendered, encode, render_prompt
from trace_vlm.model import build
from trace_vlm.model.checkpoint import load, save
from trace_vlm.model.convert import convert
from trace_vlm.utils.command import InputError
from trace_vlm.utils.files import read_json, write_json

ASSETS = Path(build.__file__).parents[1] / "assets"
# What earlier versions of this package wrote beside a tokenizer without the normalizer: a space follows the image.
OLD_TEMPLATE = (
    "{{ '" + TEMPLATES["vicuna_v1"].system.replace("'", "\\'") + " ' }}{% for message in messages %}"
    "{{ 'USER: <image> \\n' + message['content'][1]['text'] + ' ASSISTANT:' }}{% endfor %}"
)


def test_saving_never_overwrites_and_leaves_nothing_half(nano, nano_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nano"):
        save(nano, nano_folder)
    monkeypatch.setattr(nano.processor, "save_pretrained", Mock(side_effect=OSError("no space left")))
    with pytest.raises(InputError, match="half"):
        save(nano, tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def old_llama(zoo):
    convert(zoo / "full", zoo / "old")
    tokenizer = LlamaTokenizer.from_pretrained(zoo / "full", legacy=False, add_bos_token=True)
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=True)])
    tokenizer.save_pretrained(zoo / "old")


def old_nano(zoo):
    shutil.copytree(ASSETS / "nano", zoo / "old")
    write_json(zoo / "old/tokenizer.json", {**read_json(zoo / "old/tokenizer.json"), "normalizer": None})


@pytest.mark.parametrize(("source", "how"), [
    (source, how) for source in ("nano", "nano-base", old_llama, old_nano) for how in ("bundled", "converted", "saved")
    if how != "bundled" or isinstance(source, str)])  # fmt: skip
def test_chat_template_and_raw_prompt_give_the_ids_of_training(source, how, zoo):
    if callable(source):
        source(zoo)
        (zoo / "old/chat_template.jinja").write_text(OLD_TEMPLATE)
    loaded = load(folder := zoo / "old" if callable(source) else ASSETS / source)
    if how == "converted":
        convert(folder, folder := zoo / "made")
    if how == "saved":
        save(loaded, folder := zoo / "made")
    question = "Find free space left of the mug."
    text = render_prompt(question)
    expected = loaded.expand_image_tokens(encode(loaded.tokenizer, Rendered(text, ())).input_ids)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    for asked in (text, processor.apply_chat_template([turn])):
        assert processor(images=picture(0), text=asked, return_tensors="pt")["input_ids"][0].tolist() == expected
