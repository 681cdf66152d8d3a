"""The licences of sources, from licences.yaml: which one a mix is under, and whether its images may be passed on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from ..utils.command import InputError

UNKNOWN = "unknown"


class Licence(NamedTuple):
    title: str
    rank: int
    hub: str
    embed: bool
    terms: str


_TABLES = yaml.safe_load(Path(__file__).with_name("licences.yaml").read_text(encoding="utf-8"))
LICENCES = {name: Licence(**entry) for name, entry in _TABLES["licences"].items()}


def licences_of(kind: str, parts: Iterable[str], named: Iterable[str]) -> tuple[str, ...]:
    """The licences of a source: those the recipe names, else those of its kind and parts, else UNKNOWN.

    InputError for a name that is not in LICENCES.
    """
    names = tuple(named)
    for name in names:
        if name not in LICENCES and name != UNKNOWN:
            raise InputError(f"licence: unknown name {name!r}; known: {', '.join(LICENCES)}")
    known = _TABLES["sources"].get(kind, {})
    return names or tuple(sorted({known.get(part, known.get("all", UNKNOWN)) for part in parts})) or (UNKNOWN,)


def strictest(names: Iterable[str]) -> str:
    """The name of the strictest licence; UNKNOWN if there is an unknown one, which may be stricter than any."""
    ordered = sorted(set(names))
    if not ordered or UNKNOWN in ordered:
        return UNKNOWN
    return max(ordered, key=lambda name: LICENCES[name].rank)


def may_embed(names: Iterable[str]) -> bool:
    return all(name in LICENCES and LICENCES[name].embed for name in names)
