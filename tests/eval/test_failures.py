"""Each point that misses gets its class, and the distance to the region is what a loop over all pixels finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from trace_vlm.core.points import Box, Point
from trace_vlm.core.records import Question
from trace_vlm.eval.error_classes import ErrorClassifier, RegionDistances
from trace_vlm.eval.scoring import score
from trace_vlm.utils.command import InputError

MASK = np.zeros((40, 80), bool)
MASK[15:25, 20:32] = True  # left of the reference, which stands in the middle
REFERENCE = {"instance": 3, "center": [0.5, 0.5], "box": [0.45, 0.4, 0.55, 0.6]}
META: dict[str, Any] = {"relation": "left", "references": [REFERENCE], "instances": "instances/a.png"}


def judge(root: Path, meta: dict[str, Any] = META) -> ErrorClassifier:
    return ErrorClassifier(Question(1, "a.png", "q", meta=meta), MASK, root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    instances = np.full((40, 80), 1, np.uint8)  # 1 and 200 are surfaces
    instances[16:24, 36:44] = 3
    instances[:5, :5], instances[30:36, 60:70] = 200, 7
    (tmp_path / "instances").mkdir()
    Image.fromarray(instances).save(tmp_path / "instances" / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (Point(1.2, 0.5), "outside the image"),
        (Point(0.5, 0.5), "on the reference object"),
        (Point(0.8, 0.8), "on another object"),
        (Point(0.05, 0.5), "right side but too far"),
        (Point(0.42, 0.5), "right side but beside the region"),
        (Point(0.9, 0.5), "wrong direction"),
        (Point(0.5, 0.05), "wrong direction"),
        (Point(0.02, 0.02), "right side but too far"),  # a surface is no object
    ],
)
def test_classes(root: Path, point: Point, expected: str) -> None:
    assert judge(root).classify([point]) == [expected]
    assert judge(root).shares([point]) == {expected: 1.0}


def test_a_benchmark_that_tells_less_is_judged_less(root: Path) -> None:
    assert judge(root, {}).classify([Point(0.5, 0.5)]) == ["elsewhere"]
    boxes = {"relation": "left", "references": [REFERENCE]}
    assert judge(root, boxes).classify([Point(0.46, 0.55)]) == ["on the reference object"]
    between = META | {"relation": "between", "references": [REFERENCE, REFERENCE]}
    assert judge(root, between).classify([Point(0.9, 0.5)]) == ["elsewhere"]
    assert judge(root, META | {"references": [{"center": "?"}], "instances": "../a.png"}).classify(
        [Point(0.9, 0.5)]
    ) == ["elsewhere"]
    (root / "instances" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="question 1: .*a.png"):
        judge(root)


def test_shares_and_score_are_the_whole(root: Path) -> None:
    inside, outside, wrong = Point(0.3, 0.5), Point(1.5, 0.5), Point(0.9, 0.5)
    found = judge(root).shares([inside, outside, wrong, wrong])
    assert found == {"outside the image": pytest.approx(0.25), "wrong direction": pytest.approx(0.5)}
    assert judge(root).shares([inside]) == {} and judge(root).shares([]) == {"unparsable": 1.0}
    half = judge(root).shares([Box(0.25, 0.375, 0.55, 0.625)])  # its centre is inside, most of its pixels are not
    assert sum(half.values()) == pytest.approx(0.5)


def test_a_box_is_judged_by_what_of_it_lies_outside(root: Path) -> None:
    """The region is an object, number 9, and the box frames it with a margin: its centre hits."""
    instances = np.full((40, 80), 1, np.uint8)
    instances[15:25, 20:32] = 9
    Image.fromarray(instances).save(root / "instances" / "a.png")
    framing = Box(19 / 80, 14 / 40, 33 / 80, 26 / 40)
    missed = 1 - 120 / 168
    assert judge(root, {"instances": "instances/a.png"}).shares([framing]) == {"elsewhere": pytest.approx(missed)}
    instances[14, 19:33] = 7  # another object along the upper edge
    Image.fromarray(instances).save(root / "instances" / "a.png")
    found = judge(root, {"instances": "instances/a.png"}).shares([framing])
    assert found == {"on another object": pytest.approx(14 / 168), "elsewhere": pytest.approx(34 / 168)}
    over = judge(root).shares([Box(-0.125, 15 / 40, 32 / 80, 25 / 40)])  # ten of its 42 columns lie beyond the edge
    assert over["outside the image"] == pytest.approx(10 / 42) and sum(over.values()) == pytest.approx(30 / 42)


def test_what_is_not_scored_has_no_class(root: Path) -> None:
    """With the accuracy the classes add up to 1, whatever an answer holds."""
    box, miss = Box(0.25, 0.375, 0.4, 0.625), Point(0.9, 0.5)  # all of the region, and a point that misses
    for items in ([box, miss], [miss, box, box], [miss, Point(0.3, 0.5), box], [box, Box(0.9, 0.4, 0.95, 0.5)]):
        assert sum(judge(root).shares(items).values()) + score(items, MASK) == pytest.approx(1)
    assert judge(root).shares([box, miss]) == {"wrong direction": 1.0}


@given(
    arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 15))).filter(np.any),
    st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)), min_size=1, max_size=5),
)
def test_distance_is_that_to_the_nearest_pixel(mask: np.ndarray, places: list[tuple[float, float]]) -> None:
    height, width = mask.shape
    expected = [
        min(
            np.hypot(max(c - x * width, x * width - c - 1, 0), max(r - y * height, y * height - r - 1, 0))
            for r, c in np.argwhere(mask)
        )
        for x, y in places
    ]
    assert RegionDistances(mask).measure([Point(x, y) for x, y in places]) == pytest.approx(expected, abs=1e-9)


def test_thousands_of_points_are_judged_and_measured_together() -> None:
    """10,000 points in 4 answers about images of 640 x 480; each point with all pixels of the region took 100 seconds."""
    mask = np.zeros((480, 640), bool)
    mask[:, :320] = True
    points = [Point(*place) for place in np.random.default_rng(0).random((2500, 2)).tolist()]
    meta = {"relation": "left", "references": [{"center": [0.5, 0.5]}]}
    started = time.process_time()
    for number in range(4):
        judge = ErrorClassifier(Question(number, "a.png", "q", meta=meta), mask, Path())
        assert sum(judge.shares(points).values()) + score(points, mask) == pytest.approx(1)
        gaps = RegionDistances(mask).measure(points)
        assert gaps[0] == pytest.approx(max(0.0, points[0].x * 640 - 320)) and len(gaps) == 2500
    assert time.process_time() - started < 10  # CPU seconds; about one


def test_of_points_that_fail_alike_the_first_class_comes_first(root: Path) -> None:
    points = [Point(0.9, 0.5), Point(1.5, 0.5), Point(0.5, 0.5)]
    assert list(judge(root).shares(points)) == ["wrong direction", "outside the image", "on the reference object"]


def test_an_answer_that_was_cut_is_not_unparsable(root: Path) -> None:
    assert judge(root).shares([], cut=True) == {"cut": 1.0}
    assert judge(root).shares([Point(0.9, 0.5)], cut=True) == {"wrong direction": 1.0}, "a point was read"
