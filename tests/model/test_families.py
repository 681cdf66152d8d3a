"""Any vision-language model of transformers: labels, places of image tokens, saving, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES

from trace_vlm.core.prompts import IGNORE
from trace_vlm.core.records import Turn
from trace_vlm.model import checkpoint as commands
from trace_vlm.model.checkpoint import load, save
from trace_vlm.model.families.any import load_processor
from trace_vlm.model.families.base import count_parts, part_of
from trace_vlm.model.families.image_places import image_places, patch_weights
from trace_vlm.utils.command import InputError

ALONE = [Turn("human", "<image>\nWhere is the mug?"), Turn("gpt", "It stands left.\n\n[(0.25, 0.50)]")]
SEVERAL = [*ALONE, Turn("human", "And a ball?"), Turn("gpt", "[(1, 2)]")]
START = {"smolvlm": " "}  # its template writes a blank before an answer
END = {"smolvlm": "<end_of_utterance>", "gemma3": "<end_of_turn>", "gemma4": "<turn|>", "llava_next": "</s>"}
SPLIT = ("qwen3_5", "llava_onevision", "llava_next")  # several answers become several rows


def picture(size=(120, 80), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def checkpoint(family, family_folder):
    return load(family_folder(family))


def test_what_is_learned_is_the_answers_and_their_ends(checkpoint, family):
    checkpoint.coordinates, end = "unit", END.get(family, "<|im_end|>")
    rows = checkpoint.learned_conversations(SEVERAL)
    answers = [START.get(family, "") + text for text in (ALONE[1].text, SEVERAL[3].text)]
    assert len(rows) == (2 if family in SPLIT else 1)
    wanted_of_rows = [[answers[0]], [answers[1]]] if len(rows) == 2 else [answers]
    for turns, wanted in zip([ALONE, *rows], [answers[:1], *wanted_of_rows], strict=True):
        example = checkpoint.example(turns, picture())
        labels = example.encoded.labels
        learned = [token for token in labels if token != IGNORE]
        assert checkpoint.tokenizer.decode(learned) == "".join(answer + end for answer in wanted)
        first = labels.index(learned[0])
        if len(turns) == 2:  # what comes before is what prediction asks with
            prompt = checkpoint.prompt("Where is the mug?")
            assert example.encoded.input_ids[:first] == checkpoint.prompt_ids(prompt, picture())
        spans = [span for span, label in zip(example.encoded.spans, labels, strict=True) if label != IGNORE]
        assert "".join(example.rendered.text[a:b] for a, b in spans) == "".join(answer + end for answer in wanted)


def test_image_tokens_come_from_where_the_places_say(checkpoint):
    """Changing the picture inside one token's place changes that token's features more than those far away."""
    model, processor, rng = checkpoint.model, checkpoint.processor, np.random.default_rng(1)
    attention = re.compile(r"attn\.(proj|out_proj|o_proj)\.|attention\.projection_layer\.")
    outputs = [p for name, p in model.named_parameters() if part_of(name) == "vision" and attention.search(name)]
    assert outputs
    for parameter in outputs:
        parameter.data.zero_()  # no patch of the tower sees another: what changes is what was changed
    for size in ((120, 80), (90, 130)):
        image, prompt = Image.new("RGB", size, (40, 90, 60)), checkpoint.prompt("Where?")
        inputs = checkpoint.inputs([image], [prompt])
        places = image_places(processor, model.config, image, inputs)
        weights = patch_weights(places, size)
        assert weights.shape == (len(places), 576) and np.allclose(weights.sum(1), 1, atol=1e-5)
        before = image_rows(checkpoint, inputs)
        assert len(before) == len(places)
        known = np.flatnonzero(~np.isnan(places[:, 0]))
        for token in rng.choice(known, min(30, len(known)), replace=False):  # 60, of families that have so many
            box = places[token] * np.tile(size, 2)
            middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 3
            low, high = np.round(middle - half).astype(int).clip(0), np.round(middle + half).astype(int) + 1
            changed = np.array(image)
            changed[low[1] : high[1], low[0] : high[0]] = 255
            after = image_rows(checkpoint, checkpoint.inputs([Image.fromarray(changed)], [prompt]))
            moved = (after - before).norm(dim=1).numpy()
            boxes = places * np.tile(size, 2)
            near = (boxes[:, :2] < high + 2).all(1) & (boxes[:, 2:] > low - 2).all(
                1
            )  # resizing blurs by a pixel or two
            assert moved[token] > 0.3 * moved.max() and near[moved.argmax()]
            assert not (moved[~near] > 0.02 * moved.max()).any()


@torch.no_grad()
def image_rows(checkpoint, inputs):
    """The features that stand for the image: what the language model is given at the image tokens."""
    seen = {}
    hook = checkpoint.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)  # fmt: skip
    checkpoint.model(**inputs)
    hook.remove()
    return seen["inputs_embeds"][inputs["input_ids"] == checkpoint.image_token_id]


def test_saved_models_load_in_plain_transformers(checkpoint, family, family_folder, tmp_path):
    base = family_folder(family)
    save(checkpoint, tmp_path / "whole")
    for file in base.glob("*"):
        if file.name.startswith(("tokenizer", "processor", "preprocessor", "chat_template")):
            assert (tmp_path / "whole" / file.name).read_bytes() == file.read_bytes()
    inputs = checkpoint.inputs([picture()], [checkpoint.prompt("Where?")])
    with torch.no_grad():
        wanted = checkpoint.model(**inputs).logits
        again = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
        assert torch.equal(again(**inputs).logits, wanted)
    assert set(count_parts(again)) == {"vision", "projector", "llm"} and min(count_parts(again).values()) > 0


def test_adapters_are_saved_merged_and_inspected(family_folder, tmp_path, capsys):
    checkpoint = load(family_folder("qwen3_vl"))
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    checkpoint.model = get_peft_model(checkpoint.model, config)
    save(checkpoint, tmp_path / "adapter")
    inputs = checkpoint.inputs([picture()], [checkpoint.prompt("Where?")])
    with torch.no_grad():
        wanted = checkpoint.model.eval()(**inputs).logits
    assert commands.main(["inspect", str(tmp_path / "adapter")]) == 0
    printed = capsys.readouterr().out
    assert "qwen3_vl" in printed and "rank 4" in printed
    base = ["--model-base", str(family_folder("qwen3_vl"))]
    assert commands.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), *base]) == 0
    plain = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.allclose(plain(**inputs).logits, wanted, atol=1e-5)
        assert torch.allclose(load(tmp_path / "adapter").model(**inputs).logits, wanted, atol=1e-5)


def test_what_cannot_be_used_is_refused_in_a_sentence(family_folder, tmp_path):
    config = hf.Qwen2Config(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="qwen2"):
        load(tmp_path / "text")
    copy = tmp_path / "untold"
    model, processor = load(family_folder("qwen3_vl")).model, load_processor(family_folder("qwen3_vl"))[0]
    model.save_pretrained(copy)
    processor.save_pretrained(copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="chat_template"):
        load(copy)
    weights = load_file(copy / "model.safetensors")
    save_file({name: weights[name] for name in weights if "norm.weight" not in name}, copy / "model.safetensors")
    shutil.copy(family_folder("qwen3_vl") / "chat_template.jinja", copy)
    with pytest.raises(InputError, match="untold.*norm.weight"):
        load(copy)
    checkpoint = load(family_folder("qwen3_vl"))
    with pytest.raises(InputError, match="image_pad"):
        checkpoint.prompt("Find <|image_pad|> here.")
    with pytest.raises(InputError, match="llava_v1"):
        checkpoint.prompt("Where?", style="llava_v1")
    for arguments in (["--to", "llava"], ["--vision-tower", "x"]):
        with pytest.raises(InputError, match="LLaVA"):
            commands.main(["convert", str(family_folder("qwen3_vl")), str(tmp_path / "made"), *arguments])
    assert not (tmp_path / "made").exists()
    unknown = json.loads((family_folder("qwen3_vl") / "config.json").read_text()) | {"model_type": "unheard_of"}
    (tmp_path / "text" / "config.json").write_text(json.dumps(unknown))
    with pytest.raises(InputError, match="unheard_of"):
        load(tmp_path / "text")
