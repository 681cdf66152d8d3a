"""Each point that misses gets its class; distances equal a loop over all pixels; why answers hold no point."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from trace_vlm.core.points import Box, Point
from trace_vlm.core.reasoning import parse
from trace_vlm.core.records import Question
from trace_vlm.eval.error_classes import ErrorClassifier, RegionDistances, explain_unparsed, summarize_unparsed
from trace_vlm.eval.scoring import score
from trace_vlm.utils.command import InputError

MASK = np.zeros((40, 80), bool)
MASK[15:25, 20:32] = True  # left of the reference, which stands in the middle
REFERENCE = {"instance": 3, "center": [0.5, 0.5], "box": [0.45, 0.4, 0.55, 0.6]}
META = {"relation": "left", "references": [REFERENCE], "instances": "a.png"}
INSIDE, OUTSIDE, WRONG = Point(0.3, 0.5), Point(1.5, 0.5), Point(0.9, 0.5)
REGION, OTHER = Box(0.25, 0.375, 0.4, 0.625), Box(0.9, 0.4, 0.95, 0.5)
THREE = ["wrong direction", "outside the image", "on the reference object"]


def classifier(root, meta=META):
    return ErrorClassifier(Question(1, "a.png", "q", meta=meta), MASK, root)


@pytest.fixture
def root(tmp_path):
    instances = np.full((40, 80), 1, np.uint8)  # 1 and 200 are surfaces
    instances[16:24, 36:44] = 3
    instances[:5, :5], instances[30:36, 60:70] = 200, 7
    Image.fromarray(instances).save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize(("meta", "point", "expected"), [
    (META, Point(1.2, 0.5), "outside the image"), (META, Point(0.5, 0.5), "on the reference object"),
    (META, Point(0.8, 0.8), "on another object"), (META, Point(0.05, 0.5), "right side but too far"),
    (META, Point(0.42, 0.5), "right side but beside the region"), (META, Point(0.9, 0.5), "wrong direction"),
    (META, Point(0.5, 0.05), "wrong direction"),
    (META, Point(0.02, 0.02), "right side but too far"),  # a surface is not an object
    # less meta gives fewer classes
    ({}, Point(0.5, 0.5), "elsewhere"),
    ({"relation": "left", "references": [REFERENCE]}, Point(0.46, 0.55), "on the reference object"),
    (META | {"relation": "between", "references": [REFERENCE, REFERENCE]}, Point(0.9, 0.5), "elsewhere"),
    (META | {"references": [{"center": "?"}], "instances": "../a.png"}, Point(0.9, 0.5), "elsewhere"),
])  # fmt: skip
def test_classes(root, meta, point, expected):
    assert classifier(root, meta).classify([point]) == [expected]


def test_broken_instance_image_is_named(root):
    (root / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="question 1: .*a.png"):
        classifier(root)


@pytest.mark.parametrize(("items", "expected"), [
    ([], {"unparsable": 1.0}), ([INSIDE, OUTSIDE, WRONG, WRONG], {"outside the image": 0.25, "wrong direction": 0.5}),
    ([INSIDE], {}),
    ([REGION, WRONG], {"wrong direction": 1.0}),  # boxes beside points are not scored and have no class
    ([WRONG, INSIDE, REGION], {"wrong direction": 0.5}),
    ([WRONG, OUTSIDE, Point(0.5, 0.5)], dict.fromkeys(THREE, 1 / 3)),  # equal shares: in order of occurrence
    ([REGION, OTHER], {"wrong direction": pytest.approx(16 / 136)}),
])  # fmt: skip
def test_shares_and_score_add_up_to_one(root, items, expected):
    shares = classifier(root).shares(items)
    assert shares == pytest.approx(expected) and list(shares) == list(expected)
    assert sum(shares.values()) + score(items, MASK) == pytest.approx(1)


def test_box_is_classified_pixel_by_pixel(root):
    """The region is object 9, and the box frames it with a margin of one pixel."""
    instances, meta = np.full((40, 80), 1, np.uint8), {"instances": "a.png"}
    instances[15:25, 20:32] = 9
    instances[14, 19:33] = 7  # another object along the upper edge
    Image.fromarray(instances).save(root / "a.png")
    shares = classifier(root, meta).shares([Box(19 / 80, 14 / 40, 33 / 80, 26 / 40)])
    assert shares == {"on another object": pytest.approx(14 / 168), "elsewhere": pytest.approx(34 / 168)}
    over = classifier(root).shares([Box(-0.125, 15 / 40, 32 / 80, 25 / 40)])  # 10 of its 42 columns are outside
    assert over["outside the image"] == pytest.approx(10 / 42) and sum(over.values()) == pytest.approx(30 / 42)


@given(
    arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 15))).filter(np.any),
    st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)), min_size=1, max_size=5),
)
def test_distance_is_that_to_the_nearest_pixel(mask, points):
    pixels, expected = np.argwhere(mask), []
    for x, y in points:
        place = np.array([y, x]) * mask.shape
        gaps = np.maximum(np.maximum(pixels - place, place - pixels - 1), 0)  # to the square of each pixel
        expected.append(np.hypot(*gaps.T).min())
    assert RegionDistances(mask).measure([Point(x, y) for x, y in points]) == pytest.approx(expected, abs=1e-9)


def test_thousands_of_points_are_classified_and_measured():
    """Each point against all pixels of a large region would take minutes."""
    mask = np.zeros((480, 640), bool)
    mask[:, :320] = True
    points = [Point(*pair) for pair in np.random.default_rng(0).random((2500, 2)).tolist()]
    meta = {"relation": "left", "references": [{"center": [0.5, 0.5]}]}
    large = ErrorClassifier(Question(1, "a.png", "q", meta=meta), mask, Path())
    assert sum(large.shares(points).values()) + score(points, mask) == pytest.approx(1)
    assert RegionDistances(mask).measure(points) == pytest.approx([max(0, point.x * 640 - 320) for point in points])


@pytest.mark.parametrize(("text", "reason"), [
    ("About 46%, 53%", "percent signs"), ("(0,46; 0,53)", "decimal commas"), ("<loc0512><loc0400>", "special tokens"),
    ("0.46, 0.53", "no brackets"), ("There is none.", "no numbers"), (" ", "empty"),
    ("1. **Identify the reference object:** the mug", "cut before the final answer"),
    ("<think>the cup is at (0.1, 0.2)", "cut before the final answer"),
    ("**Final Answer:** [(0.4", "cut inside a point"), ("[(0.1, 0.2, 0.3)]", "three numbers in brackets"),
    ("{0.46, 0.53}", "another form of brackets"),
])  # fmt: skip
def test_reason_of_an_unparsed_answer(text, reason):
    assert explain_unparsed(4, parse(text)).reason == reason


def test_examples_have_different_reasons_and_are_shortened():
    texts = {4: "no idea", 5: "no idea", 6: "no idea", 7: "word " * 200 + "0.46, 0.53", 8: "46%\n 53%"}
    summary = summarize_unparsed([explain_unparsed(number, parse(text)) for number, text in texts.items()])
    assert summary["reasons"] == {"no numbers": 3, "no brackets": 1, "percent signs": 1}
    shown = {example["question_id"]: example["text"] for example in summary["examples"]}
    assert list(shown) == ["4", "7", "8"] and shown["8"] == "46% 53%"
    assert len(shown["7"]) < 150 and shown["7"].endswith("0.46, 0.53") and shown["7"].startswith("word word")
    assert explain_unparsed(3, parse("I look at the mug"), cut=True).reason == "cut before the final answer"
