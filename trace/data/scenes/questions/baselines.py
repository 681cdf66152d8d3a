"""How far guesses and simple rules get: the shortcut baselines of a data set, on its own ground-truth masks.

    python -m trace.data.scenes.questions.baselines --data DATA [--json baselines.json]

For any generated set, training or benchmark. A result on the questions means something only beside these. The rules are
told where the objects are; each but one leaves a part of the question out. The extreme object (no reference) and the
nearest one (no direction) are right in half of the relational questions by construction. `image_nearest_on_side`, the
nearest one on the asked side in the picture, leaves nothing out: it is a partial solution of the task. Each is one
point a question, taken from the sample's `meta.shortcuts`; the fixed shift from the reference is fitted on the set
itself (for each relation the shift that hits most masks; without a reference, the fixed place), so it is the best that
such a rule can do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ....core.images import open_region
from ....utils.command import InputError, Parser, existing_folder, run

if TYPE_CHECKING:
    from .mask_sampling import XY
    from .view import Goal, SeenObject

Meta = Mapping[str, Any]
Shifts = dict[str, tuple[float, float]]

# Image axis and sign of each direction, for guessers that never leave the image plane.
_IMAGE_SIDE = {
    "left": (0, -1), "right": (0, 1), "front": (1, 1), "behind": (1, -1), "above": (1, -1), "below": (1, 1),
}  # fmt: skip
MIDDLE = (0.5, 0.5)


def guesses(goal: Goal, objects: Sequence[SeenObject], rng: np.random.Generator) -> dict[str, XY | None]:
    """One normalised point a shortcut that can be followed on a single view; None where a shortcut does not apply."""
    target, references = goal.target, goal.references
    same = [seen for seen in objects if target and seen.body.category == target.body.category]
    nouns = goal.candidates or tuple(same)
    middle = np.mean([reference.center for reference in references], 0) if len(references) == 2 else None
    uniform = rng.random(2)
    points: dict[str, XY | None] = {
        "uniform": (round(float(uniform[0]), 4), round(float(uniform[1]), 4)),
        "center": (0.5, 0.5),
        "reference": references[0].center if references else None,
        "midpoint": (round(float(middle[0]), 4), round(float(middle[1]), 4)) if middle is not None else None,
        "random_noun": nouns[rng.integers(len(nouns))].center if nouns else None,
        "extreme": goal.extreme.center if goal.extreme else None,
        "nearest": goal.nearest.center if goal.nearest else None,
    }
    return points | _image_guesses(goal)


def _image_guesses(goal: Goal) -> dict[str, XY | None]:
    """The nearest candidate in the image, the extreme one, and the nearest one on the asked side of the reference."""
    found: dict[str, XY | None] = dict.fromkeys(("image_extreme", "image_nearest", "image_nearest_on_side"))
    if goal.kind != "relational" or len(goal.references) != 1 or not goal.candidates:
        return found
    x, y = goal.references[0].center

    def distance(seen: SeenObject) -> float:
        return math.hypot(seen.center[0] - x, seen.center[1] - y)

    found["image_nearest"] = min(goal.candidates, key=distance).center
    if goal.relation in _IMAGE_SIDE:
        axis, sign = _IMAGE_SIDE[goal.relation]

        def ahead(seen: SeenObject) -> float:
            return sign * (seen.center[axis] - (x, y)[axis])

        on_side = [seen for seen in goal.candidates if ahead(seen) > 0] or list(goal.candidates)
        found["image_extreme"] = max(goal.candidates, key=ahead).center
        found["image_nearest_on_side"] = min(on_side, key=distance).center
    return found


def fit_shifts(folder: Path, metas: Iterable[Meta]) -> Shifts:
    """For each relation of free space, the normalised shift from the first reference that hits most masks.

    Without a reference it is a shift from the picture's middle. Masks of other sizes are brought to the first one's.
    """
    votes: dict[str, NDArray[np.int64]] = {}
    height = width = 0
    for meta in metas:
        if meta["task"] != "free_space":
            continue
        mask = load_mask(folder / meta["mask"])
        if not height:
            height, width = mask.shape
        if mask.shape != (height, width):
            mask = _resized(mask, width, height)
        # Laid with the reference in the middle of a canvas of twice the size: the best shift is the highest count.
        column, row = _pixel(_origin(meta), width, height)
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
    column, row = _pixel(_origin(meta), width, height)
    return [round((column + 0.5) / width + shift[0], 4), round((row + 0.5) / height + shift[1], 4)]


def _origin(meta: Meta) -> tuple[float, float]:
    x, y = meta["references"][0]["center"] if meta["references"] else MIDDLE
    return x, y


class Score:
    """Collects the baselines' hits; `result` gives percent by kind. A uniform point counts by the mask's area."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # (kind, relation) -> baseline -> [hits, questions]: sums, so that memory does not grow with the set.
        self.sums: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0]))

    def add(self, meta: Meta) -> None:
        from .mask_sampling import on_mask

        mask = load_mask(self.folder / meta["mask"])
        sums = self.sums[meta["kind"], meta["relation"] or ""]
        for name, point in meta["shortcuts"].items():
            if name == "uniform":
                hit = float(mask.mean())
            elif point is not None:
                hit = float(on_mask(np.array([point]), mask)[0])
            else:
                continue
            sums[name][0] += hit
            sums[name][1] += 1

    def result(self) -> dict[str, dict[str, float]]:
        """Percent by kind of question and baseline."""
        return self._percent({key: key[0] for key in self.sums})

    def by_relation(self) -> dict[str, dict[str, float]]:
        """Percent by kind and relation ("free left") and baseline."""
        return self._percent({key: f"{key[0]} {key[1]}".strip() for key in self.sums})

    def _percent(self, groups: Mapping[tuple[str, str], str]) -> dict[str, dict[str, float]]:
        totals: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0]))
        for key, group in groups.items():
            for name, (hits, count) in self.sums[key].items():
                totals[group][name][0] += hits
                totals[group][name][1] += count
        return {
            group: {name: round(100 * hits / count, 1) for name, (hits, count) in sorted(names.items())}
            for group, names in sorted(totals.items())
        }


def load_mask(path: Path) -> NDArray[np.bool_]:
    """[height, width]; InputError when it cannot be read."""
    return open_region(path)


def _resized(mask: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return mask[np.ix_(rows, columns)]


def _pixel(point: Iterable[float], width: int, height: int) -> tuple[int, int]:
    x, y = point
    return min(int(x * width), width - 1), min(int(y * height), height - 1)


# --- the command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = Parser(
        prog="trace.data.scenes.questions.baselines", description="How far shortcuts get on a generated set."
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of a generated training set or benchmark")
    parser.add_argument("--json", type=Path, default=None, help="file to write the numbers to as well")
    args = parser.parse_args(argv)
    folder = existing_folder(args.data, "the generated set")
    result = measure(folder)
    if args.json is not None:
        from ....core.records import write_json

        write_json(args.json, result)
    print(table(result["kinds"]))
    print()
    print(table(result["relations"]))
    return 0


def measure(folder: Path) -> dict[str, Any]:
    """The baselines of a generated set: {"questions", "kinds", "relations", "fixed_shifts"}, in percent."""
    from tqdm import tqdm

    shifts = fit_shifts(folder, tqdm(metas(folder), desc="fitting shifts", unit=" questions", mininterval=0.5))
    score, count = Score(folder), 0
    for meta in tqdm(metas(folder), total=None, desc="scoring", unit=" questions", mininterval=0.5):
        points = {**meta["shortcuts"], "near_reference": shifted_reference(meta, shifts)}
        score.add({**meta, "shortcuts": points})
        count += 1
    if not count:
        raise InputError(f"{folder} holds no questions, so there is nothing to guess")
    return {
        "questions": count,
        "kinds": score.result(),
        "relations": score.by_relation(),
        "fixed_shifts": {relation: [round(value, 4) for value in shift] for relation, shift in shifts.items()},
    }


def metas(folder: Path) -> Iterator[Meta]:
    """What every sample or question of a generated set records about itself; InputError where that is missing."""
    from ....core.records import read_questions, read_samples

    training, benchmark = folder / "data.json", folder / "point_questions.jsonl"
    if training.is_file():
        source, records = training, ((sample.id, sample.meta) for sample in read_samples(training))
    elif benchmark.is_file():
        source = benchmark
        records = ((str(question.question_id), question.meta) for question in read_questions(benchmark))
    else:
        raise InputError(f"{folder} is no generated set: it holds neither data.json nor point_questions.jsonl")
    for name, meta in records:
        lacking = [key for key in _KEYS if key not in meta]
        if lacking:
            raise InputError(
                f"{source}, {name}: meta lacks {lacking[0]!r}; give a folder that trace.data.scenes.generate made"
            )
        yield meta


_KEYS = ("task", "kind", "relation", "references", "mask", "image_size", "shortcuts")


def table(percent: Mapping[str, Mapping[str, float]]) -> str:
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
