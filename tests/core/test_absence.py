"""The answer that there is nothing to point at, in the canonical form and in other models' words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import assert_linear

from trace_vlm.core.absence import find_none, format_none
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import STEPS, parse, render

SAYS_NONE = (
    "None: there is no mug on the shelf.", "None", "none.", "**None**", "[]", "```json\n[]\n```", '{"points": []}',
    "points: []", "()", "There is no mug in the image.", "There are no red mugs on the table.", "There's no mug here.",
    "There isn't any free space left of the mug.", "I'm sorry, but there is no blue ball in this picture.",
    "I cannot find any mug in the image.", "I don't see a red can.", "The mug is not visible in the image.",
    "No such object.", "No mug is present in the image.", "No red mug can be found.", "I am unable to locate the mug.",
    "The object you describe does not exist in the scene.", "The picture does not contain a mug.",
    "There is nothing left of the mug.", "There is not enough space.", "Nothing: the shelf is full.",
    "No free space is available between the cups.", "There appears to be no mug.",
)  # fmt: skip
SAYS_SOMETHING_ELSE = (
    "", "I'm sorry, I can't help with that.", "I cannot see the image.", "There is no image attached.",
    "As an AI, I cannot provide coordinates.", "I am unable to view images.", "The mug is on the table.", "[0.5, ",
    "There is no doubt that the mug is left of the can.", "There is no information about its size.", "The answer is",
    "No problem! The mug is here.", "I can't identify the people in this image.", "None of the above",
    "Nonetheless, the mug stands there", "The mug is not far from the can.", "I do not have access to the picture",
)  # fmt: skip


@pytest.mark.parametrize("text", SAYS_NONE)
def test_an_answer_says_that_there_is_nothing(text: str) -> None:
    for answer in (text, f"**Final Answer:**\n{text}", f"<think>At (0.5, 0.5)?</think>\n{text}"):
        response = parse(answer)
        assert response.none and response.parsable and not response.points, answer
        start, end = response.none_span
        assert answer[start:end].strip() and answer[start:end] in text


@pytest.mark.parametrize("text", SAYS_SOMETHING_ELSE)
def test_a_refusal_or_another_sentence_does_not(text: str) -> None:
    response = parse(text)
    assert not response.none and not response.parsable


def test_the_canonical_form_is_read_back_with_and_without_steps() -> None:
    steps = dict.fromkeys(STEPS, "The instruction refers to the mug. There is no mug.")
    for body in (steps, {}):
        text = render(body, [], none="there is no mug on the shelf.")
        assert text.endswith(f"\n{format_none('there is no mug on the shelf.')}")
        response = parse(text)
        assert response.none and text[slice(*response.none_span)] == "None" and len(response.steps) == len(body)


def test_points_decide_before_words_and_the_last_answer_before_others() -> None:
    assert not parse("There is no mug, but a can at [(0.5, 0.5)].").none
    assert parse("Final Answer: [(0.1, 0.2)]\nFinal Answer: None").none
    again = parse("Final Answer: None\nFinal Answer: [(0.1, 0.2)]")
    assert not again.none and again.points == (Point(0.1, 0.2),)
    assert not parse("1. **Identify the reference object:** There is no mug left of it.").none  # cut before its answer
    assert not parse("<think>There is no mug").none


@given(st.text(alphabet="none there is o'm.[]{}:`\n(0.5,)", max_size=60))
def test_any_text_is_read(text: str) -> None:
    span = find_none(text)
    assert span is None or 0 <= span[0] < span[1] <= len(text)


@pytest.mark.parametrize("pattern", [" ", "no ", "is not ", "{'a' : "])
def test_reading_is_linear(pattern: str) -> None:
    assert_linear(find_none, "points" + pattern * (200_000 // len(pattern)) + "x")
