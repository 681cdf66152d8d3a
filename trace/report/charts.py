"""Charts of the report as numbers for its inline SVG: stacked bars, attention by step, what interventions did.

Positions are in the chart's own units; the template only draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attention.interventions import read_effects
from ..attention.metrics import MEASURES, UNITS
from ..attention.steps import MILESTONES
from ..attention.summary import PAIRS_TITLE, SUMMARY, pair_rows
from ..utils.command import InputError
from ..utils.files import read_json

WIDE, HIGH = 300, 130  # of one panel's plot
SHORT = {"reference": "reference", "target": "target", "subtype": "subtype", "output": "output", "answer": "answer"}
# of outcomes, the first for what is right: pale, so that none of them is taken for a model's
SHADES = ("#9ccfae", "#ecd08f", "#dba59d", "#a9bfde", "#c9b1d8", "#c3cad1", "#d8bc9a", "#9fd0cf")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a stacked bar, from `start` to `start + width` of 100."""

    name: str
    count: int
    start: float
    width: float
    color: str


@dataclass(frozen=True, slots=True)
class Stack:
    """Stacked bars, one a model, that share their parts; `key` names the parts with their colours."""

    title: str
    bars: Sequence[tuple[str, Sequence[Part]]]
    key: Sequence[tuple[str, str]]


def stack(title: str, models: Sequence[tuple[str, Sequence[tuple[str, int]]]]) -> Stack | None:
    """Counts as shares of each model's total; parts keep one colour, what is right is green."""
    names = list(dict.fromkeys(name for _, parts in models for name, _ in parts))
    if not names or not any(count for _, parts in models for _, count in parts):
        return None
    names.sort(key=lambda name: name != "right")  # stable: the good part first
    colors = dict(zip(names, (SHADES[place % len(SHADES)] for place in range(len(names))), strict=True))
    if names[0] not in ("right", "all points in the target"):
        colors = dict(zip(names, (SHADES[1 + place % (len(SHADES) - 1)] for place in range(len(names))), strict=True))
    bars = []
    for label, parts in models:
        counts, total, start = dict(parts), sum(count for _, count in parts) or 1, 0.0
        drawn = []
        for name in names:
            width = 100 * counts.get(name, 0) / total
            if width:
                drawn.append(Part(name, counts[name], round(start, 3), round(width, 3), colors[name]))
            start += width
        bars.append((label, drawn))
    return Stack(title, bars, list(colors.items()))


# --- attention -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """One milestone in a panel: x, y of the mean and of the interval's ends, and the words for it."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One measure over the milestones. `controls`: name -> (x, y) of each milestone that has one."""

    title: str
    unit: str
    marks: Sequence[Mark]
    controls: Mapping[str, Sequence[tuple[float, float]]]
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class AttentionCharts:
    model: str
    questions: int
    images: int
    panels: Sequence[Panel]
    verdicts: Sequence[Mapping[str, str]]
    missing: Sequence[str]
    steps: Sequence[tuple[float, str]]
    pairs_title: str
    pairs: Sequence[Sequence[str]]  # a header, then a row for every two steps


def attention_charts(folder: Path) -> AttentionCharts | None:
    """The summary of an attention folder; None where there is none, InputError where it is broken."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    found = read_json(path, "the summary of attention")
    try:
        panels = [one for name in MEASURES if (one := _panel(found, name)) is not None]
        missing = [f"{MILESTONES[key]} in {count}" for key, count in found["missing"].items() if count]
        return AttentionCharts(found["model"], found["questions"], found["images"], panels, found["verdicts"], missing,
                               [(_x(place), SHORT[key]) for place, key in enumerate(MILESTONES)],
                               PAIRS_TITLE, pair_rows(found["pairs"]))  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is not a summary of attention ({error!r}); write it anew") from None


def _x(place: int) -> float:
    return round((place + 0.5) * WIDE / len(MILESTONES), 1)


def _panel(found: Mapping[str, Any], name: str) -> Panel | None:
    intervals = found["measures"]["mean"][name]
    controls = {"spread evenly": found["uniform"].get(name) or [], "shuffled images": found["shuffled"].get(name) or []}
    values = [value for one in intervals if one for value in (one["mean"], one["low"], one["high"])]
    values += [value for control in controls.values() for value in control]
    known = [float(value) for value in values if value is not None]
    if not any(intervals):
        return None
    top = _round_up(max(known)) if max(known) > 0 else 1.0

    def y(value: float) -> float:
        return round(HIGH * (1 - value / top), 1)

    marks = []
    for place, one in enumerate(intervals):
        if one is None:
            continue
        low, high = (one["mean"] if one[end] is None else one[end] for end in ("low", "high"))
        text = f"{one['mean']:.3f}" + ("" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]")
        marks.append(Mark(_x(place), y(one["mean"]), y(low), y(high), text))
    drawn = {
        title: [(_x(place), y(value)) for place, value in enumerate(control) if value is not None]
        for title, control in controls.items()
    }
    ticks = [(y(part * top), f"{part * top:.3g}") for part in (0, 0.5, 1)]
    return Panel(
        MEASURES[name], UNITS[name], marks, {title: points for title, points in drawn.items() if points}, ticks
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is not below `value`."""
    scale = 1.0
    while scale < value:
        scale *= 10
    while scale / 10 >= value:
        scale /= 10
    return next(scale * part for part in (0.1, 0.2, 0.25, 0.5, 1.0) if scale * part >= value * 0.999)


# --- interventions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EffectRow:
    """One kind of edit of one step; bars from 0 to 100."""

    step: str
    kind: str
    edits: int
    moved: Mapping[str, Any] | None
    follows: Mapping[str, Any] | None
    distance: str


def effects(folder: Path) -> list[EffectRow]:
    """What interventions did; empty where there were none."""
    rows = []
    for one in read_effects(folder):
        try:
            distance = one["distance"]
            rows.append(
                EffectRow(
                    MILESTONES[one["step"]],
                    one["kind"],
                    one["edits"],
                    _percent(one["moved"]),
                    _percent(one["follows"]),
                    "-" if distance is None else f"{distance['mean']:.3f}",
                )
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder} holds a broken effect of an intervention ({error!r}); write it anew") from None
    return rows


def _percent(one: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if one is None:
        return None
    low, high = (one["mean"] if one[end] is None else one[end] for end in ("low", "high"))
    return {"mean": round(100 * one["mean"], 1), "low": round(100 * low, 1), "high": round(100 * high, 1)}
