"""Folders of pictures with a record beside each: what the visualization commands write and the report reads.

    comparison/index.json   questions with the answers of several models; QUESTION.png, images/QUESTION.jpg
    attention/index.json    questions with the attention of one model; QUESTION.json, QUESTION_1_reference.png ...,
                            QUESTION_milestones.png, images/QUESTION.jpg

Records hold texts, outlines and attention grids as data; points and steps are always derived from the raw text. An
attention record is written after its pictures, so a question that has one is whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plots
from .canvas import save
from .command import InputError
from .eval.metrics import score
from .files import read_json, replacing, write_json
from .images import unpad_map
from .marks import mask_outline
from .milestones import MILESTONES, MilestoneMaps
from .prompts import bare_instruction
from .records import Question, QuestionId

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


# --- answers side by side ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    label: str
    text: str
    accuracy: float | None  # 0 to 1; None without ground truth


@dataclass(frozen=True, slots=True)
class Compared:
    """One question with the answers of several models; paths are relative to the folder."""

    question_id: QuestionId
    instruction: str
    category: str | None
    size: tuple[int, int]  # (width, height) of the original image
    image: str
    picture: str
    outline: Outline
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """A model over all questions that were compared."""

    label: str
    questions: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class ComparisonGallery:
    scores: tuple[Score, ...]
    items: tuple[Compared, ...]


def write_compared(
    folder: Path,
    question: Question,
    image: Image,
    mask: np.ndarray | None,
    panels: Sequence[plots.Panel],
) -> Compared:
    """Draw one question's panels into the folder; returns its record for `write_comparisons`."""
    stem, instruction = file_name(question.question_id), bare_instruction(question.text)
    name = " \u00b7 ".join([f"question {question.question_id}", *([question.category] if question.category else [])])
    save(plots.comparison(image, instruction, panels, mask, name), folder / f"{stem}.png")
    save_small(image, folder / "images" / f"{stem}.jpg")
    return Compared(
        question.question_id,
        instruction,
        question.category,
        image.size,
        f"images/{stem}.jpg",
        f"{stem}.png",
        outline(mask),
        tuple(ModelAnswer(panel.label, panel.response.text, panel.accuracy) for panel in panels),
    )


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
        return ComparisonGallery(tuple(Score(**score) for score in found["scores"]), items)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not an index of compared answers ({error}); write it anew") from None


# --- attention -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MilestoneRecord:
    """One milestone. Of a missing one tokens, share, picture and grid ([grid, grid], padded square) are None."""

    key: str
    title: str
    text: str
    tokens: tuple[int, int] | None
    share: float | None
    grid: tuple[tuple[float, ...], ...] | None
    picture: str | None

    def step_map(self, size: tuple[int, int]) -> plots.StepMap:
        """What the figures draw, over an image of `size` (width, height)."""
        heat = None if self.grid is None else unpad_map(np.asarray(self.grid, dtype=np.float32), size)
        share = float("nan") if self.share is None else self.share
        return plots.StepMap(self.title, self.text, heat, share, self.tokens)


@dataclass(frozen=True, slots=True)
class Attended:
    """One question with the attention of one model; `order` is its place in the question file."""

    question_id: QuestionId
    order: int
    instruction: str
    category: str | None
    size: tuple[int, int]
    image: str
    picture: str
    outline: Outline
    text: str
    token_ids: tuple[int, ...]
    accuracy: float | None  # of this answer, 0 to 1; None without ground truth
    milestones: tuple[MilestoneRecord, ...]
    model: str
    layers: tuple[int, ...]
    settings: Mapping[str, Any]  # what decided the answer and the maps

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(milestone.title for milestone in self.milestones if milestone.grid is None)


def write_attended(
    folder: Path,
    order: int,
    question: Question,
    image: Image,
    mask: np.ndarray | None,
    maps: MilestoneMaps,
    model: str,
    settings: Mapping[str, Any],
) -> Attended:
    """One picture a milestone that the answer holds, all of them in a strip, and the record, in this order."""
    stem, instruction = file_name(question.question_id), bare_instruction(question.text)
    steps = maps.steps(image.size)
    top, points = plots.shared_top(steps), maps.response.points
    records = []
    for index, (key, step) in enumerate(zip(MILESTONES, steps, strict=True)):
        picture = f"{stem}_{index + 1}_{key}.png"
        (folder / picture).unlink(missing_ok=True)  # of an earlier answer that had this step
        if step.heat is None:
            records.append(MilestoneRecord(key, step.title, "", None, None, None, None))
            continue
        save(plots.milestone(image, step, index + 1, top, points, mask), folder / picture)
        grid = tuple(tuple(float(f"{value:.4g}") for value in row) for row in maps.maps[index])
        records.append(MilestoneRecord(key, step.title, step.text, step.tokens, round(step.share, 6), grid, picture))
    strip = f"{stem}_milestones.png"
    save(plots.progression(image, instruction, steps, points, mask, f"question {question.question_id}"), folder / strip)
    save_small(image, folder / "images" / f"{stem}.jpg")
    record = Attended(
        question.question_id,
        order,
        instruction,
        question.category,
        image.size,
        f"images/{stem}.jpg",
        strip,
        outline(mask),
        maps.response.text,
        maps.token_ids,
        None if mask is None else score(points, mask),
        tuple(records),
        model,
        maps.layers,
        dict(settings),
    )
    write_json(folder / f"{stem}.json", asdict(record))
    return record


def whole(folder: Path, question_id: QuestionId, settings: Mapping[str, Any]) -> bool:
    """Whether a question's record and pictures are there and were made under the same settings."""
    path = folder / f"{file_name(question_id)}.json"
    if not path.is_file():
        return False
    record = _attended(path)
    pictures = [record.image, record.picture, *(m.picture for m in record.milestones if m.picture is not None)]
    same = record.question_id == question_id and dict(record.settings) == dict(settings)
    return same and all((folder / picture).is_file() for picture in pictures)


def write_attention_index(folder: Path, failures: Mapping[str, str]) -> None:
    """The index of every record in the folder, also of earlier runs; `failures`: question id -> reason."""
    records = sorted((record.order, path.name) for path in folder.glob("*.json") if path.name != INDEX
                     for record in [_attended(path)])  # fmt: skip
    write_json(folder / INDEX, {"records": [name for _, name in records], "failures": dict(failures)})


def read_attention(folder: Path) -> list[Attended]:
    """The records of a folder in the order of its index. InputError when index or a record is absent or broken."""
    path = folder / INDEX
    found = read_json(path, "the index of attention pictures")
    if not isinstance(found, dict) or not isinstance(found.get("records"), list):
        raise InputError(f"{path} is not an index of attention pictures; write it anew")
    return [_attended(folder / str(name)) for name in found["records"]]


def _attended(path: Path) -> Attended:
    found = read_json(path, "the attention record")
    try:
        milestones = tuple(
            MilestoneRecord(**{**one, "tokens": None if one["tokens"] is None else tuple(one["tokens"])})
            for one in found["milestones"]
        )
        fields = {"size": tuple(found["size"]), "milestones": milestones, "token_ids": tuple(found["token_ids"]),
                  "layers": tuple(found["layers"])}  # fmt: skip
        return Attended(**{**found, **fields})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record of attention ({error}); remove it") from None
