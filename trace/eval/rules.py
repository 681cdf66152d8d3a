"""Score rules: what is right where a benchmark does not score the share of an answer's points inside the mask.

`meta["rule"]` of a question names one of RULES; `open_benchmark` puts the rule of suite.json there. `scoring` asks this
module, and nothing else decides whether an answer is right: if its first point is inside, if all are and they are as many
as `meta["count"]`, if its yes or no is `meta["answer"]`, or if it says that there is nothing to point at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..core.points import Box, Point
from ..core.prompts import asks_yes_no
from ..core.reasoning import THOUGHTS, THOUGHTS_END, Response
from ..core.records import Question
from ..utils.command import InputError

SHARE, FIRST_POINT, ALL_POINTS, YES_NO = "share of points", "first point", "all points", "yes / no"
NOTHING = "nothing there"  # of every question with meta["absent"]
RULES = (SHARE, FIRST_POINT, ALL_POINTS, YES_NO, NOTHING)

Items = Sequence[Point | Box]
_YES_NO = r"(yes|no)\b"
_BEGINS = re.compile(
    rf"[\W_]*+(?:(?:(?:the|my)\s++)?(?:final\s++)?answer\b(?:\s++is\b)?[\W_]*+)?{_YES_NO}", re.IGNORECASE
)
_LATER = re.compile(
    rf"(?:\banswer(?:\s{{1,3}}is)?\b|[.!?:\n])[\W_]{{0,8}}\b{_YES_NO}(?=[*_\"'’”)]*+(?:[.,;!\n]|\Z))", re.IGNORECASE
)


def rule_of(question: Question) -> str:
    return NOTHING if question.meta.get("absent") else str(question.meta.get("rule", SHARE))


def check_rule(question: Question, where: str) -> None:
    """InputError: the rule is unknown, or what it needs is missing."""
    rule, meta = rule_of(question), question.meta
    if rule not in RULES:
        raise InputError(f"{where}: there is no score rule {rule!r}. Known: {', '.join(RULES)}")
    if rule == ALL_POINTS and (type(meta.get("count")) is not int or meta["count"] < 1):
        raise InputError(f'{where}: the rule "{rule}" needs the number of points in meta["count"]')
    if rule == YES_NO and (meta.get("answer") not in ("yes", "no") or not asks_yes_no(question.text)):
        raise InputError(
            f'{where}: the rule "{rule}" needs "yes" or "no" in meta["answer"], and a text that asks for it'
        )


def read_yes_no(response: Response) -> str | None:
    """Return "yes" or "no" as the final answer says it, None if it says neither.

    The word begins the answer, or a later sentence of an answer without a heading, or follows "answer is".
    """
    if response.answer_span is not None:
        text = response.text[slice(*response.answer_span)]
    else:
        text = response.text.rpartition(THOUGHTS_END)[2].partition(THOUGHTS)[0]
    begins = _BEGINS.match(text)
    words = [begins[1]] if begins else _LATER.findall(text)
    return words[-1].lower() if words else None


def is_readable(question: Question, response: Response) -> bool:
    """Whether the response holds what the question asks for: a point, or yes or no."""
    return read_yes_no(response) is not None if rule_of(question) == YES_NO else response.parsable


def counted_points(question: Question, points: Items) -> Items:
    """Return those of an answer's points, in the order of its text, that the question's rule looks at."""
    if rule_of(question) in (SHARE, NOTHING):
        return points
    centers = [item.center for item in points]
    return centers[:1] if rule_of(question) == FIRST_POINT else centers


def judge(question: Question, response: Response, count: Callable[[Items], tuple[int, int]]) -> tuple[int, int]:
    """Return (hits, total) of a response; their quotient is its score. `count` counts points inside the mask."""
    rule = rule_of(question)
    if rule == YES_NO:
        return int(read_yes_no(response) == question.meta["answer"]), 1
    if rule == NOTHING:
        return int(response.none), 1
    hits, total = count(counted_points(question, response.points))
    if rule == SHARE:
        return hits, total
    return int(hits == total == (question.meta["count"] if rule == ALL_POINTS else 1)), 1
