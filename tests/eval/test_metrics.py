"""The score of one answer, the interval of many, and the reference's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import stats

from trace_vlm.core.points import Box, Point, parse_points
from trace_vlm.eval.scoring import robopoint_score, score, weight
from trace_vlm.eval.statistics import difference, interval

MASK = np.zeros((4, 10), bool)
MASK[:, :5] = True
MASK[3, 9] = True  # the last pixel


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([Point(0.0, 0.0)], 1.0),
        ([Point(0.49, 0.5)], 1.0),
        ([Point(0.5, 0.5)], 0.0),
        ([Point(1.0, 1.0)], 1.0),  # the corner is the last pixel
        ([Point(1.0, 0.5)], 0.0),
        ([Point(0.1, 0.1), Point(0.9, 0.1)], 0.5),
        ([Point(0.1, 0.1), Point(-0.1, 0.1), Point(0.1, 1.01)], 1 / 3),  # outside the image is a miss
        ([Box(0.0, 0.0, 1.0, 1.0)], 21 / 40),
        ([Box(0.4, 0.0, 0.6, 1.0)], 0.5),
        ([Box(0.6, 1.0, 0.4, 0.0)], 0.5),  # reversed corners
        ([Box(0.2, 0.25, 0.2, 0.25)], 1.0),  # no extent: the pixel it lies in
        ([Box(-1.0, 0.0, 0.5, 1.0)], 20 / 60),  # what lies outside counts
        ([Box(1.0, 1.0, 1.0, 1.0)], 1.0),
        ([Box(2.0, 2.0, 3.0, 3.0)], 0.0),
        ([Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.6, 0.25)], 20 / 21),  # a box weighs its pixels
        ([Box(0.0, 0.0, 0.5, 1.0), Point(0.9, 0.1)], 0.0),  # beside points boxes do not count
        ([Point(0.9, 0.5), Point(0.9, 0.5), Box(0.1, 0.1, 0.4, 0.9)], 0.0),
        ([Point(0.1, 0.5), Box(0.6, 0.0, 1.0, 1.0), Point(0.9, 0.5)], 0.5),
    ],
)
def test_score(points: list[Point | Box], expected: float) -> None:
    assert score(points, MASK) == pytest.approx(expected)


def test_the_weight_of_an_answer_is_that_of_what_is_scored() -> None:
    box, points = Box(0.0, 0.0, 0.5, 1.0), [Point(0.9, 0.1), Point(0.1, 0.1)]
    assert (weight([box], MASK), weight(points, MASK), weight([box, *points], MASK)) == (20, 2, 2)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 50))), st.data())
def test_a_pixel_pair_scores_its_own_pixel(mask: np.ndarray, data: st.DataObject) -> None:
    height, width = mask.shape
    column, row = data.draw(st.integers(2, max(2, width - 1))), data.draw(st.integers(2, max(2, height - 1)))
    if column >= width or row >= height:
        return
    assert score(parse_points(f"({column}, {row})", (width, height)), mask) == float(mask[row, column])


@given(arrays.arrays(bool, (7, 9)), st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4))
def test_box_equals_its_pixels_one_by_one(mask: np.ndarray, corners: list[float]) -> None:
    """The count over a padded copy of the mask, in which nothing has to be clipped."""
    box = Box(*corners)
    wide = np.pad(mask, 20)
    y0, x0 = int(np.floor(box.y0 * 7 + 1e-6)), int(np.floor(box.x0 * 9 + 1e-6))
    y1, x1 = max(y0 + 1, int(np.floor(box.y1 * 7 + 1e-6))), max(x0 + 1, int(np.floor(box.x1 * 9 + 1e-6)))
    if 7 in (y0, y1 - 1) or 9 in (x0, x1 - 1):
        return  # the far edge, which belongs to the last pixel, is tested above
    assert score([box], mask) == pytest.approx(wide[20 + y0 : 20 + y1, 20 + x0 : 20 + x1].mean())


def test_interval_resamples_images_and_not_questions() -> None:
    """Ten equal answers about an image tell no more than one: the interval does not shrink."""
    rng = np.random.default_rng(1)
    values = rng.random(40)
    once = interval(values, range(40), np.random.default_rng(0))
    tenfold = interval(np.repeat(values, 10), np.repeat(np.arange(40), 10).tolist(), np.random.default_rng(0))
    assert tenfold.mean == pytest.approx(once.mean)
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    assert tenfold.questions == 400
    independent = interval(np.repeat(values, 10), range(400), np.random.default_rng(0))
    assert independent.low > once.low and independent.high < once.high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        level = rng.normal(0.5, 0.2, 60)  # an image's own difficulty, shared by its three questions
        values = np.repeat(level, 3) + rng.normal(0, 0.1, 180)
        found = interval(values, np.repeat(np.arange(60), 3).tolist(), rng, resamples=400)
        covered += found.low <= 0.5 <= found.high
    assert 180 <= covered <= 199


def test_interval_of_one_image_has_no_ends() -> None:
    found = interval([0.0, 1.0], ["a", "a"], np.random.default_rng(0))
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert difference([0.0], [1.0], ["a"], np.random.default_rng(0)).p_value is None


@pytest.mark.parametrize(("right", "images"), [(3, 3), (0, 3), (100, 100), (0, 100)])
def test_answers_that_are_all_alike_have_the_exact_binomial_interval(right: int, images: int) -> None:
    """3 of 3 right: resampling images says 100 to 100, which would hold for the whole world."""
    values = [1.0] * right + [0.0] * (images - right)
    found = interval(values, range(images), np.random.default_rng(0))
    exact = stats.binomtest(right, images).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    tenfold = interval(np.repeat(values, 10), np.repeat(np.arange(images), 10).tolist(), np.random.default_rng(0))
    assert (tenfold.low, tenfold.high) == (found.low, found.high), "images are counted, not questions"


def test_no_interval_has_zero_width() -> None:
    """Images that are alike on the mean, to rounding: at most a share of the others may be otherwise, however much."""
    share = 1 - 0.025 ** (1 / 4)
    for values in ([0.3] * 4, [0.1 + 0.2, 0.3, 0.3, 0.3]):
        found = interval(values, range(4), np.random.default_rng(0))
        assert (found.low, found.high) == pytest.approx((0.3 * (1 - share), 0.3 + 0.7 * share))
    share = 1 - 0.025 ** (1 / 2)
    mixed = interval([0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"], np.random.default_rng(0))
    assert (mixed.low, mixed.high) == pytest.approx((0.5 - 0.5 * share, 0.5 + 0.5 * share))


def test_two_models_that_answer_alike_are_not_shown_to_be_equal() -> None:
    found = difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], range(3), np.random.default_rng(0))
    share = 1 - 0.025 ** (1 / 3)
    assert (found.interval.low, found.interval.high) == pytest.approx((-share, share)) and not found.clear
    for images, clear in ((3, False), (10, True)):  # one always right, the other never
        found = difference([1.0] * images, [0.0] * images, range(images), np.random.default_rng(0))
        assert found.interval.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / images))) and found.clear == clear


def test_interval_needs_an_image_for_each_value() -> None:
    with pytest.raises(ValueError, match="2 values for 1 images"):
        interval([0.0, 1.0], ["a"], np.random.default_rng(0))


def test_difference_is_paired() -> None:
    """A small but steady advantage is clear although the scores themselves vary widely."""
    rng = np.random.default_rng(0)
    base = rng.random(60)
    images = [index // 2 for index in range(60)]
    steady = base + rng.normal(0.02, 0.005, 60)
    better = difference(steady, base, images, np.random.default_rng(0), resamples=2000)
    assert better.interval.mean == pytest.approx(0.02, abs=0.002) and better.clear and better.p_value < 0.01
    noise = difference(base, rng.permutation(base), images, np.random.default_rng(0), resamples=2000)
    assert not noise.clear and noise.p_value > 0.05


# --- the reference ---------------------------------------------------------------------------------------------

GREY = np.zeros((480, 640))
GREY[100:300, 100:400] = 1.0
GREY[100:300, 400] = 0.25  # as on the edge of a JPEG


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(0.5, 0.5)", 1.0),
        ("[(0.5, 0.5), (0.9, 0.9)]", 0.5),
        ("(400, 150)", 0.25),  # grey values are not binarised
        ("(1, 1)", 0.0),  # a pixel
        ("(0.5,\n0.5)", 1.0),
        ("( 0.5, 0.5)", 0.0),
        ("[0.5, 0.5]", 0.0),
        ("(1e-1, 0.5)", 0.0),
        ("((0.5, 0.5))", 1.0),
        ("I see (0.9, 0.9). **Final Answer:** [(0.5, 0.5)]", 0.5),  # the reasoning counts
        ("(100, 100, 400, 300)", 1.0),
        ("(100, 100, 401, 300)", (300 + 0.25) / 301),
        ("(0.9, 0.9, 0.1, 0.1)", 0.0),  # reversed corners hold no pixel
        ("(-5, 20)", 0.0),
        ("no answer", 0.0),
        ("[(0.1, 0.1), (0.5, 0.5), (100, 100, 400, 300)]", 60001 / 60002),  # a box outweighs the points beside it
        ("(0, 0.2, 0.5, 0.9)", None),  # the script skips it
        ("(" + "9" * 5000 + ", 1)", None),
        ("(0.5, " + "9" * 400 + ".0)", None),
        ("(99999999999999999999, 1)", None),  # the script dies
    ],
)
def test_robopoint_score(text: str, expected: float | None) -> None:
    assert robopoint_score(text, GREY) == (None if expected is None else pytest.approx(expected))


GOLDEN = Path(__file__).parent / "golden"


def test_robopoint_score_equals_the_recorded_behaviour() -> None:
    """76 answers with what the reference's own script gave, and the line that it printed."""
    record = json.loads((GOLDEN / "robopoint_scores.json").read_text(encoding="utf-8"))
    grey = np.array(Image.open(GOLDEN / "robopoint_mask.png")) / 255.0
    found = [robopoint_score(text, grey) for text, _ in record["answers"]]
    assert found == [expected for _, expected in record["answers"]]
    assert f"Accuracy: {np.mean([value for value in found if value is not None])}" == record["printed"]
