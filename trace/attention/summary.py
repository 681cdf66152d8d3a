"""What may be said about attention over a whole benchmark: intervals, paired tests, controls, and a verdict.

    python -m trace.attention.summary OUT          # the folder of visualization/attention_map.py

The published finding has three parts: attention is diffuse in the first two steps, concentrated when the goal's
subtype is determined, and little of it goes to the image at the end. Each part is turned into one quantity whose
95 % bootstrap interval (over images) decides, by rules that are fixed here:

    diffuse       half of the image's attention needs at least a quarter of its tokens (even attention: half), in both
                  of the first two steps. Holds when both intervals lie above, fails when one lies below.
    concentrated  the goal subtype needs fewer tokens for half of it than the mean of the first two steps, paired by
                  answer. Holds when the interval of the difference lies below 0, fails when it lies above.
    little        the final answer gives the image less than half of what the four steps give it on average, paired.
                  Holds when the interval of (final answer - half of the steps) lies below 0, fails when above.

Anything else is undecided, and so is a part whose steps were measured on fewer than ten images. Two controls stand
beside the numbers: attention spread evenly, and a shuffled-image control, the maps of other images' answers laid over
this image's regions: where the two agree, attention says nothing about the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..eval.statistics import Interval, difference, interval
from ..utils.command import InputError, Parser, existing_folder, run
from ..utils.files import write_json
from .metrics import MEASURES, Regions, measure
from .results import MEAN, Attended, alike, read_attention, read_maps
from .steps import MILESTONES

SUMMARY = "summary.json"
RESAMPLES = 2000
LEAST_IMAGES = 10
MEASURE, GAP = (0.0, 1.0), (-1.0, 1.0)  # between which a measure, and a difference of two, can lie
UNDECIDED = "undecided"
DIFFUSE = 0.25
STRANGERS = 8  # answers about other images whose maps are laid over an image
SHUFFLED = ("target", "reference", "distance")  # measures that need the image
KEYS = tuple(MILESTONES)
FIRST, LAST = ("reference", "target"), "answer"
Values = NDArray[np.float64]  # [questions, 5], NaN where there is none


@dataclass(frozen=True, slots=True)
class Pair:
    """`first` minus `second`, two milestones of the same answers; `p` after Holm's correction over all pairs."""

    first: str
    second: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    questions: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """One part of the published finding: "holds", "fails" or "undecided", and the numbers that say so."""

    part: str
    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Every number; lists have one entry a milestone, None where nothing was measured.

    measures: layer (or "mean") -> measure -> intervals. uniform, shuffled: measure -> means of the controls.
    against_shuffled: measure -> interval of (attention - shuffled control), of the mean over the layers.
    """

    model: str
    questions: int
    images: int
    missing: Mapping[str, int]
    measures: Mapping[str, Mapping[str, Sequence[Interval | None]]]
    uniform: Mapping[str, Sequence[float | None]]
    shuffled: Mapping[str, Sequence[float | None]]
    against_shuffled: Mapping[str, Sequence[Interval | None]]
    pairs: Mapping[str, Sequence[Pair]]
    verdicts: Sequence[Verdict]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.attention.summary", description="Numbers about attention over a whole benchmark.")
    parser.add_argument("folder", type=Path, help="what visualization/attention_map.py wrote")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and the shuffled-image control")
    arguments = parser.parse_args(argv)
    folder = existing_folder(arguments.folder, "the folder of attention records")
    print("\n".join(describe(write_summary(folder, arguments.seed))))
    return 0


def write_summary(folder: Path, seed: int = 0) -> Summary:
    """Summarise the records of a folder into its summary.json.

    Raises:
        InputError: there are none, one is broken, or they were made under different settings.
    """
    records = read_attention(folder)
    if not records:
        raise InputError(f"{folder} holds no record of attention; visualization/attention_map.py writes them")
    alike(folder, [record.settings for record in records])
    summary = summarise(records, [read_maps(folder, record) for record in records], seed)
    write_json(folder / SUMMARY, asdict(summary))
    return summary


def summarise(
    records: Sequence[Attended], maps: Sequence[tuple[NDArray[np.float32], Regions]], seed: int = 0
) -> Summary:
    """All numbers of the answers `records`; `maps` are their milestones' maps [5, grid, grid] and regions."""
    rng = np.random.default_rng(seed)
    images = [record.source for record in records]
    layers = list(dict.fromkeys(layer for record in records for layer in record.numbers))
    values = {
        layer: {name: _values([record.numbers.get(layer, {}) for record in records], name) for name in MEASURES}
        for layer in layers
    }
    shuffled = _shuffled(records, maps, rng)
    return Summary(
        model=", ".join(dict.fromkeys(record.model for record in records)),
        questions=len(records),
        images=len(set(images)),
        missing={
            key: sum(record.milestones[place].tokens is None for record in records) for place, key in enumerate(KEYS)
        },  # fmt: skip
        measures={
            layer: {name: _intervals(array, images, rng) for name, array in of_layer.items()}
            for layer, of_layer in values.items()
        },
        uniform={name: _means(_values([record.uniform for record in records], name)) for name in MEASURES},
        shuffled={name: _means(array) for name, array in shuffled.items()},
        against_shuffled={
            name: _intervals(values[MEAN][name] - array, images, rng, GAP) for name, array in shuffled.items()
        },
        pairs={name: _pairs(values[MEAN][name], images, rng) for name in MEASURES},
        verdicts=verdicts(values[MEAN], images, rng),
    )


def _values(numbers: Sequence[Mapping[str, Sequence[float | None]]], name: str) -> Values:
    rows = [one.get(name) or [None] * len(KEYS) for one in numbers]
    return np.array([[np.nan if value is None else value for value in row] for row in rows], float)


def _means(values: Values) -> list[float | None]:
    return [float(column.mean()) if len(column) else None for column in map(_known, values.T)]


def _known(column: Values) -> Values:
    found: Values = column[~np.isnan(column)]
    return found


def _intervals(
    values: Values, images: Sequence[str], rng: np.random.Generator, bounds: tuple[float, float] = MEASURE
) -> list[Interval | None]:
    return [_interval(column, images, rng, bounds) for column in values.T]


def _interval(
    column: Values, images: Sequence[str], rng: np.random.Generator, bounds: tuple[float, float] = MEASURE
) -> Interval | None:
    known = ~np.isnan(column)
    if not known.any():
        return None
    of = [image for image, is_known in zip(images, known.tolist(), strict=True) if is_known]
    return interval(column[known], of, rng, RESAMPLES, bounds=bounds)


def _shuffled(
    records: Sequence[Attended], maps: Sequence[tuple[NDArray[np.float32], Regions]], rng: np.random.Generator
) -> dict[str, Values]:
    """Measures of other images' maps against each image's own regions and points, [questions, 5] each."""
    found = {name: np.full((len(records), len(KEYS)), np.nan) for name in SHUFFLED}
    for place, (record, (_, where)) in enumerate(zip(records, maps, strict=True)):
        others = [other for other in rng.permutation(len(records)) if records[other].source != record.source]
        for step in range(len(KEYS)):
            grids = [maps[other][0][step] for other in others]
            grids = [grid for grid in grids if not np.isnan(grid).any()][:STRANGERS]
            if np.isnan(maps[place][0][step]).any() or not grids:
                continue
            strange = [measure(grid, where) for grid in grids]
            for name in SHUFFLED:
                known = [value for one in strange if (value := one[name]) is not None]
                found[name][place, step] = sum(known) / len(known) if known else np.nan
    return found


def _pairs(values: Values, images: Sequence[str], rng: np.random.Generator) -> list[Pair]:
    """Every two milestones, paired by answer, with Holm's correction."""
    found = []
    for first, second in combinations(range(len(KEYS)), 2):
        both = np.asarray(~np.isnan(values[:, [first, second]]).any(axis=1), bool)
        if not both.any():
            continue
        of = [image for image, has_both in zip(images, both.tolist(), strict=True) if has_both]
        gap = difference(values[both, first], values[both, second], of, rng, RESAMPLES)
        one = gap.interval
        found.append(Pair(KEYS[first], KEYS[second], one.mean, one.low, one.high, gap.p_value, one.questions))
    return _holm(found)


def _holm(pairs: Sequence[Pair]) -> list[Pair]:
    order = sorted((pair.p, place) for place, pair in enumerate(pairs) if pair.p is not None)
    corrected, floor = {}, 0.0
    for rank, (p, place) in enumerate(order):
        floor = max(floor, min(1.0, p * (len(order) - rank)))
        corrected[place] = floor
    return [
        Pair(one.first, one.second, one.mean, one.low, one.high, corrected.get(place), one.questions)
        for place, one in enumerate(pairs)
    ]


# --- the published finding -----------------------------------------------------------------------------------------


def verdicts(values: Mapping[str, Values], images: Sequence[str], rng: np.random.Generator) -> list[Verdict]:
    """Whether each part of the published finding holds; `values`: measure -> [questions, 5]."""
    area, share = values["area"], values["share"]
    first = [KEYS.index(key) for key in FIRST]
    subtype, last = KEYS.index("subtype"), KEYS.index(LAST)
    gap = area[:, subtype] - area[:, first].mean(axis=1)
    steps = [place for place in range(len(KEYS)) if place != last]
    drop = share[:, last] - 0.5 * share[:, steps].mean(axis=1)
    diffuse = [_interval(area[:, place], images, rng) for place in first]
    closer, little = (_interval(column, images, rng, GAP) for column in (gap, drop))
    halves = "; ".join(
        f"{key}: not measured" if one is None else f"{key}: half of it on {_text(one)} of the tokens"
        for key, one in zip(FIRST, diffuse, strict=True)
    )
    seen = [min(_images(area[:, place], images) for place in first), _images(gap, images), _images(drop, images)]
    parts = [
        ("diffuse in the first two steps", _diffuse(diffuse),
         f"{halves} (limit {DIFFUSE}, even attention 0.5)"),
        ("concentrated at the goal subtype", _below_zero(closer),
         f"tokens that hold half of it, subtype minus the first two: {_text(closer)}"),
        ("little visual attention at the end", _below_zero(little),
         f"share on the image, final answer minus half of the steps' mean: {_text(little)}"),
    ]  # fmt: skip
    return [
        Verdict(part, verdict, why)
        if count >= LEAST_IMAGES
        else Verdict(part, UNDECIDED, f"{why}; few images: {count} of {LEAST_IMAGES}")
        for (part, verdict, why), count in zip(parts, seen, strict=True)
    ]


def _images(column: Values, images: Sequence[str]) -> int:
    """How many images a quantity was measured on."""
    return len({image for image, value in zip(images, column.tolist(), strict=True) if not np.isnan(value)})


def _diffuse(intervals: Sequence[Interval | None]) -> str:
    lows = [one.low for one in intervals if one is not None and one.low is not None]
    highs = [one.high for one in intervals if one is not None and one.high is not None]
    if len(lows) == len(intervals) and all(low > DIFFUSE for low in lows):
        return "holds"
    return "fails" if any(high < DIFFUSE for high in highs) else UNDECIDED


def _below_zero(one: Interval | None) -> str:
    if one is None or one.low is None or one.high is None:
        return UNDECIDED
    return "holds" if one.high < 0 else "fails" if one.low > 0 else UNDECIDED


def _text(one: Interval | None) -> str:
    if one is None:
        return "not measured"
    return f"{one.mean:.3f}" + ("" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]")


def pair_rows(pairs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """A header, then a row for every two steps: of each measure the mean of first minus second, and its p.

    `pairs` as `summary.json` has them. A measure without pairs has no column.
    """
    names = [name for name in MEASURES if pairs.get(name)]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        for one in pairs[name]:
            p = "" if one["p"] is None else f" (p {one['p']:.2g})"
            cells.setdefault((one["first"], one["second"]), {})[name] = f"{one['mean']:+.3f}{p}"
    rows = [[f"{first} - {second}", *(row.get(name, "-") for name in names)] for (first, second), row in cells.items()]
    return [["", *names], *rows] if rows else []


PAIRS_TITLE = (
    "Each step minus each later one, paired by answer; p of permutation tests over images, after Holm's correction"
)


def describe(summary: Summary) -> list[str]:
    """The summary for a terminal."""
    lines = [f"{summary.questions} answers about {summary.images} images, {summary.model}; 95 % intervals over images"]
    missing = {key: count for key, count in summary.missing.items() if count}
    if missing:
        lines.append("missing steps: " + ", ".join(f"{key} {count}" for key, count in missing.items()))
    lines += ["", f"{'':38}" + "".join(f"{key:>24}" for key in KEYS)]
    for name, title in MEASURES.items():
        cells = [_text(one) if one is not None else "-" for one in summary.measures[MEAN][name]]
        lines.append(f"{title:38}" + "".join(f"{cell:>24}" for cell in cells))
        for control, of in (("spread evenly", summary.uniform), ("shuffled images", summary.shuffled)):
            if any(value is not None for value in of.get(name, ())):
                cells = ["-" if value is None else f"{value:.3f}" for value in of[name]]
                lines.append(f"{'  ' + control:38}" + "".join(f"{cell:>24}" for cell in cells))
    if rows := pair_rows(asdict(summary)["pairs"]):
        lines += ["", PAIRS_TITLE]
        lines += [f"{row[0]:22}" + "".join(f"{cell:>20}" for cell in row[1:]) for row in rows]
    lines += ["", "the published finding, on this model and these images:"]
    lines += [f"  {one.part}: {one.verdict} ({one.why})" for one in summary.verdicts]
    return lines


if __name__ == "__main__":
    raise SystemExit(run(main))
