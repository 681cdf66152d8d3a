"""The full wording of the rules reasoner: at least twelve phrasings a step and situation, over the facts of a sample.

Everything is a table; a sentence states facts only, so each is true wherever its situation holds. `{refs}` are the
reference objects ("the red mug and the green box"), `{where}` the relation with them ("between the red mug and the
green box"), `{what}` what an object reference asks for, with `{object}` and `{is}` in its number, `{surface}` a surface.
With coordinates the references carry their places, and `{at}` is the target's, written before what is concluded from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...core.points import format_points
from .instruction_parser import Facts, Thing

ONE = (
    "The reference object is {refs}.",
    "The instruction refers to {refs}.",
    "The anchor of the instruction is {refs}.",
    "Everything is described relative to {refs}.",
    "{Refs} is the object that the instruction starts from.",
    "The object to look for first is {refs}.",
    "The instruction names {refs} as its landmark.",
    "To begin with, {refs} has to be found in the image.",
    "{Refs} serves as the reference.",
    "The position is given with respect to {refs}.",
    "The landmark here is {refs}.",
    "First I look for {refs}, the object that the instruction mentions.",
    "The wording points to {refs} as the reference object.",
    "What the instruction uses for orientation is {refs}.",
)
MANY = (
    "The reference objects are {refs}.",
    "The instruction refers to {refs}.",
    "The anchors of the instruction are {refs}.",
    "Everything is described relative to {refs}.",
    "{Refs} are the objects that the instruction starts from.",
    "The objects to look for first are {refs}.",
    "The instruction names {refs} as its landmarks.",
    "To begin with, {refs} have to be found in the image.",
    "{Refs} serve as the references.",
    "The position is given with respect to {refs}.",
    "The landmarks here are {refs}.",
    "First I look for {refs}, the objects that the instruction mentions.",
    "The wording points to {refs} as the reference objects.",
    "What the instruction uses for orientation are {refs}.",
)
ITSELF = (
    "The {object} in question {is} {refs}.",
    "The instruction names {refs} directly.",
    "The reference {object} {is} {refs}, which {is} asked for directly.",
    "What has to be found {is} {refs}.",
    "{Refs} {is} the {object} that the instruction asks for.",
    "No other object is needed for orientation: {refs} {is} named directly.",
    "The instruction is about {refs}.",
    "The {object} to look for {is} {refs}.",
    "{Refs} {is} both the reference and the target.",
    "The wording singles out {refs}.",
    "I look for {refs}, the {object} that {is} named.",
    "The {object} to identify {is} {refs}.",
    "The request is for {refs} and for nothing else.",
)
SURFACE = (
    "The reference is {refs}.",
    "The instruction refers to {refs} as a whole.",
    "No single object is the anchor here; {refs} is.",
    "Everything is described relative to {refs}.",
    "{Refs} is what the instruction starts from.",
    "The surface to look for first is {refs}.",
    "The instruction names {refs} as its landmark.",
    "To begin with, {refs} has to be found in the image.",
    "{Refs} serves as the reference surface.",
    "The position is given with respect to {refs}.",
    "The reference surface is {refs}.",
    "What the instruction uses for orientation is {refs}.",
    "First I look for the extent of {refs}.",
)
TARGET_ITSELF = (
    "The target area is the visible part of {what}.",
    "The target area is the surface of {what}.",
    "Every visible spot of {what} belongs to the target area.",
    "The region that counts is the visible extent of {what}.",
    "The target area covers {what} and nothing beyond the outline.",
    "Only what can be seen of {what} is the target area.",
    "The area to point at is bounded by the outline of {what}.",
    "The target region is {what}, without the surroundings.",
    "All of the visible surface of {what} may be pointed at.",
    "The target area is where {what} can be seen.",
    "The outline of {what} encloses the target area.",
    "The area that answers the request is the body of {what}.",
)
TARGET_OBJECT = (
    "The target area lies {where}{at}: it is {what}.",
    "What lies {where}{at} {is} {what}.",
    "Looking {where}{at}, one finds {what}, the target.",
    "The place to look is {where}{at}, and there {is} {what}.",
    "The target is found {where}{at}: {what}.",
    "The region {where}{at} holds {what}, the target.",
    "Going from there, the target lies {where}{at}; it is {what}.",
    "What is asked for is located {where}{at}: {what}.",
    "The relation names what lies {where}{at}: {what}.",
    "The target area is what lies {where}{at}, that is, {what}.",
    "Seen from the camera, the target is {where}{at}: {what}.",
    "The search goes on {where}{at} and ends at {what}, whose visible part is the target area.",
)
TARGET_FREE = (
    "The target area is the free part of the scene {where}.",
    "The target area lies {where}.",
    "Free room is wanted {where}.",
    "The region that counts is the empty space {where}.",
    "What has to be found is unoccupied space {where}.",
    "The target area is all space {where} that nothing covers.",
    "The place to look is {where}, as far as it is free.",
    "Only the vacant space {where} belongs to the target area.",
    "The relation leads to the open area {where}.",
    "The target region lies {where} and leaves out what is occupied.",
    "Seen from the camera, the target area is {where}.",
    "The area that answers the request is the unused space {where}.",
)
TARGET_FREE_ON = (
    "The target area is the part of the {surface} {where}.",
    "The target area lies {where}, on the {surface}.",
    "Free room is wanted on the {surface}, {where}.",
    "The region that counts is the empty part of the {surface} {where}.",
    "What has to be found is unoccupied space {where} on the {surface}.",
    "The {surface} is free in places {where}; those are the target area.",
    "The place to look is the {surface} {where}, as far as it is free.",
    "Only vacant space of the {surface} {where} belongs to the target area.",
    "The relation leads to the open area of the {surface} {where}.",
    "The target region is the part of the {surface} {where} that nothing covers.",
    "Seen from the camera, the target area is the {surface} {where}.",
    "The area that answers the request is the unused part of the {surface} {where}.",
)
SUBTYPE = {
    "object_reference": (
        "The goal is object reference.",
        "This is an object reference goal.",
        "The subtype is object reference, since an object is asked for.",
        "An existing object has to be pointed at, so the goal is object reference.",
        "The request is about an object, not about empty room: object reference.",
        "It is a case of object reference.",
        "As the points have to lie on an object, this is object reference.",
        "The goal's subtype is object reference.",
        "Something that is already there is asked for, which makes it object reference.",
        "This goal belongs to object reference.",
        "The points are meant for an object; the subtype is object reference.",
        "What is wanted is an object, hence object reference.",
    ),
    "free_space": (
        "The goal is free space reference.",
        "This is a free space goal.",
        "The subtype is free space reference, since empty room is asked for.",
        "A place where something could be put is wanted, so the goal is free space reference.",
        "The request is about room, not about an object: free space reference.",
        "It is a case of free space reference.",
        "As the points have to lie where nothing stands, this is free space reference.",
        "The goal's subtype is free space reference.",
        "Somewhere that is still empty is asked for, which makes it free space reference.",
        "This goal belongs to free space reference.",
        "The points are meant for an empty place; the subtype is free space reference.",
        "What is wanted is room for an object, hence free space reference.",
    ),
}
OUTPUT_OBJECT = (
    "The points lie on {what}.",
    "Points on {what} are chosen.",
    "All points are placed on the visible surface of {what}.",
    "Several points inside the outline of {what} are given.",
    "The answer consists of points on {what}.",
    "I choose points that fall on {what} and nowhere else.",
    "The points are kept within {what}.",
    "Spots on {what} are selected, all of them in plain view.",
    "The output is a set of points on {what}.",
    "Each point is put on a visible spot of {what}.",
    "For the answer, points on {what} are picked.",
    "What remains is to give points that lie on {what}.",
)
OUTPUT_FREE = (
    "The points lie on free space {where}.",
    "Free points {where} are chosen.",
    "All points are placed on empty space {where}.",
    "Several unoccupied spots {where} are given.",
    "The answer consists of points {where} at which nothing stands.",
    "I choose points {where} that no object covers.",
    "The points are kept {where}, where nothing stands.",
    "Spots {where} that are vacant are selected.",
    "The output is a set of free points {where}.",
    "Each point is put on an empty spot {where}.",
    "For the answer, open spots {where} are picked.",
    "What remains is to give points {where} that are free.",
)
WHERE = {
    "left": ("to the left of {refs}", "left of {refs}"),
    "right": ("to the right of {refs}", "right of {refs}"),
    "front": ("in front of {refs}", "on the near side of {refs}"),
    "behind": ("behind {refs}", "on the far side of {refs}"),
    "above": ("above {refs}", "in the space above {refs}"),
    "below": ("below {refs}", "in the space below {refs}"),
    "next to": ("next to {refs}", "beside {refs}", "close to {refs}"),
    "on": ("on {refs}", "on top of {refs}"),
    "inside": ("inside {refs}", "within {refs}"),
    "between": ("between {refs}", "in between {refs}"),
    "left part": ("on the left part of {refs}", "in the left area of {refs}"),
    "right part": ("on the right part of {refs}", "in the right area of {refs}"),
    "front part": ("on the front part of {refs}", "in the front area of {refs}"),
    "back part": ("on the back part of {refs}", "in the back area of {refs}"),
}
# Relations for which the free space lies on the surface that `meta` names, and not on another object or surface.
_ON_THE_SURFACE = ("left", "right", "front", "behind", "next to", "between")


def tables() -> Iterator[tuple[str, ...]]:
    """Every table of sentences."""
    yield from (ONE, MANY, ITSELF, SURFACE, TARGET_ITSELF, TARGET_OBJECT, TARGET_FREE, TARGET_FREE_ON)
    yield from SUBTYPE.values()
    yield from (OUTPUT_OBJECT, OUTPUT_FREE)


def reason(facts: Facts, rng: np.random.Generator, coordinates: bool, decimals: int) -> dict[str, str]:
    """The four steps, by key. ValueError when coordinates are wanted and not known."""

    def pick(sentences: tuple[str, ...]) -> str:
        return sentences[int(rng.integers(len(sentences)))]

    def located(thing: Thing) -> str:
        return f"{thing.phrase} at {_place(thing, decimals)}" if coordinates else thing.phrase

    anchors, target = facts.anchors, facts.target
    on_surface = not facts.references and facts.relation is not None
    named = " and ".join(thing.phrase if on_surface else located(thing) for thing in anchors)
    plain = " and ".join(thing.phrase for thing in anchors)
    many = len(anchors) > 1 or anchors[0].plural
    words = {"refs": named, "Refs": named[0].upper() + named[1:], "surface": facts.surface or ""}
    words["what"] = target.phrase if target else ""
    several = target is not None and target.plural
    words |= {"object": "objects", "is": "are"} if several else {"object": "object", "is": "is"}
    words["at"] = f" at {_place(target, decimals)}" if coordinates and target and facts.relation else ""
    words["where"] = pick(WHERE[facts.relation]).format(refs=plain) if facts.relation else ""
    first: tuple[str, ...]
    second: tuple[str, ...]
    if facts.relation is None:
        first, second = ITSELF, TARGET_ITSELF
    else:
        first = SURFACE if on_surface else MANY if many else ONE
        known_surface = bool(facts.surface) and facts.relation in _ON_THE_SURFACE
        second = TARGET_OBJECT if target else TARGET_FREE_ON if known_surface else TARGET_FREE
    return {
        "reference": pick(first).format(**words),
        "target": pick(second).format(**words),
        "subtype": pick(SUBTYPE[facts.task]).format(**words),
        "output": pick(OUTPUT_OBJECT if target else OUTPUT_FREE).format(**words),
    }


def _place(thing: Thing, decimals: int) -> str:
    if thing.center is None:
        raise ValueError(f"where {thing.phrase} is, is not known: coordinates in the steps need `meta`")
    return format_points([thing.center], decimals).strip("[]")
