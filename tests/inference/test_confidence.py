"""Confidence of points, agreement between answers, and the answer that the others support."""

import math
from types import SimpleNamespace

import pytest

from trace_vlm.core.reasoning import parse
from trace_vlm.inference.confidence import agreement, medoid, point_confidence

SIZE = (200, 100)


def test_agreement_counts_answers_nearby():
    responses = [parse(text, SIZE) for text in ("[(0.5, 0.5), (0.1, 0.1)]", "[(0.52, 0.5)]", "[(0.9, 0.9)]", "none")]
    assert agreement(responses, SIZE) == [pytest.approx((1 / 3, 0)), pytest.approx((1 / 3,)), (0,), ()]
    # 0.05 of the diagonal of 200 x 100 pixels is 11.2: 0.1 of the height, half of that of the width
    across, down = ([parse("[(0.5, 0.5)]", SIZE), parse(text, SIZE)] for text in ("[(0.57, 0.5)]", "[(0.5, 0.6)]"))
    assert agreement(across, SIZE)[0] == (0,) and agreement(down, SIZE)[0] == (1,)


def test_medoid_is_the_answer_that_the_others_support():
    texts = ["none", "[(0.9, 0.9)]", "[(0.5, 0.5)]", "[(0.51, 0.5)]", "[(0.49, 0.5)]"]
    assert medoid([parse(text, SIZE) for text in texts], SIZE) == 2  # the middle one of three that support each other
    assert medoid([parse("none"), parse("[(0.1, 0.1)]")], SIZE) == 1


def test_confidence_belongs_to_the_characters_of_each_point():
    characters = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    text = "The mug is (0.9, 0.9).\nAnswer: （0.46，0.53） and **x=0.1, y=0.2** and \\(0.3, 0.4\\). Not at (0.8, 0.8)."
    response, logprobs = parse(text), [math.log(0.9)] * len(text)
    assert [text[start:end] for start, end in response.spans] == ["（0.46，0.53）", "x=0.1, y=0.2", "(0.3, 0.4\\)"]
    for (start, end), value in zip(response.spans, (0.2, 0.4, 0.6), strict=True):
        logprobs[start:end] = [math.log(value)] * (end - start)
    confidence = point_confidence(characters, [ord(character) for character in text], logprobs, response)
    assert confidence == pytest.approx((0.2, 0.4, 0.6))
