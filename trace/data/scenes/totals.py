"""What a finished set holds, counted while it is written, and the lines that the command prints at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Tally:
    """Counts samples by kind and relation, task, relation, and the category of the object that is asked for."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "task", "relation", "category")}
        self.samples = 0

    def add(self, meta: Mapping[str, Any]) -> None:
        relation = meta["relation"] or ""
        self.samples += 1
        self._counts["kind"][f"{meta['kind']} {relation}".strip()] += 1
        self._counts["task"][meta["task"]] += 1
        self._counts["relation"][relation or "none"] += 1
        if meta["target"]:
            self._counts["category"][meta["target"]["category"]] += 1

    def result(self) -> dict[str, dict[str, int]]:
        """Counts by name: "counts" (kind and relation), "tasks", "relations" and "categories"."""
        names = {"kind": "counts", "task": "tasks", "relation": "relations", "category": "categories"}
        return {name: dict(sorted(self._counts[key].items())) for key, name in names.items()}


def report(summary: Mapping[str, Any]) -> str:
    """The summary of a data set as text."""
    from .questions.baselines import table

    lines = [f"{summary['views']} views, {summary['samples']} questions"]
    for title in ("tasks", "relations", "categories"):
        lines += [title, *_columns(summary[title])]
    lines.append("drawn again, by reason")
    lines += [f"  {reason:64} {count:8}" for reason, count in summary["rejects"].items()]
    lines += ["point accuracy of shortcuts, percent", table(summary["shortcut_baselines"])]
    meshes = summary["settings"].get("meshes", {})
    lines += [f"mesh {name}: {stated['licence']}" for name, stated in meshes.items()]
    timing = summary["timing"]
    if timing and timing["images_per_second"]:
        speed = f"{timing['images_per_second']} images a second, {timing['workers']} worker(s)"
        lines.append(f"{timing['scenes_rendered']} scenes rendered in {timing['seconds']} s: {speed}")
    return "\n".join(lines)


def _columns(counts: Mapping[str, int], columns: int = 4) -> list[str]:
    """Names with their numbers, several in a line."""
    cells = [f"{name:18} {count:7}" for name, count in counts.items()]
    return ["  " + "   ".join(cells[start : start + columns]) for start in range(0, len(cells), columns)]
