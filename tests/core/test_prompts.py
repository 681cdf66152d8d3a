"""Ids and labels against the recorded original; the wording; what a template accepts."""

from __future__ import annotations

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


def test_spans_point_at_the_text_of_their_tokens(tokenizer):
    rendered = prompts.render(
        [Turn("human", "<image>\nFind it."), Turn("gpt", "[(0.1, 0.25)]")], prompts.template("vicuna_v1")
    )
    encoded = prompts.encode(tokenizer, rendered)
    learned = [span for span, label in zip(encoded.spans, encoded.labels, strict=True) if label != prompts.IGNORE]
    assert rendered.text[learned[0][0] : learned[-1][1]] == " [(0.1, 0.25)]</s>"
    assert rendered.text[slice(*encoded.spans[encoded.input_ids.index(prompts.IMAGE_ID)])] == "<image>"


def test_plain_learns_the_caption_alone(tokenizer):
    turns = [Turn("human", "<image>\nwhatever was asked"), Turn("gpt", "a red mug")]
    rendered = prompts.render(turns, prompts.template("plain"))
    assert rendered.text == "<image>a red mug\n"
    assert rendered.text[slice(*rendered.answers[0])] == "a red mug\n"


def test_question_text_is_idempotent():
    for reasoning in (False, True):
        once = prompts.question_text("Point to the mug.", reasoning)
        assert prompts.question_text(once, reasoning) == once
        assert prompts.question_text(f"<image>\n{once}", not reasoning) == prompts.question_text(
            "Point to the mug.", not reasoning
        )
        assert prompts.bare_instruction(once) == "Point to the mug."


def test_points_suffix_is_the_published_sentence():
    assert PROMPTS["cor"]["turns"][0].endswith(prompts.POINTS_SUFFIX)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([], "without turns"), ([Turn("gpt", "hello")], "alternate"),
        ([Turn("human", "a"), Turn("human", "b")], "turn 1"),
    ],
)  # fmt: skip
def test_turns_must_alternate(turns, said):
    with pytest.raises(InputError, match=said):
        prompts.render(turns, prompts.template("v1"))


def test_unknown_template_names_the_known_ones():
    with pytest.raises(InputError, match="vicuna_v1"):
        prompts.template("mpt")
