"""Edits change one step and say where the points should go; a model that believes its text follows them."""

import numpy as np
import pytest
from small_benchmark import picture

from trace_vlm.attention import interventions
from trace_vlm.attention.interventions import Edit, make_edits, measure_edit
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import parse, render

STEPS = {"reference": "The reference object is the red mug at (0.20, 0.50).",
         "target": "The target area is the table to the left of it.",
         "subtype": "This is a free space goal.", "output": "I choose one point."}  # fmt: skip
BEFORE = Point(0.1, 0.5)
TEXT = render(STEPS, [BEFORE])
OBJECTS = {"red mug": Point(0.2, 0.5), "blue bowl": Point(0.7, 0.25)}


def edits(text=TEXT, objects=OBJECTS):
    return {(edit.step, edit.kind): edit for edit in make_edits(parse(text), objects, np.random.default_rng(0))}


def test_each_step_gets_the_edits_that_its_words_allow():
    every = edits()
    assert {key: edit.text for key, edit in every.items() if key[1] != "control"} == {
        ("reference", "object"): "The reference object is the blue bowl at (0.70, 0.25).",
        ("reference", "place"): "The reference object is the red mug at (0.70, 0.25).",
        ("target", "direction"): "The target area is the table to the right of it.",
        ("subtype", "goal"): "This is an object reference goal.",
    }
    assert {step: edit.text for (step, kind), edit in every.items() if kind == "control"} == STEPS
    for edit in every.values():
        assert TEXT.startswith(edit.prefix.removesuffix(edit.text)) and edit.prefix.endswith(edit.text)
        assert parse(edit.prefix).steps[-1].text == edit.text
    assert TEXT.startswith(every["output", "control"].prefix)
    shifts = {kind: (edit.shift, edit.exact) for (_, kind), edit in every.items()}  # where the points should go
    assert shifts["object"] == shifts["place"] == (pytest.approx((0.5, -0.25)), True)
    assert shifts["direction"] == ((1.0, 0.0), False) and shifts["control"] == ((0.0, 0.0), True)
    assert shifts["goal"][0] is None
    assert edits(objects={})["reference", "place"].text.endswith("at (0.80, 0.50).")  # mirrored


def test_each_hop_is_edited_by_itself():
    walked = f"{STEPS['reference']} What lies behind it at (0.70, 0.25) is the bowl."
    every = edits(render(STEPS | {"reference": walked}, [BEFORE]))
    assert every["hop_1", "direction"].text == "What lies in front of it at (0.70, 0.25) is the bowl."
    assert every["hop_1", "place"].text.startswith("What lies behind it at (0.") and ("hop_2", "place") not in every
    assert every["hop_1", "place"].prefix.endswith(f"{STEPS['reference']} {every['hop_1', 'place'].text}")
    assert every["reference", "control"].text == STEPS["reference"] and ("reference", "direction") not in every


@pytest.mark.parametrize(("written", "moved"), [
    ("x=0.20, y=0.50", "(0.70, 0.25)"), ("（0.200，0.500）", "(0.700, 0.250)"), ("[0.2, 0.5]", "(0.7, 0.2)"),
])  # fmt: skip
def test_a_place_is_edited_however_it_is_written(written, moved):
    text = "Of the 2 mugs it is the {} at {}. It is no bowl."
    every = edits(render(STEPS | {"reference": text.format("red mug", written)}, [BEFORE]))
    assert every["reference", "place"].text == text.format("red mug", moved)
    assert every["reference", "object"].text == text.format("blue bowl", moved)


@pytest.mark.parametrize("x", ["0.51", "0.50", "0.47", "0.53"])
@pytest.mark.parametrize("objects", [{}, {"red mug": Point(0.5, 0.5), "blue bowl": Point(0.5, 0.52)}])
def test_an_edited_place_is_clearly_elsewhere(x, objects):
    edit = (every := edits(TEXT.replace("(0.20, 0.50)", f"({x}, 0.50)"), objects))["reference", "place"]
    assert abs(edit.shift[0]) >= 0.1 and edit.text in edit.prefix and f"({x}, 0.50)" not in edit.text
    assert ("reference", "object") not in every  # the bowl stands where the mug does


@pytest.mark.parametrize(("share", "follows"), [(1.0, True), (0.6, True), (0.4, False), (-1.0, False)])
@pytest.mark.parametrize("shift", [(0.04, 0.0), (0.0, 0.05), (0.3, 0.1)])
def test_following_an_exact_edit_is_half_of_its_way_however_short(shift, share, follows):
    edit = Edit("reference", "place", "", "", shift, True)
    answer = f"[({0.4 + share * shift[0]:.3f}, {0.4 + share * shift[1]:.3f})]"
    assert measure_edit(edit, answer, Point(0.4, 0.4), (100, 100)).follows is follows


@pytest.mark.parametrize(("kind", "answer", "follows"), [
    ("object", "[(0.55, 0.30)]", True), ("object", "[(0.15, 0.48)]", False),  # as far as the object, or not
    ("direction", "[(0.30, 0.5)]", True), ("direction", "[(0.05, 0.5)]", False),
    ("goal", "[(0.9, 0.9)]", None), ("control", "[(0.1, 0.5)]", None),
])  # fmt: skip
def test_following_is_judged_by_where_the_points_went(kind, answer, follows):
    edit = next(edit for (_, name), edit in edits().items() if name == kind)
    assert measure_edit(edit, f"**Final Answer:**\n{answer}", BEFORE, (100, 50)).follows is follows
    down = measure_edit(edit, "(0.1, 0.9)", BEFORE, (100, 50))
    assert down.moved == pytest.approx((0, 0.4)) and down.distance == pytest.approx(0.2)  # of the longer side
    lost = measure_edit(edit, "**Final Answer:**\nnothing", BEFORE, (100, 50))
    assert (lost.moved, lost.distance, lost.follows) == (None, None, None)


def test_the_model_continues_from_each_prefix_whatever_the_batch(nano):
    prefixes = [edit.prefix for edit in edits().values()]
    together, first, second = (
        interventions.continue_generation(nano, picture(0), "Point left of the mug.", batch, 12, "vicuna_v1")
        for batch in (prefixes, prefixes[:1], prefixes[1:2])
    )
    assert all(text.startswith(prefix) for text, prefix in zip(together, prefixes, strict=True))
    assert together != prefixes and together[:2] == first + second
