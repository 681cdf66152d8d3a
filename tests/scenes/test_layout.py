"""Arrangements and their relational questions, without rendering anything."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trace_vlm.data.scenes.config import load_scene_config
from trace_vlm.data.scenes.questions.relational import (
    CELLS,
    HARD,
    choose_questions,
    hard_group,
    matching_rows,
    relational_questions,
    wanted_cells,
)
from trace_vlm.data.scenes.wording import DIRECTIONS
from trace_vlm.data.scenes.world.layout import LayoutBatch, sample_layouts

CONFIG = load_scene_config(Path(__file__).parents[2] / "configs" / "scenes" / "nano.yaml")


def judge(layouts: LayoutBatch, azimuths: np.ndarray):  # type: ignore[no-untyped-def]
    return relational_questions(layouts, azimuths, 6, np.ones(4, bool), CONFIG.relations)


def arrangement(spots: list[tuple[int, int, float, float]]) -> LayoutBatch:
    """One arrangement of (category, color, x, y), all of radius 0.05."""
    categories, colors = np.array([[spot[0] for spot in spots]]), np.array([[spot[1] for spot in spots]])
    positions = np.array([[spot[2:] for spot in spots]], float)
    return LayoutBatch(categories, colors, np.full(categories.shape, 0.05), positions, np.ones(categories.shape, bool))


NORTH = np.array([-math.pi / 2])  # the camera stands in the south: right is +x, behind is +y


def test_objects_stand_apart_and_on_the_table() -> None:
    layouts, _ = sample_layouts(300, CONFIG, np.random.default_rng(0))
    assert len(layouts.present) > 100
    for row in range(len(layouts.present)):
        slots = np.flatnonzero(layouts.present[row])
        assert CONFIG.objects.min_objects <= len(slots) <= CONFIG.objects.max_objects
        assert 2 <= len(set(layouts.categories[row, slots])) <= 3
        for index, a in enumerate(slots):
            assert np.abs(layouts.positions[row, a]).max() <= CONFIG.objects.region
            for b in slots[:index]:
                gap = math.dist(layouts.positions[row, a], layouts.positions[row, b])
                assert gap >= layouts.radii[row, a] + layouts.radii[row, b] + CONFIG.objects.spacing


def test_directions_are_the_camera_s() -> None:
    # A red ball (0, 0) in the middle; two mugs (category 4): one to its left, one far behind it.
    layouts = arrangement([(1, 0, 0.0, 0.0), (4, 1, -0.2, 0.02), (4, 2, 0.03, 0.3)])
    for azimuth, left, behind in ((-math.pi / 2, "left", "behind"), (math.pi / 2, "right", "front")):
        questions = judge(layouts, np.array([azimuth]))
        valid = {DIRECTIONS[relation]: questions.target[0, relation, 0, 4] for relation in range(4)
                 if questions.valid[0, relation, 0, 4]}  # fmt: skip
        assert valid == {left: 1, behind: 2}


def test_ambiguous_and_guessable_questions_are_not_asked() -> None:
    unsure = arrangement([(1, 0, 0.0, 0.0), (4, 1, -0.2, 0.0), (4, 2, -0.2, 0.2)])  # the second mug at 45 degrees
    assert not judge(unsure, NORTH).valid[0, 0, 0, 4]
    single = arrangement([(1, 0, 0.0, 0.0), (4, 1, -0.2, 0.0), (3, 2, 0.2, 0.2)])
    assert not judge(single, NORTH).valid.any()
    two_hits = arrangement([(1, 0, 0.0, 0.0), (4, 1, -0.2, 0.0), (4, 2, -0.35, 0.0)])
    assert not judge(two_hits, NORTH).valid[0, 0, 0, 4]
    twins = arrangement([(1, 0, 0.0, 0.0), (1, 0, 0.0, -0.3), (4, 1, -0.2, 0.0), (4, 2, 0.2, 0.0)])
    assert not judge(twins, NORTH).valid[0, :, :2].any()


@pytest.mark.parametrize(
    "mugs, cell",
    [
        ([(-0.2, 0.0), (0.3, 0.0)], (True, True)),
        ([(-0.25, 0.0), (0.15, 0.0)], (True, False)),
        ([(-0.15, 0.0), (-0.2, 0.35)], (False, True)),
        ([(-0.2, 0.0), (-0.25, 0.35), (0.13, 0.0)], (False, False)),
    ],
)
def test_cells(mugs: list[tuple[float, float]], cell: tuple[bool, bool]) -> None:
    layouts = arrangement([(1, 0, 0.0, 0.0), *((4, 1 + index, *spot) for index, spot in enumerate(mugs))])
    questions = judge(layouts, NORTH)
    assert questions.valid[0, 0, 0, 4] and questions.target[0, 0, 0, 4] == 1
    assert [bool(found[0, 0, 0, 4]) for found in questions.cells()] == [known == cell for known in CELLS]


def test_wanted_cells_are_balanced_and_do_not_depend_on_how_they_are_asked_for() -> None:
    wanted = list(wanted_cells(5, 0, 0, 320))
    assert Counter(cell for cell, _ in wanted) == dict.fromkeys(CELLS, 80)
    assert set(Counter((cell, int(order[0])) for cell, order in wanted).values()) == {20}
    for start in range(0, 320, 2):
        pair = list(wanted_cells(5, 0, start, 2))
        assert [cell for cell, _ in pair] == [cell for cell, _ in wanted[start : start + 2]]
        assert pair[0][0] != pair[1][0]
    assert [cell for cell, _ in wanted_cells(6, 0, 0, 32)] != [cell for cell, _ in wanted[:32]]
    assert [cell for cell, _ in wanted_cells(5, 1, 0, 32)] != [cell for cell, _ in wanted[:32]]


def test_questions_of_many_arrangements_fill_the_wanted_cells() -> None:
    rng = np.random.default_rng(1)
    found: Counter[tuple[bool, bool]] = Counter()
    relations: Counter[int] = Counter()
    for view in range(120):
        wanted = list(wanted_cells(0, 0, 2 * view, 2))
        cells = tuple(cell for cell, _ in wanted)
        for _ in range(100):
            azimuths = rng.uniform(0, 2 * math.pi, 48)
            group = None
            if HARD in cells:
                direction = int(wanted[cells.index(HARD)][1][0])
                group = hard_group(azimuths, direction, CONFIG.objects, CONFIG.relations, rng)
            layouts, kept = sample_layouts(48, CONFIG, rng, group)
            questions = judge(layouts, azimuths[kept])
            rows = matching_rows(questions, cells)
            if len(rows):
                break
        orders = np.array([order for _, order in wanted])
        chosen = choose_questions(questions, layouts, int(rows[0]), cells, orders, rng)
        assert chosen is not None and chosen[0] != chosen[1]
        kinds = [(one.extreme == one.target, one.nearest == one.target) for one in chosen]
        assert tuple(kinds) == cells
        found.update(kinds)
        relations.update(question.relation for question in chosen)
    assert found == dict.fromkeys(CELLS, 60)
    assert min(relations.values()) > 40
