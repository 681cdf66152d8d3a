"""Whether a sample can be trained on, and which part of a mix it belongs to.

Each check returns a sentence, or None if nothing is wrong. Problems are counted by kind, and named by the sample's id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from ...core.images import Images, decoded_size
from ...core.points import Box
from ...core.prompts import IMAGE_TAG, bare_instruction
from ...core.reasoning import FINAL_ANSWER, parse
from ...core.records import TASKS, Sample
from ...utils.command import InputError
from ...utils.files import JsonlLog
from ..cor.instruction_parser import asks_for_free_space

ProblemKind = Literal["record", "duplicate id", "conversation", "image missing", "image broken", "points", "mask"]
EXAMPLES = 3  # printed of each kind

Part = Literal["object_reference", "free_space", "detection", "vqa", "text"]  # of a mix
ImageCheck = Literal["exist", "decode", "ignore"]

# An answer that is nothing but coordinates. RefCOCO's single box in LLaVA's mix, `[0.1, 0.2, ...]`, is none: it belongs
# to the visual questions it came with, and to their frame.
_COORDINATES = re.compile(r"\s*\[?\s*\(")


@dataclass(frozen=True, slots=True)
class Problem:
    """What makes a sample unusable. A sample without an id is named by its position in the file."""

    id: str
    kind: ProblemKind
    detail: str

    def __str__(self) -> str:
        return f"sample {self.id}: {self.kind}: {self.detail}"


class Problems:
    """Counts problems, keeps a few of each kind to print, and passes each one to `log`.

    Args:
        strict: raise InputError at the first problem.
    """

    def __init__(self, strict: bool = False, log: Callable[[Problem], object] | None = None) -> None:
        self.strict, self._log = strict, log
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Problem]] = {}

    def report(self, problem: Problem) -> None:
        if self.strict:
            raise InputError(f"{problem} (without --strict such a sample is left out and counted)")
        self.counts[problem.kind] += 1
        examples = self.examples.setdefault(problem.kind, [])
        if len(examples) < EXAMPLES:
            examples.append(problem)
        if self._log is not None:
            self._log(problem)

    def table(self) -> list[str]:
        """A line for each kind that occurred, with the first few ids."""
        lines = []
        for kind in filter(self.counts.__getitem__, get_args(ProblemKind)):
            lines.append(f"  {kind:<14} {self.counts[kind]:>9,}")
            lines += [f"      {problem.id}: {problem.detail}" for problem in self.examples[kind]]
        return lines

    def print_left_out(self, out: Path) -> None:
        if self.counts:
            print("\n".join([f"left out: {self.counts.total():,} ({_log_path(out)})", *self.table()]))


@contextmanager
def logged_problems(out: Path, strict: bool) -> Iterator[Problems]:
    """Problems that are also written to OUT.problems.jsonl."""
    with JsonlLog(_log_path(out)) as log:
        yield Problems(strict, lambda one: log.write({"id": one.id, "problem": one.kind, "detail": one.detail}))


def _log_path(out: Path) -> Path:
    return out.with_name(out.name + ".problems.jsonl")


def conversation_problem(sample: Sample) -> str | None:
    """Turns that do not alternate or are empty, or an image tag that is missing or too many."""
    turns = sample.conversations
    if not turns:
        return "it has no turns"
    for number, turn in enumerate(turns, start=1):
        expected = "human" if number % 2 else "gpt"
        if turn.speaker != expected:
            return f"turn {number} is by {turn.speaker!r} where {expected!r} was expected; turns have to alternate"
    if len(turns) % 2:
        return "the last turn is a question without an answer"
    for number, turn in enumerate(turns, start=1):
        if not turn.text.replace(IMAGE_TAG, "").strip():
            return f"turn {number} is empty"
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if sample.image is None:
        return f"{tags} {IMAGE_TAG} tags but no image" if tags else None
    if tags != 1:
        return f"it has an image, but {tags or 'no'} {IMAGE_TAG} in its turns; one was expected"
    return None if IMAGE_TAG in turns[0].text else f"{IMAGE_TAG} is not in the first turn"


def points_problem(sample: Sample) -> str | None:
    """Coordinates that cannot be read or lie outside the image, in answers that have to hold coordinates."""
    pointing = part_of(sample) in (*TASKS, "detection")
    for number, turn in enumerate(sample.conversations, start=1):
        if turn.speaker != "gpt":
            continue
        if not (FINAL_ANSWER in turn.text or _COORDINATES.match(turn.text) or (pointing and number == 2)):
            continue
        response = parse(turn.text)
        if response.none:
            continue
        if not response.points:
            return f"turn {number} holds no coordinates that can be read"
        answer = turn.text[slice(*response.answer_span)] if response.answer_span else turn.text
        if _COORDINATES.match(answer.removeprefix(FINAL_ANSWER)) and answer.count("(") != len(response.points):
            return f"turn {number} writes {answer.count('(')} tuples of which {len(response.points)} can be read"
        for item in response.points:
            values = (item.x0, item.y0, item.x1, item.y1) if isinstance(item, Box) else (item.x, item.y)
            if not all(0 <= value <= 1 for value in values):
                return f"turn {number}: {values} is outside the image; coordinates are fractions in [0, 1]"
    return None


def content_problem(sample: Sample, images: Images, image_check: ImageCheck = "exist") -> Problem | None:
    """What takes longer to find: coordinates that cannot be read, an image that is missing or does not decode."""
    if trouble := points_problem(sample):
        return Problem(sample.id, "points", trouble)
    if sample.image is None or image_check == "ignore":
        return None
    if trouble := images.problem(sample.image):
        return Problem(sample.id, "image missing", trouble)
    if image_check == "decode" and isinstance(size := decoded_size(images.path(sample.image)), str):
        return Problem(sample.id, "image broken", f"{sample.image}: {size}")
    return None


def part_of(sample: Sample) -> Part:
    """The part that the sample is: by its task if that is named, otherwise by its words."""
    if sample.image is None:
        return "text"
    if sample.meta.get("kind") == "detection":
        return "detection"
    if sample.task is not None:
        return cast(Part, sample.task)
    answer = next((turn.text for turn in sample.conversations if turn.speaker == "gpt"), "")
    response = parse(answer) if FINAL_ANSWER in answer or _COORDINATES.match(answer) else None
    if response is None or not response.parsable:
        return "vqa"
    if response.points and isinstance(response.points[0], Box):
        return "detection"
    free = asks_for_free_space(bare_instruction(sample.conversations[0].text))
    return "free_space" if free else "object_reference"
