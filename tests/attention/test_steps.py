"""The steps: their tokens exact on any text, their maps over the right pixels, nothing invented."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from forced_answers import encoded, saying
from small_benchmark import picture
from transformers import AutoTokenizer

from trace_vlm.attention import steps
from trace_vlm.attention.capture import CaptureConfig, capture_teacher_forced
from trace_vlm.attention.steps import ANSWER
from trace_vlm.core.points import Point
from trace_vlm.core.prompts import question_text, render_prompt
from trace_vlm.core.reasoning import HEADINGS, parse, render
from trace_vlm.core.records import Answer
from trace_vlm.model.build import nano_tokenizer
from trace_vlm.utils.command import InputError

STEPS = {"reference": "The red ball at (0.52, 0.30).", "subtype": "Free space.", "output": "Two points.",
         "target": "Left of the ball \u2013 a caf\u00e9 table \U0001f600, free."}  # fmt: skip
TEXT = render(STEPS, [Point(0.25, 0.5), Point(0.3, 0.5)])
TEXTS = [TEXT, "", "a", " b  c ", "\n\n", "x\ufffdy", "**Final Answer:**\n[]", "\u4f60\u597d, \u00e9", 2 * "\U0001f600"]
TWO_PARTS = "Target area: here.\nFinal answer: [(0.1, 0.2)]"
CUT, END = TWO_PARTS.index("\n"), len(TWO_PARTS)
EXACT, QUESTION = CaptureConfig(dtype="float32"), "Point left of the red ball."
IMAGE = picture(0, (100, 60))


@pytest.fixture(scope="module", params=["original", "nano"])
def tokenizer(request):
    """Llama's layout twice: a general vocabulary with byte fallback, and nano's with complete phrases as one token."""
    folder = Path(__file__).parents[1] / "data/llava_original/tokenizer"
    return nano_tokenizer() if request.param == "nano" else AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_has_its_own_characters(tokenizer, text):
    ids = [*encoded(tokenizer, text), tokenizer.eos_token_id]
    decoded, spans = steps.token_spans(tokenizer, ids)
    assert decoded == tokenizer.decode(ids, skip_special_tokens=True)
    end = 0
    for token, (start, stop) in zip(ids, spans, strict=True):
        piece = tokenizer.convert_ids_to_tokens(token)
        if token == tokenizer.eos_token_id:
            assert start == stop
        elif piece.startswith("<0x"):  # a byte: the character that it is a part of
            assert bytes([int(piece[3:5], 16)]) in decoded[start:stop].encode() and stop - start == 1
        else:
            assert decoded[start:stop] in (piece.replace("\u2581", " "), piece.replace("\u2581", " ")[1:])
        assert start <= end  # no character is left out
        end = max(stop, end)
    assert end == len(decoded)


def test_spans_hold_for_any_generated_ids(tokenizer):
    rng = random.Random(0)
    for _ in range(60):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 60))]
        text, spans = steps.token_spans(tokenizer, ids)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert (starts := [start for start, _ in spans]) == sorted(starts)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert {index for span in spans for index in range(*span)} == set(range(len(text)))


def texts_of_tokens(tokenizer, text):
    """The text of each step's tokens; no token belongs to two steps."""
    decoded, characters = steps.token_spans(tokenizer, encoded(tokenizer, text))
    spans = steps.step_spans(parse(decoded), characters)
    assert all(before[1] <= after[0] for before, after in pairwise(sorted(spans.values())))
    texts = {key: decoded[characters[start][0] : characters[end - 1][1]] for key, (start, end) in spans.items()}
    # nano writes "**Reasoning Process:**" and the first heading as one token
    return {key: text.strip().removeprefix("**Reasoning Process:**").strip() for key, text in texts.items()}


@pytest.mark.parametrize("keys", [tuple(STEPS), ("output", "subtype", "target", "reference"), ("subtype", "reference")])
def test_each_step_has_exactly_the_tokens_of_its_text(tokenizer, keys):
    lines = {key: f"{number}. **{HEADINGS[key]}:** {STEPS[key]}" for number, key in enumerate(keys, 1)}
    text = "\n".join(["**Reasoning Process:**", *lines.values(), "", answer := "**Final Answer:**\n[(0.1, 0.2)]"])
    assert texts_of_tokens(tokenizer, text) == {**lines, ANSWER: answer}


def test_a_hop_is_a_step_of_its_own(tokenizer):
    walked = ["What lies behind it at (0.80, 0.40) is the box.", "What lies left of it at (0.20, 0.30) is the can."]
    text = render({**STEPS, "reference": " ".join([STEPS["reference"], *walked])}, [Point(0.1, 0.2)])
    texts = texts_of_tokens(tokenizer, text)
    assert list(texts) == ["reference", "hop_1", "hop_2", "target", "subtype", "output", ANSWER]
    assert list(steps.step_titles(["hop_10", "hop_9"]).values())[:3] == [HEADINGS["reference"], "Hop 9", "Hop 10"]
    assert texts["reference"].endswith(STEPS["reference"]) and [texts["hop_1"], texts["hop_2"]] == walked
    assert steps.mean_maps(np.ones((1, 9, 4)), {"hop_1": (2, 3)}).shape == (1, 6, 2, 2)


def test_all_of_a_plain_answer_is_the_final_answer(tokenizer):
    assert texts_of_tokens(tokenizer, "[(0.1, 0.2)]") == {ANSWER: "[(0.1, 0.2)]"}
    assert texts_of_tokens(tokenizer, "I see no mug.") == {}


@pytest.mark.parametrize(("characters", "expected"), [
    ([(0, CUT - 1), (CUT - 1, CUT + 2), (CUT + 2, END), (END, END)], {"target": (0, 2), ANSWER: (2, 3)}),  # a tie
    ([(0, CUT), (CUT, CUT + 6), (CUT + 6, END)], {"target": (0, 1), ANSWER: (1, 3)}),  # the first one is blank
    ([(0, CUT - 1), (CUT - 1, CUT + 4), (CUT + 4, END)], {"target": (0, 1), ANSWER: (1, 3)}),  # most in the second
])  # fmt: skip
def test_a_token_over_a_boundary_belongs_to_where_most_of_it_is(characters, expected):
    assert steps.step_spans(parse(TWO_PARTS), characters) == expected


def test_a_map_is_the_mean_over_the_tokens_of_the_step():
    attention = np.random.default_rng(0).random((2, 6, 4)).astype(np.float32) / 8
    maps = steps.mean_maps(attention, {"target": (1, 3), ANSWER: (5, 6)})
    assert np.allclose(maps[1, 1], attention[1, 1:3].mean(axis=0).reshape(2, 2))
    assert np.allclose(maps[:, 4], attention[:, 5].reshape(2, 2, 2))
    assert np.isnan(maps[:, [0, 2, 3]]).all()
    for shape, spans in (((1, 4, 6), {}), ((1, 4, 9), {ANSWER: (2, 5)})):  # no square, past the rows
        with pytest.raises(ValueError):  # noqa: PT011
            steps.mean_maps(np.zeros(shape), spans)


def test_maps_are_means_of_the_recorded_rows_also_for_a_saved_answer(nano):
    ids = encoded(nano.tokenizer, TEXT)
    with saying(nano, TEXT):
        answer = steps.ask_with_attention(nano, IMAGE, QUESTION, EXACT)
    assert answer.captured.token_ids == tuple(ids) and answer.captured.layers == (1, 2, 3)
    assert answer.response.points == (Point(0.25, 0.5), Point(0.3, 0.5))
    assert {key: answer.text(key) for key in answer.spans} == {**STEPS, ANSWER: "[(0.250, 0.500), (0.300, 0.500)]"}
    prompt = render_prompt(question_text(QUESTION, True))
    rows = capture_teacher_forced(nano, IMAGE, prompt, ids, EXACT).attention
    start_of_answer = len(nano.inputs([IMAGE], [prompt])["input_ids"][0])
    for index, (start, end) in enumerate(answer.spans.values()):
        expected = rows[:, start:end].mean(axis=1)
        assert np.abs(answer.layer_maps[:, index].reshape(3, -1) - expected).max() < 1e-6
        assert np.abs(answer.maps[index].ravel() - expected.mean(0)).max() < 1e-6
        assert answer.shares[index] == pytest.approx(expected.mean(0).sum(), rel=1e-4)
        keys = np.arange(start, end) + start_of_answer + 1  # what a token can attend to, itself included
        assert answer.uniform[index] == pytest.approx((64 / keys).mean(), rel=1e-5)
    pictures = [(step.title, step.heat.shape) for step in answer.step_maps(IMAGE.size)]
    assert pictures == [(title, (60, 100)) for title in steps.STEP_TITLES.values()]
    saved = Answer(1, question_text(QUESTION, True), TEXT, "", "", token_ids=tuple(ids))
    again = steps.replay_answer(nano, IMAGE, QUESTION, saved, EXACT)
    assert again.spans == answer.spans and np.abs(again.maps - answer.maps).max() < 1e-6


def test_an_answer_of_another_tokenizer_and_an_empty_one_are_refused(nano):
    for text, ids in ((TEXT, encoded(nano.tokenizer, TEXT)[1:]), ("", [])):
        with pytest.raises(InputError, match="question 17"):
            steps.replay_answer(nano, IMAGE, QUESTION, Answer(17, "", text, "", "", token_ids=tuple(ids)))


def test_an_answer_cut_short_keeps_its_steps_and_the_largest_head_has_no_share(nano):
    ids = encoded(nano.tokenizer, TEXT)
    text, characters = steps.token_spans(nano.tokenizer, ids)
    spans = steps.step_spans(parse(text), characters)
    with saying(nano, ids):
        answer = steps.ask_with_attention(nano, IMAGE, "Point.", CaptureConfig(reduction="max"), spans["target"][1])
    assert answer.spans == {key: spans[key] for key in ("reference", "target")}  # the last token was fed in once more
    assert [(step.heat is None, step.text) for step in answer.step_maps(IMAGE.size)[2:]] == [(True, "")] * 3
    assert np.isnan(answer.shares).all() and not np.isnan(answer.maps[:2]).any()
