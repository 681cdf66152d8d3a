"""The Chain of Reasoning (CoR) in text: how it is rendered, and how it is read back with the span of every step.

The template is TRACE's: four numbered steps under bold headings, then the final answer. The reader looks for the
headings in any order and forgives slips: missing asterisks or numbers, other case, a dash for the colon. If there is a
final answer (`Final Answer:`, `Answer:`, `<answer>`), points are read from it only, never from the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

from .absence import find_none, format_none
from .points import Box, Mention, Point, find_points, format_points

HEADINGS: Mapping[str, str] = MappingProxyType(
    {
        "reference": "Identify the reference object",
        "target": "Define the target area",
        "subtype": "Determine the goal's subtype",
        "output": "Generate the output",
    }
)
STEPS = tuple(HEADINGS)
HOP = "hop_"  # and a number: the key of a hop, a part of the first step
PREAMBLE = "**Reasoning Process:**"
FINAL_ANSWER = "**Final Answer:**"
THOUGHTS, THOUGHTS_END = "<think>", "</think>"  # around what models that think aloud (Qwen3, RoboBrain 2) think

_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|\Z)", re.DOTALL)
_SIDE = re.compile(r"\b(?:(?:left|right|front|side) of|behind)\b", re.IGNORECASE)
Span = tuple[int, int]
Read = Callable[[str], Sequence[Mention]]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the reasoning."""

    key: str  # one of STEPS
    heading: str  # as written, its number and asterisks included
    text: str
    span: Span  # characters of the response, from the beginning of `heading` to the end of `text`


@dataclass(frozen=True, slots=True)
class Response:
    """A model's text and what was read from it."""

    text: str
    steps: tuple[Step, ...]
    points: tuple[Point | Box, ...]
    answer_span: Span | None  # the last final answer with its heading; None without one
    spans: tuple[Span, ...] = ()  # characters of each of `points`, () where they are not known
    read: Read = field(default=find_points, repr=False, compare=False)  # reads the points of a piece of the text
    none_span: Span | None = None  # characters that say that there is nothing to point at; None if nothing says so

    @property
    def hops(self) -> tuple[Step, ...]:
        """The sentences of the first step that go on from its object to another, as steps "hop_1", "hop_2"."""
        first = self.step("reference")
        if first is None:
            return ()
        start = first.span[1] - len(first.text)
        walked = [match for match in list(_SENTENCE.finditer(first.text))[1:] if _SIDE.search(match[0])]
        return tuple(Step(f"{HOP}{number}", "", match[0], (start + match.start(), start + match.end()))
                     for number, match in enumerate(walked, start=1))  # fmt: skip

    @property
    def parts(self) -> tuple[Step, ...]:
        """The steps, with every hop as a step of its own; the first step ends where its first hop begins."""
        hops, first = self.hops, self.step("reference")
        if first is None or not hops:
            return self.steps
        text = first.text[: hops[0].span[0] - first.span[1]].rstrip()
        own = replace(first, text=text, span=(first.span[0], first.span[1] - len(first.text) + len(text)))
        at = self.steps.index(first)
        return (*self.steps[:at], own, *hops, *self.steps[at + 1 :])

    @property
    def none(self) -> bool:
        """Whether the answer is that there is nothing to point at."""
        return self.none_span is not None

    @property
    def parsable(self) -> bool:
        """Whether an answer was read: at least one point or box, or that there is nothing to point at."""
        return bool(self.points) or self.none

    def step(self, key: str) -> Step | None:
        """Return the first step of this key, one of STEPS; None if it is missing."""
        return next((step for step in self.steps if step.key == key), None)

    def select(self, indices: Sequence[int]) -> Response:
        """Return the response with these of its points only."""
        points = tuple(self.points[index] for index in indices)
        return replace(self, points=points, spans=tuple(self.spans[index] for index in indices if self.spans))


def render(steps: Mapping[str, str], points: Iterable[Point | Box], decimals: int = 3, none: str | None = None) -> str:
    """Write the template: `steps` maps keys to bodies, in any order; absent steps are left out.

    Args:
        none: why there is nothing to point at ("there is no mug on the shelf."); written instead of `points`.
    Raises:
        ValueError: an unknown key, or a body that holds a heading, which would be read back as another step.
    """
    if unknown := [key for key in steps if key not in HEADINGS]:
        raise ValueError(f"there is no step {unknown[0]!r}; the steps are {', '.join(STEPS)}")
    lines = [PREAMBLE] if steps else []
    plain = all(_PLAIN.fullmatch(text) for text in steps.values())
    for number, key in enumerate((key for key in STEPS if key in steps), start=1):
        lines.append(f"{number}. **{HEADINGS[key]}:** {steps[key].strip()}".rstrip())
    text = "\n".join([*lines, "", FINAL_ANSWER] if steps else [FINAL_ANSWER])
    if not plain and len(_find_headings(text)) != len(lines) + 1:
        raise ValueError("the text of a step holds a heading of the template, which would begin another step")
    return f"{text}\n{format_points(points, decimals) if none is None else format_none(none)}"


def parse(text: str, size: tuple[int, int] | None = None, read: Read | None = None) -> Response:
    """Read any text; what it does not hold is empty in the result.

    A section goes from its heading to the next one. Points come from the last final answer that holds any, or says that
    there is nothing to point at (a model may announce one before it gives it, or begin a second that is cut off), and
    there from its first list; without a final answer from the complete text. Thoughts between tags are left out of both;
    if they have no end, only a final answer counts. Steps without a final answer do not say that there is nothing.

    Args:
        size: (width, height) of the image, to read pixels.
        read: reads the points of a piece of text in another convention than this project's.
    """
    read_points = read or partial(find_points, size=size)
    headings = _find_headings(text)
    steps: list[Step] = []
    answers: list[tuple[int, int, int]] = []  # start, end of the heading, end
    thought = text.rfind(THOUGHTS_END) + len(THOUGHTS_END) if THOUGHTS_END in text else 0
    for index, (key, start, body_start) in enumerate(headings):
        body = text[body_start : headings[index + 1][1] if index + 1 < len(headings) else len(text)].rstrip()
        end = body_start + len(body)
        if key == "answer" and start >= thought:
            answers.append((start, body_start, end))
        elif key in HEADINGS:
            steps.append(Step(key, text[start:body_start], body.strip(), (start, end)))

    answer_span: Span | None = (answers[-1][0], answers[-1][2]) if answers else None
    points: Sequence[Mention] = ()
    none, offset = None, 0
    for start, offset, end in reversed(answers):
        if points := read_points(text[offset:end]):
            answer_span, points = (start, end), _first_list(text[offset:end], points)
        elif none := find_none(text[offset:end]):
            answer_span = start, end
        if points or none:
            break
    if not answers:
        unclosed = text.find(THOUGHTS, thought)
        offset, body = thought, text[thought : len(text) if unclosed < 0 else unclosed]
        points = read_points(body)
        none = find_none(body) if not points and not steps else None
    spans = tuple((mention.start + offset, mention.end + offset) for mention in points)
    none_span = (none[0] + offset, none[1] + offset) if none else None
    items = tuple(mention.item for mention in points)
    return Response(text, tuple(steps), items, answer_span, spans, read_points, none_span)


# --- finding the headings: every quantifier is bounded or possessive, so that any text is read in linear time ---------

_SPACE = r"[ \t]{1,3}"
_VERB = rf"(?:identify|define|determine|find|generate){_SPACE}(?:the{_SPACE})?"
_WORDS = re.compile(
    rf"""(?=[adfgirmst<])(?:(?<![^\W_])(?:
      (?P<reference>  (?:{_VERB}|the{_SPACE})?reference{_SPACE}(?:object|surface)s?)
    | (?P<target>     (?:{_VERB}|the{_SPACE})?target{_SPACE}area)
    | (?P<subtype>    (?:{_VERB}|the{_SPACE})?(?:goal(?:['’]?s)?{_SPACE})?sub-?type)
    | (?P<output>     {_VERB}(?:output|coordinates))
    | (?P<preamble>   reasoning{_SPACE}process)
    | (?P<answer>     final{_SPACE}answer)
    | (?P<short>      (?:(?:the|my){_SPACE})?answer)
    )(?![^\W_]) | (?P<tag> <answer>) | (?P<end> </answer>))""",
    re.VERBOSE | re.IGNORECASE,
)
# Within a line only an answer's heading, or words behind a number or asterisks, count: most sentences match this.
_PLAIN = re.compile(rf"(?:(?!final{_SPACE}answer|answer{_SPACE}(?:is|are)|</?answer>)[^\r\n\d*_])*+", re.IGNORECASE)
_WITH_VERB = re.compile(_VERB, re.IGNORECASE)
# What may stand before the words: blanks, bullets, asterisks, a number; and how much of the text is looked at for it.
_DECORATION = re.compile(
    r"(?:[ \t]++|[-–*_#>]++|(?<![\w.])\(?+\d{1,2}+ ?+[.):]|(?<!\w)step \d{1,2}+[.):]?+)*+\Z", re.IGNORECASE
)
_LOOK_BACK = 24
# What ends them: a colon, a dash, asterisks, or the line.
_ENDING = re.compile(r"(?P<closing>[*_]{0,3}+)(?:[ \t]{0,4}+(?P<separator>:|[-–—=](?=\s))[*_]{0,3}+)?+")
_LINE_END = re.compile(r"[.]?+[ \t]{0,4}+(?:[\r\n]|\Z)")
_ANSWER_BEGINS = re.compile(r"[ \t]{1,4}+(?:is|are)(?!\w):?+|(?=[ \t]{0,4}+[\[(`])", re.IGNORECASE)
_SHORT_BEGINS = re.compile(r"[ \t]{1,4}+(?:is|are):?+(?=[ \t*`$\\]{0,4}+[\[(])", re.IGNORECASE)


class _Heading(NamedTuple):
    key: str  # one of STEPS, "preamble", "answer", or "end" for the end of an answer
    start: int
    end: int


def _find_headings(text: str) -> list[_Heading]:
    headings: list[_Heading] = []
    for words in _WORDS.finditer(text):
        heading = _as_heading(text, words, floor=headings[-1].end if headings else 0)
        if heading is not None:
            headings.append(heading)
    return headings


def _as_heading(text: str, words: re.Match[str], floor: int) -> _Heading | None:
    """Return the heading of these words with its decoration, after `floor`; None if they are part of a sentence."""
    key = str(words.lastgroup)
    if key in ("tag", "end"):
        return _Heading("answer" if key == "tag" else key, words.start(), words.end())
    decoration = _DECORATION.search(text, max(floor, words.start() - _LOOK_BACK), words.start())
    ending = _ENDING.match(text, words.end())
    assert decoration is not None and ending is not None  # they may match nothing, but they match
    marks = decoration[0]  # bullets, number and asterisks
    at_line_start = decoration.start() == 0 or text[decoration.start() - 1] in "\r\n"
    start, end, separator = words.start() - len(marks.lstrip()), ending.end(), ending["separator"]
    numbered = any(character.isdigit() for character in marks)
    bold = "**" in marks or "__" in marks
    closed = bool(separator or ending["closing"] or _LINE_END.match(text, end))

    accepted = at_line_start or numbered or (bold and bool(separator))
    if key == "answer":
        if not separator and (begins := _ANSWER_BEGINS.match(text, end)):
            return _Heading(key, start, begins.end())
        accepted = (accepted and closed) or separator == ":"
    elif key == "short":
        if begins := _SHORT_BEGINS.match(text, end):
            return _Heading("answer", start, begins.end())
        key, accepted = "answer", (at_line_start or bold) and closed
    else:
        accepted = accepted and (closed or ((numbered or bold) and _WITH_VERB.match(words[0]) is not None))
    return _Heading(key, start, end) if accepted else None


# --- the points of a final answer -------------------------------------------------------------------------------------

# What may stand between the points of a list besides punctuation and numbers: joining words, quoted labels and keys,
# labels in brackets, tags, LaTeX's commands, a word with a number ("Point 2").
_BETWEEN = re.compile(
    r"""\b(?:and|or|then|also|plus|at|finally)\b|"[^"\n]*+"|(?<!\w)'[^'\n]*+'|\([^()\n]*+\)|<[^<>\n]*+>|\\[a-z]++"""
    r"""|(?<![^\W\d_])[^\W\d_]++[ ]?+[#]?+\d{1,3}+\b""",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{2,}+")
_LABELLED = re.compile(r"[:=–—-][\s*`$\\\[({]*+\Z")
_SENTENCE_ENDS = re.compile(r"[.!?]")
_LABEL = 3  # words of a label at most, where no colon says that it is one


def _first_list(answer: str, points: Sequence[Mention]) -> Sequence[Mention]:
    """Return the points that a final answer lists, without those that a sentence behind the list mentions.

    A point continues the list when between it and the point before stand no words, or only words in quotes or brackets,
    a word with a number, a label of up to three words with a colon, or words of one sentence that "and" ends. A point on
    a new line also continues it when it begins the line, or stands behind a label: words that end in a colon or dash;
    what the line before says behind its point is that point's label. Where the first point has a label of up to three
    words without a colon, so may the others, on a new line or behind a comma; and lines whose last two words before the
    point are those of the first line ("The second point is") belong together.
    Points with a JSON key or in an XML tag all count.
    """
    first = _words(answer[: points[0].start].rpartition("\n")[2])
    for count, (before, after) in enumerate(pairwise(points), start=1):
        if not (after.marked or _continues(answer[before.end : after.start], first)):
            return points[:count]
    return points


def _continues(gap: str, first: list[str]) -> bool:
    """Whether the text between two points belongs to a list; `first`: the words before its first point."""
    behind, *lines = _BETWEEN.sub(" ", gap).split("\n")
    words = _words(lines[-1] if lines else behind)
    labelled = 0 < len(first) <= _LABEL and len(words) <= _LABEL
    if lines:
        same_end = len(words) > 1 and words[-2:] == first[-2:]
        headings = all(len(_words(line)) <= _LABEL for line in lines[:-1])
        return headings and (not words or labelled or same_end or _LABELLED.search(lines[-1]) is not None)
    with_colon = len(words) <= _LABEL and (":" in behind or "=" in behind)
    joined = gap.rstrip().endswith("and") and not _SENTENCE_ENDS.search(gap)
    return not words or with_colon or joined or (labelled and gap.lstrip("]) .*")[:1] in (",", ";"))


def _words(text: str) -> list[str]:
    return _WORD.findall(_BETWEEN.sub(" ", text))
