"""How a question is worded.

`word` is the door. The rich wording is in `wordings`. The plain one, below, is what the nano model learns: short
sentences with a small shared vocabulary, which `texts()` and `vocabulary()` list completely, so that a tokenizer can be
built from them. Its tables are part of the trained model: a change of a row needs a new tokenizer and a new model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from ..objects.catalog import PLAIN_CATEGORIES, PLAIN_COLORS
from . import wording as wordings

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "front": ("in front of",),
    "behind": ("behind",),
    "next to": ("next to",),
    "between": ("between",),
}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "direct": (
        "Point to the {target}.",
        "Find the {target}.",
        "Locate the {target}.",
        "Mark the {target}.",
        "Show the {target}.",
        "Where is the {target}?",
    ),
    "relational": (
        "Point to the {target} {relation} the {reference}.",
        "Find the {target} {relation} the {reference}.",
        "Locate the {target} {relation} the {reference}.",
        "Mark the {target} {relation} the {reference}.",
        "Show the {target} {relation} the {reference}.",
        "Where is the {target} {relation} the {reference}?",
    ),
    "free": (
        "Point to free space {relation} the {reference}.",
        "Find free space {relation} the {reference}.",
        "Locate free space {relation} the {reference}.",
        "Mark a free place {relation} the {reference}.",
        "Place the object {relation} the {reference}.",
        "Where is free space {relation} the {reference}?",
    ),
    "between": (
        "Point to free space {relation} the {reference} and the {other}.",
        "Find free space {relation} the {reference} and the {other}.",
        "Locate free space {relation} the {reference} and the {other}.",
        "Mark a free place {relation} the {reference} and the {other}.",
        "Place the object {relation} the {reference} and the {other}.",
        "Where is free space {relation} the {reference} and the {other}?",
    ),
}

BOX_SUFFIX = (
    "Your answer should be formatted as a list of bounding boxes, i.e. [(x0, y0, x1, y1), ...], where each tuple "
    "contains the top left and the bottom right corner of a box satisfying the conditions above. The coordinates "
    "should be between 0 and 1, indicating the normalized pixel locations of the corners in the image."
)


def word(
    kind: str, relation: str | None, target: str, references: Sequence[str], rng: np.random.Generator,
    wording: str = "plain", surface: str | None = None, marks: Sequence[str | None] = (),
    crowded: Sequence[bool] = (),
) -> str:  # fmt: skip
    """One phrasing of a question, without the sentence on the answer's format, which `prompts.question_text` adds.

    Args:
        kind: "direct" or "relational" (an object is asked for), "free", "between" or "part" (a free place is).
        target: the name ("red mug") or the noun ("mug") of what is asked for; free places have none.
        references: names of the objects that the relation refers to.
        wording: "plain" or "rich".
        surface: the surface that a relation without references refers to ("on", "left part"; rich wording).
        marks: for each reference the color of the rectangle that marks it in the picture, or None (rich wording).
        crowded: for each reference whether its rectangle holds another object as well.
    Raises:
        ValueError: an unknown wording, or marks in the plain one, which has no words for them.
    """
    if wording == "rich":
        free = kind in ("free", "between", "part")
        return wordings.instruction(relation, free, target, references, rng, surface, marks, crowded)
    if wording != "plain" or any(marks):
        raise ValueError(f"the wording {wording!r} is unknown, or has no words for marks")
    template = TEMPLATES[kind][rng.integers(len(TEMPLATES[kind]))]
    words = RELATION_WORDS[relation] if relation else ("",)
    first, other = (*references, "", "")[:2]
    return template.format(target=target, relation=words[rng.integers(len(words))], reference=first, other=other)


def box_question(instruction: str) -> str:
    """The same question about boxes, as Where2Place keeps in bbox_questions.jsonl."""
    return f"{instruction} {BOX_SUFFIX}"


def texts() -> Iterator[str]:
    """Every plain template with every relation, color and category at least once (not every combination)."""
    names = [f"{color} {category}" for color, category in product(PLAIN_COLORS, PLAIN_CATEGORIES)]
    for kind, templates in TEMPLATES.items():
        relations = {"direct": (), "between": ("between",)}.get(
            kind, tuple(r for r in RELATION_WORDS if r != "between")
        )
        phrases = [words for relation in relations for words in RELATION_WORDS[relation]] or [""]
        for index, (template, phrase) in enumerate(product(templates, phrases)):
            name, other = names[index % len(names)], names[(7 * index + 1) % len(names)]
            yield template.format(target=name, relation=phrase, reference=other, other=name)
    yield from (f"Point to the {name}." for name in names)


def vocabulary() -> list[str]:
    """Every word and mark that plain instructions use, sorted."""
    return sorted({token for text in texts() for token in re.findall(r"\w+|[^\w\s]", text)})
