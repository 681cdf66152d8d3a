"""The numbers about attention: exact on maps whose answer is known, and a verdict that its rule decides."""

from dataclasses import replace

import numpy as np
import pytest

from trace_vlm.attention import summary
from trace_vlm.attention.metrics import MEASURES, Regions, measure, regions, uniform
from trace_vlm.attention.results import AttentionRecord, StepRecord
from trace_vlm.attention.steps import STEP_TITLES
from trace_vlm.core.points import Box, Point
from trace_vlm.utils.command import run

NOWHERE = Regions(None, None, ())
EVEN_MAPS = np.full((5, 4, 4), 0.02, np.float32)
EVEN, FINDING, FALLING = (0.3,) * 5, (0.4, 0.4, 0.15, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3, 0.05)
NO_SUBTYPE = (0.4, 0.4, None, 0.3, 0.3)


def spot(row, column, share=0.4):
    grid = np.zeros((4, 4), np.float32)
    grid[row, column] = share
    return grid


def test_even_attention_and_attention_on_one_token_are_the_extremes():
    even = measure(EVEN_MAPS[0], NOWHERE)
    assert even["share"] == pytest.approx(0.32) and even["entropy"] == pytest.approx(1)
    assert even["area"] == pytest.approx(0.5) and even["target"] is even["distance"] is None
    single = measure(spot(1, 2), NOWHERE)
    assert single["entropy"] == pytest.approx(0) and single["area"] == pytest.approx(0.5 / 16)
    assert measure(np.zeros((4, 4), np.float32), NOWHERE)["entropy"] is None


def test_scaling_a_map_changes_its_share_only():
    grid = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    full, seventh = measure(grid, NOWHERE), measure(grid / 7, NOWHERE)
    assert seventh == pytest.approx({**full, "share": full["share"] / 7})


def test_overlap_and_distance_are_in_the_frame_of_the_padded_square():
    mask = np.zeros((50, 100), bool)
    mask[:, :50] = True  # the left half of a wide image: the middle rows of the square
    where = regions((100, 50), 4, [Point(0.125, 0.25), Point(3, 3), Box(0.1, 0.2, 0.15, 0.3)], mask, None)
    assert len(where.points) == 2
    targets = {cell: measure(spot(*cell), where)["target"] for cell in ((1, 0), (1, 2), (0, 0))}
    assert targets == pytest.approx({(1, 0): 1, (1, 2): 0, (0, 0): 0})  # inside, outside, the padding
    distances = [measure(spot(*divmod(cell, 4)), where)["distance"] for cell in range(16)]
    # the cell of both points, and one beside it: of the longer side
    assert distances[4:6] == pytest.approx([0, 0.25], abs=1e-6)
    even = uniform(np.full((4, 4), 1 / 16), where, 0.6)
    assert even["share"] == 0.6 and even["target"] == pytest.approx(0.25) and even["area"] == pytest.approx(0.5)
    assert even["distance"] == pytest.approx(np.mean(distances))


def record(number, shares, areas):
    steps = tuple(StepRecord(key, title, "", None if area is None else (0, 1), None, None)
                  for (key, title), area in zip(STEP_TITLES.items(), areas, strict=True))  # fmt: skip
    halves = {name: [0.5] * 5 for name in MEASURES}
    return AttentionRecord(
        question_id=number, order=number, source=f"{number}.png", instruction="", category=None, size=(8, 8), image="",
        picture="", arrays="", outline=(), text="", token_ids=(), accuracy=None, steps=steps, model="m", layers=(1,),
        numbers={"mean": {**halves, "share": list(shares), "area": list(areas)}}, uniform=halves, settings={},
    )  # fmt: skip


def noisy(values, rng, deviation=0.01):
    return tuple(None if value is None else float(rng.normal(value, deviation)) for value in values)


def verdicts(records):
    return [part.verdict for part in summary.summarize(records, [(EVEN_MAPS, NOWHERE)] * len(records)).verdicts]


@pytest.mark.parametrize(("shares", "areas", "images", "expected"), [
    (FALLING, FINDING, 20, ["holds"] * 3), (EVEN, (0.1, 0.4, 0.45, 0.3, 0.3), 20, ["fails"] * 3),
    ((0.3, 0.3, 0.3, 0.3, 0.15), (0.25, 0.4, 0.325, 0.3, 0.3), 20, ["undecided"] * 3),
    (FALLING, NO_SUBTYPE, 20, ["holds", "undecided", "holds"]), (FALLING, FINDING, 9, ["undecided"] * 3),
    (EVEN, (None, 0.3, 0.3, 0.3, 0.3), 12, ["undecided", "undecided", "fails"]),
])  # fmt: skip
def test_the_verdict_follows_from_the_intervals(shares, areas, images, expected):
    rng = np.random.default_rng(1)
    assert verdicts([record(number, noisy(shares, rng), noisy(areas, rng)) for number in range(images)]) == expected


def test_only_images_whose_answers_have_the_step_count():
    """Twenty images, but the goal subtype was measured on two of them, in six answers each."""
    rng = np.random.default_rng(0)
    records = [record(number, noisy(FALLING, rng), NO_SUBTYPE) for number in range(20)]
    records += [replace(record(20 + n, FALLING, FINDING), source=f"{n % 2}.png") for n in range(12)]
    assert verdicts(records) == ["holds", "undecided", "holds"]


def test_paired_tests_find_what_differs_and_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    records = [record(number, EVEN, (*noisy((0.4, 0.4, 0.2), rng, 0.02), 0.3, 0.3)) for number in range(20)]
    summarized = summary.summarize(records, [(EVEN_MAPS, NOWHERE)] * 20)
    pairs = {(pair.first, pair.second): pair for pair in summarized.pairs["area"]}
    assert len(pairs) == 10 and all(pair.p <= 1 for pair in pairs.values())
    differs = pairs["reference", "subtype"]
    assert differs.mean == pytest.approx(0.2, abs=0.02)
    assert differs.p < 0.02 < pairs["reference", "target"].p and pairs["output", "answer"].p == 1.0
    (line,) = (line for line in summary.describe(summarized) if line.startswith("reference - subtype"))
    assert f"{differs.mean:+.3f} (p {differs.p:.2g})" in line


def test_answers_with_and_without_hops_are_summarized_together():
    rng = np.random.default_rng(1)
    plain, walked = [record(number, noisy(FALLING, rng), noisy(FINDING, rng)) for number in range(20)], []
    for one in plain[:12]:
        steps = (one.steps[0], StepRecord("hop_1", "Hop 1", "", (0, 1), None, None), *one.steps[1:])
        numbers = {name: [values[0], 0.7, *values[1:]] for name, values in one.numbers["mean"].items()}
        more = {"steps": steps, "numbers": {"mean": numbers}, "uniform": numbers}
        walked.append(replace(one, source=f"walked {one.source}", **more))
    maps = [(np.full((len(one.steps), 4, 4), 0.02, np.float32), NOWHERE) for one in plain + walked]
    summarized = summary.summarize(plain + walked, maps)
    assert list(summarized.missing) == ["reference", "hop_1", *list(STEP_TITLES)[1:]] and not any(
        summarized.missing.values()
    )
    spans = summarized.measures["mean"]["area"]
    assert (
        spans[1].mean == pytest.approx(0.7)
        and spans[1].questions == 12
        and spans[3].mean == pytest.approx(0.15, abs=0.02)
    )
    assert [part.verdict for part in summarized.verdicts] == ["holds"] * 3


@pytest.mark.parametrize("looking", [True, False])
def test_the_shuffled_control_separates_looking_from_habit(looking):
    """Attention on each image's own target is far above the control, attention at one fixed position is not."""
    rng = np.random.default_rng(0)
    records, maps = [], []
    for number in range(16):
        row, column = rng.integers(0, 4, 2)
        where = Regions(spot(row, column, 1.0), None, ())
        grid = spot(*((row, column) if looking else (2, 2))) + 0.001
        plain = record(number, EVEN, EVEN)
        numbers = {**plain.numbers["mean"], "target": [measure(grid, where)["target"]] * 5}
        records.append(replace(plain, numbers={"mean": numbers}))
        maps.append((np.stack([grid] * 5), where))
    gap = summary.summarize(records, maps).against_shuffled["target"][0]
    assert gap.low > 0 if looking else gap.low <= 0 <= gap.high


def test_an_empty_folder_is_named(tmp_path, capsys):
    assert run(summary.main, [str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
