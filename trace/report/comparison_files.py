"""A folder of compared answers: what `visualization/visualize_results.py` writes and the report reads.

    index.json            every compared question with the answers of several models, as data
    images/QUESTION.jpg   its image, small
    QUESTION.png          the figure, of those that were drawn
    failures.png          how the answers came out, counted

Records hold texts and outlines; points and steps are derived from the raw text. Of a model that counts in another way
(`conventions`) the points that were read are kept beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.points import Box, Point
from ..core.prompts import bare_instruction
from ..core.reasoning import Response, parse
from ..core.records import Question, QuestionId
from ..drawing import figures
from ..drawing.canvas import save
from ..drawing.overlay import mask_outline
from ..utils.command import InputError
from ..utils.files import read_json, replacing, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

INDEX = "index.json"
LONGEST_SIDE = 640  # of the small image that goes into the report
Outline = tuple[tuple[tuple[float, float], ...], ...]  # closed polygons of normalised (x, y)


def file_name(question_id: QuestionId) -> str:
    """A question's id as the stem of a file; an id that is no plain name gets a hash, so that no two share a file."""
    name = str(question_id)
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def save_small(image: Image, path: Path) -> None:
    """The image as JPEG, its longest side at most LONGEST_SIDE pixels."""
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    with replacing(path) as temporary:
        small.save(temporary, "JPEG", quality=90)


def outline(mask: np.ndarray | None) -> Outline:
    """The outlines of a mask [height, width] as data; none without a mask."""
    if mask is None:
        return ()
    return tuple(tuple((round(float(x), 4), round(float(y), 4)) for x, y in line) for line in mask_outline(mask))


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    label: str
    text: str
    accuracy: float | None  # 0 to 1; None without ground truth
    outcome: str | None = None  # "right", or its failure class; None without ground truth
    confidence: float | None = None
    items: tuple[tuple[float, ...], ...] | None = None  # points and boxes, where the text counts in another way

    def response(self, size: tuple[int, int]) -> Response:
        """What the answer says about an image of this (width, height)."""
        found = parse(self.text, size)
        if self.items is None:
            return found
        return replace(
            found, points=tuple(Point(*item) if len(item) == 2 else Box(*item) for item in self.items), spans=()
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """One question with the answers of several models; paths are relative to the folder."""

    question_id: QuestionId
    instruction: str
    category: str | None
    kind: str | None
    size: tuple[int, int]  # (width, height) of the original image
    image: str
    picture: str | None  # None where no figure was drawn
    outline: Outline
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """A model over all questions that were compared; `outcomes`: "right" or a failure class -> how many.

    `benchmark` is its accuracy over all `asked` questions of the benchmark, where each of the `unanswered` counts as 0.
    """

    label: str
    questions: int
    accuracy: float | None
    outcomes: tuple[tuple[str, int], ...] = ()
    benchmark: float | None = None
    asked: int = 0
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class ComparisonGallery:
    scores: tuple[Score, ...]
    items: tuple[Compared, ...]


def write_compared(
    folder: Path,
    question: Question,
    image: Image,
    mask: np.ndarray | None,
    panels: Sequence[figures.Panel],
    drawn: bool = True,
) -> Compared:
    """One question's small image and, if `drawn`, its figure; returns its record for `write_comparisons`."""
    stem, instruction = file_name(question.question_id), bare_instruction(question.text)
    name = " \u00b7 ".join([f"question {question.question_id}", *([question.category] if question.category else [])])
    if drawn:
        save(figures.comparison(image, instruction, panels, mask, name), folder / f"{stem}.png")
    save_small(image, folder / "images" / f"{stem}.jpg")
    kind = question.meta.get("kind")
    return Compared(
        question.question_id,
        instruction,
        question.category,
        None if kind is None else str(kind),
        image.size,
        f"images/{stem}.jpg",
        f"{stem}.png" if drawn else None,
        outline(mask),
        tuple(
            ModelAnswer(
                panel.label,
                panel.response.text,
                panel.accuracy,
                panel.outcome,
                panel.confidence,
                _items(panel.response, image.size),
            )
            for panel in panels
        ),
    )


def _items(response: Response, size: tuple[int, int]) -> tuple[tuple[float, ...], ...] | None:
    if parse(response.text, size).points == response.points:
        return None
    return tuple(astuple(item) for item in response.points)


def write_comparisons(folder: Path, gallery: ComparisonGallery) -> None:
    write_json(folder / INDEX, asdict(gallery))


def read_comparisons(folder: Path) -> ComparisonGallery:
    """InputError when the index is absent or was not written by this project."""
    path = folder / INDEX
    found = read_json(path, "the index of compared answers")
    try:
        items = tuple(
            Compared(
                **{
                    **item,
                    "size": tuple(item["size"]),
                    "answers": tuple(ModelAnswer(**answer) for answer in item["answers"]),
                }
            )
            for item in found["items"]
        )
        scores = tuple(
            Score(**{**score, "outcomes": tuple(map(tuple, score["outcomes"]))}) for score in found["scores"]
        )
        return ComparisonGallery(scores, items)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not an index of compared answers ({error}); write it anew") from None
