"""Several models' answers to the same questions, scored question by question and put in an order worth looking at.

How an answer came out is "right", when at least half of its points lie in the target, or the class of its failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from ..core.images import open_image
from ..core.reasoning import Response
from ..core.records import Question
from ..drawing.figures import RIGHT, Panel
from ..eval.benchmark import Benchmark
from ..eval.error_classes import ErrorClassifier
from ..eval.scoring import RunAnswers, conventions_per_file, full_mask_warnings, read_single_run, score
from ..utils.command import InputError
from .comparison_files import Compared, Score, write_compared

MOSTLY = 0.5  # an answer is right when at least this share of its points lies in the target


@dataclass(frozen=True, slots=True)
class Comparison:
    """`questions` are those that every model answered; `scores[i]` holds one value a model for question key i.

    `outcomes[i]` says how each model's answer came out; both are empty without masks. `warnings` are what a reader of
    the numbers has to know.
    """

    suite: Benchmark
    runs: tuple[RunAnswers, ...]
    questions: tuple[Question, ...]
    scores: Mapping[str, tuple[float, ...]]
    outcomes: Mapping[str, tuple[str, ...]]
    overall: tuple[Score, ...]
    warnings: tuple[str, ...] = ()


def compare(
    suite: Benchmark, answers: Mapping[str, Path], category: str | None = None, conventions: Sequence[str] | None = None
) -> Comparison:
    """Read and score answer files (`answers`: label -> file) on the questions that all of them answer.

    Args:
        conventions: of answers that record none, one for all files or one each.
    Raises:
        InputError: a file is broken or belongs to another benchmark, nothing was answered by all, a mask is unusable.
    """
    asked = conventions_per_file(conventions, len(answers))
    runs = tuple(
        read_single_run(path, label, suite, how) for (label, path), how in zip(answers.items(), asked, strict=True)
    )
    suite = replace(suite, skipped=frozenset().union(*(run.skipped for run in runs)))
    questions = tuple(
        question
        for question in suite.questions
        if (category is None or question.category == category)
        and all(str(question.question_id) in run.responses for run in runs)
    )
    if not questions:
        files = ", ".join(map(str, answers.values()))
        of_category = f" of category {category!r}" if category is not None else ""
        raise InputError(f"no question{of_category} in {suite.question_file} is answered by all of {files}")
    benchmark: list[tuple[float, ...]] = []
    warnings = [f"{run.label}: {note}" for run in runs for note in run.notes]
    covered: list[Question] = []
    scores: dict[str, tuple[float, ...]] = {}
    outcomes: dict[str, tuple[str, ...]] = {}
    compared = {str(question.question_id) for question in questions}
    for question in suite.questions if suite.masks else ():
        name, mask = str(question.question_id), suite.mask(question)
        covered += [question] * bool(mask.all())
        values = tuple(score(run.responses[name].points, mask) if name in run.responses else 0.0 for run in runs)
        benchmark.append(values)
        if name in compared:
            judge = ErrorClassifier(question, mask, suite.question_file.parent)
            scores[name] = values
            outcomes[name] = tuple(
                outcome(judge, run.responses[name], value, name in run.cut)
                for run, value in zip(runs, values, strict=True)
            )
    overall = tuple(
        Score(
            run.label,
            len(questions),
            fmean(values[place] for values in scores.values()) if scores else None,
            tuple(Counter(values[place] for values in outcomes.values()).most_common()),
            fmean(values[place] for values in benchmark) if benchmark else None,
            len(suite.questions),
            len(suite.questions) - len(run.responses),
        )
        for place, run in enumerate(runs)
    )
    return Comparison(
        suite,
        runs,
        questions,
        scores,
        outcomes,
        overall,
        (*warnings, *full_mask_warnings(covered, len(suite.questions))),
    )


def outcome(judge: ErrorClassifier, response: Response, value: float, cut: bool) -> str:
    """How an answer with the score `value` came out: "right", or where most of its other points went.

    `cut`: it ended at the limit of tokens.
    """
    if value >= MOSTLY:
        return RIGHT
    shares = judge.shares(response.points, cut)
    return max(shares, key=lambda name: shares[name])


def ordered(comparison: Comparison, sort: str) -> list[Question]:
    """The questions in the order `sort`: given, worst, best or disagree; equal ones as given.

    Raises:
        InputError: the order needs accuracies and the benchmark has no masks.
    """
    if sort == "given":
        return list(comparison.questions)
    if not comparison.scores:
        raise InputError(f"--sort {sort} needs accuracies, but {comparison.suite.mask_folder} holds no masks")

    def rank(question: Question) -> float:
        values = comparison.scores[str(question.question_id)]
        if sort == "disagree":
            return min(values) - max(values)
        return sum(values) if sort == "worst" else -sum(values)

    return sorted(comparison.questions, key=rank)


def failing(comparison: Comparison, questions: Sequence[Question], failure: str | None) -> list[Question]:
    """The questions that some model's answer failed in this way; all of them for None.

    Raises:
        InputError: no answer failed so; the message says how the answers came out.
    """
    if failure is None:
        return list(questions)
    found = [question for question in questions if failure in comparison.outcomes.get(str(question.question_id), ())]
    if not found:
        known = sorted({name for names in comparison.outcomes.values() for name in names})
        raise InputError(f"no answer came out as {failure!r}; these occur: {', '.join(known) or 'none, without masks'}")
    return found


def write_question(folder: Path, comparison: Comparison, question: Question, drawn: bool = True) -> Compared:
    """Write one question with all answers into `folder`, with its figure if `drawn`; returns its record."""
    name, suite = str(question.question_id), comparison.suite
    values = comparison.scores.get(name)
    panels = [
        Panel(
            run.label,
            run.responses[name],
            values[place] if values else None,
            _note(comparison.overall[place]),
            comparison.outcomes[name][place] if values else None,
            fmean(sure) if (sure := run.confidence.get(name)) else None,
        )
        for place, run in enumerate(comparison.runs)
    ]
    image = open_image(suite.image_path(question))
    mask = suite.mask(question) if values else None
    return write_compared(folder, question, image, mask, panels, drawn)


def _note(overall: Score) -> str:
    if overall.accuracy is None:
        return ""
    every = "all" if overall.questions == overall.asked else "the compared"
    return f"{every} {overall.questions} questions: {overall.accuracy:.1%}"
