"""Answers of several models to the same questions: scored, sorted, and written to a folder that the report reads.

    index.json            every compared question with all answers, and the models' scores
    images/QUESTION.jpg   a small image of each
    QUESTION.png          the figure, for the questions that were drawn

An answer is "right" when at least half of its points lie in the target; otherwise its outcome is its error class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ..core.images import open_image
from ..core.points import Box, Point
from ..core.prompts import bare_instruction
from ..core.reasoning import Response, parse
from ..core.records import Question, QuestionId
from ..drawing.canvas import file_stem, save_figure, save_thumbnail
from ..drawing.figures import RIGHT, AnswerPanel, draw_comparison
from ..drawing.overlay import Outline, mask_outline
from ..eval.benchmark import Benchmark, run_settings
from ..eval.error_classes import ErrorClassifier, answer_errors
from ..eval.scoring import (
    RunAnswers,
    asked_differently,
    conventions_per_file,
    full_mask_warnings,
    read_single_run,
    score_response,
)
from ..utils.command import InputError
from ..utils.files import read_json, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

INDEX = "index.json"
RIGHT_SHARE = 0.5  # of an answer's points in the target, from which it is right


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model: its mean `accuracy` over the `questions` compared, and how many answers had each outcome.

    `benchmark` is its accuracy over all `asked` questions of the benchmark; each of the `unanswered` scores 0.
    """

    label: str
    questions: int
    accuracy: float | None
    outcomes: tuple[tuple[str, int], ...] = ()
    benchmark: float | None = None
    asked: int = 0
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """`questions` are those that every model answered; `scores` and `outcomes` map a question's key to one value a
    model, and are empty without masks."""

    benchmark: Benchmark
    runs: tuple[RunAnswers, ...]
    questions: tuple[Question, ...]
    scores: Mapping[str, tuple[float, ...]]
    outcomes: Mapping[str, tuple[str, ...]]
    overall: tuple[ModelScore, ...]
    warnings: tuple[str, ...] = ()


def compare(
    benchmark: Benchmark, answers: Mapping[str, Path], category: str | None = None,
    conventions: Sequence[str] | None = None,
) -> Comparison:  # fmt: skip
    """Read and score answer files (`answers`: label -> file) on the questions that all of them answer.

    `conventions` are for answers that record none: one for all files or one each. InputError: a file is broken or
    belongs to another benchmark, no question is answered by all, or a mask is broken.
    """
    asked = conventions_per_file(conventions, len(answers))
    runs = tuple(read_single_run(path, label, benchmark, convention)
                 for (label, path), convention in zip(answers.items(), asked, strict=True))  # fmt: skip
    benchmark = replace(benchmark, skipped=frozenset().union(*(run.skipped for run in runs)))
    questions = tuple(question for question in benchmark.questions if category in (None, question.category)
                      and all(str(question.question_id) in run.responses for run in runs))  # fmt: skip
    if not questions:
        of_category = f" of category {category!r}" if category is not None else ""
        files = ", ".join(map(str, answers.values()))
        raise InputError(f"no question{of_category} in {benchmark.question_file} is answered by all of {files}")
    compared = {question.question_id for question in questions}
    all_scores: list[tuple[float, ...]] = []
    covered: list[Question] = []
    scores: dict[str, tuple[float, ...]] = {}
    outcomes: dict[str, tuple[str, ...]] = {}
    for question in benchmark.questions if benchmark.scored else ():
        name, mask = str(question.question_id), benchmark.region(question)
        covered += [question] * bool(mask is not None and mask.all())
        answered = [run.responses.get(name) for run in runs]
        values = tuple(0.0 if one is None else score_response(one, question, mask) for one in answered)
        all_scores.append(values)
        if question.question_id in compared:
            judge = None if mask is None else ErrorClassifier(question, mask, benchmark.question_file.parent)
            scores[name] = values
            outcomes[name] = tuple(
                RIGHT if value >= RIGHT_SHARE
                else max(answer_errors(question, run.responses[name], False, name in run.cut, judge).items(),
                         key=itemgetter(1))[0]
                for run, value in zip(runs, values, strict=True)
            )  # fmt: skip
    overall = tuple(
        ModelScore(
            run.label, questions=len(questions), asked=len(benchmark.questions),
            unanswered=len(benchmark.questions) - len(run.responses),
            accuracy=fmean(values[index] for values in scores.values()) if scores else None,
            benchmark=fmean(values[index] for values in all_scores) if all_scores else None,
            outcomes=tuple(Counter(values[index] for values in outcomes.values()).most_common()),
        )
        for index, run in enumerate(runs)
    )  # fmt: skip
    warnings = [f"{run.label}: {note}" for run in runs for note in run.notes]
    warnings += asked_differently({run.label: run_settings(run.record).get("reasoning") for run in runs})
    warnings += full_mask_warnings(covered, len(benchmark.questions))
    return Comparison(benchmark, runs, questions, scores, outcomes, overall, tuple(warnings))


def sort_questions(comparison: Comparison, order: str) -> list[Question]:
    """Return the questions in the order "given", "worst", "best" or "disagree"; the last three need masks (InputError)."""
    if order == "given":
        return list(comparison.questions)
    if not comparison.scores:
        raise InputError(f"--sort {order} needs accuracies, but {comparison.benchmark.mask_folder} holds no masks")

    def rank(question: Question) -> float:
        values = comparison.scores[str(question.question_id)]
        return {"disagree": min(values) - max(values), "worst": sum(values), "best": -sum(values)}[order]

    return sorted(comparison.questions, key=rank)


def filter_by_outcome(comparison: Comparison, questions: Sequence[Question], outcome: str | None) -> list[Question]:
    """Return the questions that some answer has this outcome on; all of them for None. InputError: no answer has it."""
    if outcome is None:
        return list(questions)
    chosen = [question for question in questions if outcome in comparison.outcomes.get(str(question.question_id), ())]
    if not chosen:
        known = sorted({name for names in comparison.outcomes.values() for name in names})
        raise InputError(f"no answer came out as {outcome!r}; these occur: {', '.join(known) or 'none, without masks'}")
    return chosen


# --- the folder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """One model's answer; `items` are its points and boxes where they cannot be read from the text (conventions)."""

    label: str
    text: str
    accuracy: float | None  # 0 to 1; None without ground truth
    outcome: str | None = None
    confidence: float | None = None
    items: tuple[tuple[float, ...], ...] | None = None

    def response(self, size: tuple[int, int]) -> Response:
        """Read the answer, about an image of this (width, height)."""
        response = parse(self.text, size)
        if self.items is None:
            return response
        items = tuple(Point(*item) if len(item) == 2 else Box(*item) for item in self.items)
        return replace(response, points=items, spans=())


@dataclass(frozen=True, slots=True)
class ComparedQuestion:
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


def write_question(folder: Path, comparison: Comparison, question: Question, drawn: bool = True) -> ComparedQuestion:
    """Write one question's small image, and its figure if `drawn`; return its record."""
    name, benchmark = str(question.question_id), comparison.benchmark
    panels = []
    for index, (run, total) in enumerate(zip(comparison.runs, comparison.overall, strict=True)):
        accuracy, outcome, note = None, None, ""
        if total.accuracy is not None:
            accuracy, outcome = comparison.scores[name][index], comparison.outcomes[name][index]
            every = "all" if total.questions == total.asked else "the compared"
            note = f"{every} {total.questions} questions: {total.accuracy:.1%}"
        confidence = fmean(values) if (values := run.confidence.get(name)) else None
        panels.append(AnswerPanel(run.label, run.responses[name], accuracy, note, outcome, confidence))
    image = open_image(benchmark.image_path(question))
    return write_panels(
        folder, question, image, benchmark.region(question) if comparison.scores else None, panels, drawn
    )


def write_panels(
    folder: Path, question: Question, image: Image, mask: np.ndarray | None, panels: Sequence[AnswerPanel],
    drawn: bool = True,
) -> ComparedQuestion:  # fmt: skip
    """Write one question's small image, and the figure of `panels` if `drawn`; return its record."""
    stem, instruction = file_stem(question.question_id), bare_instruction(question.text)
    name = " \u00b7 ".join([f"question {question.question_id}", *([question.category] if question.category else [])])
    if drawn:
        save_figure(draw_comparison(image, instruction, panels, mask, name), folder / f"{stem}.png")
    save_thumbnail(image, folder / "images" / f"{stem}.jpg")
    answers = []
    for panel in panels:
        points = panel.response.points
        items = None if parse(panel.response.text, image.size).points == points else tuple(map(astuple, points))
        answers.append(ModelAnswer(panel.label, panel.response.text, panel.accuracy, panel.outcome, panel.confidence,
                                   items))  # fmt: skip
    kind = question.meta.get("kind")
    return ComparedQuestion(
        question_id=question.question_id, instruction=instruction, category=question.category,
        kind=None if kind is None else str(kind), size=image.size, image=f"images/{stem}.jpg",
        picture=f"{stem}.png" if drawn else None, outline=mask_outline(mask), answers=tuple(answers),
    )  # fmt: skip


def write_comparison(folder: Path, scores: Sequence[ModelScore], questions: Sequence[ComparedQuestion]) -> None:
    write_json(folder / INDEX, {"scores": list(map(asdict, scores)), "items": list(map(asdict, questions))})


def read_comparison(folder: Path) -> tuple[list[ModelScore], list[ComparedQuestion]]:
    """Read a folder's index: the scores and the questions. InputError when it is absent or is not such an index."""
    path = folder / INDEX
    record = read_json(path, "the index of compared answers")
    try:
        scores = [ModelScore(**{**score, "outcomes": tuple(map(tuple, score["outcomes"]))})
                  for score in record["scores"]]  # fmt: skip
        return scores, [ComparedQuestion(**{**item, "size": tuple(item["size"]),
                                            "answers": tuple(ModelAnswer(**answer) for answer in item["answers"])})
                        for item in record["items"]]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not an index of compared answers ({error}). Write it again.") from None
