"""Against what the original code computed from the same files: pixels, ids, logits, tokens, labels, loss."""

import numpy as np
import pytest
import torch
from train_together import logged, train_config

from trace_vlm.core import prompts
from trace_vlm.core.prompts import IMAGE_ID, Rendered, encode
from trace_vlm.core.records import Turn
from trace_vlm.eval.model_vqa import main
from trace_vlm.model.processor import load_tokenizer
from trace_vlm.train.train import train
from trace_vlm.utils.files import read_json, read_jsonl, write_json, write_jsonl


def tokenizer_of(zoo, legacy):
    file = zoo / "tokenizer" / "tokenizer_config.json"
    settings = {key: value for key, value in read_json(file).items() if key != "legacy"}
    write_json(file, settings if legacy is None else {**settings, "legacy": legacy})
    return load_tokenizer(file.parent)


@pytest.mark.parametrize("case", ["plain", "cor", "two_turn", "eval_template", "two_turn_tall"])
def test_pixels_ids_logits_and_greedy_tokens(original, recorded, case):
    name, checkpoint = original
    expected, asked = recorded.numbers["cases"][case], recorded.prompts[case]
    inputs = checkpoint.inputs([recorded.image(asked["image"])], [asked["prompt"]])
    pixels = recorded.arrays[f"pixel_values__{asked['image'].removesuffix('.png')}"]  # the cases have all three images
    assert np.array_equal(inputs["pixel_values"].numpy(), pixels)
    assert inputs["input_ids"][0].tolist() == checkpoint.expand_image_tokens(expected["input_ids"])
    assert inputs["input_ids"].shape[1] == expected["expanded_length"]
    with torch.no_grad():
        logits = checkpoint.model(**inputs).logits[0, expected["logit_positions"]]
    logits = logits[:, : checkpoint.text_vocab_size].numpy()
    assert np.abs(logits - recorded.arrays[f"{name}__{case}__logits"]).max() < 5e-5
    assert checkpoint.model.generation_config.suppress_tokens == list(range(1000, 1024))  # rows that are no text
    tokens = checkpoint.model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
    assert tokens.tolist() == recorded.arrays[f"{name}__{case}__greedy"].tolist()


@pytest.mark.parametrize("legacy", [False, True, None])
def test_every_recorded_string_has_the_slow_tokenizers_ids(recorded, zoo, legacy):
    tokenizer = tokenizer_of(zoo, legacy)
    # LlamaTokenizer of the original's time is legacy unless its configuration says otherwise.
    key, image = f"slow_legacy_{str(legacy is not False).lower()}", tokenizer.convert_tokens_to_ids("<image>")
    for string in recorded.strings:
        assert encode(tokenizer, Rendered(string["text"], ())).input_ids == string[key], string["text"]
        if legacy is False and string["text"].startswith((" ", "▁")):
            continue  # in one string, and not legacy: a leading space gets no prefix of its own
        ids = [IMAGE_ID if token == image else token for token in tokenizer(string["text"])["input_ids"]]
        assert ids == string[key], string["text"]


@pytest.mark.parametrize("legacy", [False, True])
def test_labels_of_training(recorded, zoo, legacy):
    tokenizer, numbers = tokenizer_of(zoo, legacy), recorded.numbers["training"]
    expected = numbers["other_legacy_setting"]["slow_legacy_true"] if legacy else numbers["samples"]
    for labelled, sample in zip(expected, recorded.samples, strict=True):
        turns = [Turn(turn["from"], turn["value"]) for turn in sample["conversations"]]
        encoded = encode(tokenizer, prompts.render(turns, prompts.template("v1")))
        assert (encoded.input_ids, encoded.labels) == (labelled["input_ids"], labelled["labels"])


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_the_logged_loss_of_a_step_of_training(recorded, tmp_path, monkeypatch, packing):
    """Several turns and a sample without an image included; the rows that round the vocabulary up never enter."""
    monkeypatch.setenv("TRACE_CACHE", str(tmp_path / "cache"))
    folder, changes = recorded.folder, {"trainable": ["projector", "llm"], "global_batch_size": 4, "max_steps": 1}
    changes |= {"data": [str(folder / "train_samples.json")], "image_folder": str(folder / "images")}
    changes |= {"max_length": 2048, "pack_tokens": 8192, "packing": packing}
    run = train(train_config(folder, folder / "full", tmp_path / "run", **changes))
    assert logged(run, "token_loss") == pytest.approx([recorded.arrays["full__train_loss"][-1]], abs=1e-5)


@pytest.mark.parametrize("name", ["full", "lora"])
@pytest.mark.parametrize("case", ["plain", "eval_template"])  # training's template and the original evaluation's
def test_the_evaluation_command_gives_the_recorded_tokens(recorded, tmp_path, name, case):
    asked, base = recorded.prompts[case], recorded.bases[name]
    words = asked["turns"][0].removeprefix("<image>\n")
    write_jsonl(tmp_path / "q.jsonl", [{"question_id": 7, "image": asked["image"], "text": words, "category": "seen"}])
    (tmp_path / "template.txt").write_text("{instruction}")  # the question alone, as it was recorded
    main([
        "--model-path", str(recorded.folder / name), *(["--model-base", str(base)] if base else []),
        "--image-folder", str(recorded.folder / "images"), "--question-file", str(tmp_path / "q.jsonl"),
        "--answers-file", str(tmp_path / "answers.jsonl"), "--conv-mode", asked["template"], "--temperature", "0",
        "--max-new-tokens", "24", "--prompt-template", str(tmp_path / "template.txt"),
    ])  # fmt: skip
    ((_, answer),) = read_jsonl(tmp_path / "answers.jsonl")
    assert answer["token_ids"] == recorded.arrays[f"{name}__{case}__greedy"].tolist()
