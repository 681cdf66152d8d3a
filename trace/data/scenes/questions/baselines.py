"""The accuracy of guesses and simple rules on a generated set: its shortcut baselines, on its own masks.

    python -m trace.data.scenes.questions.baselines --data DATA [--json baselines.json]

The rules know where the objects are and leave a part of the question out; `image_nearest_on_side` alone leaves nothing
out (docs/scenes.md). Each is one point a question, taken from the sample's `meta.shortcuts`. `near_reference`, the
fixed shift from the reference, is fitted on the set itself, so it is the best that such a rule can do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....core.images import open_region
from ....utils.command import InputError, Parser, existing_folder, run

if TYPE_CHECKING:
    from .question import Goal
    from .view import XY, SeenObject

Meta = Mapping[str, Any]
Shifts = dict[str, tuple[float, float]]  # by relation, normalised
Sums = dict[Any, dict[str, NDArray[np.float64]]]  # of hits and questions, by group and baseline

# Image axis and sign of each direction, for guessers that never leave the image plane.
_IMAGE_SIDE = {
    "left": (0, -1), "right": (0, 1), "front": (1, 1), "behind": (1, -1), "above": (1, -1), "below": (1, 1),
}  # fmt: skip
MIDDLE = (0.5, 0.5)
_KEYS = ("task", "kind", "relation", "references", "mask", "image_size", "shortcuts")


def baseline_points(goal: Goal, objects: Sequence[SeenObject], rng: np.random.Generator) -> dict[str, XY | None]:
    """One normalised point for each shortcut that needs a single view only; None where a shortcut does not apply."""
    target, references = goal.target, goal.references
    same = [seen for seen in objects if target and seen.body.category == target.body.category]
    nouns = goal.candidates or tuple(same)
    uniform = rng.random(2)
    points: dict[str, XY | None] = {
        "uniform": (round(float(uniform[0]), 4), round(float(uniform[1]), 4)), "center": MIDDLE,
        "reference": references[0].center if references else None, "midpoint": None,
        "random_noun": nouns[rng.integers(len(nouns))].center if nouns else None,
        "extreme": goal.extreme.center if goal.extreme and target else None,
        "nearest": goal.nearest.center if goal.nearest and target else None,
        "image_extreme": None, "image_nearest": None, "image_nearest_on_side": None,
    }  # fmt: skip
    if len(references) == 2:
        x, y = np.mean([reference.center for reference in references], 0)
        points["midpoint"] = round(float(x), 4), round(float(y), 4)
    if goal.kind == "relational" and len(references) == 1 and goal.candidates:
        x, y = references[0].center

        def distance(seen: SeenObject) -> float:
            return math.hypot(seen.center[0] - x, seen.center[1] - y)

        points["image_nearest"] = min(goal.candidates, key=distance).center
        if goal.relation in _IMAGE_SIDE:
            axis, sign = _IMAGE_SIDE[goal.relation]

            def ahead(seen: SeenObject) -> float:
                return sign * (seen.center[axis] - (x, y)[axis])

            on_side = [seen for seen in goal.candidates if ahead(seen) > 0] or goal.candidates
            points["image_extreme"] = max(goal.candidates, key=ahead).center
            points["image_nearest_on_side"] = min(on_side, key=distance).center
    return points


def fit_shifts(folder: Path, metas: Iterable[Meta]) -> Shifts:
    """For each relation of free space, the shift from the first reference that hits most masks.

    Without a reference it is a shift from the picture's middle. Masks of other sizes are brought to the first one's.
    """
    votes: dict[str, NDArray[np.int64]] = {}
    height = width = 0
    for meta in metas:
        if meta["task"] != "free_space" or "absent" in meta:
            continue
        mask = open_region(folder / meta["mask"])
        if not height:
            height, width = mask.shape
        if mask.shape != (height, width):
            rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), mask.shape, strict=True))
            mask = mask[np.ix_(rows, columns)]
        # Laid with the reference in the middle of a canvas of twice the size: the best shift is the highest count.
        column, row = _origin(meta, width, height)
        canvas = votes.setdefault(meta["relation"], np.zeros((2 * height, 2 * width), np.int64))
        canvas[height - row : 2 * height - row, width - column : 2 * width - column] += mask
    shifts: Shifts = {}
    for relation, canvas in sorted(votes.items()):
        row, column = divmod(int(canvas.argmax()), canvas.shape[1])
        shifts[relation] = ((column - width) / width, (row - height) / height)
    return shifts


def shifted_reference(meta: Meta, shifts: Shifts) -> list[float] | None:
    """The point of the fixed-shift baseline, moved to the pixel's center; None where no shift was fitted."""
    shift = shifts.get(meta["relation"] or "") if meta["task"] == "free_space" else None
    if shift is None:
        return None
    width, height = meta["image_size"]
    column, row = _origin(meta, width, height)
    return [round((column + 0.5) / width + shift[0], 4), round((row + 0.5) / height + shift[1], 4)]


def _origin(meta: Meta, width: int, height: int) -> tuple[int, int]:
    """Column and row of the center of the last relation's first reference, or of the picture's middle."""
    references = meta["hops"][-2:-1] if len(meta.get("hops", ())) > 1 else meta["references"]
    x, y = references[0]["center"] if references else MIDDLE
    return min(int(x * width), width - 1), min(int(y * height), height - 1)


class BaselineScores:
    """Counts the hits of the baselines. A uniform point counts by the mask's area."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # By (kind, relation) and baseline: sums, so that memory does not grow with the set.
        self._sums: Sums = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))

    def add(self, meta: Meta) -> None:
        from .view import on_mask

        mask = open_region(self.folder / meta["mask"])
        sums = self._sums[meta["kind"], meta["relation"] or ""]
        for name, point in meta["shortcuts"].items():
            if point is not None:
                hit = mask.mean() if name == "uniform" else on_mask(np.array([point]), mask)[0]
                sums[name] += float(hit), 1

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Percent by kind of question and baseline."""
        return self._percent(lambda kind, relation: kind)

    def by_relation(self) -> dict[str, dict[str, float]]:
        """Percent by kind and relation ("free left") and baseline."""
        return self._percent(lambda kind, relation: f"{kind} {relation}".strip())

    def _percent(self, group: Callable[[str, str], str]) -> dict[str, dict[str, float]]:
        totals: Sums = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
        for key, sums in self._sums.items():
            for name, hits_and_count in sums.items():
                totals[group(*key)][name] += hits_and_count
        return {
            title: {name: round(100 * float(hits / count), 1) for name, (hits, count) in sorted(sums.items())}
            for title, sums in sorted(totals.items())
        }


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Measure the shortcut baselines of a generated set.", examples=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of a generated training set or benchmark")
    parser.add_argument("--json", type=Path, help="file to write the numbers to as well")
    args = parser.parse_args(argv)
    result = measure(existing_folder(args.data, "the generated set"))
    if args.json is not None:
        from ....utils.files import write_json

        write_json(args.json, result)
    print(format_table(result["kinds"]), format_table(result["relations"]), sep="\n\n")
    return 0


def measure(folder: Path) -> dict[str, Any]:
    """The baselines of a generated set: {"questions", "kinds", "relations", "fixed_shifts"}, in percent."""
    from tqdm import tqdm

    shifts = fit_shifts(folder, tqdm(read_metas(folder), desc="fitting shifts", unit=" questions", mininterval=0.5))
    scores, count = BaselineScores(folder), 0
    for meta in tqdm(read_metas(folder), desc="scoring", unit=" questions", mininterval=0.5):
        scores.add({**meta, "shortcuts": {**meta["shortcuts"], "near_reference": shifted_reference(meta, shifts)}})
        count += 1
    if not count:
        raise InputError(f"{folder} holds no questions, so there is nothing to measure")
    fixed = {relation: [round(value, 4) for value in shift] for relation, shift in shifts.items()}
    return {"questions": count, "kinds": scores.by_kind(), "relations": scores.by_relation(), "fixed_shifts": fixed}


def read_metas(folder: Path) -> Iterator[Meta]:
    """The `meta` of every sample or question of a generated set; InputError where it is missing."""
    from ....core.records import read_questions, read_samples

    training, benchmark = folder / "data.json", folder / "point_questions.jsonl"
    records: Iterable[tuple[int | str, Meta]]
    if training.is_file():
        source, records = training, ((sample.id, sample.meta) for sample in read_samples(training))
    elif benchmark.is_file():
        source = benchmark
        records = ((question.question_id, question.meta) for question in read_questions(benchmark))
    else:
        raise InputError(f"{folder} is no generated set: it holds neither data.json nor point_questions.jsonl")
    for name, meta in records:
        if missing := next((key for key in _KEYS if key not in meta), None):
            raise InputError(f"{source}, {name}: meta lacks {missing!r}. Give a folder that scenes.generate made")
        if "absent" not in meta:  # there every point is wrong
            yield meta


def format_table(percent: Mapping[str, Mapping[str, float]]) -> str:
    """One row a group, one column a baseline; "-" where a baseline does not apply."""
    names = sorted({name for row in percent.values() for name in row})
    widths = [max(len(name), 5) for name in names]
    first = max(map(len, percent), default=0)
    lines = ["  ".join([" " * first, *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))])]
    for group, row in percent.items():
        cells = [f"{row[name]:{w}.1f}" if name in row else f"{'-':>{w}}" for name, w in zip(names, widths, strict=True)]
        lines.append("  ".join([f"{group:{first}}", *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(main))
