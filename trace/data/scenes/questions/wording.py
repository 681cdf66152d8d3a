"""The full wording of instructions: at least twenty sentences a relation and task, with and without marked objects.

Everything is a table. A sentence of `FIND` holds `{thing}`, what is to be pointed at ("the mug to the left of the red
ball"); one of `FREE` holds `{where}` ("to the left of the red ball"). A reference object goes by its name or, where a
rectangle marks it in the picture, by the rectangle. The small vocabulary of the nano model has tables of its own, in
`instructions`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Where something is, by relation; "on" without a reference object is on a surface. `{first}` and `{second}` are
# reference objects with their article, `{surface}` is a surface. Words that could also mean a part of the reference
# object ("on the left side of the tray") are left out.
ON_SURFACE = "on surface"
PLACES: dict[str, tuple[str, ...]] = {
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
    "between": (
        "between {first} and {second}",
        "in between {first} and {second}",
        "that has {first} on one side and {second} on the other",
    ),
    "left part": ("on the left part of the {surface}", "in the left area of the {surface}"),
    "right part": ("on the right part of the {surface}", "in the right area of the {surface}"),
    "front part": ("on the front part of the {surface}", "in the front area of the {surface}"),
    "back part": ("on the back part of the {surface}", "in the back area of the {surface}"),
}

FIND: tuple[str, ...] = (
    "Point to {thing}.",
    "Point at {thing}.",
    "Find {thing}.",
    "Locate {thing} in the image.",
    "Mark {thing} with a few points.",
    "Show me {thing}.",
    "Where is {thing}?",
    "Where in the picture is {thing}?",
    "Can you point out {thing}?",
    "Could you locate {thing} for me?",
    "Which pixels belong to {thing}?",
    "Give several points that lie on {thing}.",
    "Choose points on the visible part of {thing}.",
    "I am looking for {thing}. Where is it?",
    "The robot has to grasp {thing}. Where should it reach?",
    "Please indicate {thing}.",
    "Identify {thing} and place points on it.",
    "Look for {thing} and point it out.",
    "Put some points on {thing}.",
    "Pick out {thing}.",
    "The gripper is to touch {thing}. At which points?",
    "Tell me where {thing} can be seen.",
    "Help the robot find {thing}.",
    "Select points on the surface of {thing}.",
)

FREE: tuple[str, ...] = (
    "Point to free space {where}.",
    "Find free space {where}.",
    "Locate an empty spot {where}.",
    "Mark a free place {where}.",
    "Where is there free space {where}?",
    "Where is there room for another object {where}?",
    "Show me an unoccupied area {where}.",
    "Give several points in the empty area {where}.",
    "Choose points in open space {where}.",
    "Pick a spot {where}; nothing may stand there yet.",
    "I want to set something down at a place {where}. Which points are free?",
    "The robot should put an object at a place {where}. Point to such places.",
    "Can you find unoccupied space {where}?",
    "Identify places {where}. They have to be free.",
    "Which points lie in free space {where}?",
    "Indicate the open space {where}.",
    "Put some points into the free area {where}.",
    "For another object, select free spots {where}.",
    "Tell me about room for one more object {where}: where is it?",
    "Suggest a position {where}. Nothing may be in the way there.",
    "Something has to go to a spot {where}. Point to free ones.",
    "Help the robot find an empty place {where}.",
    "Please mark unused space {where}.",
    "An object is to be placed in the area {where}. Show where it fits.",
)

# How an object is called that a rectangle marks. The second kind follows a sentence of LEADS.
MARKED: tuple[str, ...] = (
    "the object in the {color} rectangle",
    "the item inside the {color} rectangle",
    "the object that the {color} rectangle surrounds",
    "the object with the {color} rectangle around it",
    "{name} in the {color} rectangle",
)
LED = ("the object framed in {color}", "the item with the {color} frame around it")
# Where the rectangle holds another object as well, the name has to say which one is meant.
CROWDED = {False: "{name} in the {color} rectangle", True: "{name} framed in {color}"}
LEADS: dict[int, tuple[str, ...]] = {
    1: (
        "A {first} rectangle has been drawn around one object.",
        "One of the objects is framed in {first}.",
        "The picture shows an object within a {first} frame.",
    ),
    2: (
        "Two rectangles have been drawn, a {first} one and a {second} one, each around an object.",
        "Two of the objects are framed, one in {first} and one in {second}.",
        "The picture shows one object within a {first} frame and another within a {second} frame.",
    ),
}
LED_SHARE = 0.4  # part of the instructions about marked objects that begin with a sentence of LEADS


def instruction(
    relation: str | None, free: bool, target: str, references: Sequence[str], rng: np.random.Generator,
    surface: str | None, marks: Sequence[str | None], crowded: Sequence[bool] = (),
) -> str:  # fmt: skip
    """One instruction. `target` and `references` are names without an article, `marks` a color for each reference.

    `crowded`: for each reference whether its rectangle holds another object as well.
    """
    colors = [*marks, None, None][: len(references)]
    drawn = [color for color in colors if color]
    led = bool(drawn) and rng.random() < LED_SHARE
    way = _one(LED if led else MARKED, rng)
    full = [*crowded, False, False][: len(references)]
    called = [
        (CROWDED[led] if more else way).format(name=f"the {name}", color=color) if color else f"the {name}"
        for name, color, more in zip(references, colors, full, strict=True)
    ]
    where = ""
    if relation:
        first, second = [*called, "", ""][:2]
        known = ON_SURFACE if relation == "on" and not called else relation
        where = _one(PLACES[known], rng).format(first=first, second=second, surface=surface)
    thing = f"the {target} {where}".strip()
    text = _one(FREE if free else FIND, rng).format(where=where, thing=thing)
    if led:
        lead = _one(LEADS[len(drawn)], rng).format(first=drawn[0], second=drawn[-1])
        text = f"{lead} {text}"
    return text


def _one(sentences: Sequence[str], rng: np.random.Generator) -> str:
    return sentences[int(rng.integers(len(sentences)))]
