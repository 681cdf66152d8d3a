"""Reasoning in the plain wording, written from what a sample's `meta` knows: truthful by construction, no network.

The plain wording is made for the nano model: few short sentences with a small vocabulary, from which its tokenizer is
built (`phrases`), so a change here needs a new tokenizer. The full wording, with more relations, surfaces and many more
sentences, is in `wordings`.

Every sentence states a fact of the scene (which object, where, which relation), so a model that learns to write it
learns something that can be checked against the picture. With `coordinates=True` the reference objects (and the
named target) are located inside the steps as well: a recipe's choice, since the published data keep coordinates out
of the reasoning. The place is then written *before* what is concluded from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...core.points import Point, format_points
from ...core.records import Sample

# `{ref}` is "red mug" or, with coordinates, "red mug at (0.46, 0.52)"; `{side}` is a phrase of SIDES.
SIDES = {
    "left": "to the left of",
    "right": "to the right of",
    "front": "in front of",
    "behind": "behind",
    "next to": "next to",
    "between": "between",
}
REFERENCE = {
    "direct": (
        "The reference object is the {ref}.",
        "The object in question is the {ref}.",
        "The instruction names the {ref}.",
    ),
    "one": (
        "The reference object is the {ref}.",
        "The instruction refers to the {ref}.",
        "The anchor is the {ref}.",
    ),
    "two": (
        "The reference objects are the {ref} and the {other}.",
        "The instruction refers to the {ref} and the {other}.",
        "The anchors are the {ref} and the {other}.",
    ),
}
TARGET = {
    "direct": (
        "The target area is the visible part of the {name}.",
        "The target area is the surface of the {name}.",
    ),
    "relational": (
        "The target area lies {side} it{place}: the {category}.",
        "What lies {side} it{place} is the {category}.",
    ),
    "free": (
        "The target area is the part of the {surface} {side} it.",
        "The target area lies {side} it on the {surface}.",
    ),
    "between": (
        "The target area is the part of the {surface} between them.",
        "The target area lies between them on the {surface}.",
    ),
}
SUBTYPE = {
    "object_reference": ("The goal is object reference.", "This is an object reference goal."),
    "free_space": ("The goal is free space reference.", "This is a free space goal."),
}
OUTPUT = {
    "object_reference": ("The points lie on the {category}.", "Points on the {category} are chosen."),
    "free_space": ("The points lie on free space of the {surface}.", "Free points of the {surface} are chosen."),
}


def phrases() -> Iterator[str]:
    """Every sentence template, for whoever needs the wording as a whole (the nano tokenizer does)."""
    for table in (REFERENCE, TARGET, SUBTYPE, OUTPUT):
        for sentences in table.values():
            yield from sentences


def reason(sample: Sample, rng: np.random.Generator, coordinates: bool = False, decimals: int = 3) -> dict[str, str]:
    """The four steps of a sample's reasoning, by step key.

    Raises:
        ValueError: the sample's `meta` lacks what the sentences state, or they have no words for it; the message says
            what.
    """
    meta = sample.meta
    missing = [key for key in ("task", "kind", "references", "surface") if key not in meta]
    if missing:
        raise ValueError(f"meta lacks {', '.join(missing)}")
    kind, task = meta["kind"], meta["task"]
    if kind not in TARGET or task not in SUBTYPE or (meta.get("relation") or "left") not in SIDES or meta.get("marks"):
        raise ValueError(f"the plain wording has no words for {_described(meta)}; use --wording full")
    target, references = meta.get("target"), list(meta["references"])
    named: Mapping[str, Any] = target or {}
    anchors = [named] if kind == "direct" else references
    if not anchors or not all(anchors) or (kind == "relational" and not named):
        raise ValueError(f"a {kind} sample without the objects that it names")

    def located(item: Mapping[str, Any]) -> str:
        return f"{item['name']} at {_place(item, decimals)}" if coordinates else str(item["name"])

    def pick(sentences: tuple[str, ...]) -> str:
        return sentences[int(rng.integers(len(sentences)))]

    facts = {
        "ref": located(anchors[0]),
        "other": located(anchors[1]) if len(anchors) > 1 else "",
        "name": named.get("name", ""),
        "category": named.get("category", ""),
        "place": f" at {_place(named, decimals)}" if coordinates and kind == "relational" else "",
        "side": SIDES.get(meta.get("relation") or "", ""),
        "surface": meta["surface"],
    }
    count = "direct" if kind == "direct" else "two" if len(anchors) > 1 else "one"
    return {
        "reference": pick(REFERENCE[count]).format(**facts),
        "target": pick(TARGET[kind]).format(**facts),
        "subtype": pick(SUBTYPE[task]).format(**facts),
        "output": pick(OUTPUT[task]).format(**facts),
    }


def _described(meta: Mapping[str, Any]) -> str:
    marks = ", with marks" if meta.get("marks") else ""
    return f"a {meta['kind']} sample of the relation {meta.get('relation')!r}{marks}"


def _place(item: Mapping[str, Any], decimals: int) -> str:
    x, y = item["center"]
    return format_points([Point(x, y)], decimals).strip("[]")
