"""A saved folder in a process that never imports this package: plain transformers gives the original's numbers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints_by_hand import edit_json
from safetensors import safe_open
from small_benchmark import picture
from transformers import AddedToken, AutoProcessor, GenerationConfig, LlamaTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from trace_vlm.core.prompts import TEMPLATES, Rendered, encode, render_prompt
from trace_vlm.model import build
from trace_vlm.model.checkpoint import load, save
from trace_vlm.model.convert import convert
from trace_vlm.utils.files import read_json, write_json

ASSETS = Path(build.__file__).parents[1] / "assets"
# What earlier versions of this package wrote beside a tokenizer without the normalizer: a space follows the image.
OLD_TEMPLATE = (
    "{{ '" + TEMPLATES["vicuna_v1"].system.replace("'", "\\'") + " ' }}{% for message in messages %}"
    "{{ 'USER: <image> \\n' + message['content'][1]['text'] + ' ASSISTANT:' }}{% endfor %}"
)
# Loads the folders named on its command line, answers from each, and prints one JSON object.
SCRIPT = """
import json, sys
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

torch.set_num_threads(1)
data, folders = sys.argv[1], json.loads(sys.argv[2])
expected = json.load(open(data + "/expected.json"))["cases"]
cases = json.load(open(data + "/prompts.json"))
out = {}
for name, folder in folders.items():
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for case in cases:
        image = Image.open(f"{data}/images/{case['image']}")
        system = {"llava_v1": case["prompt"].split(" USER:")[0]}.get(case["template"])
        messages = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
        for index, turn in enumerate(case["turns"]):
            words = turn.replace("<image>\\n", "")
            parts = [{"type": "text", "text": words}]
            if words != turn:
                parts.insert(0, {"type": "image"})
            messages.append({"role": "assistant" if index % 2 else "user", "content": parts})
        text = processor.apply_chat_template(messages)
        inputs = processor(images=image, text=text, return_tensors="pt")
        raw = processor(images=image, text=case["prompt"], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, expected[case["name"]]["logit_positions"], :1000]
        tokens = model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1]:]
        out[f"{name}__{case['name']}"] = {
            "text": text, "ids": inputs["input_ids"][0].tolist(),
            "raw_ids": raw["input_ids"][0].tolist(), "pixels": inputs["pixel_values"].flatten().tolist(),
            "logits": logits.tolist(), "tokens": tokens.tolist(), "image": model.config.image_token_index,
        }
assert not any(one.split(".")[0] in ("trace", "trace_vlm") for one in sys.modules)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def answers(converted, recorded, tmp_path_factory):
    """Of the three converted folders, and of `full` with a legacy tokenizer."""
    folder = tmp_path_factory.mktemp("legacy")
    for name in ("clip", "full"):
        shutil.copytree(recorded.folder / name, folder / name)
    edit_json(folder / "full" / "tokenizer_config.json", legacy=True)
    convert(folder / "full", folder / "legacy")
    folders = {name: str(path) for name, path in {**converted, "legacy": folder / "legacy"}.items()}
    command = [sys.executable, "-c", SCRIPT, str(recorded.folder), json.dumps(folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["full", "lora", "projector_only", "legacy"])
@pytest.mark.parametrize("case", ["plain", "cor", "two_turn", "eval_template", "two_turn_tall"])
def test_plain_transformers_gives_the_originals_numbers(answers, recorded, name, case):
    got, expected, asked = answers[f"{name}__{case}"], recorded.numbers["cases"][case], recorded.prompts[case]
    legacy = {string["text"]: string["slow_legacy_true"] for string in recorded.strings}
    ids = legacy[asked["prompt"]] if name == "legacy" else expected["input_ids"]
    expanded = [one for token in ids for one in ([got["image"]] * 16 if token == -200 else [token])]
    assert got["text"] == asked["prompt"]
    assert got["ids"] == got["raw_ids"] == expanded
    if name != "legacy":
        pixels = recorded.arrays[f"pixel_values__{asked['image'].removesuffix('.png')}"]
        assert np.array_equal(np.array(got["pixels"], dtype=np.float32), pixels.flatten())
        assert np.abs(np.array(got["logits"]) - recorded.arrays[f"{name}__{case}__logits"]).max() < 5e-5
        assert got["tokens"] == recorded.arrays[f"{name}__{case}__greedy"].tolist()


def published(recorded, folder):
    """`full` as llava-hf publishes such models: CLIP's own processor, <image> special, a pad token, drawn rows."""
    tokenizer = LlamaTokenizer.from_pretrained(recorded.folder / "full", legacy=False, add_bos_token=True)
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**sizes), tokenizer=tokenizer, patch_size=14, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template="USER: <image>",
    ).save_pretrained(folder)  # fmt: skip
    model = load(recorded.folder / "full").model
    del model.config.llava
    with torch.no_grad():
        model.lm_head.weight[1000:] = 0.3
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=1001)
    model.save_pretrained(folder)


def test_a_published_folder_gets_the_originals_ids_and_keeps_its_own_pixels(recorded, tmp_path):
    published(recorded, tmp_path / "model")
    checkpoint, stock = load(tmp_path / "model"), LlavaProcessor.from_pretrained(tmp_path / "model", backend="pil")
    convert(tmp_path / "model", tmp_path / "made")
    plain = LlavaProcessor.from_pretrained(tmp_path / "made", backend="pil")
    assert checkpoint.text_vocab_size == 1000 and checkpoint.suppressed_ids == list(range(1000, 1024))
    assert plain.chat_template == "USER: <image>"
    for case in recorded.prompts.values():
        image = recorded.image(case["image"])
        ids = checkpoint.expand_image_tokens(recorded.numbers["cases"][case["name"]]["input_ids"])
        inputs = plain(images=image, text=case["prompt"], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == ids
        theirs = stock(images=image, text=case["prompt"], return_tensors="pt")
        assert theirs["input_ids"].shape[1] == len(ids) - 1  # its own tokenizer forgets the prefix behind the image
        assert inputs["pixel_values"].equal(theirs["pixel_values"])
        assert checkpoint.pixels([image]).equal(theirs["pixel_values"])


def test_the_folder_reads_as_the_hub_has_it(converted):
    """Names of tensors and files that transformers 4, vLLM and SGLang look for."""
    folder = converted["full"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "language_model.model.layers.0.mlp.up_proj.weight" in names and "language_model.lm_head.weight" in names
    assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in names
    assert "multi_modal_projector.linear_2.bias" in names and len(names) == 114
    config, pixels = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["dtype"] == "bfloat16"
    assert config["text_config"]["rope_theta"] == 10000.0 and config["text_config"]["rms_norm_eps"] == 1e-5
    assert pixels["do_pad"] and pixels["crop_size"] == {"height": 56, "width": 56}
    assert read_json(folder / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    for name in ("chat_template.jinja", "generation_config.json", "processor_config.json", "README.md"):
        assert (folder / name).is_file(), name


def old_llama(zoo):
    convert(zoo / "full", zoo / "old")
    tokenizer = LlamaTokenizer.from_pretrained(zoo / "full", legacy=False, add_bos_token=True)
    tokenizer.add_tokens([AddedToken("<image>", special=False, normalized=True)])
    tokenizer.save_pretrained(zoo / "old")


def old_nano(zoo):
    shutil.copytree(ASSETS / "nano", zoo / "old")
    write_json(zoo / "old/tokenizer.json", {**read_json(zoo / "old/tokenizer.json"), "normalizer": None})


@pytest.mark.parametrize(("source", "how"), [
    (source, how) for source in ("nano", "nano-direct", old_llama, old_nano) for how in ("bundled", "converted", "saved")
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
