"""The names of the relations, and the sentences in which a generated question is asked.

Two wordings. "rich": at least twenty sentences a relation and task, with and without marked objects. "plain": short
sentences with the small vocabulary of the nano model; its tables are part of the trained model (a change needs a new
tokenizer, scripts/assets/nano_tokenizer.py, and a new model). A sentence that asks for an object holds `{thing}` ("the
mug to the left of the red ball"), one that asks for free space `{where}` ("to the left of the red ball").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.prompts import BOX_SUFFIX

DIRECTIONS = ("left", "right", "front", "behind")
PARTS = ("left part", "right part", "front part", "back part")  # of a surface
NEAR = ("next to", "above", "below", "on", "inside")  # the other relations to one object
RELATIONS = (*DIRECTIONS, *NEAR, "between", *PARTS)
MARK_COLORS: dict[str, tuple[int, int, int]] = {"red": (255, 0, 0), "green": (0, 255, 0)}  # of rectangles in a picture


@dataclass(frozen=True, slots=True)
class Wording:
    """Sentences that ask for an object and for free space, and the words for each relation."""

    find: tuple[str, ...]
    free: tuple[str, ...]
    places: dict[str, tuple[str, ...]]


PLAIN = Wording(
    find=("Point to {thing}.", "Find {thing}.", "Locate {thing}.", "Mark {thing}.", "Show {thing}.", "Where is {thing}?"),
    free=(
        "Point to free space {where}.", "Find free space {where}.", "Locate free space {where}.",
        "Mark a free place {where}.", "Place the object {where}.", "Where is free space {where}?",
    ),
    places={
        "left": ("to the left of {first}", "left of {first}"), "right": ("to the right of {first}", "right of {first}"),
        "front": ("in front of {first}",), "behind": ("behind {first}",), "next to": ("next to {first}",),
        "between": ("between {first} and {second}",),
    },
)  # fmt: skip

# "on" without a reference object is on a surface. `{first}` and `{second}` are reference objects with their article.
# Words that could also mean a part of the reference object ("on the left side of the tray") are left out.
ON_SURFACE = "on surface"
_RICH_PLACES: dict[str, tuple[str, ...]] = {
    "left": ("to the left of {first}", "left of {first}"),
    "right": ("to the right of {first}", "right of {first}"),
    "front": ("in front of {first}", "in front of {first} as seen in the picture"),
    "behind": ("behind {first}", "behind {first} as seen in the picture"),
    "above": ("above {first}", "over {first}"),
    "below": ("below {first}", "underneath {first}"),
    "next to": ("next to {first}", "beside {first}", "immediately next to {first}", "directly beside {first}"),
    "on": ("on {first}", "on top of {first}", "upon {first}"),
    ON_SURFACE: ("on the {surface}", "upon the {surface}"),
    "inside": ("inside {first}", "in {first}", "within {first}"),
    "between": ("between {first} and {second}", "in between {first} and {second}",
                "that has {first} on one side and {second} on the other"),
    "left part": ("on the left part of the {surface}", "in the left area of the {surface}"),
    "right part": ("on the right part of the {surface}", "in the right area of the {surface}"),
    "front part": ("on the front part of the {surface}", "in the front area of the {surface}"),
    "back part": ("on the back part of the {surface}", "in the back area of the {surface}"),
}  # fmt: skip

_RICH_FIND = (
    "Point to {thing}.", "Point at {thing}.", "Find {thing}.", "Locate {thing} in the image.",
    "Mark {thing} with a few points.", "Show me {thing}.", "Where is {thing}?", "Where in the picture is {thing}?",
    "Can you point out {thing}?", "Could you locate {thing} for me?", "Which pixels belong to {thing}?",
    "Give several points that lie on {thing}.", "Choose points on the visible part of {thing}.",
    "I am looking for {thing}. Where is it?", "The robot has to grasp {thing}. Where should it reach?",
    "Please indicate {thing}.", "Identify {thing} and place points on it.", "Look for {thing} and point it out.",
    "Put some points on {thing}.", "Pick out {thing}.", "The gripper is to touch {thing}. At which points?",
    "Tell me where {thing} can be seen.", "Help the robot find {thing}.", "Select points on the surface of {thing}.",
)  # fmt: skip

_RICH_FREE = (
    "Point to free space {where}.", "Find free space {where}.", "Locate an empty spot {where}.",
    "Mark a free place {where}.", "Where is there free space {where}?",
    "Where is there room for another object {where}?", "Show me an unoccupied area {where}.",
    "Give several points in the empty area {where}.", "Choose points in open space {where}.",
    "Pick a spot {where}; nothing may stand there yet.",
    "I want to set something down at a place {where}. Which points are free?",
    "The robot should put an object at a place {where}. Point to such places.",
    "Can you find unoccupied space {where}?", "Identify places {where}. They have to be free.",
    "Which points lie in free space {where}?", "Indicate the open space {where}.",
    "Put some points into the free area {where}.", "For another object, select free spots {where}.",
    "Tell me about room for one more object {where}: where is it?",
    "Suggest a position {where}. Nothing may be in the way there.",
    "Something has to go to a spot {where}. Point to free ones.", "Help the robot find an empty place {where}.",
    "Please mark unused space {where}.", "An object is to be placed in the area {where}. Show where it fits.",
)  # fmt: skip

RICH = Wording(_RICH_FIND, _RICH_FREE, _RICH_PLACES)
WORDINGS = {"plain": PLAIN, "rich": RICH}

# How an object is called that a rectangle marks. The second kind follows a sentence of LEADS.
MARKED = (
    "the object in the {color} rectangle", "the item inside the {color} rectangle",
    "the object that the {color} rectangle surrounds", "the object with the {color} rectangle around it",
    "{name} in the {color} rectangle",
)  # fmt: skip
LED = ("the object framed in {color}", "the item with the {color} frame around it")
# Where the rectangle holds another object as well, the name has to say which one is meant.
CROWDED = {False: "{name} in the {color} rectangle", True: "{name} framed in {color}"}
LEADS: dict[int, tuple[str, ...]] = {
    1: ("A {first} rectangle has been drawn around one object.", "One of the objects is framed in {first}.",
        "The picture shows an object within a {first} frame."),
    2: ("Two rectangles have been drawn, a {first} one and a {second} one, each around an object.",
        "Two of the objects are framed, one in {first} and one in {second}.",
        "The picture shows one object within a {first} frame and another within a {second} frame."),
}  # fmt: skip
LED_SHARE = 0.4  # part of the instructions about marked objects that begin with a sentence of LEADS


def write_instruction(
    relation: str | None, free: bool, target: str, references: Sequence[str], rng: np.random.Generator,
    wording: str = "plain", surface: str | None = None, marks: Sequence[str | None] = (), crowded: Sequence[bool] = (),
    hops: Sequence[tuple[str, str]] = (),
) -> str:  # fmt: skip
    """One instruction, without the sentence on the answer's format, which `prompts.question_text` adds.

    Args:
        free: whether free space is asked for, otherwise an object.
        target: the name ("red mug") or the noun ("mug") of the object that is asked for.
        references: names of the objects that the relation refers to, without an article.
        wording: "plain" or "rich".
        surface: the surface that a relation without references refers to ("on", "left part"; rich wording).
        marks: for each reference the color of the rectangle that marks it in the picture, or None (rich wording).
        crowded: for each reference whether its rectangle holds another object as well.
        hops: of a chain, the relations and nouns that lead from the named object to the one that `relation` refers to.
    Raises:
        ValueError: an unknown wording, or marks in the plain one, which has no words for them.
    """
    plain = wording == "plain"
    if wording not in WORDINGS or (plain and any(marks)):
        raise ValueError(f"the wording {wording!r} is unknown, or has no words for marks")
    tables = WORDINGS[wording]
    sentences = tables.free if free else tables.find
    sentence = _pick(sentences, rng) if plain else ""  # drawn first: the data of the nano model depend on the order
    colors = [*marks, None, None][: len(references)]
    drawn = [color for color in colors if color]
    led = bool(drawn) and rng.random() < LED_SHARE
    marked = "" if plain else _pick(LED if led else MARKED, rng)
    names = [
        (CROWDED[led] if several else marked).format(name=f"the {name}", color=color) if color else f"the {name}"
        for name, color, several in zip(references, colors, [*crowded, False, False][: len(references)], strict=True)
    ]
    for link, noun in hops:
        which = _pick(PLAIN.places[link], rng).format(first=names[0])  # short ones: there are several
        names = [f"the {noun} {which}" if plain else f"the {noun} that is {which}"]
    where = ""
    if relation:
        first, second = [*names, "", ""][:2]
        key = ON_SURFACE if relation == "on" and not names else relation
        where = _pick(tables.places[key], rng).format(first=first, second=second, surface=surface)
    text = (sentence or _pick(sentences, rng)).format(where=where, thing=f"the {target} {where}".strip())
    if led:
        text = f"{_pick(LEADS[len(drawn)], rng).format(first=drawn[0], second=drawn[-1])} {text}"
    return text


def _pick(sentences: Sequence[str], rng: np.random.Generator) -> str:
    return sentences[int(rng.integers(len(sentences)))]


def absence_words(reason: str, looked_for: str, relation: str | None, references: Sequence[str]) -> str:
    """The clause that something is not there: "there is no visible free space to the left of the red ball."."""
    names = [f"the {name}" for name in references]
    where = "" if relation is None else (PLAIN.places.get(relation) or RICH.places[relation])[0]
    first, second = [*names, "", ""][:2]
    seen = "visible " if reason == "hidden" else ""
    return f"there is no {seen}{looked_for} {where.format(first=first, second=second)}".rstrip() + "."


def relation_phrase(relation: str) -> str:
    """The plain words for a relation, without its references: "to the left of"."""
    return PLAIN.places[relation][0].partition(" {first}")[0]


def box_question(instruction: str) -> str:
    """The same question about boxes, as Where2Place keeps in bbox_questions.jsonl."""
    return f"{instruction} {BOX_SUFFIX}"
