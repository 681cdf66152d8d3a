"""The steps: their tokens exact on any text, their maps over the right pixels, nothing invented."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forced_answers import encoded, saying
from PIL import Image

from trace_vlm.attention.capture import CaptureConfig, capture_teacher_forced
from trace_vlm.attention.steps import (
    ANSWER,
    STEP_TITLES,
    ask_with_attention,
    mean_maps,
    replay_answer,
    step_spans,
    token_spans,
)
from trace_vlm.core.points import Point
from trace_vlm.core.prompts import question_text, render_prompt
from trace_vlm.core.reasoning import parse, render
from trace_vlm.core.records import Answer
from trace_vlm.utils.command import InputError

STEPS = {
    "reference": "The red ball at (0.52, 0.30).",
    "target": "Left of the ball \u2013 a caf\u00e9 table \U0001f600, free.",
    "subtype": "Free space.",
    "output": "Two points.",
}
TEXT = render(STEPS, [Point(0.25, 0.5), Point(0.3, 0.5)])


@pytest.fixture(scope="module", params=["original", "nano"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Llama's layout twice: a general vocabulary with byte fallback, and nano's with complete phrases as one token."""
    if request.param == "nano":
        from trace_vlm.model.build import nano_tokenizer

        return nano_tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "data/llava_original/tokenizer")


# --- characters of tokens ------------------------------------------------------------------------------------------


EMOJI, CHINESE = "\U0001f600\U0001f600", "\u4f60\u597d, \u00e9\u00e9"


@pytest.mark.parametrize("text", [TEXT, "", "a", " b  c ", "\n\n", EMOJI, CHINESE, "x\ufffdy", "**Final Answer:**\n[]"])
def test_every_token_has_its_own_characters(tokenizer: Any, text: str) -> None:
    ids = [*encoded(tokenizer, text), tokenizer.eos_token_id]
    decoded, spans = token_spans(tokenizer, ids)
    assert decoded == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(spans) == len(ids)
    end = 0
    for token, (start, stop) in zip(ids, spans, strict=True):
        piece = tokenizer.convert_ids_to_tokens(token)
        if token == tokenizer.eos_token_id:
            assert start == stop
        elif piece.startswith("<0x"):  # a byte: the character that it is a part of
            assert bytes([int(piece[3:5], 16)]) in decoded[start:stop].encode() and stop - start == 1
        else:
            assert decoded[start:stop] in (piece.replace("\u2581", " "), piece.replace("\u2581", " ")[1:])
        assert start <= end <= max(stop, end)  # no character is left out
        end = max(stop, end)
    assert end == len(decoded)


def test_spans_hold_for_any_generated_ids(tokenizer: Any) -> None:
    rng = random.Random(0)
    for _ in range(60):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 60))]
        text, spans = token_spans(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        covered = set()
        for (start, end), (following, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True):
            assert 0 <= start <= end <= len(text) and start <= following
            covered.update(range(start, end))
        assert covered == set(range(len(text)))


# --- tokens of steps -----------------------------------------------------------------------------------------------


def texts_of_tokens(tokenizer: Any, text: str) -> dict[str, str]:
    """The text of each step's tokens; no token belongs to two steps."""
    decoded, characters = token_spans(tokenizer, encoded(tokenizer, text))
    spans = step_spans(parse(decoded), characters)
    in_order = sorted(spans.values())
    assert all(before[1] <= after[0] for before, after in zip(in_order, in_order[1:], strict=False))
    texts = {key: decoded[characters[start][0] : characters[end - 1][1]] for key, (start, end) in spans.items()}
    # nano writes "**Reasoning Process:**" and the first heading as one token
    return {key: text.strip().removeprefix("**Reasoning Process:**").strip() for key, text in texts.items()}


def texts_of_steps(text: str) -> dict[str, str]:
    response = parse(text)
    spans = {step.key: step.span for step in response.steps}
    if response.answer_span is not None:
        spans[ANSWER] = response.answer_span
    return {key: text[slice(*span)].strip() for key, span in spans.items()}


def test_each_step_has_exactly_the_tokens_of_its_text(tokenizer: Any) -> None:
    texts = texts_of_tokens(tokenizer, TEXT)
    assert list(texts) == list(STEP_TITLES) and texts == texts_of_steps(TEXT)
    assert texts[ANSWER].endswith("[(0.250, 0.500), (0.300, 0.500)]")
    assert texts["subtype"].endswith("Free space.") and "Two points" not in texts["subtype"]


@pytest.mark.parametrize("order", [("output", "subtype", "target", "reference"), ("subtype", "reference")])
def test_steps_in_another_order_or_left_out(tokenizer: Any, order: Sequence[str]) -> None:
    headings = {"reference": "Identify the reference object", "target": "Define the target area",
                "subtype": "Determine the goal's subtype", "output": "Generate the output"}  # fmt: skip
    lines = [f"{place}. **{headings[key]}:** {STEPS[key]}" for place, key in enumerate(order, 1)]
    text = "\n".join(["**Reasoning Process:**", *lines, "", "**Final Answer:**", "[(0.1, 0.2)]"])
    texts = texts_of_tokens(tokenizer, text)
    assert texts == texts_of_steps(text) and set(texts) == {*order, ANSWER}


def test_all_of_a_plain_answer_is_the_final_answer(tokenizer: Any) -> None:
    assert texts_of_tokens(tokenizer, "[(0.1, 0.2)]") == {ANSWER: "[(0.1, 0.2)]"}
    assert texts_of_tokens(tokenizer, "I see no mug.") == {}


CUT, END = 18, 44  # of the text below: the line break, and its end


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ([(0, CUT - 1), (CUT - 1, CUT + 2), (CUT + 2, END), (END, END)], {"target": (0, 2), ANSWER: (2, 3)}),  # a tie
        ([(0, CUT), (CUT, CUT + 6), (CUT + 6, END)], {"target": (0, 1), ANSWER: (1, 3)}),  # the first one is blank
        ([(0, CUT - 1), (CUT - 1, CUT + 4), (CUT + 4, END)], {"target": (0, 1), ANSWER: (1, 3)}),  # most in the second
    ],
)
def test_a_token_over_a_boundary_belongs_to_where_most_of_it_is(characters: Any, expected: Any) -> None:
    text = "Target area: here.\nFinal answer: [(0.1, 0.2)]"
    assert step_spans(parse(text), characters) == expected


# --- maps ----------------------------------------------------------------------------------------------------------


def test_a_map_is_the_mean_over_the_tokens_of_the_step() -> None:
    attention = np.random.default_rng(0).random((2, 6, 4)).astype(np.float32) / 8
    maps = mean_maps(attention, {"target": (1, 3), ANSWER: (5, 6)})
    assert maps.shape == (2, 5, 2, 2)
    assert np.allclose(maps[1, 1], attention[1, 1:3].mean(axis=0).reshape(2, 2))
    assert np.allclose(maps[:, 4], attention[:, 5].reshape(2, 2, 2))
    assert np.isnan(maps[:, [0, 2, 3]]).all()
    for shape, spans in (((1, 4, 6), {}), ((1, 4, 9), {ANSWER: (2, 5)})):  # no square, past the rows
        with pytest.raises(ValueError):  # noqa: PT011
            mean_maps(np.zeros(shape), spans)


# --- a model -------------------------------------------------------------------------------------------------------

EXACT = CaptureConfig(dtype="float32")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8))
QUESTION = "Point left of the red ball."


def test_maps_are_means_of_the_recorded_rows_also_for_a_saved_answer(nano: Any) -> None:
    ids = encoded(nano.tokenizer, TEXT)
    with saying(nano, TEXT):
        found = ask_with_attention(nano, IMAGE, QUESTION, EXACT)
    assert found.captured.token_ids == tuple(ids) and len(found.spans) == 5 and found.captured.layers == (1, 2, 3)
    assert found.response.points == (Point(0.25, 0.5), Point(0.3, 0.5))
    assert found.text("subtype") == STEPS["subtype"] and found.text(ANSWER) == "[(0.250, 0.500), (0.300, 0.500)]"
    prompt = render_prompt(question_text(QUESTION, True))
    rows = capture_teacher_forced(nano, IMAGE, prompt, ids, EXACT).attention
    start_of_answer = len(nano.inputs([IMAGE], [prompt])["input_ids"][0])
    for index, key in enumerate(STEP_TITLES):
        start, end = found.spans[key]
        expected = rows[:, start:end].mean(axis=1)
        assert np.abs(found.layer_maps[:, index].reshape(3, -1) - expected).max() < 1e-6
        assert np.abs(found.maps[index].ravel() - expected.mean(0)).max() < 1e-6
        assert found.shares[index] == pytest.approx(expected.mean(0).sum(), rel=1e-4)
        keys = np.arange(start, end) + start_of_answer + 1  # what a token can attend to, itself included
        assert found.uniform[index] == pytest.approx((64 / keys).mean(), rel=1e-5)
    assert len({tuple(found.maps[index].ravel()) for index in range(5)}) == 5
    drawn = found.step_maps(IMAGE.size)
    assert [step.title for step in drawn] == list(STEP_TITLES.values())
    assert all(step.heat is not None and step.heat.shape == (60, 100) for step in drawn)

    saved = Answer(1, question_text(QUESTION, True), TEXT, "", "", token_ids=tuple(ids))
    again = replay_answer(nano, IMAGE, QUESTION, saved, EXACT)
    assert again.spans == found.spans and np.abs(again.maps - found.maps).max() < 1e-6


def test_an_answer_of_another_tokenizer_and_an_empty_one_are_refused(nano: Any) -> None:
    for text, ids in ((TEXT, encoded(nano.tokenizer, TEXT)[1:]), ("", [])):
        with pytest.raises(InputError, match="question 17"):
            replay_answer(nano, IMAGE, QUESTION, Answer(17, "", text, "", "", token_ids=tuple(ids)))


def test_the_largest_head_has_no_share(nano: Any) -> None:
    with saying(nano, TEXT):
        found = ask_with_attention(nano, IMAGE, "Point.", CaptureConfig(reduction="max"))
    assert np.isnan(found.shares).all() and not np.isnan(found.maps).any()


def test_an_answer_cut_short_keeps_its_steps(nano: Any) -> None:
    ids = encoded(nano.tokenizer, TEXT)
    text, characters = token_spans(nano.tokenizer, ids)
    start, end = step_spans(parse(text), characters)["target"]
    with saying(nano, ids):
        found = ask_with_attention(nano, Image.new("RGB", (40, 30)), "Point.", max_new_tokens=end)
    assert set(found.spans) == {"reference", "target"}
    assert found.spans["target"] == (start, end)  # the very last token was fed in once more
    missing = [step for step in found.step_maps((40, 30)) if step.heat is None]
    assert [step.text for step in missing] == ["", "", ""] and np.isnan(found.shares[2:]).all()
