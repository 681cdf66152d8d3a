"""The numbers about attention: exact on maps whose answer is known, and a verdict that its rule decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trace_vlm.attention import summary
from trace_vlm.attention.metrics import MEASURES, Regions, measure, regions, uniform
from trace_vlm.attention.results import AttentionRecord, StepRecord
from trace_vlm.attention.steps import STEP_TITLES
from trace_vlm.core.points import Box, Point
from trace_vlm.utils.command import run

NOWHERE = Regions(None, None, ())


def spot(row: int, column: int, share: float = 0.4) -> Any:
    grid = np.zeros((4, 4), np.float32)
    grid[row, column] = share
    return grid


# --- one map -------------------------------------------------------------------------------------------------------


def test_even_attention_and_attention_on_one_token_are_the_extremes() -> None:
    even = measure(np.full((4, 4), 0.02, np.float32), NOWHERE)
    assert even["share"] == pytest.approx(0.32) and even["entropy"] == pytest.approx(1)
    assert even["area"] == pytest.approx(0.5) and even["target"] is even["distance"] is None
    one = measure(spot(1, 2), NOWHERE)
    assert one["entropy"] == pytest.approx(0) and one["area"] == pytest.approx(0.5 / 16)
    assert measure(np.zeros((4, 4), np.float32), NOWHERE)["entropy"] is None


def test_scaling_a_map_changes_its_share_only() -> None:
    grid = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    first, second = measure(grid, NOWHERE), measure(grid / 7, NOWHERE)
    assert second.pop("share") == pytest.approx(first.pop("share") / 7)  # type: ignore[operator]
    assert all(first[name] == pytest.approx(second[name]) for name in first)


def test_overlap_and_distance_are_in_the_frame_of_the_padded_square() -> None:
    mask = np.zeros((50, 100), bool)
    mask[:, :50] = True  # the left half of a wide image: the middle rows of the square
    where = regions((100, 50), 4, [Point(0.125, 0.25), Point(3, 3), Box(0.1, 0.2, 0.15, 0.3)], mask, None)
    assert len(where.points) == 2
    hit = measure(spot(1, 0), where)  # the cell that holds both points
    assert hit["target"] == pytest.approx(1) and hit["distance"] == pytest.approx(0, abs=1e-6)
    assert measure(spot(1, 2), where)["target"] == 0
    assert measure(spot(0, 0), where)["target"] == 0  # the padding
    assert measure(spot(1, 1), where)["distance"] == pytest.approx(0.25)  # in units of the longer side
    even = uniform(4, where, 0.6)
    assert even["share"] == 0.6 and even["target"] == pytest.approx(0.25) and even["area"] == pytest.approx(0.5)
    distances = [measure(spot(*divmod(n, 4)), where)["distance"] for n in range(16)]
    assert even["distance"] == pytest.approx(np.mean(distances))


# --- many answers --------------------------------------------------------------------------------------------------

EVEN_MAPS = np.full((5, 4, 4), 0.02, np.float32)


def record(number: int, shares: tuple[float, ...], areas: tuple[float | None, ...]) -> AttentionRecord:
    numbers = {name: [0.5] * 5 for name in MEASURES} | {"share": list(shares), "area": list(areas)}
    steps = tuple(
        StepRecord(key, title, "", None if area is None else (0, 1), None, None)
        for (key, title), area in zip(STEP_TITLES.items(), areas, strict=True)
    )
    return AttentionRecord(number, number, f"{number}.png", "", None, (8, 8), "", "", "", (), "", (), None, steps, "m",
                           (1,), {"mean": numbers}, {name: [0.5] * 5 for name in MEASURES}, {})  # fmt: skip


def summarized(records: list[AttentionRecord]) -> summary.Summary:
    return summary.summarize(records, [(EVEN_MAPS, NOWHERE)] * len(records))


def verdicts(shares: tuple[float, ...], areas: tuple[float | None, ...], images: int = 20) -> list[str]:
    rng = np.random.default_rng(1)
    records = [
        record(number, tuple(rng.normal(share, 0.01) for share in shares),
               tuple(None if area is None else float(rng.normal(area, 0.01)) for area in areas))
        for number in range(images)
    ]  # fmt: skip
    return [part.verdict for part in summarized(records).verdicts]


EVEN, FINDING = (0.3,) * 5, (0.4, 0.4, 0.15, 0.3, 0.3)
FALLING = (0.3, 0.3, 0.3, 0.3, 0.05)


@pytest.mark.parametrize(
    ("shares", "areas", "images", "expected"),
    [
        (FALLING, FINDING, 20, ["holds", "holds", "holds"]),
        (EVEN, (0.1, 0.4, 0.45, 0.3, 0.3), 20, ["fails", "fails", "fails"]),
        ((0.3, 0.3, 0.3, 0.3, 0.15), (0.25, 0.4, 0.325, 0.3, 0.3), 20, ["undecided"] * 3),
        (FALLING, (0.4, 0.4, None, 0.3, 0.3), 20, ["holds", "undecided", "holds"]),
        (EVEN, (None, 0.3, 0.3, 0.3, 0.3), 12, ["undecided", "undecided", "fails"]),
        (FALLING, FINDING, 9, ["undecided"] * 3),
    ],
)
def test_the_verdict_follows_from_the_intervals(shares: Any, areas: Any, images: int, expected: list[str]) -> None:
    assert verdicts(shares, areas, images) == expected


def test_only_images_whose_answers_have_the_step_count() -> None:
    """Twenty images, but the goal subtype was measured on two of them, in six answers each."""
    shares = [tuple(value + 0.001 * n for value in FALLING) for n in range(20)]  # equal values would say little
    records = [record(n, shares[n], (0.4, 0.4, None, 0.3, 0.3)) for n in range(20)]
    for place in range(12):
        records.append(replace(record(20 + place, FALLING, FINDING), source=f"{place % 2}.png"))
    assert [part.verdict for part in summarized(records).verdicts] == ["holds", "undecided", "holds"]


def test_paired_tests_find_what_differs_and_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(0)
    records = [
        record(n, (0.3,) * 5, (*rng.normal(0.4, 0.02, 2), *rng.normal(0.2, 0.02, 1), 0.3, 0.3)) for n in range(20)
    ]
    found = summarized(records)
    pairs = {(pair.first, pair.second): pair for pair in found.pairs["area"]}
    assert len(pairs) == 10
    differs = pairs["reference", "subtype"]
    assert differs.mean == pytest.approx(0.2, abs=0.02)
    assert differs.p < 0.02 < pairs["reference", "target"].p  # type: ignore[operator]
    assert pairs["output", "answer"].p == 1.0
    assert all(pair.p is not None and pair.p <= 1 for pair in pairs.values())
    (line,) = (line.split() for line in summary.describe(found) if line.startswith("reference - subtype"))
    assert f"{differs.mean:+.3f}" in line and f"{differs.p:.2g})" in line


@pytest.mark.parametrize("looking", [True, False])
def test_the_shuffled_control_separates_looking_from_habit(looking: bool) -> None:
    """Attention on each image's own target is far above the control, attention at one fixed position is not."""
    rng = np.random.default_rng(0)
    records, maps = [], []
    for number in range(16):
        row, column = rng.integers(0, 4, 2)
        where = Regions(spot(row, column, 1.0), None, ())
        grids = np.stack([spot(*((row, column) if looking else (2, 2))) + 0.001] * 5)
        values = [measure(grid, where)["target"] for grid in grids]
        plain = record(number, (0.4,) * 5, (0.3,) * 5)
        records.append(replace(plain, numbers={"mean": {**plain.numbers["mean"], "target": values}}))
        maps.append((grids, where))
    gap = summary.summarize(records, maps).against_shuffled["target"][0]
    assert gap is not None and gap.low is not None and gap.high is not None
    assert gap.low > 0 if looking else gap.low <= 0 <= gap.high


def test_an_empty_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(summary.main, [str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
