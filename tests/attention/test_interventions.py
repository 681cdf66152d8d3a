"""Edits change one step and say where the points should go; a model that believes its text follows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.attention import interventions
from trace_vlm.attention.interventions import Edit, NamedObject, make_edits, measure_edit
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import parse, render

STEPS = {
    "reference": "The reference object is the red mug at (0.20, 0.50).",
    "target": "The target area is the table to the left of it.",
    "subtype": "This is a free space goal.",
    "output": "I choose one point.",
}
TEXT = render(STEPS, [Point(0.1, 0.5)])
OBJECTS = (NamedObject("red mug", Point(0.2, 0.5)), NamedObject("blue bowl", Point(0.7, 0.25)))


def edits(text: str = TEXT, objects: Any = OBJECTS) -> dict[tuple[str, str], Edit]:
    return {(edit.step, edit.kind): edit for edit in make_edits(parse(text), objects, np.random.default_rng(0))}


def test_each_step_gets_the_edits_that_its_words_allow() -> None:
    every = edits()
    assert {place: edit.text for place, edit in every.items() if place[1] != "control"} == {
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


def test_an_edit_says_where_the_points_should_go() -> None:
    every = edits()
    assert every["reference", "object"].shift == pytest.approx((0.5, -0.25)) and every["reference", "object"].exact
    assert every["target", "direction"].shift == (1.0, 0.0) and not every["target", "direction"].exact
    assert every["subtype", "goal"].shift is None and every["output", "control"].shift == (0.0, 0.0)


@pytest.mark.parametrize(
    ("written", "moved"),
    [("x=0.20, y=0.50", "(0.70, 0.25)"), ("（0.200，0.500）", "(0.700, 0.250)"), ("[0.2, 0.5]", "(0.7, 0.2)")],
)
def test_a_place_is_edited_however_it_is_written(written: str, moved: str) -> None:
    steps = STEPS | {"reference": f"Of the 2 mugs it is the red mug at {written}. It is no bowl."}
    every = edits(render(steps, [Point(0.1, 0.5)]))
    assert every["reference", "place"].text == f"Of the 2 mugs it is the red mug at {moved}. It is no bowl."
    assert every["reference", "object"].text == f"Of the 2 mugs it is the blue bowl at {moved}. It is no bowl."


def test_without_objects_a_place_is_mirrored() -> None:
    every = edits(objects=())
    assert ("reference", "object") not in every
    assert every["reference", "place"].text.endswith("at (0.80, 0.50).")


@pytest.mark.parametrize("x", ["0.51", "0.50", "0.47", "0.53"])
@pytest.mark.parametrize(
    "objects", [(), (NamedObject("red mug", Point(0.5, 0.5)), NamedObject("blue bowl", Point(0.5, 0.52)))]
)
def test_an_edited_place_is_clearly_elsewhere(x: str, objects: Any) -> None:
    every = edits(TEXT.replace("(0.20, 0.50)", f"({x}, 0.50)"), objects)
    edit = every["reference", "place"]
    assert edit.shift is not None and abs(edit.shift[0]) >= 0.1 and edit.text in edit.prefix
    assert f"({x}, 0.50)" not in edit.text
    assert ("reference", "object") not in every  # the bowl stands where the mug does


@pytest.mark.parametrize(("share", "follows"), [(1.0, True), (0.6, True), (0.4, False), (-1.0, False)])
@pytest.mark.parametrize("shift", [(0.04, 0.0), (0.0, 0.05), (0.3, 0.1)])
def test_following_an_exact_edit_is_half_of_its_way_however_short(
    shift: tuple[float, float], share: float, follows: bool
) -> None:
    edit = Edit("reference", "place", "", "", shift, True)
    answer = f"[({0.4 + share * shift[0]:.3f}, {0.4 + share * shift[1]:.3f})]"
    assert measure_edit(edit, answer, Point(0.4, 0.4), (100, 100)).follows is follows


@pytest.mark.parametrize(
    ("kind", "answer", "follows"),
    [
        ("object", "[(0.55, 0.30)]", True),  # as far as the object
        ("object", "[(0.15, 0.48)]", False),
        ("direction", "[(0.30, 0.5)]", True),
        ("direction", "[(0.05, 0.5)]", False),
        ("goal", "[(0.9, 0.9)]", None),
        ("control", "[(0.1, 0.5)]", None),
    ],
)
def test_following_is_judged_by_where_the_points_went(kind: str, answer: str, follows: bool | None) -> None:
    edit = next(edit for (_, name), edit in edits().items() if name == kind)
    result = measure_edit(edit, f"**Final Answer:**\n{answer}", Point(0.1, 0.5), (100, 50))
    assert result.follows is follows
    lost = measure_edit(edit, "**Final Answer:**\nnothing", Point(0.1, 0.5), (100, 50))
    assert (lost.moved, lost.distance, lost.follows) == (None, None, None)


def test_distances_are_in_units_of_the_longer_side() -> None:
    result = measure_edit(edits()["subtype", "goal"], "(0.1, 0.9)", Point(0.1, 0.5), (100, 50))
    assert result.moved == pytest.approx((0, 0.4)) and result.distance == pytest.approx(0.2)


def test_the_model_continues_from_each_prefix_whatever_the_batch(nano: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8))
    prefixes = [edit.prefix for edit in edits().values()]

    def answers(some: list[str]) -> list[str]:
        return interventions.continue_generation(nano, image, "Point left of the mug.", some, 12, "vicuna_v1")

    together = answers(prefixes)
    assert all(text.startswith(prefix) for text, prefix in zip(together, prefixes, strict=True))
    assert together != prefixes and together[:2] == [answers([prefix])[0] for prefix in prefixes[:2]]
