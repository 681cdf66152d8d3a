"""What is known of a sample: from the generator's `meta`, or read from the wording of its instruction.

Reasoning states these facts and nothing else. RoboPoint's archive has no `meta`; its instructions are sentences such as
"The image features an object outlined by a red rectangle. Locate several points on an item that is situated on the
right side of the marked item." The marked object, the relation, and whether free space or an object is asked for are
read from the words; an instruction that does not say enough is a ValueError with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ...core.points import Point
from ...core.prompts import bare_instruction
from ...core.records import TASKS, Sample
from ..scenes.wording import PARTS, RELATIONS


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object, or several that are named as one. `phrase` has its article: "the blue ball", "the two mugs"."""

    phrase: str
    names: tuple[str, ...]  # what a text may call it: one of these, with all its words
    plural: bool = False
    center: Point | None = None
    category: str = ""


@dataclass(frozen=True, slots=True)
class AbsentThing:
    """That what is asked for is not there; an object that is nowhere in the scene is the target of the facts."""

    reason: str  # as of the generator's `questions.absent`
    answer: str  # "there is no blue mug."
    instead: tuple[tuple[NamedObject, str | None], ...]  # what is seen, and the relation that it has to the reference


@dataclass(frozen=True, slots=True)
class InstructionFacts:
    """What the sentences may state. An object reference without a relation has its target as the only reference."""

    task: Literal["object_reference", "free_space"]
    relation: str | None
    references: tuple[NamedObject, ...]
    target: NamedObject | None = None
    surface: str | None = None  # a name without its article
    hops: tuple[tuple[str, NamedObject], ...] = ()  # of a chain: the relations and objects between reference and target
    absent: AbsentThing | None = None

    @property
    def anchors(self) -> tuple[NamedObject, ...]:
        """What the instruction names: the references, else the target, else the surface."""
        if self.references:
            return self.references
        if self.target is not None and self.relation is None:
            return (self.target,)
        return (NamedObject(f"the {self.surface}", (str(self.surface),)),) if self.surface else ()


def facts_of(sample: Sample) -> InstructionFacts:
    """The facts of a sample. ValueError says what is missing."""
    if "kind" in sample.meta:
        return facts_from_meta(sample.meta)
    question = next((turn.text for turn in sample.conversations if turn.speaker == "human"), "")
    return facts_from_wording(bare_instruction(question))


def facts_from_meta(meta: Mapping[str, Any]) -> InstructionFacts:
    """Read the `meta` of a generated sample. ValueError says what is missing."""
    if missing := [key for key in ("task", "kind", "references", "surface") if key not in meta]:
        raise ValueError(f"meta lacks {', '.join(missing)}")
    kind, task, relation = meta["kind"], meta["task"], meta.get("relation")
    if task not in TASKS:
        raise ValueError(f"meta has the task {task!r}; known are {', '.join(TASKS)}")
    if relation is not None and relation not in RELATIONS:
        raise ValueError(f"meta has the relation {relation!r}; known are {', '.join(RELATIONS)}")
    marks = {mark.get("instance"): mark.get("color") for mark in meta.get("marks") or ()}

    def named(item: Mapping[str, Any]) -> NamedObject:
        name, center = str(item["name"]), Point(*item["center"])
        color = marks.get(item["instance"]) if "instance" in item else None
        if color is None:
            return NamedObject(f"the {name}", (name,), center=center, category=str(item.get("category", "")))
        return NamedObject(f"the {name} in the {color} rectangle", (name, *_frame_names(color)), center=center)

    try:
        references = tuple(map(named, meta["references"]))
        target = named(meta["target"]) if meta.get("target") else None
        hops = tuple(
            (str(hop["relation"]), named({**hop, "category": hop["noun"]})) for hop in meta.get("hops", [])[:-1]
        )
        if absent := meta.get("absent"):
            if kind == "absent object":
                name = str(absent["looked_for"])
                relation, references, target = None, (), NamedObject(f"the {name}", (name,))
            instead = tuple((named(item), item.get("lies")) for item in absent["instead"])
            none = AbsentThing(str(absent["reason"]), str(absent["answer"]), instead)
            return InstructionFacts(task, relation, references, target, str(meta["surface"]), absent=none)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"meta has an object without a name and a center ({error})") from None
    surface = str(meta["surface"]) if meta["surface"] else None
    facts = InstructionFacts(task, relation, references, target, surface, hops)
    needed = 2 if "between" in (kind, relation) else 0 if kind == "direct" or relation in PARTS else 1
    if relation == "on" and task == "object_reference" and not references:
        needed = 0  # on a surface
    if len(references) < needed or not facts.anchors or (task == "object_reference") != bool(target):
        raise ValueError(f"a {kind} sample without the objects that it names")
    return facts


# --- from the wording of an instruction -------------------------------------------------------------------------------

_compile = partial(re.compile, flags=re.IGNORECASE)
_COLOR = r"(?P<color>red|green|blue|yellow|cyan|magenta|orange|purple|white|black)"
_FRAME = r"(?:rectang\w+|bounding box(?:es)?|border\w*|frames?|outlines?)"  # a "green box" may be an object
_MARK = _compile(
    rf"\b{_COLOR}(?:[ -]colou?red)? {_FRAME}"
    rf"|\b(?:framed|outlined|marked|highlighted|boxed) in {_COLOR.replace('color', 'ink')}\b",
)
_IS_A_MARK = _compile(rf"(?:an?|the) {_COLOR}(?:[ -]colou?red)? {_FRAME}")
_MARKED = _compile(
    r"\b(?:(?:highlight|mark|border|outlin|fram|encas|enclos|demarcat|delineat|surround|circl|box)ed|rectang\w+)\b ?",
)
_EMPTY = r"(?:vacant|free|empty|unoccupied|open|clear|unused|available|blank|bare)"
_ROOM = r"(?:space|area|spot|region|room|place|surface|location|zone|position|patch)s?"
_VACANT = _compile(rf"\b{_EMPTY}(?:,? \w+)? {_ROOM}\b")
_PLACING = _compile(
    r"\b(?:place|put|set)(?: down)? (?:the|an?) (?:object|item)\b|\broom for\b|\bnothing (?:may|must|should|stands)\b"
    r"|\b(?:set|put|place) something\b|\bsomething has to go\b|\bbe (?:put|placed|set down)\b"
    r"|\b(?:are|be) (?:free|vacant|empty)\b",
)
_NOUN = r"(?:item|object|thing|article)s?"
_STANDING = r"that|which|situated|located|positioned|placed|lying|found|resting|sitting|standing"

# Wording -> relation. The order decides; whether a side is a part of a surface, what follows tells.
_SIDES = {"left": "left", "right": "right", "front": "front", "back": "behind", "rear": "behind"}
_SIDE = (
    r"(?P<side>left|right|front|back|rear)(?P<most>most)?(?:[ -]hand)? (?P<share>part|side|half|portion|area|section)"
)
_WORDS: tuple[tuple[str, str], ...] = (
    ("between", r"in[ -]between|between|in the middle of"),
    ("part", rf"(?:on|in|at|of|within) the {_SIDE} of"),
    ("left", r"to the left(?: side| hand side)? of|on the left of|left of"),
    ("right", r"to the right(?: side| hand side)? of|on the right of|right of"),
    ("front", r"in front of|to the front of|before"),
    ("behind", r"(?:to|at|in|towards?) the (?:rear|back) of|in back of|behind|beyond"),
    ("above", r"above|over|higher (?:up )?than"),
    ("below", r"below|beneath|underneath|under|lower (?:down )?than"),
    ("next to", r"next to|beside|adjacent to|alongside|close to|near|by the side of"),
    ("inside", r"inside(?: of)?|within|enclosed by|in the interior of|contained (?:in|by)"),
    ("on", r"on top of|atop|resting on|upon|on"),
)
_RELATION = _compile("|".join(rf"(?P<r{number}>\b(?:{words})(?= ))" for number, (_, words) in enumerate(_WORDS)))
# A noun phrase ends where a relative clause, a new clause or the sentence does.
_PHRASE = _compile(
    r" (?P<article>(?:the|an?|this|that|these|those|its|both|two)\b ?)(?P<words>[^.,;:?!()]{0,80}?)"
    r"(?= (?:that|which|who|where|when|is|are|has|have|can be|may|should|from|as|so|for me|with (?:a few|several|some)|"
    r"and (?:place|put|point|mark|give|choose)|in the (?:image|picture|scene))\b|[.,;:?!()]|$)",
)
# "on an item that ...", "upon the item situated ...": what is asked for, not what it is related to.
_IS_THE_TARGET = _compile(
    rf"an? {_NOUN}\b|\w+ {_NOUN} (?:{_STANDING}|{'|'.join(words for _, words in _WORDS[2:])})\b"
    r"|the (?:image|picture|photo|scene)$",
)
_END = r"(?:left|right|front|back|rear)"
_ASKED_FOR = _compile(
    r"\b(?:the|an?) (?P<noun>(?!few|several|some|points?|spots?|places?|image|picture|photo|scene)"
    rf"(?:(?!{_STANDING})\w+ ){{0,3}}?(?!{_STANDING})\w+) "
    rf"(?:{_STANDING}|is|{'|'.join(words for _, words in _WORDS if '?P<' not in words)}|(?:on|in|at) the {_END})\b",
)
# Such a noun is no object; and of "put the cup next to the plate" the points may be on the cup or beside the plate.
_NO_OBJECT = _compile(r"\b(?:area|spot|region|place|surface|location|zone|position|patch)s?$")
_GAP = _compile(r"\b(?:space|room|gap)s?$")
_MOVING = _compile(r"\b(?:put|place|move|set|bring|drop) (?:the|an?|this|that|my|your) ")
# "points on the mug", "points that lie on it": the mug is asked for, not a place related to it.
_POINTS = _compile(r"(?:points?|spots?|places?|pixels?)(?: (?:that |to )?(?:lie|fall|are))? $")
# "in the bowl" may be inside it, or speak of a part of it.
_UNREAD = _compile(rf"\b(?:in|at|of) (?!(?:the|an?) {_COLOR} {_FRAME})(?:the|an?|this|that)\b")
_SURFACE_NOUNS = _compile(r"\b(?:surface|area|region|table|counter|shelf|desk|floor|tray|board|top|zone)s?$")
_DIRECT = _compile(
    r"\b(?:point(?:ing)? (?:to|at|out)|find|locate|identify|indicate|pinpoint|mark|show(?: me)?|where is|where are|"
    r"(?:image|picture) is|"
    r"highlight|points? (?:on|upon|of|to)|(?:lie|fall) on|belongs? to|looking for|look for|pick out|grasp|touch|"
    r"visible part of|surface of)(?= )",
)
_LONGEST_NAME = 10  # words


def facts_from_wording(instruction: str) -> InstructionFacts:
    """Read what an instruction says about itself. ValueError if that is not enough to reason about."""
    text = " ".join(instruction.split())
    free = asks_for_free_space(text)
    marks = list(dict.fromkeys((match["color"] or match["ink"]).lower() for match in _MARK.finditer(text)))
    relations = [(match, read) for match in _RELATION.finditer(text) if (read := _read_relation(text, match, free))]
    if not relations:
        return _direct_facts(text, free, marks)
    match, (relation, phrase) = relations[-1]  # what stands before it introduces the picture
    if _UNREAD.search(phrase) or re.search(r"\bon one side and\b", text, re.IGNORECASE):
        raise ValueError("the instruction has a relation that cannot be read")
    first, both, second = phrase.partition(" and ") if relation == "between" else (phrase, "", "")
    phrases = [first, second] if both else [phrase]
    references = tuple(_named_object(name, marks[number:] or marks) for number, name in enumerate(phrases))
    if relation == "between" and len(references) == 1 and not references[0].plural:
        raise ValueError("the instruction says between, but names one thing")
    target = None if free else _target_before(text, match.start())
    task: Literal["object_reference", "free_space"] = "free_space" if target is None else "object_reference"
    if relation in PARTS:
        return InstructionFacts(task, relation, (), target, references[0].phrase.removeprefix("the "))
    return InstructionFacts(task, relation, references, target)


def asks_for_free_space(instruction: str) -> bool:
    """Whether the words of an instruction ask for a place where nothing stands."""
    return _VACANT.search(instruction) is not None or _PLACING.search(instruction) is not None


def _read_relation(text: str, match: re.Match[str], free: bool) -> tuple[str, str] | None:
    """(relation, what it refers to, with its article); None where these words say something else."""
    relation = _WORDS[int(str(match.lastgroup)[1:])][0]
    noun = _PHRASE.match(text, match.end())
    if noun is None:
        return None
    phrase = (noun["article"] + noun["words"]).strip()
    if _IS_THE_TARGET.match(phrase) or _VACANT.search(phrase) or _IS_A_MARK.match(phrase):
        return None
    if relation in ("on", "inside") and not free and _POINTS.search(text, 0, match.start()):
        return None
    if relation == "part":
        side = match["side"].lower()
        named = match["share"].lower() in ("part", "half", "portion", "section") or match["most"]
        is_part = named or _SURFACE_NOUNS.search(phrase)
        relation = f"{'back' if side == 'rear' else side} part" if is_part else _SIDES[side]
    return relation, phrase


def _named_object(phrase: str, marks: list[str]) -> NamedObject:
    """A reference as it is named; one that is only called highlighted goes by its rectangle."""
    words = re.sub(r"^(?:the|an?|this|that|these|those|its|both)\b ?", "", phrase, flags=re.IGNORECASE)
    if not words or len(words.split()) > _LONGEST_NAME:
        raise ValueError(f"the name of the reference object is not clear: {phrase!r}")
    own = _MARK.search(words)
    if own is not None:  # "the ball in the red rectangle"
        words = re.sub(r" (?:in|inside|within|with|by|of|framed|outlined) (?:the |an? )?$", "", words[: own.start()])
        words = re.sub(r" (?:in|inside|within|with) (?:the|an?)$", "", words.strip())
        return _framed(words or "object", (own["color"] or own["ink"]).lower())
    plural = re.match(r"(?:the )?(?:two|both)\b", phrase, re.IGNORECASE) is not None or _is_plural(words)
    generic = re.fullmatch(_NOUN, words, re.IGNORECASE) is not None
    if not marks or (not generic and not _MARKED.search(words)):
        if generic and not marks:
            raise ValueError(f"the reference object is only called {phrase!r}")
        return NamedObject(f"the {words}", (words,), plural)
    noun = " ".join(_MARKED.sub("", words.removeprefix("two ")).split()) or "object"
    if not plural:
        return _framed(noun, marks[0])
    frames = " and ".join(f"the {color}" for color in marks[:2])
    return NamedObject(f"the two {noun} in {frames} rectangles", ("rectangles", words), True)


_HEAD = _compile(r"^(?P<head>.*?\w)(?= (?:of|in|on|with|from|by|for|at|near|behind|under)\b|$)")
_PLURAL = _compile(r"(?<![sui])s$")  # mugs; not glass, cactus, tennis


def _is_plural(words: str) -> bool:
    """Whether a name is of several things, by the last word of its head: "mugs on the left", not "pair of mugs"."""
    head = _HEAD.match(words)
    return head is not None and _PLURAL.search(head["head"]) is not None


def _framed(noun: str, color: str) -> NamedObject:
    return NamedObject(f"the {noun} in the {color} rectangle", _frame_names(color))


def _frame_names(color: str) -> tuple[str, ...]:
    return tuple(f"{color} {word}" for word in ("rectangle", "frame", "framed", "border", "bounding box", "outline"))


def _target_before(text: str, end: int) -> NamedObject | None:
    """The noun before the relation at `end`, which an object reference asks for; None if it is a space.

    ValueError if it may be either.
    """
    nouns = [match["noun"].lower() for match in _ASKED_FOR.finditer(text) if match.start() < end]
    if not nouns or _NO_OBJECT.search(nouns[-1]) or _MOVING.search(text):
        raise ValueError("the instruction does not say whether an object or free space is asked for")
    noun = nouns[-1]
    if _GAP.search(noun):
        return None
    if re.fullmatch(_NOUN, noun):
        return NamedObject(f"the {noun} that is asked for", (noun,))
    return NamedObject(f"the {noun}", (noun,), _is_plural(noun))


def _direct_facts(text: str, free: bool, marks: list[str]) -> InstructionFacts:
    """An object that is named, without a relation."""
    if free:
        raise ValueError("the instruction asks for free space without a relation that can be read")
    verbs = list(_DIRECT.finditer(text))
    phrase = _PHRASE.match(text, verbs[-1].end()) if verbs else None
    if phrase is None or not phrase["words"].strip():
        raise ValueError("the instruction names no object, relation or free space that can be read")
    if _RELATION.search(phrase[0] + " ") or _UNREAD.search(phrase[0]):
        raise ValueError("the instruction has a relation that cannot be read")
    target = _named_object((phrase["article"] + phrase["words"]).strip(), marks)
    return InstructionFacts("object_reference", None, (), target)
