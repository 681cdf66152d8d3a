"""Points on masks."""

import numpy as np
import pytest

from trace_vlm.data.scenes.questions.view import center_on_mask, on_mask, sample_points


@pytest.mark.parametrize("decimals", [2, 3])
def test_points_stay_on_thin_masks_after_rounding(decimals):
    rng = np.random.default_rng(0)
    steps = np.arange(10**decimals) / 10**decimals
    lattice = np.ix_(np.floor(steps * 96).astype(int), np.floor(steps * 128).astype(int))
    for _ in range(50):
        mask = np.zeros((96, 128), bool)
        row, column = rng.integers(0, 90), rng.integers(0, 110)
        mask[row : row + rng.integers(1, 6), column : column + rng.integers(2, 18)] = True
        points = sample_points(mask, 2, decimals, 2.0, rng)
        if points is not None:  # with two decimals a mask one pixel high may hold no point at all
            assert len(set(points)) == 2 and all(mask[int(y * 96), int(x * 128)] for x, y in points)
            assert all(round(value, decimals) == value for point in points for value in point)
        center = center_on_mask(mask, decimals, *np.nonzero(mask))
        assert (center is None) == (not mask[lattice].any())
        assert center is None or on_mask(np.array([center]), mask)[0]


def test_interior_weights_move_points_inwards():
    mask = np.zeros((100, 100), bool)
    mask[20:80, 20:80] = True
    rng = np.random.default_rng(0)
    points = np.array([[sample_points(mask, 1, 3, interior, rng)[0] for interior in (0.0, 3.0)] for _ in range(200)])
    outer, inner = (0.3 - np.abs(points - 0.5)).min(2).mean(0)
    assert inner > 1.5 * outer


def test_point_on_a_border_belongs_to_the_pixel_after_it():
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    points = np.array([[0.5, 0.25], [0.75, 0.25], [0.5, 0.5], [0.7499, 0.4999], [1.0, 0.3], [-0.1, 0.3]])
    assert on_mask(points, mask).tolist() == [True, False, False, True, False, False]
