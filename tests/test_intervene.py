"""Edits change one step and say where the points should go; a model that believes its text follows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from trace_vlm.attention import interventions
from trace_vlm.attention.edits import Edit, Thing, edits
from trace_vlm.core.points import Point
from trace_vlm.core.reasoning import parse, render

STEPS = {
    "reference": "The reference object is the red mug at (0.20, 0.50).",
    "target": "The target area is the table to the left of it.",
    "subtype": "This is a free space goal.",
    "output": "I choose one point.",
}
TEXT = render(STEPS, [Point(0.1, 0.5)])
THINGS = (Thing("red mug", Point(0.2, 0.5)), Thing("blue bowl", Point(0.7, 0.25)))


def found(text: str = TEXT, things: Any = THINGS) -> dict[tuple[str, str], Edit]:
    return {(one.step, one.kind): one for one in edits(parse(text), things, np.random.default_rng(0))}


def test_each_step_gets_the_edits_that_its_words_allow() -> None:
    assert set(found()) == {
        *((step, "control") for step in STEPS), ("reference", "object"), ("reference", "place"),
        ("target", "direction"), ("subtype", "goal"),
    }  # fmt: skip


def test_an_edit_keeps_what_stands_before_it_and_nothing_after() -> None:
    every = found()
    assert every["reference", "object"].text == "The reference object is the blue bowl at (0.70, 0.25)."
    assert every["reference", "place"].text == "The reference object is the red mug at (0.70, 0.25)."
    assert every["target", "direction"].text == "The target area is the table to the right of it."
    assert every["subtype", "goal"].text == "This is an object reference goal."
    for one in every.values():
        assert one.prefix.endswith(one.text)
        before = one.prefix.removesuffix(one.text)
        assert TEXT.startswith(before) and parse(one.prefix).steps[-1].text == one.text
    assert TEXT.startswith(every["output", "control"].prefix)


def test_an_edit_says_where_the_points_should_go() -> None:
    every = found()
    assert every["reference", "object"].shift == pytest.approx((0.5, -0.25)) and every["reference", "object"].exact
    assert every["target", "direction"].shift == (1.0, 0.0) and not every["target", "direction"].exact
    assert every["subtype", "goal"].shift is None and every["output", "control"].shift == (0.0, 0.0)


@pytest.mark.parametrize(
    ("written", "moved"),
    [("x=0.20, y=0.50", "(0.70, 0.25)"), ("（0.200，0.500）", "(0.700, 0.250)"), ("[0.2, 0.5]", "(0.7, 0.2)")],
)
def test_a_place_is_edited_however_it_is_written(written: str, moved: str) -> None:
    steps = STEPS | {"reference": f"Of the 2 mugs it is the red mug at {written}. It is no bowl."}
    every = found(render(steps, [Point(0.1, 0.5)]))
    assert every["reference", "place"].text == f"Of the 2 mugs it is the red mug at {moved}. It is no bowl."
    assert every["reference", "object"].text == f"Of the 2 mugs it is the blue bowl at {moved}. It is no bowl."


def test_without_knowing_the_scene_a_place_is_mirrored() -> None:
    every = found(things=())
    assert ("reference", "object") not in every
    assert every["reference", "place"].text.endswith("at (0.80, 0.50).")


@pytest.mark.parametrize("x", ["0.51", "0.50", "0.47", "0.53"])
@pytest.mark.parametrize("things", [(), (Thing("red mug", Point(0.5, 0.5)), Thing("blue bowl", Point(0.5, 0.52)))])
def test_an_edited_place_lies_clearly_elsewhere(x: str, things: Any) -> None:
    text = TEXT.replace("(0.20, 0.50)", f"({x}, 0.50)")
    every = found(text, things)
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
    assert interventions._result(edit, answer, Point(0.4, 0.4), (100, 100)).follows is follows


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
    edit = next(one for (_, name), one in found().items() if name == kind)
    result = interventions._result(edit, f"**Final Answer:**\n{answer}", Point(0.1, 0.5), (100, 50))
    assert result.follows is follows
    lost = interventions._result(edit, "**Final Answer:**\nnothing", Point(0.1, 0.5), (100, 50))
    assert (lost.moved, lost.distance, lost.follows) == (None, None, None)


def test_distances_are_in_units_of_the_longer_side() -> None:
    edit = found()["subtype", "goal"]
    result = interventions._result(edit, "(0.1, 0.9)", Point(0.1, 0.5), (100, 50))
    assert result.moved == pytest.approx((0, 0.4)) and result.distance == pytest.approx(0.2)


def test_the_model_goes_on_from_each_prefix_as_if_it_had_written_it(nano: Any) -> None:
    from trace_vlm.core.prompts import question_text, render_prompt

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8))
    prompt = render_prompt(question_text("Point left of the mug.", True))
    prefixes = [edit.prefix for edit in found().values()]
    together = interventions.go_on(nano, image, prompt, prefixes, 12)
    assert all(text.startswith(prefix) for text, prefix in zip(together, prefixes, strict=True))
    alone = [interventions.go_on(nano, image, prompt, [prefix], 12)[0] for prefix in prefixes[:2]]
    assert together[:2] == alone  # the batch changes nothing
