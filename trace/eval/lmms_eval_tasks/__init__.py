"""Our benchmarks as tasks of the harness lmms-eval: this folder's YAML files, and the functions that they name.

    python -m lmms_eval --include_path $(trace-vlm lmms-eval-tasks) --tasks tabletop --model ...

A task's data file names a benchmark, whose questions replace it when it is loaded. Answers are scored by `scoring`, in
the convention unit; `summarize_vqa --convention` reads the samples of models that write points in another way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...core.images import open_image
from ...core.prompts import question_text
from ...core.records import Answer, Question
from ...utils.command import InputError, Parser
from ..benchmark import Benchmark, open_benchmark
from ..scoring import read_response, score_response


def main(argv: Sequence[str] | None = None) -> int:
    Parser(description="Print the folder of lmms-eval's task files, for --include_path.", examples=__doc__).parse_args(
        argv
    )
    print(Path(__file__).resolve().parent)
    return 0


@cache
def benchmark_and_questions(name: str) -> tuple[Benchmark, dict[str, Question]]:
    benchmark = open_benchmark(name)
    return benchmark, {str(question.question_id): question for question in benchmark.questions}


def load_questions(docs: Any) -> Any:
    """Return the questions of the benchmark that the data file names. SystemExit: it is not here.

    lmms-eval tries five times to load data that raise an Exception, and hides the reason.
    """
    from datasets import Dataset

    name = docs[0]["benchmark"]
    try:
        benchmark, questions = benchmark_and_questions(name)
        return Dataset.from_list(
            [
                {"benchmark": name, "question_id": key, "text": question.text, "category": question.category or "",
                 "image": str(benchmark.image_path(question).resolve())}
                for key, question in questions.items()
            ]
        )  # fmt: skip
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def ask(doc: Mapping[str, Any]) -> str:
    """Return the question with the request for points in fractions, which models of others need."""
    return question_text(doc["text"], reasoning=False)


def pictures(doc: Mapping[str, Any]) -> list[Any]:
    return [open_image(doc["image"])]


def score_answer(doc: Mapping[str, Any], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the score of an answer, with the question's id for those who read the samples."""
    benchmark, questions = benchmark_and_questions(doc["benchmark"])
    question = questions[doc["question_id"]]
    answer = Answer(question.question_id, "", texts[0], "", "")
    response = read_response(answer, benchmark.image_size(question), benchmark.question_file)
    value = score_response(response, question, benchmark.region(question))
    return {"accuracy": {"question_id": question.question_id, "score": value}}


def mean_score(results: Sequence[Mapping[str, Any]]) -> float:
    return sum(result["score"] for result in results) / len(results)
