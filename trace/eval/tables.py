"""A summary in words and tables: for a terminal, as Markdown and as CSV, all from what summary.json holds."""

from __future__ import annotations

import csv
import io
from typing import Any

from .error_classes import CLASSES
from .published import COLUMNS, TABLE, columns_of
from .scoring import REFERENCE_SIZE

ON_SIDE = "shortcut: image nearest on side"
RULES = (
    "shortcut: extreme leaves out the reference and shortcut: nearest the direction, so each is right in half of the "
    f"relational questions by construction. {ON_SIDE} takes the nearest object of the asked noun on the asked side, in "
    "the picture: it is no guess, but solves a part of the task. All of them are told where the objects are."
)
NAMES = {"unseen": "unseen (hard)"}  # Where2Place's hard part: relations that training does not hold


def tables(summary: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows (the first one the header) of every table, for the terminal and for Markdown alike."""
    models, baselines = summary["models"], summary["baselines"]
    overview = [["model", "accuracy", "micro", "first point", "parsable", "failed", "points", "tokens"]]
    for one in models:
        failed = f"{one['unanswered'] + one['cut'] + one['unparsable'] + one['outside']:g}"
        tokens = "-" if one["mean_tokens"] is None else f"{one['mean_tokens']:.0f}"
        numbers = [_percent(one["micro"]), _percent(one["first_point"])]
        numbers += [_percent(one["parsable"]), failed, f"{one['mean_points']:.1f}"]
        overview.append([one["label"], _cell(one["accuracy"][0]), *numbers, tokens])
    by_group = [["questions", "number", *(one["label"] for one in models)]]
    for place, entry in enumerate(models[0]["accuracy"]):
        by_group.append([_group(entry), str(entry["questions"]), *(_cell(one["accuracy"][place]) for one in models)])
    wanted = [
        place
        for place, entry in enumerate(models[0]["accuracy"])
        if entry["field"] in ("all", "kind") or (entry["field"] == "category" and entry["value"] == "unseen")
    ]
    guessing = [["", *(_group(models[0]["accuracy"][place]) for place in wanted)]]
    for name, row in [*((one["label"], one["accuracy"]) for one in models), *baselines.items()]:
        guessing.append([name, *(_partial(row[place], models[0]["accuracy"][place]["questions"]) for place in wanted)])
    return [
        ("Accuracy: points inside the region, in percent", overview),
        ("By part of the benchmark", by_group),
        ("What guesses and simple rules reach", guessing),
        ("Where the rest went, in percent of the questions", _failures(models)),
        *([("Confidence", _confidence(models))] if any(one["calibration"] for one in models) else []),
        *([("Beside the papers' tables (their numbers as published)", _paper(summary))] if summary["paper"] else []),
    ]


def _failures(models: list[dict[str, Any]]) -> list[list[str]]:
    """With the accuracy, the classes of a model add up to 100."""
    rows = [
        ["", *(one["label"] for one in models)],
        ["inside", *(_percent(one["accuracy"][0]["mean"]) for one in models)],
    ]
    for name in CLASSES:
        if any(one["failures"][name] for one in models):
            rows.append([name, *(_percent(one["failures"][name]) for one in models)])
    distances = ["-" if one["distance"] is None else f"{one['distance']:.1f}" for one in models]
    return [*rows, ["pixels to the region, mean", *distances]]


def _confidence(models: list[dict[str, Any]]) -> list[list[str]]:
    steps = (1.0, 0.8, 0.5, 0.2)
    rows = [["model", "points", "mean", "calibration error", "accuracy", *(f"surest {step:.0%}" for step in steps[1:])]]
    for one in models:
        if found := one["calibration"]:
            risks = {step["coverage"]: step["risk"] for step in found["risk_coverage"]}
            numbers = [str(found["points"]), f"{found['mean_confidence']:.2f}", f"{found['ece']:.3f}"]
            rows.append([one["label"], *numbers, *(_percent(1 - risks[step]) for step in steps)])
    return rows


def _paper(summary: dict[str, Any]) -> list[list[str]]:
    """The models of this summary in the columns that its benchmark fills, then the published rows."""
    benchmark = summary["benchmark"]
    filled = columns_of(benchmark["name"] or benchmark["folder"])
    rows = [["model", *COLUMNS, "source"]]
    for one in summary["models"]:
        entries = {(entry["field"], entry["value"]): entry for entry in one["accuracy"]}
        cells = [_spread(entries.get(filled[column])) if column in filled else "-" for column in COLUMNS]
        rows.append([one["label"], *cells, "this summary"])
    for name, (source, values) in TABLE.items():
        rows.append([name, *(f"{mean} +- {deviation}" for mean, deviation in values), f"as published: {source}"])
    return rows


def _spread(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    return _percent(entry["mean"]) + (f" +- {100 * entry['std']:.1f}" if entry["std"] is not None else "")


def sentences(summary: dict[str, Any]) -> list[str]:
    """What the tables do not say: comparisons, the reference's number, and what went wrong."""
    found = []
    for one in summary["models"]:
        if one["runs"] > 1:
            mean, deviation = _percent(one["accuracy"][0]["mean"]), _percent(one["accuracy"][0]["std"])
            found.append(f"{one['label']}: {one['runs']} runs, {mean} +- {deviation} (mean and sample deviation).")
    for one in summary["models"]:
        if one["difference"]:
            found.append(_compared(one["label"], one["difference"]))
    for one in summary["models"]:
        if one["cut"]:
            found.append(
                f"{one['label']}: counted as 0 are answers that were cut before a point ({one['cut']:g}; allow more "
                "tokens)."
            )
        if one["unparsable"] or one["outside"]:
            found.append(
                f"{one['label']}: counted as 0 are answers without a point ({one['unparsable']:g}) and with points "
                f"only outside the image ({one['outside']:g})."
            )
        found.extend(_unread(one))
        if one["robopoint"]:
            found.append(_as_published(one))
        found.extend(f"{one['label']}: {warning}." for warning in one["warnings"])
    if any(entry["mean"] is not None for entry in summary["baselines"].get(ON_SIDE, ())):
        found.append(RULES)
    return found


def _unread(one: dict[str, Any]) -> list[str]:
    """Why answers of a model hold no point, and what a few of them say."""
    reasons = ", ".join(f"{reason} ({count})" for reason, count in one["unread"]["reasons"].items())
    examples = [
        f'question {found["question_id"]} ({found["reason"]}): "{found["text"]}"' for found in one["unread"]["examples"]
    ]
    return [f"{one['label']}: not read: {reasons}. For example {'; '.join(examples)}."] if examples else []


def _compared(label: str, found: dict[str, Any]) -> str:
    gap = f"{label} minus {found['to']}: {100 * found['mean']:+.1f} points"
    if found["low"] is None:
        return f"{gap}; one image is too little for an interval."
    if found["clear"]:
        verdict = f"{label} is {'better' if found['mean'] > 0 else 'worse'}"
    elif found["low"] > 0 or found["high"] < 0:
        verdict = "no difference is shown, since the test does not confirm what the interval says"
    else:
        verdict = "no difference is shown"
    return (
        f"{gap}, 95 % interval {100 * found['low']:+.1f} to {100 * found['high']:+.1f}, "
        f"permutation test p = {found['p_value']:.2g}: {verdict}."
    )


def _as_published(one: dict[str, Any]) -> str:
    """The number that the reference's script prints for these answers, and how far it is from ours."""
    reference, (width, height) = one["robopoint"], REFERENCE_SIZE
    value = reference["accuracy"]
    gap = "" if value is None else f", {100 * (value - one['accuracy'][0]['mean']):+.1f} points to ours"
    return (
        f"{one['label']}: RoboPoint's script prints {_percent(value)}{gap}; it takes every image for "
        f"{width} x {height} pixels, counts {reference['counted']:g} answers and skips {reference['skipped']:g}."
    )


def _cell(entry: dict[str, Any]) -> str:
    if entry["mean"] is None or entry["low"] is None:
        return _spread(entry)
    return f"{_spread(entry)} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _partial(entry: dict[str, Any], questions: int) -> str:
    """A mean, with the number of questions it was taken over where that is not all of them."""
    value = _percent(entry["mean"])
    return value if entry["questions"] in (0, questions) else f"{value} (of {entry['questions']})"


def _group(entry: dict[str, Any]) -> str:
    value = str(entry["value"]).replace("_", " ")
    if entry["field"] in ("all", "category"):
        return NAMES.get(value, value)
    return f"{entry['field']}: {value}"


def as_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    blocks = [_head(summary)]
    for title, rows in tables(summary):
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        blocks.append("\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]]))
    return "\n\n".join([*blocks, *(["\n".join(sentences(summary))] if sentences(summary) else [])])


def as_markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    blocks = ["# Accuracy", _head(summary)]
    for title, rows in tables(summary):
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        blocks += [f"## {title}", "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])]
    return "\n\n".join([*blocks, "\n".join(f"- {sentence}" for sentence in sentences(summary))]).rstrip() + "\n"


def _head(summary: dict[str, Any]) -> str:
    benchmark = summary["benchmark"]
    note = f" ({benchmark['note']})" if benchmark["note"] else ""
    return (
        f"{benchmark['folder']}{note}: {benchmark['questions']} questions about {benchmark['images']} images; "
        "in brackets 95 % intervals over images (bootstrap; exact binomial where all images score alike)"
    )


def as_csv(summary: dict[str, Any]) -> str:
    """One line a model and part of the benchmark; accuracies are fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "field", "value", "questions", "runs", "mean", "low", "high", "std"])
    for one in summary["models"]:
        for entry in one["accuracy"]:
            numbers = [entry[name] for name in ("mean", "low", "high", "std")]
            writer.writerow([one["label"], entry["field"], entry["value"], entry["questions"], one["runs"], *numbers])
    return text.getvalue()
