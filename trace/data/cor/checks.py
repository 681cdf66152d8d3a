"""Whether a reasoning may be kept, whoever wrote it: the rules, a person, a remote model.

One room for what a good text is: four steps, no coordinates inside them (unless the recipe wants them), the reference
object that the instruction names, the right subtype, no word of the marks that we drew for the writer, and a length
that a person would read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.points import Point, parse_points
from ...core.reasoning import HEADINGS, STEPS, parse, render
from .instruction_parser import Facts

FEWEST_WORDS, MOST_WORDS = 3, 90  # of one step
SUBTYPES = {"object_reference": "object reference", "free_space": "free space"}

_NUMBERS = re.compile(
    r"(?<![\w.])\d*\.\d+\b|\b\d+(?:\.\d+)? ?(?:%|percent\b|px\b|pixels?\b)|\b[xy] ?[=≈:] ?\d"
    r"|\(\s*\d+\s*,\s*\d+\s*\)|\b\d{2,4} ?, ?\d{2,4}\b|\bpixels? \d|\b(?:row|column) \d{2}",
    re.IGNORECASE,
)
# What only somebody who saw our drawing or our prompt would write. A word of the instruction is nobody's secret.
_OURS = re.compile(
    r"\b(?:dot(?:s|ted)?|circle[sd]?|magenta|annotat\w+|overla(?:id|y|ys)|mark(?:s|ed|er|ers|ings?)?|ground[- ]truth|"
    r"(?:given|provided|correct|shown|drawn|highlighted|indicated|labell?ed) (?:answer|points?|coordinates)|"
    r"(?:points?|spots?|coordinates) (?:shown|drawn|displayed|indicated|provided|plotted)|"
    r"(?:pink|purple|violet|fuchsia) (?:points?|spots?)|"
    r"the (?:answer|prompt) (?:is|was|says|gives?)|highlight\w*)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+")


class Rejected(ValueError):
    """A text that is not kept; the message is the reason, as it is recorded and as a writer is told."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a recipe asks of the steps."""

    coordinates: bool = False  # the steps locate what they name


def read_steps(text: str) -> dict[str, str]:
    """The four steps of a writer's answer: a JSON object with their keys, or the template's own headings.

    Rejected when steps are missing, unknown or no text.
    """
    found: object = None
    start, end = text.find("{"), text.rfind("}")
    if start >= 0 and end > start:  # models put it into a code fence, with a word before
        try:
            found = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict):
        found = {step.key: step.text for step in parse(text).steps}
        if not found:
            raise Rejected("the text is neither a JSON object nor four steps under their headings")
    return as_steps(found)


def as_steps(found: Mapping[str, object]) -> dict[str, str]:
    """A mapping with exactly the keys of the steps, every text on one line; Rejected otherwise."""
    missing = [key for key in STEPS if key not in found]
    if missing:
        raise Rejected(f"the steps lack {', '.join(missing)}")
    if unknown := [str(key) for key in found if key not in HEADINGS]:
        raise Rejected(f"there is no step {', '.join(unknown)}; the steps are {', '.join(STEPS)}")
    steps: dict[str, str] = {}
    for key in STEPS:
        value = found[key]
        if not isinstance(value, str) or not value.strip():
            raise Rejected(f"the step {key} is no text")
        steps[key] = " ".join(value.split())
    return steps


def check(steps: Mapping[str, str], instruction: str, facts: Facts | None, rules: Rules) -> None:
    """Rejected, with the reason, when these steps may not be kept.

    Args:
        facts: what is known of the sample; None when its instruction could not be read, so that only its words are
            compared.
    """
    for key in STEPS:
        count = len(_WORD.findall(steps[key]))
        if not FEWEST_WORDS <= count <= MOST_WORDS:
            raise Rejected(f"the step {key} has {count} words; allowed are {FEWEST_WORDS} to {MOST_WORDS}")
        _check_numbers(key, steps[key], rules)
        _check_marks(key, steps[key], instruction)
    try:
        render(steps, [])
    except ValueError as error:
        raise Rejected(str(error)) from None
    _check_reference(steps["reference"], instruction, facts)
    if facts is not None and SUBTYPES[facts.task] not in steps["subtype"].lower().replace("-", " "):
        raise Rejected(f'the step subtype does not call the goal "{SUBTYPES[facts.task]}"')
    surface_only = facts is not None and not facts.references and facts.relation is not None
    if rules.coordinates and not surface_only and not parse_points(steps["reference"]):
        raise Rejected("the step reference does not locate the reference object, as this recipe asks")


def _check_numbers(key: str, text: str, rules: Rules) -> None:
    points = parse_points(text)
    if rules.coordinates:
        outside = [item for item in points if not isinstance(item, Point) or not item.inside]
        if outside:
            raise Rejected(f"the step {key} holds a box or a point outside the image")
        return
    found = _NUMBERS.search(text)
    if points or found:
        raise Rejected(f"the step {key} holds coordinates" + (f" ({found[0].strip()})" if found else ""))


def _check_marks(key: str, text: str, instruction: str) -> None:
    known = {_stem(word) for word in _WORD.findall(instruction.lower())}
    for match in _OURS.finditer(text):
        if not all(_stem(word) in known for word in _WORD.findall(match[0].lower())):
            raise Rejected(f"the step {key} speaks of what was only drawn or told to the writer ({match[0]!r})")


def _check_reference(text: str, instruction: str, facts: Facts | None) -> None:
    said = {_stem(word) for word in _WORD.findall(text.lower())}
    if facts is None:
        asked = {_stem(word) for word in _WORD.findall(instruction.lower()) if len(word) > 3} - _COMMON
        if not said & asked:
            raise Rejected("the step reference names nothing that the instruction names")
        return
    asked = {_stem(word) for word in _WORD.findall(instruction.lower())}
    for thing in facts.anchors:
        if not any(_wanted(name, asked) <= said for name in thing.names):
            raise Rejected(f"the step reference does not name {thing.phrase}, which the instruction names")


def _wanted(name: str, asked: set[str]) -> set[str]:
    """The words of a name that a text has to use: of "white padlock" the last, where "the padlock" is asked for."""
    words = [_stem(word) for word in _WORD.findall(name.lower()) if word not in _ARTICLES]
    return set(words) & asked if words and words[-1] in asked else set(words)


def _stem(word: str) -> str:
    for ending in ("ings", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_ARTICLES = {"the", "a", "an"}
_COMMON = {
    _stem(word)
    for word in (
        "image picture point points several some find locate identify pinpoint mark show where with that this there "
        "which object item space area spot free vacant empty situated located within from into onto over under"
    ).split()
}
