"""The reward of an answer: hand-made cases part by part, and that no trick pays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_vlm.core.points import Point, format_points
from trace_vlm.core.reasoning import STEPS, parse, render
from trace_vlm.eval.quality import answer_quality
from trace_vlm.train.config import Reward
from trace_vlm.train.reward import reward_parts, total_reward

MASK, INSTANCES = np.zeros((100, 200), bool), np.zeros((100, 200), np.uint8)
MASK[20:60, 40:100] = True  # x from 0.2 to 0.5, y from 0.2 to 0.6
INSTANCES[10:30, 10:30], INSTANCES[20:60, 40:100], INSTANCES[70:90, 150:170] = 2, 3, 4
CAN, MUG, BALL = ({"instance": number, "name": name, "category": name.split()[1], "noun": name.split()[1]}
                  for number, name in ((2, "red can"), (3, "blue mug"), (4, "red ball")))  # fmt: skip
ASKED = {"points": [[0.3, 0.3], [0.4, 0.5]], "relation": "left", "references": [CAN], "target": MUG}
BETWEEN = ASKED | {"relation": "between", "references": [CAN, BALL], "target": None}
CHAIN = ASKED | {"hops": [MUG, BALL], "target": BALL}
FREE_CHAIN = CHAIN | {"hops": [MUG, dict.fromkeys(MUG)], "target": None}
GOOD = "[(0.30, 0.30), (0.40, 0.50)]"


def parts(text, reasoning=False, meta=ASKED, **options):
    return reward_parts(parse(text), MASK, meta, INSTANCES, Reward(), reasoning, **options)


def reasoned(reference, target):
    steps = dict(zip(STEPS, (reference, target, "The goal is object reference.", "The points lie on it."), strict=True))
    return render(steps, []).replace("[]", GOOD)


@pytest.mark.parametrize(("text", "expected"), [
    (GOOD, {"format": 1, "mask": 1, "count": 1, "distinct": 1}),
    ("[(0.30, 0.30)]", {"format": 1, "mask": 0.5, "count": 0.5, "distinct": 1}),
    ("[(0.30, 0.30), (0.30, 0.30)]", {"mask": 0.5, "count": 1, "distinct": 0.5}),
    ("[(0.30, 0.30), (0.315, 0.30)]", {"mask": 0.5, "distinct": 0.5}),  # closer than 0.02 of the longer side
    ("[(0.30, 0.30), (0.30, 0.335)]", {"mask": 0.5}),  # 0.0175 of the longer side
    ("[(0.30, 0.30), (0.30, 0.345)]", {"mask": 1}),
    ("[(0.30, 0.30), (0.52, 0.30)]", {"mask": (1 + 0.6) / 2}),  # 0.02 outside: 2 / 5 of the way to nothing
    ("[(0.30, 0.30), (1.30, 0.30)]", {"mask": 0.5}),
    ("[(0.30, 0.30), (0.40, 0.50), (0.90, 0.90), (0.90, 0.10)]", {"mask": 0.5, "count": 0, "distinct": 1}),
    ("[(0.20, 0.20, 0.50, 0.60)]", {"format": 0}),  # a box
    ("nothing to see", {"format": 0, "mask": 0, "count": 0, "distinct": 0}),
])  # fmt: skip
def test_points(text, expected):
    assert {name: parts(text)[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("text", "there", "not_there"), [
    ("None: there is no red can.", {"format": 1, "mask": 0, "count": 0, "distinct": 0}, 1.0),
    (GOOD, {"format": 1, "mask": 1}, 0.1), ("I cannot help.", {"format": 0, "mask": 0}, 0.0),
])  # fmt: skip
def test_nothing_to_point_at(text, there, not_there):
    assert {name: parts(text)[name] for name in there} == pytest.approx(there)
    absent = reward_parts(parse(text), np.zeros_like(MASK), {"points": []}, INSTANCES, Reward(), False)
    assert total_reward(absent, Reward()) == pytest.approx(not_there)


AT_CAN, AT_MUG = (
    "The instruction refers to the red can at (0.10, 0.20).",
    "What is left of it at (0.3, 0.4) is the mug.",
)
BOTH, AT_BALL = (
    "The anchors are the red can at {} and the red ball at {}.",
    "What is behind it at (0.8, 0.8) is the ball.",
)


@pytest.mark.parametrize(("meta", "reference", "target", "place"), [
    (ASKED, AT_CAN, AT_MUG, 1), (ASKED, AT_CAN, "The target area lies left of it at (0.30, 0.40): the mug.", 1),
    (ASKED, AT_CAN, "Left of the red can at (0.30, 0.40) stands the blue mug.", 1),
    (ASKED, AT_CAN, "Left of the blue mug at (0.10, 0.20) stands the red can.", 0.5),
    (ASKED, AT_CAN, "What lies left of it is the mug.", 0.5), (ASKED, "The anchor is the red can.", "The mug.", 0),
    (ASKED, AT_CAN, AT_MUG.replace("0.3,", "0.8,"), 0.5),  # on nothing
    (ASKED, AT_CAN.replace("red can", "red ball"), AT_MUG, 0.5),  # the place of another name
    (ASKED, AT_CAN.replace("(0.10, 0.20)", "(0.80, 0.80)"), AT_MUG, 0.5),  # on another object
    (ASKED, AT_CAN + " The red can is at (0.11, 0.21).", AT_MUG, 2 / 3),  # once is enough
    (ASKED, AT_CAN + " At (0.90, 0.10) is nothing.", AT_MUG, 2 / 3),
    (BETWEEN, BOTH.format("(0.10, 0.20)", "(0.80, 0.80)"), "It lies between them.", 1),
    (BETWEEN, BOTH.format("(0.80, 0.80)", "(0.10, 0.20)"), "It lies between them.", 0),
    (CHAIN, f"{AT_CAN} {AT_MUG}", AT_BALL, 1), (CHAIN, AT_CAN, f"{AT_MUG} {AT_BALL}", 1),
    (CHAIN, AT_CAN, AT_BALL, 2 / 3), (FREE_CHAIN, f"{AT_CAN} {AT_MUG}", "It lies behind it.", 1),
    ({"points": [[0.3, 0.3]]}, "The reference is the table.", "Its left part.", None),
])  # fmt: skip
def test_places_in_the_reasoning_lie_on_what_they_name(meta, reference, target, place):
    text = reasoned(reference, target)
    result, quality = parts(text, True, meta), answer_quality(parse(text), MASK, meta, INSTANCES)
    assert result["format"] == 1 and result.get("place") == (place if place is None else pytest.approx(place))
    assert quality.get("true_places") == result.get("place") and quality["distinct_points"] == 2
    assert place != 1 or quality["true_first_step"] == 1


def test_the_form_depends_on_what_was_asked():
    text = reasoned(AT_CAN, AT_MUG)
    assert [parts(answer, asked)["format"] for answer in (text, GOOD) for asked in (True, False)] == [1, 0, 0, 1]
    assert parts(text.replace("3. **Determine the goal's subtype:** ", "3. "), True)["format"] == 0
    assert parts(text, True, cut=True)["format"] == 0 and "place" not in parts(GOOD)


PLACES = st.tuples(st.integers(0, 24), st.integers(0, 12)).map(lambda at: Point(at[0] * 0.04, at[1] * 0.08))


@given(st.lists(PLACES, min_size=1, max_size=5, unique=True), st.integers(2, 6), st.data())
def test_one_safe_point_never_beats_more_of_the_points_asked_for(points, asked, data):
    """Any further place, even a wrong one, adds to the reward up to the number asked for; a repeated one adds less."""

    def reward(items):
        return total_reward(parts(format_points(items), meta={"points": [[0.3, 0.3]] * asked}), Reward())

    if 1 < len(points) <= asked:
        assert reward(points) > reward(points[:-1])
    if len(points) < asked:
        assert reward([*points, data.draw(st.sampled_from(points))]) < reward([*points, Point(0.46, 0.28)])
