"""Layouts, their relational questions, and points on masks, without rendering anything."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trace_vlm.data.scenes.config import load_scene_config
from trace_vlm.data.scenes.questions import relational
from trace_vlm.data.scenes.questions.relational import CELLS, wanted_cells
from trace_vlm.data.scenes.questions.view import center_on_mask, on_mask, sample_points
from trace_vlm.data.scenes.wording import DIRECTIONS
from trace_vlm.data.scenes.world.layout import LayoutBatch, sample_layouts

CONFIG = load_scene_config(Path(__file__).parents[2] / "configs" / "scenes" / "nano.yaml")
SOUTH = np.array([-math.pi / 2])  # azimuth of a camera for which right is +x and behind is +y
BALL, MUG, CONE = 1, 4, 3  # categories of nano.yaml


def judge(layouts, azimuths=SOUTH):
    return relational.relational_questions(layouts, azimuths, 6, np.ones(4, bool), CONFIG.relations)


def layout(*objects):  # one, of (category, color, x, y), all of radius 0.05
    (categories, colors), positions = np.array(objects)[None, :, :2].astype(int).T, np.array(objects)[None, :, 2:]
    shape = (1, len(objects))
    return LayoutBatch(categories.T, colors.T, np.full(shape, 0.05), positions, np.ones(shape, bool))


def test_objects_stand_apart_and_on_the_table():
    layouts, _ = sample_layouts(300, CONFIG, np.random.default_rng(0))
    assert len(layouts.present) > 100
    for row, present in enumerate(layouts.present):
        positions, radii = layouts.positions[row, present], layouts.radii[row, present]
        assert CONFIG.objects.min_objects <= len(radii) <= CONFIG.objects.max_objects
        assert 2 <= len(set(layouts.categories[row, present])) <= 3
        assert np.abs(positions).max() <= CONFIG.objects.region
        gaps = np.hypot(*(positions[:, None] - positions).transpose(2, 0, 1)) - radii[:, None] - radii
        assert gaps[~np.eye(len(radii), dtype=bool)].min() >= CONFIG.objects.spacing


def test_directions_are_the_camera_s():
    # One mug to the left of the ball, one far behind it.
    layouts = layout((BALL, 0, 0.0, 0.0), (MUG, 1, -0.2, 0.02), (MUG, 2, 0.03, 0.3))
    for azimuth, left, behind in ((-math.pi / 2, "left", "behind"), (math.pi / 2, "right", "front")):
        questions = judge(layouts, np.array([azimuth]))
        valid, target = questions.valid[0, :, 0, MUG], questions.target[0, :, 0, MUG]
        assert {DIRECTIONS[k]: int(target[k]) for k in np.flatnonzero(valid)} == {left: 1, behind: 2}


def test_ambiguous_and_guessable_questions_are_not_asked():
    ball, mug = (BALL, 0, 0.0, 0.0), (MUG, 1, -0.2, 0.0)
    assert not judge(layout(ball, mug, (MUG, 2, -0.2, 0.2))).valid[0, 0, 0, MUG], "one is at 45 degrees"
    assert not judge(layout(ball, mug, (CONE, 2, 0.2, 0.2))).valid.any(), "there is one mug"
    assert not judge(layout(ball, mug, (MUG, 2, -0.35, 0.0))).valid[0, 0, 0, MUG], "two are on the left"
    twins = layout(ball, (BALL, 0, 0.0, -0.3), mug, (MUG, 2, 0.2, 0.0))
    assert not judge(twins).valid[0, :, :2].any(), "two references have one name"


@pytest.mark.parametrize("mugs, cell", [
    ([(-0.2, 0.0), (0.3, 0.0)], (True, True)), ([(-0.25, 0.0), (0.15, 0.0)], (True, False)),
    ([(-0.15, 0.0), (-0.2, 0.35)], (False, True)), ([(-0.2, 0.0), (-0.25, 0.35), (0.13, 0.0)], (False, False)),
])  # fmt: skip
def test_cells(mugs, cell):
    questions = judge(layout((BALL, 0, 0.0, 0.0), *((MUG, 1 + k, *position) for k, position in enumerate(mugs))))
    assert questions.valid[0, 0, 0, MUG] and questions.target[0, 0, 0, MUG] == 1
    assert [bool(cells[0, 0, 0, MUG]) for cells in questions.cells()] == [known == cell for known in CELLS]


def test_wanted_cells_are_balanced_and_do_not_depend_on_the_batch():
    wanted = list(wanted_cells(5, 0, 0, 320))
    assert Counter(cell for cell, _ in wanted) == dict.fromkeys(CELLS, 80)
    assert set(Counter((cell, int(order[0])) for cell, order in wanted).values()) == {20}
    for start in range(0, 320, 2):
        pair = [cell for cell, _ in wanted_cells(5, 0, start, 2)]
        assert pair == [cell for cell, _ in wanted[start : start + 2]] and pair[0] != pair[1]
    for seed, split in ((6, 0), (5, 1)):
        assert [cell for cell, _ in wanted_cells(seed, split, 0, 32)] != [cell for cell, _ in wanted[:32]]


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
