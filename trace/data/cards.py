"""The card of a mix: what it holds, under which licences (licences.yaml), and the hashes by which it can be made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..utils.command import InputError
from ..utils.files import replacing, write_json

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


def write_cards(out: Path, facts: Mapping[str, Any]) -> Path:
    """Write OUT.card.json and OUT.card.md; return the latter's path."""
    write_json(out.with_suffix(".card.json"), facts)
    card = out.with_suffix(".card.md")
    with replacing(card) as temporary:
        temporary.write_text(card_text(facts, out.stem), encoding="utf-8")
    return card


def card_text(facts: Mapping[str, Any], title: str, header: str = "") -> str:
    """Markdown with a Hugging Face header, to which the lines of `header` are added."""
    files, sources, licence = facts["files"], facts["sources"], facts["licence"]
    total, reasoned = sum(file["samples"] for file in files.values()), sum(one["with_reasoning"] for one in sources)
    hub = UNKNOWN if licence == UNKNOWN else LICENCES[licence].hub
    named = f"license_name: {licence}\nlicense_link: README.md\n" if hub == "other" else ""
    rows = [
        f"| {one['name']} | {one['kind']} | {one['taken']:,} | {one['candidates']:,} | {one['with_reasoning']:,} "
        f"| {', '.join(f'{part} {count:,}' for part, count in one['parts'].items())} | {', '.join(one['licences'])} |"
        for one in sources
    ]
    terms = [
        f"- `{name}`: {LICENCES[name].title}; {LICENCES[name].terms}."
        if name != UNKNOWN
        else "- `unknown`: the licence of a source was not named; the set must not be passed on until it is."
        for name in sorted({name for one in sources for name in one["licences"]})
    ]
    note = "" if facts["images_may_be_embedded"] else " Images are named, not included: not every source allows that."
    written = [f"| {name} | {file['samples']:,} | `{file['sha256']}` |" for name, file in files.items()]
    read = {one["file"]: one["sha256"] for source in sources for one in source["read_from"]}
    return f"""---
license: {hub}
{named}task_categories:
- visual-question-answering
language:
- en
{header}---

# {title}

{total:,} conversations over images, {reasoned:,} of them with a Chain of Reasoning before the points.
Made by {facts["made_by"]} from `{facts["recipe"]}` (seed {facts["seed"]}, {facts["cor_share"]:g} % of the \
reasoning kept, scale {facts["scale"]:g}).

| source | kind | taken | of | with reasoning | parts | licence |
| --- | --- | ---: | ---: | ---: | --- | --- |
{_lines(rows)}
## Terms

The set is under the strictest of its sources' licences: **{licence}**.{note}

{_lines(terms)}
## Files

| file | samples | SHA-256 |
| --- | ---: | --- |
{_lines(written)}
Read from:

| file | SHA-256 |
| --- | --- |
{_lines(f"| {name} | `{digest}` |" for name, digest in read.items())}"""


def _lines(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)
