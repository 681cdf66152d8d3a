"""How a question is worded: a table of phrasings a kind of question and of words a relation.

Plain, short sentences with a small shared vocabulary, which `texts()` and `vocabulary()` list completely, so that a
tokenizer can be built from them. To add a phrasing, add a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from .catalog import CATEGORIES, COLORS

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


def word(kind: str, relation: str | None, target: str, references: Sequence[str], rng: np.random.Generator) -> str:
    """One phrasing of a question. `target` is a name or a noun; `references` are names."""
    template = TEMPLATES[kind][rng.integers(len(TEMPLATES[kind]))]
    words = RELATION_WORDS[relation] if relation else ("",)
    first, other = (*references, "", "")[:2]
    return template.format(target=target, relation=words[rng.integers(len(words))], reference=first, other=other)


def box_question(instruction: str) -> str:
    """The same question about boxes, as Where2Place keeps in bbox_questions.jsonl."""
    return f"{instruction} {BOX_SUFFIX}"


def texts() -> Iterator[str]:
    """Every template with every relation, color and category at least once (not every combination)."""
    names = [f"{color} {category}" for color, category in product(COLORS, CATEGORIES)]
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
    """Every word and mark that instructions use, sorted."""
    return sorted({token for text in texts() for token in re.findall(r"\w+|[^\w\s]", text)})
