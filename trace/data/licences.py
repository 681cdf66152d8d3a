"""The terms under which data may be passed on: one entry a licence, and which one each source comes with.

Nothing here is legal advice: each entry is a short form of what is known of a source's terms. Images are put into an
export only if every licence in it allows that, an unknown licence stops the export, and the set is under the strictest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..utils.command import InputError

UNKNOWN = "unknown"


class Licence(NamedTuple):
    """`rank` orders by strictness; `hub` is the identifier in a Hugging Face card; `embed`: images may be passed on."""

    title: str
    rank: int
    hub: str
    embed: bool
    terms: str


LICENCES: Mapping[str, Licence] = MappingProxyType(
    {
        "generated": Licence("made by this project's generator", 0, "other", True, "who generated it decides"),
        "cc0-1.0": Licence("CC0 1.0", 0, "cc0-1.0", True, "no conditions"),
        "mit": Licence("MIT", 1, "mit", True, "keep the notice"),
        "apache-2.0": Licence("Apache 2.0", 1, "apache-2.0", True, "keep the notices, state the changes"),
        "cc-by-4.0": Licence("CC BY 4.0", 2, "cc-by-4.0", True, "name the authors"),
        "cc-by-sa-4.0": Licence("CC BY-SA 4.0", 3, "cc-by-sa-4.0", True, "name the authors, share alike"),
        "gemini-output": Licence(
            "output of Gemini", 4, "other", True, "Google's terms: not for developing models that compete with Gemini"
        ),
        "openai-output": Licence(
            "output of OpenAI's models", 4, "other", True, "OpenAI's terms: not for developing models that compete"
        ),
        "flickr": Licence(
            "annotations CC BY 4.0, Flickr photographs under the terms of each image (COCO, LVIS, Visual Genome)",
            5, "other", False, "images are fetched from their own source, not passed on",
        ),
        "cc-by-nc-4.0": Licence("CC BY-NC 4.0", 6, "cc-by-nc-4.0", True, "name the authors, not commercially"),
        "cc-by-nc-sa-4.0": Licence(
            "CC BY-NC-SA 4.0", 7, "cc-by-nc-sa-4.0", True, "name the authors, not commercially, share alike"
        ),
        "llava-instruct": Licence(
            "LLaVA-Instruct: CC BY-NC 4.0, written by GPT-4, over images under their own terms",
            8, "cc-by-nc-4.0", False,
            "name the authors, not commercially, OpenAI's terms; images are fetched from their own source",
        ),
    }
)  # fmt: skip

# By kind of source, then by part ("" for all others). A source that is not here is named in the recipe.
_OF_SOURCES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "scenes": {"": "generated"},
        "lvis": {"": "flickr"},
        "llava_mix": {"": "llava-instruct"},
        # The archive's card says Apache 2.0; that cannot cover what it took over from others.
        "robopoint": {
            "object_reference": "apache-2.0",
            "free_space": "apache-2.0",
            "detection": "flickr",
            "vqa": "llava-instruct",
            "text": "llava-instruct",
        },
    }
)


def licences_of(kind: str, parts: Iterable[str], named: Iterable[str]) -> tuple[str, ...]:
    """The licences of a source: those the recipe names, else those of its kind and parts, else UNKNOWN.

    InputError for a name that is not in LICENCES.
    """
    names = tuple(named)
    for name in names:
        if name not in LICENCES and name != UNKNOWN:
            raise InputError(f"licence: unknown name {name!r}; known: {', '.join(LICENCES)}")
    known = _OF_SOURCES.get(kind, {})
    return names or tuple(sorted({known.get(part, known.get("", UNKNOWN)) for part in parts})) or (UNKNOWN,)


def strictest(names: Iterable[str]) -> str:
    """The name of the strictest licence; UNKNOWN if there is an unknown one, which may be stricter than any."""
    ordered = sorted(set(names))
    if not ordered or UNKNOWN in ordered:
        return UNKNOWN
    return max(ordered, key=lambda name: LICENCES[name].rank)


def may_embed(names: Iterable[str]) -> bool:
    return all(name in LICENCES and LICENCES[name].embed for name in names)
