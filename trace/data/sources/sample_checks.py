"""Is a sample sound? Turns, the image tag, coordinates, and where its image lies; each answer is a sentence or nothing.

Also which part of a mix a sample belongs to: object reference, free space, detection, visual questions or text alone.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from ...core.images import Images
from ...core.points import Box
from ...core.prompts import IMAGE_TAG, bare_instruction
from ...core.reasoning import FINAL_ANSWER, Response, parse
from ...core.records import Sample
from ..cor.instruction_parser import asks_for_free_space
from .problems import MISSING, POINTS

OBJECT_REFERENCE, FREE_SPACE, DETECTION, VQA, TEXT = "object_reference", "free_space", "detection", "vqa", "text"
PARTS = (OBJECT_REFERENCE, FREE_SPACE, DETECTION, VQA, TEXT)
POINTING = (OBJECT_REFERENCE, FREE_SPACE)
# RoboPoint's folders and our generator's kinds of question; other sets are told by their words.
_FOLDERS = MappingProxyType({"object_ref": OBJECT_REFERENCE, "region_ref": FREE_SPACE})
_KINDS = MappingProxyType(
    {
        "direct": OBJECT_REFERENCE,
        "relational": OBJECT_REFERENCE,
        "free": FREE_SPACE,
        "between": FREE_SPACE,
        "part": FREE_SPACE,
    }
    | {DETECTION: DETECTION}
)
# An answer that is nothing but coordinates. RefCOCO's single box in LLaVA's mix, `[0.1, 0.2, ...]`, is none: it belongs
# to the visual questions it came with, and to their frame.
_COORDINATES = re.compile(r"\s*\[?\s*\(")


def conversation_problem(sample: Sample) -> str | None:
    """What keeps these turns from being trained on, None when nothing does."""
    turns = sample.conversations
    if not turns:
        return "it has no turns"
    for number, turn in enumerate(turns, start=1):
        expected = "human" if number % 2 else "gpt"
        if turn.speaker != expected:
            return f"turn {number} is by {turn.speaker!r} where {expected!r} was expected; turns have to alternate"
    if len(turns) % 2:
        return "the last turn is a question without an answer"
    empty = next((number for number, turn in enumerate(turns, start=1) if not _has_words(turn.text)), None)
    if empty is not None:
        return f"turn {empty} is empty"
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if sample.image is None:
        return f"{tags} {IMAGE_TAG} tags but no image" if tags else None
    if tags != 1:
        return f"it has an image, but {tags or 'no'} {IMAGE_TAG} in its turns; one was expected"
    return None if IMAGE_TAG in turns[0].text else f"{IMAGE_TAG} is not in the first turn"


def _has_words(text: str) -> bool:
    return bool(text.replace(IMAGE_TAG, "").strip())


def points_problem(sample: Sample) -> str | None:
    """Whether answers that have to hold coordinates do, all of them readable and inside the image."""
    pointing = part_of(sample) in (*POINTING, DETECTION)
    for number, turn in enumerate(sample.conversations, start=1):
        if turn.speaker != "gpt":
            continue
        if not (FINAL_ANSWER in turn.text or _COORDINATES.match(turn.text) or (pointing and number == 2)):
            continue
        response = parse(turn.text)
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


def late_problem(sample: Sample, images: Images) -> tuple[str, str] | None:
    """(kind, sentence) of what takes longer to see: coordinates that cannot be read, an image that is not there."""
    if trouble := points_problem(sample):
        return POINTS, trouble
    if sample.image is not None and (trouble := images.problem(sample.image)):
        return MISSING, trouble
    return None


def part_of(sample: Sample) -> str:
    """Which of PARTS the sample is: by RoboPoint's folder, by the generator's `meta`, otherwise by its words."""
    if sample.image is None:
        return TEXT
    kind = sample.meta.get("kind")
    if isinstance(kind, str) and kind in _KINDS:
        return _KINDS[kind]
    for name in (sample.id, sample.image):
        for folder in name.split("/")[:-1]:
            if folder in _FOLDERS:
                return _FOLDERS[folder]
    answer = next((turn.text for turn in sample.conversations if turn.speaker == "gpt"), "")
    if FINAL_ANSWER not in answer and not _COORDINATES.match(answer):
        return VQA
    points = parse(answer).points
    if not points:
        return VQA
    if isinstance(points[0], Box):
        return DETECTION
    return FREE_SPACE if asks_for_free_space(bare_instruction(sample.conversations[0].text)) else OBJECT_REFERENCE


def reasoned(sample: Sample) -> Response | None:
    """The answer's response when it holds reasoning before its points, otherwise None."""
    if len(sample.conversations) != 2:
        return None
    response = parse(sample.conversations[1].text)
    return response if response.steps and response.answer_span and response.points else None
