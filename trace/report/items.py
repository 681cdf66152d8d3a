"""The questions of a report as data that the page itself draws: one small JPEG each, everything else as numbers.

A question has the answers of the compared models, the attention of one model, or both. Points, outlines and attention
grids are data, so that a thousand questions fit into one page: what an image may take is shared out among them. The
page gets texts only as texts; its script never makes markup of them.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..attention.metrics import MEASURES
from ..attention.results import MEAN, Attended, read_attention, read_maps
from ..core.images import Square, open_image
from ..core.points import Box, Point
from ..core.reasoning import HEADINGS, Response, parse
from ..core.records import QuestionId
from ..drawing import figures
from .comparison_files import INDEX, Compared, ComparisonGallery, Outline, Score, read_comparisons

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = 24_000_000  # bytes of all JPEGs together; base64 makes a third more of them
LARGEST, SMALLEST = 60_000, 6_000  # bytes of one
SIDES = (480, 400, 336, 280, 224, 160, 112)
QUALITIES = (88, 78, 66, 52)


@dataclass(frozen=True, slots=True)
class Explorer:
    """What the page's script is given: the compared models in order, and a mapping for each question."""

    scores: Sequence[Score]
    questions: Sequence[Mapping[str, Any]]

    @property
    def labels(self) -> list[str]:
        """The compared models."""
        return [score.label for score in self.scores]

    @property
    def attended(self) -> list[str]:
        """The models whose attention is shown."""
        return list(dict.fromkeys(one["attention"]["model"] for one in self.questions if one["attention"]))

    def models(self, colors: Mapping[str, str]) -> list[str]:
        """The models in the page's legend: an attended one goes by its label where it is among the compared ones."""
        compared = {colors[label] for label in self.labels}
        return [*self.labels, *(name for name in self.attended if colors[name] not in compared)]

    @property
    def data(self) -> dict[str, Any]:
        return {"labels": self.labels, "questions": list(self.questions), "measures": dict(MEASURES)}


def explorer(comparison: Path | None, attention: Path | None) -> Explorer | None:
    """Every question of either folder; those in both are one. None when neither folder has an index."""
    compared = _gallery(comparison)
    attended = read_attention(attention) if attention is not None and (attention / INDEX).is_file() else []
    if compared is None and not attended:
        return None
    by_id: dict[QuestionId, dict[str, Any]] = {}
    budget = _budget({item.question_id for item in compared.items} if compared else set(), attended)
    if compared is not None and comparison is not None:
        for item in compared.items:
            by_id[item.question_id] = _compared(comparison, item, budget)
    for record in attended:
        assert attention is not None
        if record.question_id not in by_id:
            by_id[record.question_id] = _question(record, attention / record.image, budget)
        by_id[record.question_id]["attention"] = _attended(attention, record)
    return Explorer(compared.scores if compared else (), list(by_id.values()))


def _gallery(folder: Path | None) -> ComparisonGallery | None:
    return read_comparisons(folder) if folder is not None and (folder / INDEX).is_file() else None


def _budget(compared: set[QuestionId], attended: Sequence[Attended]) -> int:
    count = len(compared | {record.question_id for record in attended})
    return max(SMALLEST, min(LARGEST, IMAGES // max(1, count)))


def _question(item: Compared | Attended, image: Path, budget: int) -> dict[str, Any]:
    return {
        "id": str(item.question_id),
        "instruction": item.instruction,
        "category": item.category or "",
        "kind": (item.kind or "") if isinstance(item, Compared) else "",
        "size": list(item.size),
        "image": small_jpeg(open_image(image), budget),
        "outline": _polygons(item.outline),
        "answers": [],
        "attention": None,
    }


def _compared(folder: Path, item: Compared, budget: int) -> dict[str, Any]:
    found = _question(item, folder / item.image, budget)
    for answer in item.answers:
        response = answer.response(item.size)
        found["answers"].append(
            {**written(response), "accuracy": answer.accuracy, "outcome": answer.outcome or "",
             "confidence": answer.confidence}
        )  # fmt: skip
    return found


def written(response: Response) -> dict[str, Any]:
    """An answer as the page shows it: steps, final answer, what is wrong with it, and its points as numbers."""
    return {
        "steps": [[HEADINGS[step.key], step.text] for step in response.steps],
        "final": figures.answer_text(response),
        "problems": figures.answer_problems(response),
        "text": response.text,
        "items": [_item(item) for item in response.points],
    }


def _item(item: Point | Box) -> list[float]:
    values = (item.x, item.y) if isinstance(item, Point) else (item.x0, item.y0, item.x1, item.y1)
    return [round(value, 4) for value in values]


def _polygons(outline: Outline) -> list[list[float]]:
    """Each polygon as one flat list of x, y, in thousandths of the image."""
    return [[round(1000 * value, 1) for corner in polygon for value in corner] for polygon in outline]


def _attended(folder: Path, record: Attended) -> dict[str, Any]:
    maps, _ = read_maps(folder, record)
    top = max((float(grid.max()) for grid in maps if not np.isnan(grid).any()), default=0.0)
    numbers = record.numbers.get(MEAN, {})
    steps = []
    for place, (one, grid) in enumerate(zip(record.milestones, maps, strict=True)):
        missing = one.tokens is None
        steps.append(
            {
                "title": one.title,
                "text": one.text,
                "tokens": None if one.tokens is None else [one.tokens[0] + 1, one.tokens[1]],
                "grid": None if missing else _bytes(grid / top if top > 0 else grid),
                "top": None if missing else float(f"{grid.max():.3g}"),
                "numbers": [(numbers.get(name) or [None] * 5)[place] for name in MEASURES],
            }
        )
    square = Square(*record.size)
    crop = [pixels / square.side for pixels in (*square.offset, *record.size)]  # left, top, width, height
    return {
        "model": record.model,
        "layers": ", ".join(map(str, record.layers)),
        "answer": {**written(parse(record.text, record.size)), "accuracy": record.accuracy, "outcome": "",
                   "confidence": None},
        "side": int(maps.shape[-1]),
        "crop": crop,
        "top": float(f"{top:.3g}"),
        "steps": steps,
    }  # fmt: skip


def _bytes(level: np.ndarray) -> str:
    """A grid of values from 0 to 1 as base64 of one byte each, row by row."""
    return base64.b64encode(np.round(255 * np.clip(level, 0, 1)).astype(np.uint8).tobytes()).decode()


def small_jpeg(image: Image, limit: int) -> str:
    """The image as a JPEG inside a data URI, the largest and best of a few that takes at most `limit` bytes."""
    best = b""
    for side in SIDES:
        if side > max(image.size) and side != SIDES[-1] and side / max(image.size) > 1.3:
            continue  # larger than the image is: the first one that is not keeps its own size
        small = image.convert("RGB")
        small.thumbnail((side, side))
        for quality in QUALITIES:
            buffer = io.BytesIO()
            # full colour resolution where an image is so small that it costs nothing
            small.save(buffer, "JPEG", quality=quality, subsampling=0 if max(small.size) <= 160 else 2)
            best = buffer.getvalue()
            if len(best) <= limit:
                return "data:image/jpeg;base64," + base64.b64encode(best).decode()
    return "data:image/jpeg;base64," + base64.b64encode(best).decode()


def success(explored: Explorer) -> list[tuple[str, list[tuple[str, int]]]]:
    """For each compared model, how many answers have all, some or none of their points in the target."""
    found = []
    for label, known in _accuracies(explored).items():
        if known:
            every, none = sum(math.isclose(value, 1) for value in known), sum(value == 0 for value in known)
            found.append((label, [("all points in the target", every), ("some", len(known) - every - none),
                                  ("none", none)]))  # fmt: skip
    return found


def means(explored: Explorer) -> list[tuple[str, list[tuple[float, str]]]]:
    """For each compared model its mean accuracies from 0 to 1, with words for the questions that each is over."""
    known, found = _accuracies(explored), []
    for score in explored.scores:
        values: list[tuple[float, str]] = []
        if score.benchmark is not None:
            unanswered = f" ({score.unanswered} not answered)" if score.unanswered else ""
            values.append((score.benchmark, f"of all {score.asked} questions of the benchmark{unanswered}"))
        if shown := known[score.label]:
            values.append((fmean(shown), f"of the {len(shown)} questions on this page"))
        if values:
            found.append((score.label, values))
    return found


def _accuracies(explored: Explorer) -> dict[str, list[float]]:
    """Each compared model's accuracies on the questions of the page, where they are known."""
    answers = [question["answers"] for question in explored.questions if question["answers"]]
    return {
        label: [one[place]["accuracy"] for one in answers if one[place]["accuracy"] is not None]
        for place, label in enumerate(explored.labels)
    }
