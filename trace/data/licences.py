"""The terms under which data may be passed on: one entry a licence, and which one each source comes with.

Nothing here is legal advice; each entry is what is known of the terms of a source, shortened, and what this project
does with it: images are put into an export only when every licence in it allows that, an unknown one stops the export,
and the whole bears the strictest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..utils.command import InputError
from .sources.sample_checks import DETECTION, FREE_SPACE, OBJECT_REFERENCE, TEXT, VQA

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Licence:
    """`rank` orders by strictness; `hub` is the identifier in a Hugging Face card; `embed`: images may be passed on."""

    title: str
    rank: int
    hub: str
    embed: bool
    terms: str


LICENCES: Mapping[str, Licence] = MappingProxyType(
    {
        "generated": Licence("made by this project's generator", 0, "other", True, "whoever generated it decides"),
        "cc0-1.0": Licence("CC0 1.0", 0, "cc0-1.0", True, "no conditions"),
        "mit": Licence("MIT", 1, "mit", True, "keep the notice"),
        "apache-2.0": Licence("Apache 2.0", 1, "apache-2.0", True, "keep the notices, say what was changed"),
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
            5,
            "other",
            False,
            "images are fetched from their own source, not passed on",
        ),
        "cc-by-nc-4.0": Licence("CC BY-NC 4.0", 6, "cc-by-nc-4.0", True, "name the authors, not commercially"),
        "cc-by-nc-sa-4.0": Licence(
            "CC BY-NC-SA 4.0", 7, "cc-by-nc-sa-4.0", True, "name the authors, not commercially, share alike"
        ),
        "llava-instruct": Licence(
            "LLaVA-Instruct: CC BY-NC 4.0, written by GPT-4, over images under their own terms",
            8,
            "cc-by-nc-4.0",
            False,
            "name the authors, not commercially, OpenAI's terms; images are fetched from their own source",
        ),
    }
)

# By kind of source, then by part ("" for all others). What is not here has to be named in the recipe.
_OF_SOURCES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "scenes": {"": ("generated",)},
        "lvis": {"": ("flickr",)},
        "llava_mix": {"": ("llava-instruct",)},
        # The archive's card says Apache 2.0; that cannot cover what it took over from others.
        "robopoint": {
            OBJECT_REFERENCE: ("apache-2.0",),
            FREE_SPACE: ("apache-2.0",),
            DETECTION: ("flickr",),
            VQA: ("llava-instruct",),
            TEXT: ("llava-instruct",),
        },
    }
)


def licences_of(kind: str, parts: Iterable[str], named: Iterable[str]) -> tuple[str, ...]:
    """The licences of a source: those the recipe names, else those of its kind and parts, else UNKNOWN.

    InputError for a name that is not in LICENCES.
    """
    given = tuple(named)
    for name in given:
        if name not in LICENCES and name != UNKNOWN:
            raise InputError(f"unknown licence {name!r}; known: {', '.join(LICENCES)}")
    if given:
        return given
    known = _OF_SOURCES.get(kind, {})
    found = {name for part in parts for name in known.get(part, known.get("", (UNKNOWN,)))}
    return tuple(sorted(found)) or (UNKNOWN,)


def strictest(names: Iterable[str]) -> str:
    """The name of the strictest licence; UNKNOWN when there is an unknown one, which may be stricter than any."""
    found = sorted(set(names))
    if not found or UNKNOWN in found:
        return UNKNOWN
    return max(found, key=lambda name: LICENCES[name].rank)


def may_embed(names: Iterable[str]) -> bool:
    return all(name in LICENCES and LICENCES[name].embed for name in names)
