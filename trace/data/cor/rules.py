"""Reasoning by rules: sentences that state what is known of a sample, without a network.

`plain` is the nano model's wording: few short sentences with a small vocabulary, from which its tokenizer is built
(`phrases`), so a change there needs a new tokenizer. `full` has at least twelve sentences for each step and situation.
Every sentence is true wherever its situation holds. With coordinates, the reference objects and the target carry their
places, written before what is concluded from them; the published data keep coordinates out of the reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from ...core.points import format_points
from ...core.records import Sample
from ..scenes.wording import DIRECTIONS, PARTS, relation_phrase
from ..scenes.wording import WORDINGS as INSTRUCTIONS
from .checks import check
from .instruction_parser import InstructionFacts, NamedObject, facts_of
from .tasks import ReasoningTask, with_steps

WordingName = Literal["plain", "full"]

# Step -> situation -> sentences; the situations of "where" are relations. Placeholders:
#   {refs} {Refs}     the reference objects with their articles: "the red mug and the green box"
#   {ref} {other}     the first and the second reference object without article: "red mug"
#   {where}           the relation: full "between the red mug and the green box", plain "between"
#   {what} {name} {category}   the object that is asked for: "the red mug", "red mug", "mug"
#   {at}              the place of the target, only with coordinates: " at (0.46, 0.52)"
#   {object} {is} {has} {serves} {s}   in the number of the references (step reference) or of the target (other steps)
Tables = Mapping[str, Mapping[str, tuple[str, ...]]]
PLAIN: Tables = {
    "where": {relation: (relation_phrase(relation),) for relation in INSTRUCTIONS["plain"].places},
    "reference": {
        "itself": (
            "The reference object is the {ref}.",
            "The object in question is the {ref}.",
            "The instruction names the {ref}.",
        ),
        "one": (
            "The reference object is the {ref}.",
            "The instruction refers to the {ref}.",
            "The anchor is the {ref}.",
        ),
        "several": (
            "The reference objects are the {ref} and the {other}.",
            "The instruction refers to the {ref} and the {other}.",
            "The anchors are the {ref} and the {other}.",
        ),
    },
    "target": {
        "itself": (
            "The target area is the visible part of the {name}.",
            "The target area is the surface of the {name}.",
        ),
        "object": (
            "The target area lies {where} it{at}: the {category}.",
            "What lies {where} it{at} is the {category}.",
        ),
        "free on surface": (
            "The target area is the part of the {surface} {where} it.",
            "The target area lies {where} it on the {surface}.",
        ),
        "free between": (
            "The target area is the part of the {surface} between them.",
            "The target area lies between them on the {surface}.",
        ),
    },
    "subtype": {
        "object_reference": ("The goal is object reference.", "This is an object reference goal."),
        "free_space": ("The goal is free space reference.", "This is a free space goal."),
    },
    "output": {
        "object_reference": ("The points lie on the {category}.", "Points on the {category} are chosen."),
        "free_space": ("The points lie on free space of the {surface}.", "Free points of the {surface} are chosen."),
    },
}
FULL: Tables = {
    "where": {
        **{relation: INSTRUCTIONS["rich"].places[relation] for relation in ("left", "right", *PARTS)},
        "front": ("in front of {refs}", "on the near side of {refs}"),
        "behind": ("behind {refs}", "on the far side of {refs}"),
        "above": ("above {refs}", "in the space above {refs}"),
        "below": ("below {refs}", "in the space below {refs}"),
        "next to": ("next to {refs}", "beside {refs}", "close to {refs}"),
        "on": ("on {refs}", "on top of {refs}"),
        "inside": ("inside {refs}", "within {refs}"),
        "between": ("between {refs}", "in between {refs}"),
    },
    "reference": {
        "itself": (
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
        ),
        "named": (
            "The reference {object} {is} {refs}.",
            "The instruction refers to {refs}.",
            "The anchor{s} of the instruction {is} {refs}.",
            "Everything is described relative to {refs}.",
            "{Refs} {is} the {object} that the instruction starts from.",
            "The {object} to look for first {is} {refs}.",
            "The instruction names {refs} as its landmark{s}.",
            "To begin with, {refs} {has} to be found in the image.",
            "{Refs} {serves} as the reference{s}.",
            "The position is given with respect to {refs}.",
            "The landmark{s} here {is} {refs}.",
            "First I look for {refs}, the {object} that the instruction mentions.",
            "The wording points to {refs} as the reference {object}.",
            "What the instruction uses for orientation {is} {refs}.",
        ),
        "surface": (
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
        ),
    },
    "target": {
        "itself": (
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
        ),
        "object": (
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
        ),
        "free": (
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
        ),
        "free on surface": (
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
        ),
    },
    "subtype": {
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
    },
    "output": {
        "object_reference": (
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
        ),
        "free_space": (
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
        ),
    },
}
WORDINGS: Mapping[str, Tables] = MappingProxyType({"plain": PLAIN, "full": FULL})
# Relations for which the free space lies on the surface that `meta` names, and not on another object or surface.
_ON_THE_SURFACE = (*DIRECTIONS, "next to", "between")


def phrases() -> Iterator[str]:
    """Yield every sentence of the plain wording, with its placeholders, from which the nano tokenizer is built."""
    for step in ("reference", "target", "subtype", "output"):
        for sentences in PLAIN[step].values():
            yield from sentences


def with_reasoning(
    sample: Sample, seed: int, coordinates: bool, decimals: int, wording: WordingName = "full"
) -> Sample:
    """Put reasoning by rules before the sample's answer, and ask for it in its question.

    Raises:
        ValueError: too little is known of the sample for the sentences, or its answer holds no points.
    """
    task = ReasoningTask.of(sample)
    return with_steps(task, steps_by_rules(task, seed, coordinates, decimals, wording), decimals)


def steps_by_rules(
    task: ReasoningTask, seed: int, coordinates: bool, decimals: int, wording: WordingName
) -> dict[str, str]:
    """Write the four steps, drawn from the seed and the sample's id, so that the order of the file does not matter.

    Args:
        wording: for samples whose `meta` names none.
    Raises:
        ValueError: the steps cannot be written; the message says why.
    """
    sample = task.sample
    name = sample.meta.get("wording", wording)
    if name != "plain":
        name = "full"
    elif sample.meta.get("marks") or "kind" not in sample.meta:
        raise ValueError("the plain wording needs `meta` without marked objects; use --wording full")
    rng = np.random.default_rng([seed, *sample.id.encode()])
    steps = write_steps(task.facts or facts_of(sample), rng, name, coordinates, decimals)
    check(steps, task.instruction, task.facts, coordinates)
    return steps


def write_steps(
    facts: InstructionFacts, rng: np.random.Generator, wording: WordingName, coordinates: bool = False,
    decimals: int = 3,
) -> dict[str, str]:  # fmt: skip
    """Write the four steps, by key.

    Raises:
        ValueError: the wording has no words for the relation, or coordinates are wanted and not known.
    """
    tables = WORDINGS[wording]
    if facts.relation is not None and facts.relation not in tables["where"]:
        raise ValueError(f"the plain wording has no words for the relation {facts.relation!r}; use --wording full")

    def pick(sentences: tuple[str, ...]) -> str:
        return sentences[int(rng.integers(len(sentences)))]

    def located(item: NamedObject) -> str:
        return f"{item.phrase} at {_place(item, decimals)}" if coordinates else item.phrase

    anchors, target = facts.anchors, facts.target
    by_surface = not facts.references and facts.relation is not None
    names = [item.phrase if by_surface else located(item) for item in anchors]
    refs, first = " and ".join(names), [name.removeprefix("the ") for name in names]
    words = {
        "refs": refs,
        "Refs": refs[0].upper() + refs[1:],
        "ref": first[0],
        "other": first[1] if len(first) > 1 else "",
        "what": target.phrase if target else "",
        "name": target.phrase.removeprefix("the ") if target else "",
        "category": target.category if target else "",
        "at": f" at {_place(target, decimals)}" if coordinates and target and facts.relation else "",
        "surface": facts.surface or "",
        "where": "",
    }
    if facts.relation:
        plain = " and ".join(item.phrase for item in anchors)
        words["where"] = pick(tables["where"][facts.relation]).format(refs=plain, first=plain, surface=facts.surface)
    several = len(anchors) > 1 or anchors[0].plural
    reference, targets = tables["reference"], tables["target"]
    if facts.relation is None:
        about = goal = "itself"
    else:
        about = "surface" if by_surface else "named" if "named" in reference else "several" if several else "one"
        goal = "object" if target else f"free {facts.relation}"
        if goal not in targets:
            goal = "free on surface" if facts.surface and facts.relation in _ON_THE_SURFACE else "free"
    number = _number(target is not None and target.plural)
    return {
        "reference": pick(reference[about]).format(**words, **_number(several)),
        "target": pick(targets[goal]).format(**words, **number),
        "subtype": pick(tables["subtype"][facts.task]),
        "output": pick(tables["output"][facts.task]).format(**words, **number),
    }


def _number(several: bool) -> dict[str, str]:
    if several:
        return {"object": "objects", "is": "are", "has": "have", "serves": "serve", "s": "s"}
    return {"object": "object", "is": "is", "has": "has", "serves": "serves", "s": ""}


def _place(item: NamedObject, decimals: int) -> str:
    if item.center is None:
        raise ValueError(f"where {item.phrase} is, is not known: coordinates in the steps need `meta`")
    return format_points([item.center], decimals).strip("[]")
