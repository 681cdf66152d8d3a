"""Samples on their way through a reasoner: what is asked of them, and how reasoning is put before their answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.points import Box, Point, format_points, parse_points
from ...core.prompts import IMAGE_TAG, bare_instruction, question_text
from ...core.reasoning import render
from ...core.records import Sample, Turn
from ...utils.files import JsonlWriter
from .instruction_parser import Facts, facts_of


@dataclass(frozen=True, slots=True)
class Task:
    """A sample that can be given reasoning: its instruction and answer, and what is known of it."""

    sample: Sample
    instruction: str
    points: tuple[Point | Box, ...]
    facts: Facts | None  # None when the instruction could not be read


def task_of(sample: Sample) -> Task:
    """The sample's instruction and answer. ValueError when it is not one question with points for an answer."""
    if len(sample.conversations) != 2:
        raise ValueError(f"{len(sample.conversations)} turns; expected one question and one answer")
    question, answer = sample.conversations
    points = parse_points(answer.text)
    if not points:
        raise ValueError("the answer holds no points")
    try:
        facts = facts_of(sample)
    except ValueError:
        facts = None
    return Task(sample, bare_instruction(question.text), tuple(points), facts)


def answer_text(task: Task, decimals: int) -> str:
    """The answer as it is written; ValueError when so many decimals would change it."""
    text = format_points(task.points, decimals)
    if parse_points(text) != list(task.points):
        raise ValueError(f"the answer has more than {decimals} decimals")
    return text


def with_steps(task: Task, steps: Mapping[str, str], decimals: int) -> Sample:
    """The sample with these steps before its own answer, and the request for them in its question.

    ValueError when the answer cannot be written with so many decimals.
    """
    sample = task.sample
    answer_text(task, decimals)
    text = render(steps, task.points, decimals)
    asked = f"{IMAGE_TAG}\n{question_text(sample.conversations[0].text, reasoning=True)}"
    return Sample(sample.id, sample.image, (Turn("human", asked), Turn("gpt", text)), sample.meta)


@dataclass(slots=True)
class Rejects:
    """OUT.rejects.jsonl: the ids that got no reasoning, each with its reason, and how many there are."""

    path: Path
    count: int = 0
    _writer: JsonlWriter | None = field(default=None)

    def __enter__(self) -> Rejects:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, identifier: str, reason: str) -> None:
        self.count += 1
        if self._writer is None:
            self._writer = JsonlWriter(self.path)
        self._writer.write({"id": identifier, "reason": reason})


def tasks_of(samples: Iterable[Sample], reject: Callable[[str, str], object]) -> Iterator[Task]:
    """The samples that can be given reasoning; the others, and an id's second appearance, are handed to `reject`."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            reject(sample.id, "its id appeared before in the file")
            continue
        seen.add(sample.id)
        try:
            yield task_of(sample)
        except ValueError as error:
            reject(sample.id, str(error))
