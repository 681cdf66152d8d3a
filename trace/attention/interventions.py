"""Does the reasoning matter? One step's words are replaced, the model goes on from there, and the points may follow.

    python visualization/attention_map.py ... --intervene

Used on the answers whose attention was recorded. Of every step each edit of `edits` is tried; the answer up to the
edited step is given to the model as its own, and greedy generation goes on. Three numbers say what came of it:

    distance   how far the mean of the points moved, in units of the image's longer side
    moved      the share of answers whose points moved by more than NEAR
    follows    the share whose points went where the edited words say: at least half of the way from the old place to
               the new one (object, place), or by more than NEAR in the new direction (direction)

`control` gives the model its own unchanged words: what moves there is noise of cutting and encoding the text anew.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import prompts
from ..core.images import open_image
from ..core.points import Box, Point
from ..core.reasoning import STEPS, parse
from ..eval.benchmark import Benchmark
from ..eval.statistics import Interval, interval
from ..utils.command import InputError
from ..utils.files import JsonlWriter, read_jsonl, write_json
from .capture import greedy
from .edits import KINDS, Edit, Thing, edits
from .results import Attended, read_attention

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..model.checkpoint import Checkpoint

LINES, SUMMARY = "interventions.jsonl", "interventions.json"
NEAR = 0.05
HALF = 0.5
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Result:
    """One edit of one answer; `moved` is the shift of the mean point, None where an answer has no points.

    `follows` is None where the edit predicts nothing.
    """

    step: str
    kind: str
    words: str
    answer: str
    moved: tuple[float, float] | None  # in units of the image's width and height
    distance: float | None  # in units of its longer side
    follows: bool | None


@dataclass(frozen=True, slots=True)
class Effect:
    """All edits of one kind of one step; intervals over images."""

    step: str
    kind: str
    edits: int
    unreadable: int  # answers that have no points any more
    distance: Interval | None
    moved: Interval | None
    follows: Interval | None


def intervene_all(
    folder: Path, checkpoint: Checkpoint, suite: Benchmark, max_new_tokens: int, style: str, resume: bool = False
) -> list[str]:
    """Edit every recorded answer of `folder` that has steps and points; returns the effects as lines of text.

    Results are appended answer by answer; with `resume`, those of unchanged answers are kept.
    """
    from tqdm import tqdm

    records = read_attention(folder)
    path = folder / LINES
    if not resume:
        path.unlink(missing_ok=True)
    done = _done(path)
    scenes = _scenes(suite)
    questions = {str(question.question_id): question for question in suite.questions}
    with JsonlWriter(path) as writer:
        for record in tqdm(records, unit="answer", desc="interventions"):
            name = str(record.question_id)
            if done.get(name, (None,))[0] == record.text or name not in questions:
                continue
            question = questions[name]
            image = open_image(suite.image_path(question))
            asked = prompts.render_prompt(prompts.question_text(question.text, True), style)
            things = scenes.get(str(question.meta.get("view")), ())
            results = intervene(checkpoint, image, asked, record, things, max_new_tokens)
            done[name] = (record.text, results)
            writer.write({"question_id": record.question_id, "text": record.text,
                          "results": [asdict(result) for result in results]})  # fmt: skip
    found = [(record, done[str(record.question_id)][1]) for record in records if str(record.question_id) in done]
    effects = summarise(found)
    write_json(folder / SUMMARY, {"near": NEAR, "answers": len(found), "effects": [asdict(one) for one in effects]})
    return describe(effects)


def intervene(
    checkpoint: Checkpoint,
    image: Image,
    prompt: str,
    record: Attended,
    things: Sequence[Thing],
    max_new_tokens: int,
) -> list[Result]:
    """Every edit of one answer, all of them in one batch; nothing for an answer without steps or points."""
    response = parse(record.text, record.size)
    # The same in every process: which other object is chosen depends on the question alone.
    rng = np.random.default_rng(zlib.crc32(str(record.question_id).encode()))
    wanted = [edit for edit in edits(response, things, rng) if prompts.IMAGE_TAG not in edit.prefix]
    before = _mean(response.points)
    if not wanted or before is None:
        return []
    texts = go_on(checkpoint, image, prompt, [edit.prefix for edit in wanted], max_new_tokens)
    return [_result(edit, text, before, record.size) for edit, text in zip(wanted, texts, strict=True)]


def go_on(checkpoint: Checkpoint, image: Image, prompt: str, prefixes: Sequence[str], max_new_tokens: int) -> list[str]:
    """The whole answers after each prefix, which the model takes for what it wrote itself; one batch, greedily."""
    import torch

    inputs = checkpoint.inputs([image] * len(prefixes), [f"{prompt} {prefix}" for prefix in prefixes])
    start = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = checkpoint.model.generate(**inputs, **greedy(checkpoint, max_new_tokens))[:, start:].tolist()
    end, tokenizer = checkpoint.tokenizer.eos_token_id, checkpoint.tokenizer
    rows = [row[: row.index(end)] if end in row else row for row in ids]
    return [prefix + tokenizer.decode(row, skip_special_tokens=True)
            for prefix, row in zip(prefixes, rows, strict=True)]  # fmt: skip


def _result(edit: Edit, text: str, before: Point, size: tuple[int, int]) -> Result:
    after = _mean(parse(text, size).points)
    if after is None:
        return Result(edit.step, edit.kind, edit.text, text, None, None, None)
    moved = (after.x - before.x, after.y - before.y)
    in_side = _in_side(moved, size)
    follows = None
    if edit.shift is not None and edit.kind != "control":
        shift = _in_side(edit.shift, size) if edit.exact else edit.shift
        along = sum(a * b for a, b in zip(in_side, shift, strict=True))
        follows = along > (HALF * math.hypot(*shift) ** 2 if edit.exact else NEAR)
    return Result(edit.step, edit.kind, edit.text, text, moved, math.hypot(*in_side), follows)


def _in_side(shift: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """From fractions of width and height to fractions of the longer side."""
    side = max(size)
    return shift[0] * size[0] / side, shift[1] * size[1] / side


def _mean(points: Sequence[Point | Box]) -> Point | None:
    centers = [item.center for item in points]
    inside = [point for point in centers if point.inside]
    if not inside:
        return None
    return Point(sum(point.x for point in inside) / len(inside), sum(point.y for point in inside) / len(inside))


# --- over a benchmark ----------------------------------------------------------------------------------------------


def summarise(found: Sequence[tuple[Attended, Sequence[Result]]]) -> list[Effect]:
    """The effect of each kind of edit in each step."""
    rng = np.random.default_rng(0)
    effects = []
    for step in STEPS:
        for kind in KINDS:
            pairs = [(record.source, result) for record, results in found for result in results
                     if (result.step, result.kind) == (step, kind)]  # fmt: skip
            if not pairs:
                continue
            read = [(image, result) for image, result in pairs if result.distance is not None]
            effects.append(
                Effect(
                    step,
                    kind,
                    len(pairs),
                    len(pairs) - len(read),
                    _interval([(image, float(result.distance or 0.0)) for image, result in read], rng),
                    _interval([(image, float((result.distance or 0.0) > NEAR)) for image, result in read], rng),
                    _interval([(image, float(result.follows)) for image, result in read
                               if result.follows is not None], rng),
                )
            )  # fmt: skip
    return effects


def _interval(values: Sequence[tuple[str, float]], rng: np.random.Generator) -> Interval | None:
    if not values:
        return None
    return interval([value for _, value in values], [image for image, _ in values], rng, RESAMPLES)


def describe(effects: Sequence[Effect]) -> list[str]:
    """A table for a terminal."""
    lines = ["", "interventions: one step's words replaced, the model goes on from there (95 % intervals over images)",
             f"{'step':12}{'edit':12}{'edits':>7}{'distance':>26}{'moved':>26}{'follows':>26}"]  # fmt: skip
    for one in effects:
        cells = [_text(part) for part in (one.distance, one.moved, one.follows)]
        lines.append(f"{one.step:12}{one.kind:12}{one.edits:>7}" + "".join(f"{cell:>26}" for cell in cells))
    return [*lines, ""]


def _text(one: Interval | None) -> str:
    if one is None:
        return "-"
    return f"{one.mean:.3f}" + ("" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]")


def _done(path: Path) -> dict[str, tuple[str, list[Result]]]:
    """Question key -> the answer that was edited, and what came of it."""
    if not path.is_file():
        return {}
    found: dict[str, tuple[str, list[Result]]] = {}
    for line, entry in read_jsonl(path, skip_partial_line=True):
        try:
            results = [Result(**{**one, "moved": one["moved"] and tuple(one["moved"])}) for one in entry["results"]]
            found[str(entry["question_id"])] = (str(entry["text"]), results)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}, line {line} is no result of an intervention ({error}); remove it") from None
    return found


def _scenes(suite: Benchmark) -> dict[str, tuple[Thing, ...]]:
    """View -> its objects, where the benchmark's folder has views.jsonl."""
    path = suite.question_file.parent / "views.jsonl"
    if not path.is_file():
        return {}
    return {str(view["view"]): _things(view) for _, view in read_jsonl(path) if "view" in view}


def _things(view: Mapping[str, Any]) -> tuple[Thing, ...]:
    """The objects whose name tells them apart from the others."""
    names = [str(one.get("name")) for one in view.get("objects", ())]
    return tuple(
        Thing(str(one["name"]), Point(*map(float, one["center"])))
        for one in view.get("objects", ())
        if names.count(str(one.get("name"))) == 1 and len(one.get("center", ())) == 2
    )


def read_effects(folder: Path) -> list[dict[str, Any]]:
    """The effects of a folder as data, for the report; none where nothing was edited."""
    path = folder / SUMMARY
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["effects"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no effects of interventions ({error}); write it anew") from None
