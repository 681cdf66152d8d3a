"""Attention over a whole benchmark: intervals, paired tests, controls, and verdicts on the published finding.

    python -m trace.attention.summary OUT          # a folder of visualization/attention_map.py

Two controls are reported: attention spread evenly, and the maps of other images' answers laid over an image's regions.
Where attention equals the second, it says nothing about the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..eval.statistics import Interval, difference, interval
from ..utils.command import InputError, Parser, existing_folder, run
from ..utils.files import write_json
from .metrics import MEASURES, Regions, measure
from .results import MEAN, SUMMARY, AttentionRecord, Numbers, read_maps, read_records, require_same_settings
from .steps import STEP_TITLES, step_titles

RESAMPLES = 2000
LEAST_IMAGES = 10
MEASURE_BOUNDS, GAP_BOUNDS = (0.0, 1.0), (-1.0, 1.0)  # of a measure, and of a difference of two
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
DIFFUSE = 0.25
SHUFFLES = 8  # answers about other images whose maps are laid over an image
SHUFFLED = ("target", "reference", "distance")  # measures that need the image
KEYS = tuple(STEP_TITLES)
CONTROLS = {"uniform": "spread evenly", "shuffled": "shuffled images"}
PAIRS_TITLE = "Each step minus each later one, paired by answer; p of permutation tests over images, Holm-corrected"

Values = NDArray[np.float64]  # [answers, steps], NaN where not defined
MapsOf = Sequence[tuple[NDArray[np.float32], Regions]]  # of each answer: the maps [steps, grid, grid] and regions
Columns = Sequence[Mapping[str, int]]  # of each answer: the number of each of its steps


@dataclass(frozen=True, slots=True)
class StepPair:
    """`first` minus `second`, two steps of the same answers; `p` after Holm's correction over all pairs."""

    first: str
    second: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    questions: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """One part of the published finding: "holds", "fails" or "undecided", and the numbers behind it."""

    part: str
    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Every number by measure; lists have one entry a step (a key of `missing`), None where nothing was measured."""

    model: str
    questions: int
    images: int
    missing: Mapping[str, int]
    measures: Mapping[str, Mapping[str, Sequence[Interval | None]]]  # first by layer, or "mean" of all
    uniform: Mapping[str, Sequence[float | None]]  # means of the controls
    shuffled: Mapping[str, Sequence[float | None]]
    against_shuffled: Mapping[str, Sequence[Interval | None]]  # of (attention - shuffled control), mean over layers
    pairs: Mapping[str, Sequence[StepPair]]
    verdicts: Sequence[Verdict]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Summarize attention over a whole benchmark.", examples=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of visualization/attention_map.py")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and the shuffled-image control")
    arguments = parser.parse_args(argv)
    folder = existing_folder(arguments.folder, "the folder of attention records")
    print("\n".join(describe(write_summary(folder, arguments.seed))))
    return 0


def write_summary(folder: Path, seed: int = 0) -> Summary:
    """Summarize the records of a folder into its summary.json. InputError: none, a broken one, or different settings."""
    records = read_records(folder)
    if not records:
        raise InputError(f"{folder} holds no record of attention. Run visualization/attention_map.py first.")
    require_same_settings(folder)
    summary = summarize(records, [read_maps(folder, record) for record in records], seed)
    write_json(folder / SUMMARY, asdict(summary))
    return summary


def summarize(records: Sequence[AttentionRecord], maps: MapsOf, seed: int = 0) -> Summary:
    """Compute every number over the answers `records`."""
    rng = np.random.default_rng(seed)
    images = [record.source for record in records]
    columns = [{step.key: number for number, step in enumerate(record.steps)} for record in records]
    keys = tuple(step_titles(key for of_answer in columns for key in of_answer))

    def values_of(numbers: Sequence[Numbers], name: str) -> Values:
        rows = [[None if key not in at or not (row := of_answer.get(name)) else row[at[key]] for key in keys]
                for of_answer, at in zip(numbers, columns, strict=True)]  # fmt: skip
        return np.array(rows, float)  # None becomes NaN

    values = {layer: {name: values_of([record.numbers.get(layer, {}) for record in records], name) for name in MEASURES}
              for layer in dict.fromkeys(layer for record in records for layer in record.numbers)}  # fmt: skip
    shuffled = _shuffled_control(records, maps, keys, columns, rng)
    published = [keys.index(key) for key in KEYS]
    return Summary(
        model=", ".join(dict.fromkeys(record.model for record in records)),
        questions=len(records),
        images=len(set(images)),
        missing={key: sum(record.steps[at[key]].tokens is None for record, at in zip(records, columns, strict=True)
                          if key in at) for key in keys},
        measures={layer: {name: [_interval(column, images, rng) for column in array.T]
                          for name, array in of_layer.items()} for layer, of_layer in values.items()},
        uniform={name: _means(values_of([record.uniform for record in records], name)) for name in MEASURES},
        shuffled={name: _means(array) for name, array in shuffled.items()},
        against_shuffled={name: [_interval(column, images, rng, GAP_BOUNDS) for column in (values[MEAN][name] - array).T]
                          for name, array in shuffled.items()},
        pairs={name: _pairs(values[MEAN][name], keys, images, rng) for name in MEASURES},
        verdicts=judge({name: array[:, published] for name, array in values[MEAN].items()}, images, rng),
    )  # fmt: skip


def _means(values: Values) -> list[float | None]:
    columns = [column[~np.isnan(column)] for column in values.T]
    return [float(column.mean()) if len(column) else None for column in columns]


def _interval(
    column: Values, images: Sequence[str], rng: np.random.Generator, bounds: tuple[float, float] = MEASURE_BOUNDS
) -> Interval | None:
    known = ~np.isnan(column)
    of_images = np.array(images)[known].tolist()
    return interval(column[known], of_images, rng, RESAMPLES, bounds=bounds) if of_images else None


def _shuffled_control(
    records: Sequence[AttentionRecord], maps: MapsOf, keys: Sequence[str], columns: Columns, rng: np.random.Generator
) -> dict[str, Values]:
    """Measures of other images' maps against each image's own regions and points, [answers, steps] each."""
    control = {name: np.full((len(records), len(keys)), np.nan) for name in SHUFFLED}
    for index, (record, (_, where)) in enumerate(zip(records, maps, strict=True)):
        others = [other for other in rng.permutation(len(records)) if records[other].source != record.source]
        for step, key in enumerate(keys):
            grids = [maps[other][0][columns[other][key]] for other in others if key in columns[other]]
            grids = [grid for grid in grids if not np.isnan(grid).any()][:SHUFFLES]
            if key not in columns[index] or np.isnan(maps[index][0][columns[index][key]]).any() or not grids:
                continue
            measured = [measure(grid, where) for grid in grids]
            for name in SHUFFLED:
                known = [value for values in measured if (value := values[name]) is not None]
                control[name][index, step] = fmean(known) if known else np.nan
    return control


def _pairs(values: Values, steps: Sequence[str], images: Sequence[str], rng: np.random.Generator) -> list[StepPair]:
    """Every two steps, paired by answer, with Holm's correction."""
    pairs = []
    for first, second in combinations(range(len(steps)), 2):
        both = ~np.isnan(values[:, [first, second]]).any(axis=1)
        if both.any():
            gap = difference(values[both, first], values[both, second], np.array(images)[both].tolist(), rng, RESAMPLES)
            span, keys = gap.interval, (steps[first], steps[second])
            pairs.append(StepPair(*keys, span.mean, span.low, span.high, gap.p_value, span.questions))
    order = sorted((pair.p, index) for index, pair in enumerate(pairs) if pair.p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        pairs[index] = replace(pairs[index], p=largest)
    return pairs


# --- the published finding -----------------------------------------------------------------------------------------


def judge(values: Mapping[str, Values], images: Sequence[str], rng: np.random.Generator) -> list[Verdict]:
    """Decide whether each part of the published finding holds; `values`: measure -> [answers, KEYS].

    diffuse       half of the image's attention needs at least DIFFUSE of its tokens in both of the first two steps:
                  holds when both intervals lie above, fails when one lies below.
    concentrated  the subtype needs fewer tokens for half of it than the mean of the first two steps, paired by answer.
    little        the final answer gives the image less than half of what the steps give it on average, paired.

    The last two hold when the interval of the difference lies below 0 and fail when it lies above. Anything else is
    undecided, and so is a part measured on fewer than LEAST_IMAGES images.
    """
    area, share = values["area"], values["share"]
    gap = area[:, KEYS.index("subtype")] - area[:, :2].mean(axis=1)
    drop = share[:, -1] - 0.5 * share[:, :-1].mean(axis=1)
    diffuse = [_interval(area[:, step], images, rng) for step in (0, 1)]
    closer, little = (_interval(column, images, rng, GAP_BOUNDS) for column in (gap, drop))
    halves = "; ".join(f"{key}: {_text(span)}" for key, span in zip(KEYS[:2], diffuse, strict=True))
    ends = [(span.low, span.high) for span in diffuse if span and span.low is not None and span.high is not None]
    first = FAILS if any(high < DIFFUSE for _, high in ends) else UNDECIDED
    if len(ends) == 2 and min(low for low, _ in ends) > DIFFUSE:
        first = HOLDS

    def count(column: Values) -> int:
        return len(set(np.array(images)[~np.isnan(column)]))

    parts = [
        ("diffuse in the first two steps", first, f"tokens that hold half of it, {halves} (limit {DIFFUSE}, even 0.5)",
         min(count(area[:, 0]), count(area[:, 1]))),
        ("concentrated at the goal subtype", _below_zero(closer),
         f"tokens that hold half of it, subtype minus the first two: {_text(closer)}", count(gap)),
        ("little visual attention at the end", _below_zero(little),
         f"share on the image, final answer minus half of the steps' mean: {_text(little)}", count(drop)),
    ]  # fmt: skip
    few = f"; few images: {{}} of {LEAST_IMAGES}"
    return [Verdict(part, *((verdict, why) if seen >= LEAST_IMAGES else (UNDECIDED, why + few.format(seen))))
            for part, verdict, why, seen in parts]  # fmt: skip


def _below_zero(span: Interval | None) -> str:
    if span is None or span.low is None or span.high is None:
        return UNDECIDED
    return HOLDS if span.high < 0 else FAILS if span.low > 0 else UNDECIDED


def _text(span: Interval | None) -> str:
    if span is None:
        return "not measured"
    return f"{span.mean:.3f}" + ("" if span.low is None else f" [{span.low:.3f}, {span.high:.3f}]")


# --- tables --------------------------------------------------------------------------------------------------------


def tables(summary: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Return (title, rows with a header) of the measures and of the paired steps; `summary` as summary.json has it."""
    rows = [["", *summary["missing"]]]
    for name, (title, _) in MEASURES.items():
        spans = summary["measures"][MEAN][name]
        rows.append([title, *("-" if span is None else _text(Interval(**span)) for span in spans)])
        for control in ("uniform", "shuffled"):
            values = summary[control].get(name) or []
            if any(value is not None for value in values):
                rows.append([f"  {CONTROLS[control]}", *("-" if value is None else f"{value:.3f}" for value in values)])
    blocks = [("Attention by step, with 95 % intervals over images", rows)]
    names = [name for name in MEASURES if summary["pairs"].get(name)]
    cells: dict[str, dict[str, str]] = {}
    for name in names:
        for pair in summary["pairs"][name]:
            p = "" if pair["p"] is None else f" (p {pair['p']:.2g})"
            cells.setdefault(f"{pair['first']} - {pair['second']}", {})[name] = f"{pair['mean']:+.3f}{p}"
    if cells:
        pairs = [[pair, *(row.get(name, "-") for name in names)] for pair, row in cells.items()]
        blocks.append((PAIRS_TITLE, [["", *names], *pairs]))
    return blocks


def describe(summary: Summary) -> list[str]:
    """Return the summary as lines for a terminal."""
    lines = [f"{summary.questions} answers about {summary.images} images, {summary.model}"]
    if missing := {key: count for key, count in summary.missing.items() if count}:
        lines.append("missing steps: " + ", ".join(f"{key} {count}" for key, count in missing.items()))
    for title, rows in tables(asdict(summary)):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        lines += ["", title, *aligned]
    lines += ["", "the published finding, on this model and these images:"]
    return lines + [f"  {part.part}: {part.verdict} ({part.why})" for part in summary.verdicts]


if __name__ == "__main__":
    raise SystemExit(run(main))
