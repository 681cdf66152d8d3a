"""Samples on their way through a reasoner: what is asked, which reasoning is kept, and how it is put before the answer.

Kept are four steps of a readable length, without coordinates (unless asked for), which name the reference object of the
instruction and the right subtype, and say no word about the points that were drawn for the writer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...core.absence import find_none, format_none
from ...core.points import Box, Point, format_points, parse_points
from ...core.prompts import IMAGE_TAG, bare_instruction, question_text
from ...core.reasoning import HEADINGS, STEPS, parse, render
from ...core.records import Sample, Turn
from .instruction_parser import InstructionFacts, facts_of

FEWEST_WORDS, MOST_WORDS = 3, 90  # of one step
SUBTYPES = {"object_reference": "object reference", "free_space": "free space"}

_NUMBERS = re.compile(
    r"(?<![\w.])\d*\.\d+\b|\b\d+(?:\.\d+)? ?(?:%|percent\b|px\b|pixels?\b)|\b[xy] ?[=≈:] ?\d"
    r"|\(\s*\d+\s*,\s*\d+\s*\)|\b\d{2,4} ?, ?\d{2,4}\b|\bpixels? \d|\b(?:row|column) \d{2}",
    re.IGNORECASE,
)
# What only a writer who saw the drawn points or the prompt would say. Words of the instruction are allowed.
_LEAKS = re.compile(
    r"\b(?:dot(?:s|ted)?|circle[sd]?|magenta|annotat\w+|overla(?:id|y|ys)|mark(?:s|ed|er|ers|ings?)?|ground[- ]truth|"
    r"(?:given|provided|correct|shown|drawn|highlighted|indicated|labell?ed) (?:answer|points?|coordinates)|"
    r"(?:points?|spots?|coordinates) (?:shown|drawn|displayed|indicated|provided|plotted)|"
    r"(?:pink|purple|violet|fuchsia) (?:points?|spots?)|"
    r"the (?:answer|prompt) (?:is|was|says|gives?)|highlight\w*)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:no|not|none|nothing|neither|without|lacks?|absent|missing|cannot)\b|n['’]t\b", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class ReasoningTask:
    """A sample that can be given reasoning: its instruction and answer, and what is known of it."""

    sample: Sample
    instruction: str
    points: tuple[Point | Box, ...]
    facts: InstructionFacts | None  # None if the instruction could not be read
    none: str | None = None  # why there is nothing to point at: "there is no mug."; None if there is something

    @classmethod
    def of(cls, sample: Sample) -> ReasoningTask:
        """ValueError if the answer to one question is neither points nor that there is nothing to point at."""
        if len(sample.conversations) != 2:
            raise ValueError(f"{len(sample.conversations)} turns; expected one question and one answer")
        question, answer = sample.conversations
        points = parse_points(answer.text)
        none = None
        if not points:
            if find_none(answer.text) is None:
                raise ValueError("the answer holds no points")
            none = answer.text.strip().removeprefix(format_none("").strip()).strip()
            none = none if " " in none else "there is nothing to point at."
        try:
            facts = facts_of(sample)
        except ValueError:
            facts = None
        return cls(sample, bare_instruction(question.text), tuple(points), facts, none)


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
    if task.none is not None:
        return format_none(task.none)
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
    turns = (Turn("human", asked), Turn("gpt", render(steps, task.points, decimals, task.none)))
    return Sample(sample.id, sample.image, turns, sample.meta)


class Rejected(ValueError):
    """A text that is not kept; the message is the reason, recorded and sent to a remote model that is asked again."""


def read_steps(text: str) -> dict[str, str]:
    """Read four steps from a JSON object with their keys, or from a text under the template's headings.

    Raises:
        Rejected: steps are missing, unknown or not a text.
    """
    steps: object = None
    start, end = text.find("{"), text.rfind("}")
    if start >= 0 and end > start:  # models put it into a code fence, with a word before
        try:
            steps = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            steps = None
    if not isinstance(steps, dict):
        steps = {step.key: step.text for step in parse(text).steps}
        if not steps:
            raise Rejected("the text is neither a JSON object nor four steps under their headings")
    return as_steps(steps)


def as_steps(record: Mapping[str, object]) -> dict[str, str]:
    """The steps of a mapping that has exactly their keys, each text on one line; Rejected otherwise."""
    if missing := [key for key in STEPS if key not in record]:
        raise Rejected(f"the steps lack {', '.join(missing)}")
    if unknown := [str(key) for key in record if key not in HEADINGS]:
        raise Rejected(f"there is no step {', '.join(unknown)}; the steps are {', '.join(STEPS)}")
    steps: dict[str, str] = {}
    for key in STEPS:
        value = record[key]
        if not isinstance(value, str) or not value.strip():
            raise Rejected(f"the step {key} is no text")
        steps[key] = " ".join(value.split())
    return steps


def check(steps: Mapping[str, str], task: ReasoningTask, coordinates: bool = False) -> None:
    """Raise Rejected, with the reason, if these steps may not be kept. With `coordinates` they locate what they name."""
    facts, known = task.facts, _stems(task.instruction)
    for key in STEPS:
        count = len(_WORD.findall(steps[key]))
        if not FEWEST_WORDS <= count <= MOST_WORDS:
            raise Rejected(f"the step {key} has {count} words; allowed are {FEWEST_WORDS} to {MOST_WORDS}")
        _check_numbers(key, steps[key], coordinates)
        for match in _LEAKS.finditer(steps[key]):
            if not _stems(match[0]) <= known:
                raise Rejected(f"the step {key} speaks of what was only drawn or told to the writer ({match[0]!r})")
    try:
        render(steps, [])
    except ValueError as error:
        raise Rejected(str(error)) from None
    _check_reference(steps["reference"], task)
    if facts is not None and SUBTYPES[facts.task] not in steps["subtype"].lower().replace("-", " "):
        raise Rejected(f'the step subtype does not call the goal "{SUBTYPES[facts.task]}"')
    if task.none is not None:
        written = " ".join(steps[key] for key in STEPS)
        if not _DENIES.search(written):
            raise Rejected("no step says that what is asked for is not there")
        instead = [item for item, _ in facts.absent.instead] if facts is not None and facts.absent is not None else []
        if instead and not any(_stems(item.category) <= _stems(written) for item in instead):
            raise Rejected(f"no step says what is there instead, such as {instead[0].phrase}")
    surface_only = facts is not None and not facts.references and facts.relation is not None
    if coordinates and not surface_only and not parse_points(steps["reference"]):
        raise Rejected("the step reference does not locate the reference object, as --coordinates asks")


def _check_numbers(key: str, text: str, coordinates: bool) -> None:
    points = parse_points(text)
    if coordinates:
        if any(not isinstance(item, Point) or not item.inside for item in points):
            raise Rejected(f"the step {key} holds a box or a point outside the image")
        return
    number = _NUMBERS.search(text)
    if points or number:
        raise Rejected(f"the step {key} holds coordinates" + (f" ({number[0].strip()})" if number else ""))


def _check_reference(text: str, task: ReasoningTask) -> None:
    written, asked = _stems(text), _stems(task.instruction)
    if task.facts is None:  # then only words are compared
        long_words = " ".join(word for word in _WORD.findall(task.instruction) if len(word) > 3)
        if not written & (_stems(long_words) - _COMMON):
            raise Rejected("the step reference names nothing that the instruction names")
        return
    for anchor in task.facts.anchors:
        if not any(_required_words(name, asked) <= written for name in anchor.names):
            raise Rejected(f"the step reference does not name {anchor.phrase}, which the instruction names")


def _required_words(name: str, asked: set[str]) -> set[str]:
    """The words of a name that a text has to use: of "white padlock" the last, where "the padlock" is asked for."""
    words = [_stem(word) for word in _WORD.findall(name.lower()) if word not in ("the", "a", "an")]
    return set(words) & asked if words and words[-1] in asked else set(words)


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text.lower())}


def _stem(word: str) -> str:
    for ending in ("ings", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_COMMON = _stems(
    "image picture point points several some find locate identify pinpoint mark show where with that this there "
    "which object item space area spot free vacant empty situated located within from into onto over under"
)
