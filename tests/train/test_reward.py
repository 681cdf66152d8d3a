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

SETTINGS = Reward()
MASK = np.zeros((100, 200), bool)
MASK[20:60, 40:100] = True  # x from 0.2 to 0.5, y from 0.2 to 0.6
INSTANCES = np.zeros((100, 200), np.uint8)
INSTANCES[10:30, 10:30], INSTANCES[20:60, 40:100], INSTANCES[70:90, 150:170] = 2, 3, 4
CAN = {"instance": 2, "name": "red can", "category": "can"}
MUG = {"instance": 3, "name": "blue mug", "category": "mug"}
BALL = {"instance": 4, "name": "red ball", "category": "ball"}
ASKED = {"points": [[0.3, 0.3], [0.4, 0.5]], "relation": "left", "references": [CAN], "target": MUG}


def parts(text, reasoning=False, meta=ASKED, **options):
    return reward_parts(parse(text), MASK, meta, SETTINGS, reasoning, instances=INSTANCES, **options)


def reasoned(reference, target, points="[(0.30, 0.30), (0.40, 0.50)]"):
    steps = dict(zip(STEPS, (reference, target, "The goal is object reference.", "The points lie on it."), strict=True))
    return render(steps, []).replace("[]", points)


@pytest.mark.parametrize(("text", "expected"), [
    ("[(0.30, 0.30), (0.40, 0.50)]", {"format": 1, "mask": 1, "count": 1, "distinct": 1}),
    ("[(0.30, 0.30)]", {"format": 1, "mask": 0.5, "count": 0.5, "distinct": 1}),
    ("[(0.30, 0.30), (0.30, 0.30)]", {"mask": 0.5, "count": 1, "distinct": 0.5}),
    ("[(0.30, 0.30), (0.315, 0.30)]", {"mask": 0.5, "distinct": 0.5}),  # closer than 0.02 of the longer side
    ("[(0.30, 0.30), (0.30, 0.335)]", {"mask": 0.5}),  # 0.0175 of the longer side
    ("[(0.30, 0.30), (0.30, 0.345)]", {"mask": 1}),
    ("[(0.30, 0.30), (0.52, 0.30)]", {"mask": (1 + 0.6) / 2}),  # 0.02 outside: 2 / 5 of the way to nothing
    ("[(0.30, 0.30), (0.60, 0.30)]", {"mask": 0.5}),
    ("[(0.30, 0.30), (1.30, 0.30)]", {"mask": 0.5}),
    ("[(0.30, 0.30), (0.40, 0.50), (0.90, 0.90), (0.90, 0.10)]", {"mask": 0.5, "count": 0, "distinct": 1}),
    ("[(0.20, 0.20, 0.50, 0.60)]", {"format": 0}),  # a box
    ("nothing to see", {"format": 0, "mask": 0, "count": 0, "distinct": 0}),
])  # fmt: skip
def test_points(text, expected):
    assert {name: parts(text)[name] for name in expected} == pytest.approx(expected)


CAN_STEP, MUG_STEP = (
    "The instruction refers to the red can at (0.10, 0.20).",
    "What lies left of it at (0.3, 0.4) is the mug.",
)


@pytest.mark.parametrize(("reference", "target", "place"), [
    (CAN_STEP, MUG_STEP, 1),
    (CAN_STEP, "The target area lies left of it at (0.30, 0.40): the mug.", 1),
    (CAN_STEP, "What lies left of it is the mug.", 0.5),
    (CAN_STEP, MUG_STEP.replace("0.3,", "0.8,"), 0.5),  # on nothing
    (CAN_STEP.replace("red can", "red ball"), MUG_STEP, 0.5),  # the place of another name
    (CAN_STEP.replace("(0.10, 0.20)", "(0.80, 0.80)"), MUG_STEP, 0.5),  # on another object
    (CAN_STEP + " The red can is at (0.11, 0.21).", MUG_STEP, 2 / 3),  # once is enough
    (CAN_STEP + " At (0.90, 0.10) is nothing.", MUG_STEP, 2 / 3),
    ("The instruction refers to the red can.", "What lies left of it is the mug.", 0),
])  # fmt: skip
def test_places_in_the_reasoning_lie_on_what_they_name(reference, target, place):
    result = parts(reasoned(reference, target), reasoning=True)
    assert (result["format"], result["mask"], result["place"]) == (1, 1, pytest.approx(place))


def test_two_references_have_a_place_each_and_free_space_has_none():
    meta = ASKED | {"relation": "between", "references": [CAN, BALL], "target": None}
    both = "The anchors are the red can at (0.10, 0.20) and the red ball at (0.80, 0.80)."
    assert parts(reasoned(both, "It lies between them."), True, meta)["place"] == 1
    swapped = both.replace("(0.10, 0.20)", "?").replace("(0.80, 0.80)", "(0.10, 0.20)").replace("?", "(0.80, 0.80)")
    assert parts(reasoned(swapped, "It lies between them."), True, meta)["place"] == 0
    assert "place" not in parts(reasoned("The table.", "Its left part."), True, {"points": [[0.3, 0.3]]})


def test_every_object_of_a_chain_has_a_place_in_either_step():
    hops = [{"noun": "mug", "name": "blue mug", "instance": 3}, {"noun": "ball", "name": "red ball", "instance": 4}]
    meta = ASKED | {"hops": hops, "target": BALL}
    ball = "What is behind it at (0.80, 0.80) is the ball."
    assert parts(reasoned(f"{CAN_STEP} {MUG_STEP}", ball), True, meta)["place"] == 1
    assert parts(reasoned(CAN_STEP, f"{MUG_STEP} {ball}"), True, meta)["place"] == 1
    assert parts(reasoned(CAN_STEP, ball), True, meta)["place"] == pytest.approx(2 / 3)
    free = meta | {"hops": [hops[0], {"noun": None, "name": None, "instance": None}], "target": None}
    assert parts(reasoned(f"{CAN_STEP} {MUG_STEP}", "It lies behind it."), True, free)["place"] == 1
    quality = answer_quality(parse(reasoned(f"{CAN_STEP} {MUG_STEP}", ball)), (200, 100), meta, INSTANCES)
    assert quality == {"distinct_points": 2, "true_places": 1, "true_first_step": 1}


def test_the_form_depends_on_what_was_asked():
    text, bare = reasoned(CAN_STEP, MUG_STEP), "[(0.30, 0.30), (0.40, 0.50)]"
    assert [parts(answer, asked)["format"] for answer in (text, bare) for asked in (True, False)] == [1, 0, 0, 1]
    assert parts(text.replace("3. **Determine the goal's subtype:** ", "3. "), True)["format"] == 0
    assert parts(text, True, cut=True)["format"] == 0
    assert "place" not in parts(bare)


PLACES = st.tuples(st.integers(0, 24), st.integers(0, 12)).map(lambda at: Point(at[0] * 0.04, at[1] * 0.08))


@given(st.lists(PLACES, min_size=1, max_size=5, unique=True), st.integers(2, 6), st.data())
def test_one_safe_point_never_beats_more_of_the_points_asked_for(points, asked, data):
    """Any place beside the others, even a wrong one, adds to the reward up to the number asked for; a repeated one less."""
    meta = {"points": [[0.3, 0.3]] * asked}

    def reward(items):
        return total_reward(parts(format_points(items), meta=meta), SETTINGS)

    fewer = points[:-1] or points
    assert reward(points) >= reward(fewer) if len(points) <= asked else reward(points) <= reward(fewer) + 0.8 / asked
    if len(points) < asked:
        again = [*points, data.draw(st.sampled_from(points))]
        inside = Point(0.46, 0.28)
        assert reward(again) < reward([*points, inside])


def test_weights_add_up_to_the_reward():
    settings = Reward(format=1, mask=2, count=0, distinct=0, place=4)
    assert total_reward({"format": 1.0, "mask": 0.5, "count": 1.0, "distinct": 1.0, "place": 0.25}, settings) == 3
