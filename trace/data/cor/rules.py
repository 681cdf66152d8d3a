"""Reasoning by rules: sentences that state what is known of a sample, without a network.

The sentences are in wording.yaml: `plain`, the nano model's, with a small vocabulary, and `full`. With coordinates, the
reference objects and the target carry their places, written before what is concluded from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from ...core.points import format_points
from ...core.reasoning import STEPS
from ...core.records import Sample
from ..scenes.wording import DIRECTIONS, PARTS, relation_phrase
from ..scenes.wording import WORDINGS as INSTRUCTIONS
from .checks import ReasoningTask, check, with_steps
from .instruction_parser import AbsentThing, InstructionFacts, NamedObject, facts_of

WordingName = Literal["plain", "full"]

# wording -> step -> situation -> sentences; for the step "where", a situation is a relation
SENTENCES: dict[str, dict[str, dict[str, list[str]]]] = yaml.safe_load(
    Path(__file__).with_name("wording.yaml").read_text(encoding="utf-8")
)
SENTENCES["plain"]["where"] = {relation: [relation_phrase(relation)] for relation in INSTRUCTIONS["plain"].places}
SENTENCES["full"]["where"] |= {
    relation: list(INSTRUCTIONS["rich"].places[relation]) for relation in ("left", "right", *PARTS)
}
# Relations for which the free space lies on the surface that `meta` names, and not on another object or surface.
_ON_THE_SURFACE = (*DIRECTIONS, "next to", "between")
_ONE = {"object": "object", "is": "is", "has": "has", "serves": "serves", "s": ""}
_SEVERAL = {"object": "objects", "is": "are", "has": "have", "serves": "serve", "s": "s"}


def phrases() -> Iterator[str]:
    """Yield every sentence of the plain wording, with its placeholders, from which the nano tokenizer is built."""
    for step in STEPS:
        for sentences in SENTENCES["plain"][step].values():
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
    check(steps, task, coordinates)
    return steps


def write_steps(
    facts: InstructionFacts, rng: np.random.Generator, wording: WordingName, coordinates: bool = False,
    decimals: int = 3,
) -> dict[str, str]:  # fmt: skip
    """Write the four steps, by key.

    Raises:
        ValueError: the wording has no words for the relation, or coordinates are wanted and not known.
    """
    if facts.absent is not None:
        return _absent_steps(facts, facts.absent, rng, wording, coordinates, decimals)
    tables, relation = SENTENCES[wording], facts.relation

    def pick(sentences: list[str]) -> str:
        return sentences[int(rng.integers(len(sentences)))]

    def place(item: NamedObject) -> str:
        return _place(item, decimals) if coordinates else ""

    anchors, target = facts.anchors, facts.target
    by_surface = not facts.references and relation is not None
    several = len(anchors) > 1 or anchors[0].plural
    about = goal = "itself"
    if relation is not None:
        about = "surface" if by_surface else "several" if several else "one"
        about = about if about in tables["reference"] else "named"
        goal = "object" if target else f"free {relation}"
        if goal not in tables["target"]:
            goal = "free on surface" if facts.surface and relation in _ON_THE_SURFACE else "free"
        if relation not in tables["where"] or goal not in tables["target"] or about not in tables["reference"]:
            raise ValueError(f"the {wording} wording has no words for the relation {relation!r}; use --wording full")
    names = [item.phrase + ("" if by_surface else place(item)) for item in anchors]
    refs, first = " and ".join(names), [name.removeprefix("the ") for name in names]
    words = {
        "refs": refs,
        "Refs": refs[0].upper() + refs[1:],
        "ref": first[0],
        "other": first[1] if len(first) > 1 else "",
        "what": target.phrase if target else "",
        "name": target.phrase.removeprefix("the ") if target else "",
        "category": target.category if target else "",
        "at": place(target) if target and relation else "",
        "surface": facts.surface or "",
        "where": "",
    }
    phrase = " and ".join(item.phrase for item in anchors)

    def where(relation: str) -> str:
        return pick(tables["where"][relation]).format(refs=phrase, first=phrase, surface=facts.surface)

    walked = []
    for link, item in facts.hops:
        own = {"where": where(link), "at": place(item), "what": item.phrase, "category": item.category}
        own["What"] = item.phrase[0].upper() + item.phrase[1:]
        walked.append(pick(tables["reference"]["hop"]).format(**own))
        phrase = item.phrase
    if relation:
        words["where"] = where(relation)
    number = _SEVERAL if target is not None and target.plural else _ONE
    return {
        "reference": " ".join(
            [pick(tables["reference"][about]).format(**words, **(_SEVERAL if several else _ONE)), *walked]
        ),
        "target": pick(tables["target"][goal]).format(**words, **number),
        "subtype": pick(tables["subtype"][facts.task]),
        "output": pick(tables["output"][facts.task]).format(**words, **number),
    }


def _place(item: NamedObject, decimals: int) -> str:
    if item.center is None:
        raise ValueError(f"where {item.phrase} is, is not known: coordinates in the steps need `meta`")
    return f" at {format_points([item.center], decimals).strip('[]')}"


def _absent_steps(
    facts: InstructionFacts, absent: AbsentThing, rng: np.random.Generator, wording: WordingName, coordinates: bool,
    decimals: int,
) -> dict[str, str]:  # fmt: skip
    """The steps of a question about what is not there: what was looked for, and what is seen instead."""
    tables, thing = SENTENCES[wording], facts.target
    steps = write_steps(replace(facts, absent=None), rng, wording, coordinates and thing is None, decimals)
    phrase = " and ".join(item.phrase for item in facts.references)

    def pick(sentences: list[str]) -> str:
        return sentences[int(rng.integers(len(sentences)))]

    seen = []
    for item, lies in absent.instead[:2]:
        key = "not related" if absent.reason == "relation" and not lies else absent.reason
        words = {"noun": item.category, "name": item.phrase.removeprefix("the "), "where": ""}
        words |= {"color": words["name"].removesuffix(item.category).strip(), "at": ""}
        if facts.references:
            words["where"] = pick(tables["where"][str(lies or facts.relation)]).format(refs=phrase, first=phrase)
            words["where"] += " it" if wording == "plain" else ""
        if coordinates:
            words["at"] = _place(item, decimals)
        seen.append(pick(tables["absent"][key]).format(**words))
    if thing is not None:
        named = pick(tables["absent"]["named"]).format(name=thing.phrase.removeprefix("the "))
        steps["reference"], seen = " ".join([named, *seen]), []
    steps["target"] = " ".join([*seen, absent.answer[0].upper() + absent.answer[1:]])
    return steps | {"output": pick(tables["absent"]["output"])}
