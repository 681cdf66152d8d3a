"""Other models' coordinates: what is read from their texts, whole, broken or cut, and how pictures are sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import assert_linear

from trace_vlm.command import InputError
from trace_vlm.conventions import CONVENTIONS, QWEN_LEAST, QWEN_MOST, convention, read, sent_size
from trace_vlm.points import Box, Point

SIZE, SENT = (640, 480), (280, 140)


def points(name: str, text: str) -> list[tuple[float, ...]]:
    found = read(text, SIZE, CONVENTIONS[name], SENT).points
    assert all(isinstance(item, Point) for item in found)
    return [(round(item.x, 4), round(item.y, 4)) for item in found if isinstance(item, Point)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("unit", "[(0.25, 0.5)]", [(0.25, 0.5)]),
        ("unit", "[(70, 70)]", [(0.25, 0.5)]),  # pixels, of the picture as it was sent
        ("gemini", '```json\n[{"point": [500, 250], "label": "a"}, {"point": [0, 1000], "label": "b"}]\n```',
         [(0.25, 0.5), (1.0, 0.0)]),
        ("gemini", '[{"point": [500, 250], "label": "a"}, {"point": [500, 2', [(0.25, 0.5)]),  # cut off
        ("gemini", "{'point': [500, 250],}", [(0.25, 0.5)]),  # no JSON
        ("gemini", '{"points": [[500, 250], [100, 200]], "size": [9, 9]}', [(0.25, 0.5), (0.2, 0.1)]),
        ("gemini", "[[500, 250]]", [(0.25, 0.5)]),
        ("gemini", '{"point": [1, 2, 3]} (500, 250)', [(0.25, 0.5)]),
        ("molmo", '<point x="25.0" y="50" alt="a mug">a mug</point>', [(0.25, 0.5)]),
        ("molmo", '<points x1="25" y1="50.0" x2="100" y2="0" alt="mugs">mugs</points>', [(0.25, 0.5), (1.0, 0.0)]),
        ("molmo", '<points x1="25" y1="50.0" x2="10', [(0.25, 0.5)]),
        ("molmo", '<points x1="25" y2="50.0">', []),  # not a pair
        ("molmo", "There are none.", []),
        ("molmo2", '<points coords="1 1 250 500 2 999 003">mugs</points>', [(0.25, 0.5), (0.999, 0.003)]),
        ("molmo2", '<point coords="1 1 250 500"/>', [(0.25, 0.5)]),
        ("molmo2", '<points coords="1 250 500 2 999 3">', [(0.25, 0.5), (0.999, 0.003)]),  # without the image's number
        ("molmo2", '<points coords="1 1 250 500 2 99', [(0.25, 0.5)]),
        ("molmo2", '<points coords="">', []),
        ("qwen2.5-vl", '[{"point_2d": [70, 70], "label": "mug"}]', [(0.25, 0.5)]),
        ("qwen3-vl", '<think>maybe [1, 2]</think>\n[{"point_2d": [250, 500]}]', [(0.25, 0.5)]),
        ("qwen3-vl", "**Final Answer:** [250, 500]\nThat is left of (1, 2).", [(0.25, 0.5), (0.001, 0.002)]),
        ("qwen3-vl", "1. Identify the reference object: at [10, 20].\n**Final Answer:**\n[250, 500]", [(0.25, 0.5)]),
        ("robobrain2", "[(70, 70), (280, 0)]", [(0.25, 0.5), (1.0, 0.0)]),
        ("robobrain2", "[(700, 70)]", [(2.5, 0.5)]),  # outside, not lost
    ],
)  # fmt: skip
def test_what_is_read(name: str, text: str, expected: list[tuple[float, ...]]) -> None:
    assert points(name, text) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unit", "[(0.1, 0.2, 0.3, 0.4)]"),
        ("gemini", '[{"box_2d": [200, 100, 400, 300], "label": "a"}]'),
        ("qwen2.5-vl", '[{"bbox_2d": [28, 28, 84, 56]}]'),
        ("qwen3-vl", '[{"bbox_2d": [100, 200, 300, 400]}]'),
        ("robobrain2", "[28, 28, 84, 56]"),
    ],
)
def test_boxes(name: str, text: str) -> None:
    (box,) = read(text, SIZE, CONVENTIONS[name], SENT).points
    assert isinstance(box, Box)
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((0.1, 0.2, 0.3, 0.4))


@given(st.sampled_from(sorted(CONVENTIONS)), st.text(alphabet='[](){}<>"points coords xy1=:,. 0.5-e\n', max_size=80))
def test_any_text_is_read(name: str, text: str) -> None:
    read(text, SIZE, CONVENTIONS[name], SENT)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize(
    "piece", ['"point": [', '"points": [[1, 2],', "<points x1=", '<point coords="1 ', 'x="1" ', "[[1,"]
)
def test_long_texts_take_linear_time(name: str, piece: str) -> None:
    how = CONVENTIONS[name]
    assert_linear(how.read, piece * (200_000 // len(piece)))


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(64, 2048),
    st.sampled_from(["qwen2.5-vl", "robobrain2", "unit"]),
)  # fmt: skip
def test_a_server_has_nothing_left_to_resize(width: int, height: int, most: int, name: str) -> None:
    how = convention(name)
    try:
        sent = sent_size((width, height), most, how)
    except InputError:
        assert max(width, height) > 200 * min(width, height)
        return
    assert min(sent) >= 1
    if how.scale is not None:
        assert max(sent) <= max(most, 1)
        assert max(width, height) > most or sent == (width, height)
    else:
        assert {side % 28 for side in sent} == {0} and QWEN_LEAST <= sent[0] * sent[1] <= QWEN_MOST


def test_an_unknown_convention_and_a_missing_size() -> None:
    with pytest.raises(InputError, match=r"'klingon'.*gemini"):
        convention("klingon")
    with pytest.raises(ValueError, match="its size is needed"):
        read("[(1, 2)]", SIZE, CONVENTIONS["robobrain2"])
