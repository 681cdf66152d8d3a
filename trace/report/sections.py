"""What the report's template is given: accuracy, and pictures with their marks as data URIs and SVG.

Every function returns None (or nothing) when its part is not there, and raises InputError when it is broken.
Geometry is given in a picture's own units: its width is always WIDTH, so that dots and lines look alike everywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.points import Box, Point
from ..core.reasoning import HEADINGS, Response
from ..drawing import figures
from ..drawing.overlay import crowding, heat_colors, model_colors
from ..utils.command import InputError
from ..utils.files import read_json
from .comparison_files import Outline

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 400
SOURCES = {  # what a part is made of, for the line that says that it is missing
    "summary": "accuracy (summary.json)",
    "comparisons": "answers side by side (comparison/index.json)",
    "attention": "attention (attention/index.json)",
    "training": "training curves (train/*/run.json)",
    "data": "training data (data/data.json)",
    "records": "how it was made (run.json, generate.json)",
}


# --- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marks:
    """What is drawn over a picture of WIDTH x `height`: SVG paths and dots."""

    height: float
    outline: str
    dots: tuple[tuple[float, float, bool], ...]  # x, y, inside the image
    boxes: tuple[tuple[float, float, float, float], ...]  # x, y, width, height
    crowding: tuple[float, float]  # the size of a dot, as a factor, and its opacity


def marks(size: tuple[int, int], region: Outline, items: Sequence[Point | Box]) -> Marks:
    """Truth and prediction over an image of `size` (width, height); points outside are put on its edge, boxes are not."""
    height = WIDTH * size[1] / size[0]

    def place(x: float, y: float) -> tuple[float, float]:
        return round(min(max(x, 0.0), 1.0) * WIDTH, 1), round(min(max(y, 0.0), 1.0) * height, 1)

    path = " ".join("M" + " L".join("{} {}".format(*place(x, y)) for x, y in polygon) + " Z" for polygon in region)
    dots = tuple((*place(item.x, item.y), item.inside) for item in items if isinstance(item, Point))
    boxes = []
    for item in items:
        if isinstance(item, Box):
            sides = item.x0 * WIDTH, item.y0 * height, (item.x1 - item.x0) * WIDTH, (item.y1 - item.y0) * height
            boxes.append((round(sides[0], 1), round(sides[1], 1), round(sides[2], 1), round(sides[3], 1)))
    return Marks(round(height, 1), path, dots, tuple(boxes), crowding(len(items)))


def data_uri(image: Image, side: int = 480) -> str:
    """The image as a JPEG inside a URI, its longest side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88, subsampling=0)  # full colour resolution: the images may be 128 px small
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_gradient(count: int) -> list[str]:
    """The colours of a heat-map from cold to hot."""
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in heat_colors()(np.linspace(0, 1, count))]


# --- accuracy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """One model in one row of the chart; positions from 0 to 100, text as in the table."""

    label: str
    mean: float
    low: float
    high: float
    text: str
    color: str


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    questions: int
    bars: tuple[Bar, ...]
    guess: float | None  # the best guess or simple rule of this group, percent
    guess_name: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Tables and sentences of summarize_vqa, and the chart of the same numbers."""

    benchmark: Mapping[str, Any]
    tables: Sequence[tuple[str, list[list[str]]]]
    sentences: Sequence[str]
    chart: Sequence[Row]
    models: Sequence[Bar]  # each model over all questions


def colors(summary: Path | None, labels: Sequence[str], arms: Sequence[str]) -> dict[str, str]:
    """One colour a model, by each name that a page has for it: its label, and its folder.

    An arm, a folder that was trained or looked into, is the model whose answers file bears its name. The order is the
    summary's; what only the comparison (`labels`) or the folders (`arms`) know follows.
    """
    found = read_json(summary, "the summary") if summary is not None and summary.is_file() else {"models": []}
    try:
        known = [(Path(model["answers"]).stem, str(model["label"])) for model in found["models"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{summary} is not a summary of trace.eval.summarize_vqa ({error!r}); write it anew") from None
    label_of = dict(known)
    of_model = model_colors([*(label for _, label in known), *labels, *(label_of.get(arm, arm) for arm in arms)])
    return of_model | {arm: of_model[label_of.get(arm, arm)] for arm in arms}


CHARTED = ("all", "category", "kind")  # the finer groups are in the table


def accuracy(path: Path, colors: Mapping[str, str]) -> Accuracy | None:
    """The summary of an evaluation; `colors` by the models' labels."""
    if not path.is_file():
        return None
    from ..eval.tables import sentences, tables

    summary = read_json(path, "the summary")
    try:
        found = tables(summary)
        names = [row[0] for row in found[1][1][1:]]
        fields = [entry["field"] for entry in summary["models"][0]["accuracy"]]
        chart = [
            row
            for place, (field, name) in enumerate(zip(fields, names, strict=True))
            if field in CHARTED and (row := _row(summary, place, name, colors)) is not None
        ]
        return Accuracy(summary["benchmark"], found, sentences(summary), chart, chart[0].bars if chart else ())
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path} is not a summary of trace.eval.summarize_vqa ({error!r}); write it anew") from None


def _row(summary: Mapping[str, Any], place: int, name: str, colors: Mapping[str, str]) -> Row | None:
    bars = []
    for model in summary["models"]:
        entry = model["accuracy"][place]
        if entry["mean"] is None:
            continue
        mean = 100 * entry["mean"]
        low, high = (mean if entry[end] is None else 100 * entry[end] for end in ("low", "high"))
        text = f"{mean:.1f}" if entry["low"] is None else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
        bars.append(Bar(model["label"], mean, low, high, text, colors[model["label"]]))
    if not bars:
        return None
    questions = summary["models"][0]["accuracy"][place]["questions"]
    # A shortcut that applies to a part of these questions only says nothing about all of them.
    guesses = [
        (entries[place]["mean"], source)
        for source, entries in summary["baselines"].items()
        if entries[place]["questions"] == questions
    ]
    best, source = max(guesses, default=(None, ""))
    return Row(name, questions, tuple(bars), None if best is None else 100 * best, source)


# --- an answer in words ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepText:
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class AnswerView:
    """An answer step by step: `problems` are sentences about what is wrong with it."""

    steps: tuple[StepText, ...]
    final: str
    problems: Sequence[str]
    marks: Marks


def answer_view(response: Response, drawn: Marks) -> AnswerView:
    """The words of an answer, step by step."""
    steps = tuple(StepText(HEADINGS[step.key], step.text) for step in response.steps)
    return AnswerView(steps, figures.answer_text(response), figures.answer_problems(response), drawn)
