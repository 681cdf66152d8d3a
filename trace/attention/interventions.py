"""Does the reasoning matter? The words of one step or hop are replaced, the model continues, and the points may follow.

An edit says where the points should go if the model believes its own text. Objects and their places come from the
benchmark's `views.jsonl`, directions and places from any text. Reported are `distance` (of the mean point, in longer
sides of the image), `moved` (the share beyond NEAR), and `follows`: the share whose points went at least half of the way
to the new place, or beyond NEAR in the new direction. `control` gives the model its own unchanged words.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.images import open_image
from ..core.points import Box, Mention, Point, find_points
from ..core.prompts import IMAGE_TAG
from ..core.reasoning import Response, Step, parse
from ..eval.benchmark import Benchmark
from ..eval.statistics import interval
from ..utils.command import InputError
from ..utils.files import JsonlWriter, read_json, read_jsonl, write_json
from .results import EFFECTS, AttentionRecord, read_records
from .steps import step_titles

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.families.base import Checkpoint

LINES = "interventions.jsonl"
KINDS = ("control", "object", "place", "direction", "goal")
NEAR = 0.05
HALF = 0.5
RESAMPLES = 2000
LEAST_SHIFT = 0.1  # of an edited place, in units of the image's width and height: more than noise of decoding
DECIMALS = re.compile(r"\d*[.．](\d++)")
Shift = tuple[float, float]
Centers = Mapping[str, Point]  # the objects of a scene, by their unique names

# phrase -> its opposite, and where in the image the opposite lies; the longer phrases first
DIRECTIONS: dict[str, tuple[str, Shift]] = {
    "to the left of": ("to the right of", (1.0, 0.0)),
    "to the right of": ("to the left of", (-1.0, 0.0)),
    "in front of": ("behind", (0.0, -1.0)),
    "left": ("right", (1.0, 0.0)),
    "right": ("left", (-1.0, 0.0)),
    "behind": ("in front of", (0.0, 1.0)),
    "above": ("below", (0.0, 1.0)),
    "below": ("above", (0.0, -1.0)),
}
GOALS = {"an object reference": "a free space", "a free space": "an object reference",
         "object reference": "free space", "free space": "object reference"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Edit:
    """One step with other words."""

    step: str
    kind: str
    text: str
    prefix: str  # the answer up to the end of the edited step; the model continues from there
    shift: Shift | None  # where the points should go, in units of width and height; None: nothing is predicted
    exact: bool  # whether they should go as far as `shift` says, or only in its direction


@dataclass(frozen=True, slots=True)
class EditResult:
    """One edit of one answer; None where the answer has no points, or (`follows`) the edit predicts nothing."""

    step: str
    kind: str
    words: str
    answer: str
    moved: Shift | None  # of the mean point, in units of the image's width and height
    distance: float | None  # in units of its longer side
    follows: bool | None


# --- edits ---------------------------------------------------------------------------------------------------------


def make_edits(response: Response, objects: Centers, rng: np.random.Generator) -> list[Edit]:
    """Return the edits that the steps of an answer allow, at most one of each kind a step."""
    edits = []
    parts = {part.key: part for part in reversed(response.parts)}  # of two with one key, the first
    for key in step_titles(parts):
        step = parts.get(key)
        if step is not None and step.text:
            start = response.text[: step.span[1] - len(step.text)]  # a step's span ends with its own text
            for kind, text, shift, exact in _changed(step, objects, rng):
                if kind == "control" or text != step.text:
                    edits.append(Edit(key, kind, text, start + text, shift, exact))
    return edits


def _changed(
    step: Step, objects: Centers, rng: np.random.Generator
) -> Iterator[tuple[str, str, Shift | None, bool]]:  # fmt: skip
    """Kind, new text, shift and whether the shift is exact."""
    text = step.text
    yield "control", text, (0.0, 0.0), True
    # the object whose name comes first in the text; of two at one position, the longer name
    named = min((name for name in objects if re.search(rf"\b{re.escape(name)}\b", text)),
                key=lambda name: (text.index(name), -len(name)), default=None)  # fmt: skip
    others = [name for name in objects if named is None or (name != named and _far(objects[named], objects[name]))]
    other = others[int(rng.integers(len(others)))] if others else None
    mentions = (mention for mention in find_points(text) if isinstance(mention.item, Point) and mention.item.inside)
    place = next((mention for mention in mentions if DECIMALS.search(text, mention.start, mention.end)), None)
    if named is not None and other is not None:
        behind = place is not None and place.start >= text.index(named)
        changed = _with_point(text, place, objects[other]) if place is not None and behind else text
        yield "object", changed.replace(named, other, 1), _between(objects[named], objects[other]), True
    if place is not None and isinstance(at := place.item, Point):
        mirrored = Point(1 - at.x, at.y)
        if not _far(at, mirrored):  # near the middle, half of the width away
            mirrored = Point(at.x + 0.5 if at.x < 0.5 else at.x - 0.5, at.y)
        away = objects[other] if other is not None and _far(at, objects[other]) else mirrored
        yield "place", _with_point(text, place, away), _between(at, away), True
    for phrase, (opposite, shift) in DIRECTIONS.items():
        if re.search(rf"\b{phrase}\b", text, re.IGNORECASE):
            yield "direction", re.sub(rf"\b{phrase}\b", opposite, text, count=1, flags=re.IGNORECASE), shift, False
            break
    for goal, opposite in GOALS.items():
        if goal in text.lower():
            yield "goal", re.sub(re.escape(goal), opposite, text, count=1, flags=re.IGNORECASE), None, False
            break


def _far(first: Point, second: Point) -> bool:
    return math.dist((first.x, first.y), (second.x, second.y)) >= LEAST_SHIFT


def _with_point(text: str, place: Mention, to: Point) -> str:
    """The text with another point at `place`, with as many decimals as before."""
    decimals = max(map(len, DECIMALS.findall(text, place.start, place.end)))
    return f"{text[: place.start]}({to.x:.{decimals}f}, {to.y:.{decimals}f}){text[place.end :]}"


def _between(first: Point, second: Point) -> Shift:
    return second.x - first.x, second.y - first.y


# --- one answer ----------------------------------------------------------------------------------------------------


def continue_generation(
    checkpoint: Checkpoint, image: Image, instruction: str, prefixes: Sequence[str], max_new_tokens: int, style: str
) -> list[str]:
    """Return complete answers that begin with each prefix, as if the model had written it; one batch, greedily."""
    from ..inference.predictor import Predictor

    count = len(prefixes)
    options: dict[str, Any] = {"style": style, "batch_size": count, "max_new_tokens": max_new_tokens}
    answers = Predictor(checkpoint).predict([image] * count, [instruction] * count, prefixes=prefixes, **options)
    texts = (checkpoint.tokenizer.decode(answer.token_ids, skip_special_tokens=True) for answer in answers)
    return [prefix + text for prefix, text in zip(prefixes, texts, strict=True)]


def measure_edit(
    edit: Edit, answer: str, before: Point, size: tuple[int, int], read: Callable[[str], Response] | None = None
) -> EditResult:
    """Measure how the mean point moved from `before` in the answer that continues an edit; `read` is for its text."""
    after = mean_point((read(answer) if read is not None else parse(answer, size)).points)
    if after is None:
        return EditResult(edit.step, edit.kind, edit.text, answer, None, None, None)

    def in_sides(shift: Shift) -> Shift:  # from fractions of width and height to fractions of the longer side
        return shift[0] * size[0] / max(size), shift[1] * size[1] / max(size)

    moved = _between(before, after)
    follows = None
    if edit.shift is not None and edit.kind != "control":
        shift = in_sides(edit.shift) if edit.exact else edit.shift
        along = sum(a * b for a, b in zip(in_sides(moved), shift, strict=True))
        follows = along > (HALF * math.hypot(*shift) ** 2 if edit.exact else NEAR)
    return EditResult(edit.step, edit.kind, edit.text, answer, moved, math.hypot(*in_sides(moved)), follows)


def mean_point(points: Sequence[Point | Box]) -> Point | None:
    """Return the mean of the points (and centres of boxes) inside the image; None without any."""
    inside = [point.center for point in points if point.center.inside]
    return Point(fmean(point.x for point in inside), fmean(point.y for point in inside)) if inside else None


# --- over a benchmark ----------------------------------------------------------------------------------------------


def intervene_all(
    folder: Path, checkpoint: Checkpoint, benchmark: Benchmark, max_new_tokens: int, style: str, resume: bool = False
) -> list[str]:
    """Try every edit of every recorded answer of `folder` that has steps and points; return the effects as lines of text.

    Results are appended answer by answer; with `resume`, those of unchanged answers are kept.
    """
    from tqdm import tqdm

    records = read_records(folder)
    path = folder / LINES
    if not resume:
        path.unlink(missing_ok=True)
    done = _read_results(path)
    objects = _scene_objects(benchmark.question_file.parent / "views.jsonl")
    questions = {str(question.question_id): question for question in benchmark.questions}
    with JsonlWriter(path) as writer:
        for record in tqdm(records, unit="answer", desc="interventions"):
            name = str(record.question_id)
            if done.get(name, (None,))[0] == record.text or name not in questions:
                continue
            question, response = questions[name], record.read(record.text)
            results: list[EditResult] = []
            # The same in every process: which other object is chosen depends on the question alone.
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            edits = make_edits(response, objects.get(str(question.meta.get("view")), {}), rng)
            edits = [edit for edit in edits if IMAGE_TAG not in edit.prefix]
            if edits and (before := mean_point(response.points)) is not None:
                image, prefixes = open_image(benchmark.image_path(question)), [edit.prefix for edit in edits]
                texts = continue_generation(checkpoint, image, question.text, prefixes, max_new_tokens, style)
                results = [measure_edit(*edited, before, record.size, record.read)
                           for edited in zip(edits, texts, strict=True)]  # fmt: skip
            done[name] = (record.text, results)
            writer.write({"question_id": record.question_id, "text": record.text,
                          "results": [asdict(result) for result in results]})  # fmt: skip
    answers = [(record, done[str(record.question_id)][1]) for record in records if str(record.question_id) in done]
    effects = summarize_effects(answers)
    write_json(folder / EFFECTS, {"near": NEAR, "answers": len(answers), "effects": effects})
    lines = ["", "interventions: one step's words replaced, the model continues (95 % intervals over images)"]
    lines += [f"{row[0]:12}{row[1]:12}{row[2]:>7}" + "".join(f"{cell:>26}" for cell in row[3:])
              for row in effect_rows(effects)]  # fmt: skip
    return [*lines, ""]


def summarize_effects(answers: Sequence[tuple[AttentionRecord, Sequence[EditResult]]]) -> list[dict[str, Any]]:
    """Compute the effect of each kind of edit in each step, with intervals over images."""
    rng = np.random.default_rng(0)

    def mean(values: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
        images, numbers = [image for image, _ in values], [number for _, number in values]
        return asdict(interval(numbers, images, rng, RESAMPLES)) if values else None

    effects = []
    for step, kind in product(step_titles({result.step for _, of_answer in answers for result in of_answer}), KINDS):
        results = [(record.source, result) for record, of_answer in answers for result in of_answer
                   if (result.step, result.kind) == (step, kind)]  # fmt: skip
        if results:
            distances = [(image, result.distance) for image, result in results if result.distance is not None]
            follows = [(image, float(result.follows)) for image, result in results if result.follows is not None]
            moved = [(image, float(distance > NEAR)) for image, distance in distances]
            unreadable = len(results) - len(distances)  # answers without points
            effects.append({"step": step, "kind": kind, "edits": len(results), "unreadable": unreadable,
                            "distance": mean(distances), "moved": mean(moved), "follows": mean(follows)})  # fmt: skip
    return effects


def _read_results(path: Path) -> dict[str, tuple[str, list[EditResult]]]:
    """Question id -> the answer that was edited, and the results."""
    done: dict[str, tuple[str, list[EditResult]]] = {}
    for line, entry in read_jsonl(path, skip_partial_line=True) if path.is_file() else ():
        try:
            results = [EditResult(**{**one, "moved": one["moved"] and tuple(one["moved"])}) for one in entry["results"]]
            done[str(entry["question_id"])] = (str(entry["text"]), results)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}, line {line} is no result of an intervention ({error}). Remove it.") from None
    return done


def _scene_objects(path: Path) -> dict[str, Centers]:
    """View -> its objects with unique names, where the benchmark has views.jsonl."""
    objects: dict[str, Centers] = {}
    for view in (view for _, view in read_jsonl(path) if "view" in view) if path.is_file() else ():
        entries = [(str(entry.get("name")), entry.get("center", ())) for entry in view.get("objects", ())]
        names = [name for name, _ in entries]
        objects[str(view["view"])] = {name: Point(*map(float, center)) for name, center in entries
                                          if names.count(name) == 1 and len(center) == 2}  # fmt: skip
    return objects


def read_effects(folder: Path) -> list[Mapping[str, Any]]:
    """Return the effects of a folder as data; [] where nothing was edited."""
    path = folder / EFFECTS
    try:
        effects = list(read_json(path)["effects"]) if path.is_file() else []
        effect_rows(effects)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no effects of interventions ({error}). Write it again.") from None
    return effects


def effect_rows(effects: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a table of effects with a header."""
    rows = [["step", "edit", "answers", "distance", "moved", "follows"]]
    for effect in effects:
        spans = [effect[name] for name in ("distance", "moved", "follows")]
        cells = ["-" if span is None else f"{span['mean']:.3f}" + ("" if span["low"] is None else
                 f" [{span['low']:.3f}, {span['high']:.3f}]") for span in spans]  # fmt: skip
        rows.append([effect["step"], effect["kind"], str(effect["edits"]), *cells])
    return rows
