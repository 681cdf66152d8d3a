"""Samples on their way through a reasoner: what is asked of them, and how reasoning is put before their answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...core.points import Box, Point, format_points, parse_points
from ...core.prompts import IMAGE_TAG, bare_instruction, question_text
from ...core.reasoning import render
from ...core.records import Sample, Turn
from .instruction_parser import InstructionFacts, facts_of


@dataclass(frozen=True, slots=True)
class ReasoningTask:
    """A sample that can be given reasoning: its instruction and answer, and what is known of it."""

    sample: Sample
    instruction: str
    points: tuple[Point | Box, ...]
    facts: InstructionFacts | None  # None if the instruction could not be read

    @classmethod
    def of(cls, sample: Sample) -> ReasoningTask:
        """ValueError if the sample is not one question with points for an answer."""
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
        return cls(sample, bare_instruction(question.text), tuple(points), facts)


def reasoning_tasks(samples: Iterable[Sample], reject: Callable[[str, str], object]) -> Iterator[ReasoningTask]:
    """The samples that can be given reasoning; `reject(id, reason)` receives the others and repeated ids."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            reject(sample.id, "its id appeared before in the file")
            continue
        seen.add(sample.id)
        try:
            yield ReasoningTask.of(sample)
        except ValueError as error:
            reject(sample.id, str(error))


def answer_text(task: ReasoningTask, decimals: int) -> str:
    """Write the answer; ValueError if so few decimals would change it."""
    text = format_points(task.points, decimals)
    if parse_points(text) != list(task.points):
        raise ValueError(f"the answer has more than {decimals} decimals")
    return text


def with_steps(task: ReasoningTask, steps: Mapping[str, str], decimals: int) -> Sample:
    """Put steps before the sample's own answer, and ask for them in its question.

    ValueError if the answer cannot be written with so few decimals.
    """
    answer_text(task, decimals)
    sample = task.sample
    asked = f"{IMAGE_TAG}\n{question_text(sample.conversations[0].text, reasoning=True)}"
    turns = (Turn("human", asked), Turn("gpt", render(steps, task.points, decimals)))
    return Sample(sample.id, sample.image, turns, sample.meta)
