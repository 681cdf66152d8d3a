"""Answers without a point: why nothing could be read, and a few of them to look at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.reasoning import THOUGHTS, THOUGHTS_END, Response

EXAMPLES = 3
LONGEST = 120  # characters of an example

_NUMBER = r"\d++(?:\.\d++)?+"
# The first that is found in the text names the reason.
_REASONS = (
    ("percent signs", re.compile(r"\d\.?+\s{0,3}+(?:%|％|percent)", re.IGNORECASE)),
    ("special tokens", re.compile(r"<\|?[a-z_]{1,30}+\d{1,6}+\|?>|<\|\w{1,30}+\|>", re.IGNORECASE)),
    ("XML tags of another convention", re.compile(r"<points?\b", re.IGNORECASE)),
    ("decimal commas", re.compile(r"(?<![\d.])\d,\d++\s{0,3}+[;/|]|(?<![\d.])0,\d++\s{0,3}+,?+\s{0,3}+0,\d")),
    ("three numbers in brackets", re.compile(rf"[(\[] ?+(?:-?{_NUMBER} ?+, ?+){{2}}-?{_NUMBER} ?+[)\]]")),
    ("cut inside a point", re.compile(r"[(\[]\s{0,3}+[-\d.,\s]{0,40}+\Z")),
    ("another form of brackets", re.compile(rf"[(\[{{<]\s{{0,3}}+-?{_NUMBER}")),
    ("no brackets", re.compile(r"\d")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unread:
    question_id: str
    text: str
    reason: str


def unread(question_id: object, response: Response, cut: bool = False) -> Unread:
    """Why `response` holds no point; `cut`: it ended at the limit of tokens."""
    return Unread(str(question_id), _short(response.text), _reason(response, cut))


def _reason(response: Response, cut: bool) -> str:
    text = response.text
    answer = text[slice(*response.answer_span)] if response.answer_span else text
    thinking = text.rfind(THOUGHTS) > text.rfind(THOUGHTS_END)
    if not text.strip():
        return "empty"
    if response.answer_span is None and (thinking or response.steps or cut):
        return "cut before the final answer"
    found = next((name for name, pattern in _REASONS if pattern.search(answer)), "no numbers")
    return "cut inside the final answer" if cut and found in ("no numbers", "cut inside a point") else found


def _short(text: str) -> str:
    """On one line; of a long text its beginning and its end, where the points should stand."""
    line = " ".join(text.split())
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half].rstrip()} ... {line[-half:].lstrip()}"


def summed(answers: Sequence[Unread]) -> dict[str, Any]:
    """What summary.json holds: how many for each reason, and examples, of different reasons as far as there are any."""
    first = {one.reason: one for one in reversed(answers)}
    chosen = [one for one in answers if first[one.reason] is one]
    chosen += [one for one in answers if first[one.reason] is not one]
    return {
        "reasons": dict(Counter(one.reason for one in answers).most_common()),
        "examples": [asdict(one) for one in chosen[:EXAMPLES]],
    }
