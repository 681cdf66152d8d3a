"""The card of a mix: what went in, how much of it, under which terms, and the hashes by which it can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..utils.files import replacing, sha256, write_json
from .licences import LICENCES, UNKNOWN, may_embed, strictest

if TYPE_CHECKING:
    from .mix import Mixer


def write_cards(out: Path, config: Path, mixer: Mixer, written: Mapping[Path, int]) -> dict[str, Any]:
    """Write OUT.card.json and OUT.card.md beside the mix; return what they say."""
    facts = card_facts(config, mixer, written)
    write_json(out.with_suffix(".card.json"), facts)
    with replacing(out.with_suffix(".card.md")) as temporary:
        temporary.write_text(card_text(facts, out.stem), encoding="utf-8")
    return facts


def card_facts(config: Path, mixer: Mixer, written: Mapping[Path, int]) -> dict[str, Any]:
    names = [name for taken in mixer.taken.values() for name in taken.licences]
    hashes: dict[Path, str] = {}
    for taken in mixer.taken.values():
        for path in taken.files:
            hashes.setdefault(path, sha256(path))
    return {
        "made_by": f"trace-vlm {__version__}, trace.data.mix",
        "recipe": str(config),
        "seed": mixer.recipe.seed,
        "cor_share": mixer.recipe.cor_share,
        "scale": mixer.recipe.scale,
        "image_root": str(mixer.image_root),
        "licence": strictest(names),
        "images_may_be_embedded": may_embed(names),
        "files": {path.name: {"samples": count, "sha256": sha256(path)} for path, count in written.items()},
        "sources": [
            {
                **{key: value for key, value in asdict(taken.entry).items() if key not in ("part", "licence")},
                "asked_for": taken.entry.part,
                "candidates": taken.seen,
                "taken": taken.samples,
                "with_reasoning": taken.with_reasoning,
                "parts": dict(taken.parts),
                "licences": list(taken.licences),
                "left_out": dict(taken.problems),
                "read_from": [{"file": path.name, "sha256": hashes[path]} for path in taken.files],
            }
            for taken in mixer.taken.values()
        ],
    }


def card_text(facts: Mapping[str, Any], title: str) -> str:
    """Markdown with a Hugging Face header."""
    total = sum(one["samples"] for one in facts["files"].values())
    reasoned = sum(one["with_reasoning"] for one in facts["sources"])
    lines = [
        "---",
        *_header(facts),
        "---",
        "",
        f"# {title}",
        "",
        f"{total:,} conversations over images, {reasoned:,} of them with a Chain of Reasoning before the points.",
        f"Made by {facts['made_by']} from `{facts['recipe']}` (seed {facts['seed']}, {facts['cor_share']:g} % of the "
        f"reasoning kept, scale {facts['scale']:g}).",
        "",
        "| source | kind | taken | of | with reasoning | parts | licence |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for one in facts["sources"]:
        parts = ", ".join(f"{part} {count:,}" for part, count in one["parts"].items())
        lines.append(
            f"| {one['name']} | {one['kind']} | {one['taken']:,} | {one['candidates']:,} | {one['with_reasoning']:,} "
            f"| {parts} | {', '.join(one['licences'])} |"
        )
    lines += [
        "",
        "## Terms",
        "",
        *_terms(facts),
        "",
        "## Files",
        "",
        "| file | samples | SHA-256 |",
        "| --- | ---: | --- |",
    ]
    lines += [f"| {name} | {one['samples']:,} | `{one['sha256']}` |" for name, one in facts["files"].items()]
    read = {one["file"]: one["sha256"] for source in facts["sources"] for one in source["read_from"]}
    lines += ["", "Read from:", "", "| file | SHA-256 |", "| --- | --- |"]
    lines += [f"| {name} | `{digest}` |" for name, digest in read.items()]
    return "\n".join(lines) + "\n"


def _header(facts: Mapping[str, Any]) -> list[str]:
    name = facts["licence"]
    hub = UNKNOWN if name == UNKNOWN else LICENCES[name].hub
    lines = [f"license: {hub}"]
    if hub == "other":
        lines += [f"license_name: {name}", "license_link: README.md"]
    return [*lines, "task_categories:", "- visual-question-answering", "language:", "- en"]


def _terms(facts: Mapping[str, Any]) -> list[str]:
    names = sorted({name for one in facts["sources"] for name in one["licences"]})
    lines = [f"The whole is under the strictest of its sources' licences: **{facts['licence']}**."]
    if not facts["images_may_be_embedded"]:
        lines[0] += " Images are named, not included: not every source allows passing them on."
    lines.append("")
    for name in names:
        if name == UNKNOWN:
            lines.append("- `unknown`: a source's licence was not named; the set must not be passed on until it is.")
        else:
            lines.append(f"- `{name}`: {LICENCES[name].title}; {LICENCES[name].terms}.")
    return lines
