"""Intervals and differences over images, calibration and its figure."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from trace_vlm.drawing import canvas
from trace_vlm.eval.statistics import calibration, difference, interval, reliability, risk_coverage
from trace_vlm.eval.tables import draw_calibration


def rng():
    return np.random.default_rng(0)


def bounds(interval):
    return interval.low, interval.high


def test_interval_resamples_images_and_not_questions():
    """Ten equal answers about an image tell no more than one: the interval does not shrink."""
    values = np.random.default_rng(1).random(40)
    once = interval(values, range(40), rng())
    tenfold = interval(np.repeat(values, 10), np.repeat(np.arange(40), 10).tolist(), rng())
    assert (tenfold.mean, *bounds(tenfold)) == pytest.approx((once.mean, *bounds(once))) and tenfold.questions == 400
    independent = interval(np.repeat(values, 10), range(400), rng())
    assert independent.low > once.low and independent.high < once.high


def test_interval_covers_the_truth_as_often_as_it_says():
    draws, covered = np.random.default_rng(3), 0
    for _ in range(200):
        level = draws.normal(0.5, 0.2, 60)  # an image's own difficulty, shared by its three questions
        values = np.repeat(level, 3) + draws.normal(0, 0.1, 180)
        low, high = bounds(interval(values, np.repeat(np.arange(60), 3).tolist(), draws, resamples=400))
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199


def test_one_image_has_no_interval_and_each_value_needs_an_image():
    assert bounds(interval([0.0, 1.0], ["a", "a"], rng())) == (None, None)
    assert difference([0.0], [1.0], ["a"], rng()).p_value is None
    with pytest.raises(ValueError, match="2 values for 1 images"):
        interval([0.0, 1.0], ["a"], rng())


@pytest.mark.parametrize(("right", "images"), [(3, 3), (0, 3), (100, 100), (0, 100)])
def test_equal_answers_have_the_exact_binomial_interval(right, images):
    """3 of 3 right: resampling images says 100 to 100, which would hold for the whole world."""
    values = [1.0] * right + [0.0] * (images - right)
    once = bounds(interval(values, range(images), rng()))
    exact = stats.binomtest(right, images).proportion_ci(0.95, "exact")
    assert once == pytest.approx((exact.low, exact.high))
    tenfold = interval(np.repeat(values, 10), np.repeat(np.arange(images), 10).tolist(), rng())
    assert bounds(tenfold) == once, "images are counted, not questions"


def test_no_interval_has_zero_width():
    """Images with equal means, to rounding: at most a share of the others can differ, as far as possible."""
    share = 1 - 0.025 ** (1 / 4)
    for values in ([0.3] * 4, [0.1 + 0.2, 0.3, 0.3, 0.3]):
        expected = 0.3 * (1 - share), 0.3 + 0.7 * share
        assert bounds(interval(values, range(4), rng())) == pytest.approx(expected)
    share = 1 - 0.025 ** (1 / 2)
    mixed = interval([0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"], rng())
    assert bounds(mixed) == pytest.approx((0.5 - 0.5 * share, 0.5 + 0.5 * share))


def test_equal_models_are_not_shown_to_be_equal():
    same = difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], range(3), rng())
    share = 1 - 0.025 ** (1 / 3)
    assert bounds(same.interval) == pytest.approx((-share, share)) and not same.clear
    for images, clear in ((3, False), (10, True)):  # one always right, the other never
        opposite = difference([1.0] * images, [0.0] * images, range(images), rng())
        assert opposite.interval.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / images))) and opposite.clear == clear


def test_difference_is_paired():
    """A small but steady advantage is clear although the scores themselves vary widely."""
    draws, images = rng(), [index // 2 for index in range(60)]
    base = draws.random(60)
    better = difference(base + draws.normal(0.02, 0.005, 60), base, images, rng(), resamples=2000)
    assert better.interval.mean == pytest.approx(0.02, abs=0.002) and better.clear and better.p_value < 0.01
    noise = difference(base, draws.permutation(base), images, rng(), resamples=2000)
    assert not noise.clear and noise.p_value > 0.05


def test_calibration_error():
    draws = rng()
    honest = [(p, float(draws.random() < p)) for p in draws.random(20_000).tolist()]
    assert calibration(honest, honest)["ece"] < 0.02
    overconfident = calibration([(0.95, float(index % 2)) for index in range(100)], [(0.95, 0.5)] * 100)
    assert overconfident["ece"] == pytest.approx(0.45) and overconfident["mean_confidence"] == pytest.approx(0.95)
    assert [(part["low"], part["points"]) for part in overconfident["reliability"]] == [(0.9, 100)]
    assert calibration([], []) is None
    bins = reliability([(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)])
    assert [(part["low"], part["points"], part["accuracy"]) for part in bins] == [(0, 1, 0), (0.1, 1, 1), (0.9, 1, 1)]


def test_risk_falls_when_unsure_answers_are_left_out():
    answers = [(index / 10, float(index >= 5)) for index in range(10)]  # the surest half is right
    assert risk_coverage(answers) == pytest.approx([0, 0, 0, 0, 0, 1 / 6, 2 / 7, 3 / 8, 4 / 9, 0.5])
    assert risk_coverage([(0.5, 1.0), (0.5, 0.0)] * 5) == pytest.approx([0.5] * 10)  # ties tell nothing


def test_calibration_figure_shows_counts_and_ranges(monkeypatch):
    figures = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, *_, **__: figures.append(figure))
    points = [(0.93, float(index % 50 == 0)) for index in range(200)] + [(0.85, 0.0)] * 7  # sure and wrong
    model = calibration(points, [(0.9, 0.02), (0.8, 0.01)])
    draw_calibration({"model": model}, Path("c.png"), {"model": "#1f5fbf", "without confidence": "#ec2a2e"})
    reliable, counts, risks = figures[0].axes
    assert {round(bar.get_x(), 1): bar.get_height() for bar in counts.patches} == {0.8: 7, 0.9: 200}
    assert reliable.get_xlim() == counts.get_xlim() == (0.8, 1.0)
    low, high = risks.get_ylim()
    assert 0.85 < low < 0.98 and 0.99 < high < 1.05  # risks of 0.98 and 0.985
    assert reliable.get_ylim()[0] < 0 and reliable.get_ylim()[1] > 0.93  # the model and what it claims
    assert {line.get_color() for line in [*reliable.lines[1:], *risks.lines]} == {"#1f5fbf"}
    assert {to_hex(bar.get_facecolor()) for bar in counts.patches} == {"#1f5fbf"}
