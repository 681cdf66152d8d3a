"""Ids and labels against the recorded original; the wording; what a template accepts."""

import json
from pathlib import Path

import pytest

from trace_vlm.core import prompts
from trace_vlm.core.records import Turn
from trace_vlm.utils.command import InputError

ORIGINAL = Path(__file__).parents[1] / "data" / "llava_original"
EXPECTED = json.loads((ORIGINAL / "expected.json").read_text())
PROMPTS = {case["name"]: case for case in json.loads((ORIGINAL / "prompts.json").read_text())}
SAMPLES = {sample["id"]: sample for sample in json.loads((ORIGINAL / "train_samples.json").read_text())}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ORIGINAL / "tokenizer")


def conversation(turns):
    return [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(turns)]


@pytest.mark.parametrize("name", list(PROMPTS))
def test_prompts_equal_the_original_text_and_ids(name, tokenizer):
    case = PROMPTS[name]
    rendered = prompts.render(conversation(case["turns"]), prompts.template(case["template"]))
    assert rendered.text == case["prompt"]
    assert prompts.encode(tokenizer, rendered).input_ids == EXPECTED["cases"][name]["input_ids"]


@pytest.mark.parametrize("recorded", EXPECTED["training"]["samples"], ids=lambda sample: sample["id"])
def test_every_assistant_turn_is_learned_as_upstream_llava_does(recorded, tokenizer):
    turns = [Turn(turn["from"], turn["value"]) for turn in SAMPLES[recorded["id"]]["conversations"]]
    encoded = prompts.encode(tokenizer, prompts.render(turns, prompts.template("v1")))
    assert encoded.input_ids == recorded["input_ids"]
    assert encoded.labels == recorded["labels"]


def test_spans_point_at_the_text_of_their_tokens_and_plain_learns_the_caption_alone(tokenizer):
    rendered = prompts.render(conversation(["<image>\nFind it.", "[(0.1, 0.25)]"]), prompts.template("vicuna_v1"))
    encoded = prompts.encode(tokenizer, rendered)
    learned = [span for span, label in zip(encoded.spans, encoded.labels, strict=True) if label != prompts.IGNORE]
    assert rendered.text[learned[0][0] : learned[-1][1]] == " [(0.1, 0.25)]</s>"
    assert rendered.text[slice(*encoded.spans[encoded.input_ids.index(prompts.IMAGE_ID)])] == "<image>"
    rendered = prompts.render(conversation(["<image>\nwhat was asked", "a red mug"]), prompts.template("plain"))
    assert rendered.text == "<image>a red mug\n"
    assert rendered.text[slice(*rendered.answers[0])] == "a red mug\n"


@pytest.mark.parametrize("reasoning", [False, True])
def test_question_text_is_idempotent(reasoning):
    instruction = "Point to the mug."
    once, other = (prompts.question_text(instruction, switch) for switch in (reasoning, not reasoning))
    assert prompts.question_text(once, reasoning) == once
    assert prompts.question_text(f"<image>\n{once}", not reasoning) == other
    assert prompts.bare_instruction(once) == instruction
    assert PROMPTS["cor"]["turns"][0].endswith(prompts.POINTS_SUFFIX)  # the published sentence


def test_turns_must_alternate_and_an_unknown_template_is_named():
    for turns in ([], [Turn("gpt", "hello")], [Turn("human", "a"), Turn("human", "b")]):
        with pytest.raises(InputError):
            prompts.render(turns, prompts.template("v1"))
    with pytest.raises(InputError, match=r"mpt.*vicuna_v1"):
        prompts.template("mpt")
