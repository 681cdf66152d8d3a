"""The numbers about attention: exact on maps whose answer is known, and a verdict that its rule decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trace_vlm.attention import summary as summary
from trace_vlm.attention.metrics import MEASURES, Regions, measure, regions, uniform
from trace_vlm.attention.results import Attended, MilestoneRecord
from trace_vlm.attention.steps import MILESTONES
from trace_vlm.core.points import Box, Point
from trace_vlm.utils.command import run

NOWHERE = Regions(None, None, ())


def spot(row: int, column: int, share: float = 0.4) -> Any:
    grid = np.zeros((4, 4), np.float32)
    grid[row, column] = share
    return grid


# --- one map -------------------------------------------------------------------------------------------------------


def test_even_attention_has_the_largest_entropy_and_half_of_the_area() -> None:
    found = measure(np.full((4, 4), 0.02, np.float32), NOWHERE)
    assert found["share"] == pytest.approx(0.32) and found["entropy"] == pytest.approx(1)
    assert found["area"] == pytest.approx(0.5) and found["target"] is found["distance"] is None


def test_attention_on_one_token_has_none() -> None:
    found = measure(spot(1, 2), NOWHERE)
    assert found["entropy"] == pytest.approx(0) and found["area"] == pytest.approx(0.5 / 16)
    assert measure(np.zeros((4, 4), np.float32), NOWHERE)["entropy"] is None


def test_scaling_a_map_changes_its_share_and_nothing_else() -> None:
    grid = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    first, second = measure(grid, NOWHERE), measure(grid / 7, NOWHERE)
    assert second.pop("share") == pytest.approx(first.pop("share") / 7)  # type: ignore[operator]
    assert all(first[name] == pytest.approx(second[name]) for name in first)


def test_overlap_and_distance_are_in_the_frame_of_the_padded_square() -> None:
    mask = np.zeros((50, 100), bool)
    mask[:, :50] = True  # the left half of a wide image: the middle rows of the square
    where = regions((100, 50), 4, [Point(0.125, 0.25), Point(3, 3), Box(0.1, 0.2, 0.15, 0.3)], mask, None)
    assert len(where.points) == 2
    found = measure(spot(1, 0), where)  # the cell that holds both points
    assert found["target"] == pytest.approx(1) and found["distance"] == pytest.approx(0, abs=1e-6)
    assert measure(spot(1, 2), where)["target"] == 0
    assert measure(spot(0, 0), where)["target"] == 0  # the padding
    assert measure(spot(1, 1), where)["distance"] == pytest.approx(0.25)  # in units of the longer side
    even = uniform(4, where, 0.6)
    assert even["share"] == 0.6 and even["target"] == pytest.approx(0.25) and even["area"] == pytest.approx(0.5)
    assert even["distance"] == pytest.approx(
        np.mean([measure(spot(*divmod(n, 4)), where)["distance"] for n in range(16)])
    )


# --- many answers --------------------------------------------------------------------------------------------------


def record(number: int, shares: tuple[float, ...], areas: tuple[float | None, ...]) -> Attended:
    numbers = {name: [0.5] * 5 for name in MEASURES} | {"share": list(shares), "area": list(areas)}
    milestones = tuple(
        MilestoneRecord(key, title, "", None if area is None else (0, 1), None, None)
        for (key, title), area in zip(MILESTONES.items(), areas, strict=True)
    )
    return Attended(number, number, f"{number}.png", "", None, (8, 8), "", "", "", (), "", (), None, milestones, "m",
                    (1,), {"mean": numbers}, {name: [0.5] * 5 for name in MEASURES}, {})  # fmt: skip


def verdicts(
    shares: tuple[float, ...], areas: tuple[float | None, ...], images: int = 20, noise: float = 0.01
) -> list[str]:
    rng = np.random.default_rng(1)
    records = [
        record(number, tuple(rng.normal(share, noise) for share in shares),
               tuple(None if area is None else float(rng.normal(area, noise)) for area in areas))
        for number in range(images)
    ]  # fmt: skip
    maps = [(np.full((5, 4, 4), 0.02, np.float32), NOWHERE)] * images
    return [one.verdict for one in summary.summarise(records, maps).verdicts]


EVEN, FINDING = (0.3,) * 5, (0.4, 0.4, 0.15, 0.3, 0.3)
FALLING = (0.3, 0.3, 0.3, 0.3, 0.05)


@pytest.mark.parametrize(
    ("shares", "areas", "expected"),
    [
        (FALLING, FINDING, ["holds", "holds", "holds"]),
        (EVEN, (0.1, 0.4, 0.45, 0.3, 0.3), ["fails", "fails", "fails"]),
        ((0.3, 0.3, 0.3, 0.3, 0.15), (0.25, 0.4, 0.325, 0.3, 0.3), ["undecided", "undecided", "undecided"]),
        (FALLING, (0.4, 0.4, None, 0.3, 0.3), ["holds", "undecided", "holds"]),
    ],
)
def test_the_verdict_follows_from_the_intervals(shares: Any, areas: Any, expected: list[str]) -> None:
    assert verdicts(shares, areas) == expected


def test_what_was_not_measured_is_said_in_a_whole_sentence() -> None:
    records = [record(number, EVEN, (None, 0.3, 0.3, 0.3, 0.3)) for number in range(12)]
    diffuse = summary.summarise(records, [(np.full((5, 4, 4), 0.02, np.float32), NOWHERE)] * 12).verdicts[0]
    assert diffuse.verdict == "undecided" and diffuse.why.startswith(
        "reference: not measured; target: half of it on 0.3"
    )


def test_few_images_decide_nothing() -> None:
    assert verdicts(FALLING, FINDING, images=9) == ["undecided"] * 3


def test_only_images_whose_answers_have_the_step_count() -> None:
    """Twenty images, but the goal subtype was measured on two of them, in six answers each."""
    shares = [tuple(value + 0.001 * n for value in FALLING) for n in range(20)]  # all alike would say little
    records = [record(n, shares[n], (0.4, 0.4, None, 0.3, 0.3)) for n in range(20)]
    for place in range(12):
        records.append(replace(record(20 + place, FALLING, FINDING), source=f"{place % 2}.png"))
    maps = [(np.full((5, 4, 4), 0.02, np.float32), NOWHERE)] * len(records)
    diffuse, closer, little = summary.summarise(records, maps).verdicts
    assert (diffuse.verdict, closer.verdict, little.verdict) == ("holds", "undecided", "holds")
    assert closer.why.endswith("; few images: 2 of 10") and "few images" not in diffuse.why + little.why


def test_paired_tests_find_what_differs_and_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(0)
    records = [
        record(n, (0.3,) * 5, (*rng.normal(0.4, 0.02, 2), *rng.normal(0.2, 0.02, 1), 0.3, 0.3)) for n in range(20)
    ]
    found = summary.summarise(records, [(np.full((5, 4, 4), 0.02, np.float32), NOWHERE)] * 20)
    pairs = {(one.first, one.second): one for one in found.pairs["area"]}
    assert len(pairs) == 10
    assert pairs["reference", "subtype"].mean == pytest.approx(0.2, abs=0.02)
    assert pairs["reference", "subtype"].p < 0.02 < pairs["reference", "target"].p  # type: ignore[operator]
    assert pairs["output", "answer"].p == 1.0
    assert all(one.p is not None and one.p <= 1 for one in pairs.values())
    told = summary.describe(found)
    (row,) = (line.split() for line in told if line.startswith("reference - subtype"))
    assert sum(line.partition(" - ")[0] in MILESTONES for line in told) == 10
    one = pairs["reference", "subtype"]
    assert f"{one.mean:+.3f}" in row and f"{one.p:.2g})" in row


def test_the_shuffled_control_tells_looking_from_habit() -> None:
    """Attention that lies on each image's own target is far above the control, attention at one fixed place is not."""
    rng = np.random.default_rng(0)
    looking, habit = [], []
    for _ in range(16):
        row, column = rng.integers(0, 4, 2)
        where = Regions(spot(row, column, 1.0), None, ())
        looking.append((np.stack([spot(row, column) + 0.001] * 5), where))
        habit.append((np.stack([spot(2, 2) + 0.001] * 5), where))
    for maps, clear in ((looking, True), (habit, False)):
        records = []
        for number, (grids, where) in enumerate(maps):
            values = [measure(grid, where)["target"] for grid in grids]
            one = record(number, (0.4,) * 5, (0.3,) * 5)
            records.append(replace(one, numbers={"mean": {**one.numbers["mean"], "target": values}}))
        gap = summary.summarise(records, maps).against_shuffled["target"][0]
        assert gap is not None and gap.low is not None and gap.high is not None
        assert (gap.low > 0) == clear and (clear or gap.high >= 0)


def test_an_empty_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(summary.main, [str(tmp_path)]) == 2
    assert "the index of attention pictures" in capsys.readouterr().err
