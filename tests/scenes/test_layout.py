"""Layouts and their relational questions, without rendering anything."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trace_vlm.data.scenes.config import load_scene_config
from trace_vlm.data.scenes.questions import relational
from trace_vlm.data.scenes.questions.relational import CELLS, wanted_cells
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


@pytest.mark.parametrize(
    "mugs, cell",
    [([(-0.2, 0.0), (0.3, 0.0)], (True, True)), ([(-0.25, 0.0), (0.15, 0.0)], (True, False)),
     ([(-0.15, 0.0), (-0.2, 0.35)], (False, True)), ([(-0.2, 0.0), (-0.25, 0.35), (0.13, 0.0)], (False, False))],
)  # fmt: skip
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
