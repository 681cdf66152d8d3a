"""The questions of a report as data that the page's script draws: one small JPEG each, everything else as numbers.

A question has the answers of the compared models, the attention of one model, or both. Points, outlines and attention
maps are data, so that a thousand questions fit into one page: the bytes for images are shared out among them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..attention.metrics import MEASURES
from ..attention.results import MEAN, AttentionRecord, read_maps, read_records
from ..core.images import Square, open_image
from ..core.reasoning import HEADINGS, Response
from ..core.records import QuestionId
from ..drawing.figures import answer_problems, answer_text
from .comparison import INDEX, ComparedQuestion, ModelScore, read_comparison

if TYPE_CHECKING:
    from PIL.Image import Image

ALL_IMAGES = 24_000_000  # bytes of all JPEGs together; base64 makes a third more of them
LARGEST, SMALLEST = 60_000, 6_000  # bytes of one
SIDES = (480, 400, 336, 280, 224, 160, 112)
QUALITIES = (88, 78, 66, 52)


@dataclass(frozen=True, slots=True)
class Explorer:
    """The compared models in order, and a mapping for each question, as the page's script takes it."""

    scores: Sequence[ModelScore]
    questions: Sequence[Mapping[str, Any]]

    @property
    def labels(self) -> list[str]:
        return [score.label for score in self.scores]

    @property
    def attended(self) -> list[str]:
        """The models whose attention is shown."""
        shown = (question["attention"] for question in self.questions)
        return list(dict.fromkeys(attention["model"] for attention in shown if attention))

    def models(self, colors: Mapping[str, str]) -> list[str]:
        """The models of the legend: one whose attention is shown has its label among the compared ones, if any."""
        compared = {colors[label] for label in self.labels}
        return [*self.labels, *(name for name in self.attended if colors[name] not in compared)]

    def accuracies(self) -> dict[str, list[float]]:
        """Each compared model's accuracies on the questions of the page, where they are known.

        Without a comparison, those of the answers whose attention is shown.
        """
        if not self.scores:
            attended = [question["attention"] for question in self.questions if question["attention"]]
            return {name: [one["answer"]["accuracy"] for one in attended
                           if one["model"] == name and one["answer"]["accuracy"] is not None]
                    for name in self.attended}  # fmt: skip
        answers = [question["answers"] for question in self.questions if question["answers"]]
        return {label: [of_question[index]["accuracy"] for of_question in answers
                        if of_question[index]["accuracy"] is not None]
                for index, label in enumerate(self.labels)}  # fmt: skip

    def success(self) -> dict[str, dict[str, int]]:
        """For each compared model, the number of answers with the full score, a part of it, or no score."""
        counts = {}
        for label, known in self.accuracies().items():
            if known:
                every, none = sum(math.isclose(value, 1) for value in known), sum(value == 0 for value in known)
                counts[label] = {"full score": every, "part of it": len(known) - every - none, "no score": none}
        return counts

    def means(self) -> list[tuple[str, list[tuple[float, str]]]]:
        """For each compared model its mean accuracies from 0 to 1, with words for the questions each is over."""
        known, means = self.accuracies(), []
        for score in self.scores:
            values: list[tuple[float, str]] = []
            if score.benchmark is not None:
                unanswered = f" ({score.unanswered} not answered)" if score.unanswered else ""
                values.append((score.benchmark, f"of all {score.asked} questions of the benchmark{unanswered}"))
            if shown := known[score.label]:
                values.append((fmean(shown), f"of the {len(shown)} questions on this page"))
            if values:
                means.append((score.label, values))
        return means


def explorer(comparison: Path | None, attention: Path | None) -> Explorer | None:
    """Read every question of either folder; those in both are one. None when neither folder has an index."""
    has_comparison = comparison is not None and (comparison / INDEX).is_file()
    scores, items = read_comparison(comparison) if comparison is not None and has_comparison else ([], [])
    attended = read_records(attention) if attention is not None else []
    if not has_comparison and not attended:
        return None
    count = len({item.question_id for item in items} | {record.question_id for record in attended})
    budget = max(SMALLEST, min(LARGEST, ALL_IMAGES // max(1, count)))
    questions: dict[QuestionId, dict[str, Any]] = {}

    def question(folder: Path | None, item: ComparedQuestion | AttentionRecord) -> dict[str, Any]:
        assert folder is not None
        if item.question_id not in questions:
            # each polygon is one flat list of x, y, in thousandths of the image
            outline = [[round(1000 * value, 1) for corner in polygon for value in corner] for polygon in item.outline]
            questions[item.question_id] = {
                "id": str(item.question_id), "instruction": item.instruction, "category": item.category or "",
                "kind": "", "size": list(item.size), "image": small_jpeg(open_image(folder / item.image), budget),
                "outline": outline, "answers": [], "attention": None,
            }  # fmt: skip
        return questions[item.question_id]

    for item in items:
        answers = [
            {**answer_data(answer.response(item.size), item.instruction), "accuracy": answer.accuracy,
             "outcome": answer.outcome or "", "confidence": answer.confidence}
            for answer in item.answers
        ]  # fmt: skip
        question(comparison, item).update(kind=item.kind or "", answers=answers)
    for record in attended:
        of_question = question(attention, record)
        assert attention is not None
        of_question["attention"] = _attention(attention, record)
    return Explorer(scores, list(questions.values()))


def answer_data(response: Response, instruction: str = "") -> dict[str, Any]:
    """Return an answer as the page shows it: steps, final answer, problems, and its points as numbers."""
    return {
        "steps": [[HEADINGS[step.key], step.text] for step in response.steps],
        "final": answer_text(response),
        "problems": answer_problems(response, instruction),
        "text": response.text,
        "items": [[round(value, 4) for value in astuple(item)] for item in response.points],
    }


def _attention(folder: Path, record: AttentionRecord) -> dict[str, Any]:
    maps, _ = read_maps(folder, record)
    top = max((float(grid.max()) for grid in maps if not np.isnan(grid).any()), default=0.0)
    numbers = record.numbers.get(MEAN, {})
    steps = []
    for index, (step, grid) in enumerate(zip(record.steps, maps, strict=True)):
        level = np.round(255 * np.clip(np.nan_to_num(grid / top if top > 0 else grid), 0, 1)).astype(np.uint8)
        steps.append({
            "title": step.title,
            "text": step.text,
            "tokens": None if step.tokens is None else [step.tokens[0] + 1, step.tokens[1]],
            "grid": None if step.tokens is None else base64.b64encode(level.tobytes()).decode(),
            "numbers": [(numbers.get(name) or [None] * len(record.steps))[index] for name in MEASURES],
        })  # fmt: skip
    square = Square(*record.size)
    crop = [pixels / square.side for pixels in (*square.offset, *record.size)]  # left, top, width, height
    answer = answer_data(record.read(record.text))
    return {"model": record.model, "layers": ", ".join(map(str, record.layers)),
            "answer": {**answer, "accuracy": record.accuracy, "outcome": "", "confidence": None},
            "side": int(maps.shape[-1]), "crop": crop, "top": float(f"{top:.3g}"), "steps": steps}  # fmt: skip


def small_jpeg(image: Image, limit: int, sides: Iterable[int] = SIDES) -> str:
    """Return the image as a JPEG data URI, the largest and best of a few that takes at most `limit` bytes."""
    for side in sides:
        if side > max(image.size) and side != SIDES[-1] and side / max(image.size) > 1.3:
            continue  # larger than the image: the first one that is not keeps the image's own size
        small = image.convert("RGB")
        small.thumbnail((side, side))
        for quality in QUALITIES:
            buffer = io.BytesIO()
            # full colour resolution where an image is so small that it costs nothing
            small.save(buffer, "JPEG", quality=quality, subsampling=0 if max(small.size) <= 160 else 2)
            uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
            if len(buffer.getvalue()) <= limit:
                return uri
    return uri
