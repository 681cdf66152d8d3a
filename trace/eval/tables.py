"""A summary as text, Markdown, CSV and the calibration figure, all from the contents of summary.json."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .benchmark import run_settings
from .error_classes import CLASSES
from .rules import SHARE, YES_NO
from .scoring import REFERENCE_SIZE, asked_differently
from .statistics import BINS

ON_SIDE = "shortcut: image nearest on side"
RULES = (
    "shortcut: extreme leaves out the reference and shortcut: nearest the direction, so each is right in half of the "
    f"relational questions by construction. {ON_SIDE} takes the nearest object of the asked noun on the asked side, in "
    "the picture: it is not a guess, but solves a part of the task. All of them know where the objects are."
)
GROUP_NAMES = {"unseen": "unseen (hard)"}  # Where2Place's hard part: relations that training does not hold

# Accuracies of the papers' tables in percent, mean and standard deviation: as published, none measured here.
PAPER_COLUMNS = ("RoboRefIt", "Where2Place", "Where2Place (hard)")
TRACE_PAPER, ROBOPOINT_PAPER = "TRACE, arXiv 2511.01999", "RoboPoint, arXiv 2406.10721"
PAPER_ROWS: Mapping[str, tuple[str, tuple[tuple[float, float], ...]]] = {
    "RoboPoint(FFT)+TRACE": (TRACE_PAPER, ((42.9, 0.8), (48.1, 0.1), (55.0, 3.5))),
    "RoboPoint(FFT)": (TRACE_PAPER, ((41.7, 0.6), (43.9, 0.6), (46.9, 4.2))),
    "RoboPoint(LoRA)+TRACE": (TRACE_PAPER, ((48.1, 2.8), (43.7, 4.1), (41.2, 7.3))),
    "RoboPoint(LoRA)": (TRACE_PAPER, ((40.6, 3.0), (36.1, 1.3), (30.7, 0.2))),
    "SpaceLLaVA": (TRACE_PAPER, ((20.0, 0.5), (15.0, 1.6), (13.6, 2.1))),
    "GPT-4o": (TRACE_PAPER, ((6.5, 0.8), (18.7, 2.6), (17.8, 4.8))),
    "Gemini": (TRACE_PAPER, ((5.2, 0.1), (7.8, 0.2), (6.6, 0.2))),
    "RoboPoint 13B": (ROBOPOINT_PAPER, ((49.82, 0.52), (46.77, 0.45), (44.48, 1.35))),
}

UNKNOWN = dict.fromkeys(("mean", "low", "high", "std"))
Rows = list[list[str]]


def tables(summary: dict[str, Any]) -> list[tuple[str, Rows]]:
    """Return the title and the rows (the header first) of every table, for the terminal and for Markdown alike."""
    models, baselines = summary["models"], summary["baselines"]
    labels, groups = [model["label"] for model in models], models[0]["accuracy"]
    overview = [["model", "accuracy", "micro", "first point", "parsable", "failed", "points", "tokens"]]
    for model in models:
        failed = f"{model['unanswered'] + model['cut'] + model['unparsable'] + model['outside']:g}"
        tokens = "-" if model["mean_tokens"] is None else f"{model['mean_tokens']:.0f}"
        shares = [_percent(model[name]) for name in ("micro", "first_point", "parsable")]
        accuracy = _with_interval(model["accuracy"][0])
        points = "-" if model["mean_points"] is None else f"{model['mean_points']:.1f}"
        overview.append([model["label"], accuracy, *shares, failed, points, tokens])
    by_group = [["questions", "number", *labels]]
    for index, group in enumerate(groups):
        values = [_with_interval(model["accuracy"][index]) for model in models]
        by_group.append([_group_name(group), str(group["questions"]), *values])
    shown = [
        one["field"] in ("all", "kind", "hops") or (one["field"], one["value"]) == ("category", "unseen")
        for one in groups
    ]
    chosen = [index for index, is_shown in enumerate(shown) if is_shown]
    compared = [["", *(_group_name(groups[index]) for index in chosen)]]
    for name, accuracy in [*((model["label"], model["accuracy"]) for model in models), *baselines.items()]:
        compared.append([name, *(_partial(accuracy[index], groups[index]["questions"]) for index in chosen)])
    errors = [["", *labels], ["inside", *(_percent(model["accuracy"][0]["mean"]) for model in models)]]
    for name in CLASSES:  # with the accuracy, the classes of a model add up to 100
        if any(model["failures"][name] for model in models):
            errors.append([name, *(_percent(model["failures"][name]) for model in models)])
    distances = ["-" if model["distance"] is None else f"{model['distance']:.1f}" for model in models]
    regions_only = set(summary["benchmark"]["rules"]) == {SHARE}
    titled = [
        (f"Accuracy{': points inside the region' * regions_only}, in percent", overview),
        ("By part of the benchmark", by_group),
        ("Models and baselines", compared),
        ("Error classes, in percent of the questions", [*errors, ["pixels to the region, mean", *distances]]),
    ]
    if absence := summary.get("absence"):
        rows = [["", "accuracy where it is there", "false points", "wrong none", "F1 of none", "coverage", "risk"]]
        for label, one in absence.items():
            parts = [_with_interval(one[name] or UNKNOWN) for name in ("accuracy", "false_points", "false_none")]
            rows.append([label, *parts, *(_percent(one[name]) for name in ("f1", "coverage", "risk"))])
        titled.append(("Where nothing is there to point at, in percent", rows))
    if any("true_places" in model["quality"] for model in models):
        quality = [["model", "true first step", "true places", "points", "distinct", "tokens"]]
        for model, row in zip(models, overview[1:], strict=True):
            shares = [_percent(model["quality"].get(name)) for name in ("true_first_step", "true_places")]
            distinct = f"{model['quality'].get('distinct_points', 0):.1f}"
            quality.append([model["label"], *shares, row[-2], distinct, row[-1]])
        titled.append(("Reasoning: places that lie on the object they are written for, in percent", quality))
    if any(model["calibration"] for model in models):
        titled.append(("Confidence", _confidence(models)))
    if summary["paper"]:
        titled.append(("Beside the papers' tables (their numbers as published)", _paper(summary)))
    return titled


def _confidence(models: list[dict[str, Any]]) -> Rows:
    coverages = (1.0, 0.8, 0.5, 0.2)
    rows = [["model", "points", "mean", "calibration error", "accuracy", *(f"surest {c:.0%}" for c in coverages[1:])]]
    for model in models:
        if values := model["calibration"]:
            risks = {step["coverage"]: step["risk"] for step in values["risk_coverage"]}
            numbers = [str(values["points"]), f"{values['mean_confidence']:.2f}", f"{values['ece']:.3f}"]
            rows.append([model["label"], *numbers, *(_percent(1 - risks[coverage]) for coverage in coverages)])
    return rows


def _paper(summary: dict[str, Any]) -> Rows:
    """The models of this summary in the columns that its benchmark fills, then the published rows."""
    benchmark = summary["benchmark"]
    plain = "".join(letter for letter in (benchmark["name"] or benchmark["folder"]).lower() if letter.isalnum())
    filled: dict[str, tuple[str, str]] = {}
    if "roborefit" in plain:
        filled = {"RoboRefIt": ("all", "all")}
    elif "where2place" in plain:
        filled = {"Where2Place": ("all", "all"), "Where2Place (hard)": ("category", "unseen")}
    rows = [["model", *PAPER_COLUMNS, "source"]]
    for model in summary["models"]:
        groups = {(group["field"], group["value"]): group for group in model["accuracy"]}
        cells = [_with_deviation(groups.get(filled.get(column, ("", "")))) for column in PAPER_COLUMNS]
        rows.append([model["label"], *cells, "this summary"])
    for name, (source, values) in PAPER_ROWS.items():
        rows.append([name, *(f"{mean} +- {deviation}" for mean, deviation in values), f"as published: {source}"])
    return rows


def sentences(summary: dict[str, Any]) -> list[str]:
    """Return what the tables do not show: comparisons, the reference's number, and what went wrong."""
    models, lines = summary["models"], []
    asked = "a point" + ", yes or no" * (YES_NO in summary["benchmark"]["rules"])
    for model in models:
        if model["runs"] > 1:
            accuracy = _with_deviation(model["accuracy"][0])
            lines.append(f"{model['label']}: {model['runs']} runs, {accuracy} (mean and sample deviation).")
    lines += [_comparison(model["label"], model["difference"]) for model in models if model["difference"]]
    lines += [
        f"{line}." for line in asked_differently({m["label"]: run_settings(m["run"]).get("reasoning") for m in models})
    ]
    for model in models:
        notes = []
        if model["cut"]:
            notes.append(f"{model['cut']:g} answers were cut before {asked} and count as 0 (allow more tokens).")
        if model["unparsable"] or model["outside"]:
            notes.append(
                f"{model['unparsable']:g} answers without {asked} and {model['outside']:g} with points only outside the "
                "image count as 0."
            )
        reasons = ", ".join(f"{reason} ({count})" for reason, count in model["unread"]["reasons"].items())
        if examples := "; ".join(
            f'question {one["question_id"]} ({one["reason"]}): "{one["text"]}"' for one in model["unread"]["examples"]
        ):
            notes.append(f"not read: {reasons}. For example {examples}.")
        if reference := model["robopoint"]:
            value, (width, height) = reference["accuracy"], REFERENCE_SIZE
            gap = "" if value is None else f", {100 * (value - model['accuracy'][0]['mean']):+.1f} points to ours"
            notes.append(
                f"RoboPoint's script prints {_percent(value)}{gap}; it takes every image for {width} x {height} pixels, "
                f"counts {reference['counted']:g} answers and skips {reference['skipped']:g}."
            )
        notes += [f"{warning}." for warning in model["warnings"]]
        lines += [f"{model['label']}: {note}" for note in notes]
    if any(group["mean"] is not None for group in summary["baselines"].get(ON_SIDE, ())):
        lines.append(RULES)
    return lines


def _comparison(label: str, difference: dict[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    gap = f"{label} minus {difference['to']}: {100 * difference['mean']:+.1f} points"
    if low is None:
        return f"{gap}; one image is too little for an interval."
    verdict = "no difference is shown" + ", since the test does not confirm the interval" * (low > 0 or high < 0)
    if difference["clear"]:
        verdict = f"{label} is {'better' if difference['mean'] > 0 else 'worse'}"
    interval, p_value = f"{100 * low:+.1f} to {100 * high:+.1f}", f"{difference['p_value']:.2g}"
    return f"{gap}, 95 % interval {interval}, permutation test p = {p_value}: {verdict}."


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _with_deviation(group: dict[str, Any] | None) -> str:
    if group is None:
        return "-"
    return _percent(group["mean"]) + (f" +- {100 * group['std']:.1f}" if group.get("std") is not None else "")


def _with_interval(group: dict[str, Any]) -> str:
    known = group["mean"] is not None and group["low"] is not None
    return _with_deviation(group) + (f" [{100 * group['low']:.1f}, {100 * group['high']:.1f}]" if known else "")


def _partial(group: dict[str, Any], questions: int) -> str:
    """A mean, with the number of its questions if that is not all of them."""
    value = _percent(group["mean"])
    return value if group["questions"] in (0, questions) else f"{value} (of {group['questions']})"


def _group_name(group: dict[str, Any]) -> str:
    value = str(group["value"]).replace("_", " ")
    return GROUP_NAMES.get(value, value) if group["field"] in ("all", "category") else f"{group['field']}: {value}"


def as_text(summary: dict[str, Any]) -> str:
    blocks = [_head(summary)]
    for title, rows in tables(summary):
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        blocks.append("\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]]))
    return "\n\n".join([*blocks, *(["\n".join(lines)] if (lines := sentences(summary)) else [])])


def as_markdown(summary: dict[str, Any]) -> str:
    blocks = ["# Accuracy", _head(summary)]
    for title, rows in tables(summary):
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        blocks += [f"## {title}", "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])]
    return "\n\n".join([*blocks, "\n".join(f"- {sentence}" for sentence in sentences(summary))]).rstrip() + "\n"


def _head(summary: dict[str, Any]) -> str:
    benchmark = summary["benchmark"]
    rules = ", ".join(f"{rule} ({count} questions)" for rule, count in benchmark["rules"].items())
    note = f" ({benchmark['note']})" if benchmark["note"] else ""
    return (
        f"{benchmark['folder']}{note}: {benchmark['questions']} questions about {benchmark['images']} images, "
        f"scored by: {rules}; "
        "in brackets 95 % intervals over images (bootstrap; exact binomial where all images score alike)"
    )


def as_csv(summary: dict[str, Any]) -> str:
    """Return one line per model and part of the benchmark; accuracies are fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "field", "value", "questions", "runs", "mean", "low", "high", "std"])
    for model in summary["models"]:
        for group in model["accuracy"]:
            identity = (model["label"], group["field"], group["value"], group["questions"], model["runs"])
            writer.writerow([*identity, *(group[name] for name in ("mean", "low", "high", "std"))])
    return text.getvalue()


def draw_calibration(models: Mapping[str, Mapping[str, Any]], path: Path, colors: Mapping[str, str]) -> None:
    """Draw the reliability diagram, the points per bin and the risk-coverage curves of models as a PNG.

    `models` maps a label to a result of `statistics.calibration`.
    """
    from ..drawing.canvas import DPI, Canvas, font_families, save_figure

    def tenths_around(values: Sequence[float]) -> tuple[float, float]:
        low, high = math.floor(10 * min(values) + 1e-9) / 10, math.ceil(10 * max(values) - 1e-9) / 10
        return low - 0.01, max(high, low + 0.1) + 0.01

    canvas = Canvas(900, 545 + 16 * len(models))  # the legends are below, where no curve is
    reliable, counts = canvas.axes(70, 40, 350, 300), canvas.axes(70, 365, 350, 120)
    risks = canvas.axes(520, 40, 350, 445)
    reliable.plot([0, 1], [0, 1], color="#9aa4b0", linewidth=1, linestyle="--")
    for index, (label, values) in enumerate(models.items()):
        bins, steps, style = values["reliability"], values["risk_coverage"], {"color": colors[label], "markersize": 4}
        reliable.plot([one["confidence"] for one in bins], [one["accuracy"] for one in bins], "o-", **style)
        width = 0.9 / BINS / len(models)
        left = [one["low"] + 0.05 / BINS + index * width for one in bins]
        bars = counts.bar(left, [one["points"] for one in bins], width, align="edge", color=colors[label],
                          label=f"{label}: ECE {values['ece']:.3f}")  # fmt: skip
        counts.bar_label(bars, fontsize=7, rotation=0 if len(models) == 1 else 90, padding=2)
        answered = values["answered"]  # the others are "none"
        risks.plot([answered * step["coverage"] for step in steps], [step["risk"] for step in steps], "o-", **style,
                   label=f"{label}: mean risk {values['aurc']:.3f}")  # fmt: skip
    bins = [one for values in models.values() for one in values["reliability"]]
    x = min(one["low"] for one in bins), max(one["high"] for one in bins)
    shares = tenths_around([one[name] for one in bins for name in ("confidence", "accuracy")])
    losses = tenths_around([step["risk"] for values in models.values() for step in values["risk_coverage"]])
    most = 1.4 * max(one["points"] for one in bins)
    for axes, title, settings in (
        (reliable, "Reliability", {"xlim": x, "ylim": shares, "ylabel": "share inside the region"}),
        (counts, "", {"xlim": x, "ylim": (0, most), "xlabel": "confidence of a point", "ylabel": "points"}),
        (risks, "Risk and coverage", {"xlim": (0, 1.02), "ylim": losses, "xlabel": "share of the questions answered",
                                      "ylabel": "1 - accuracy of those"}),
    ):  # fmt: skip
        axes.set(**settings)
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8.5)
        axes.grid(color="#e6e9ed", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes, below in ((counts, -0.33), (risks, -0.09)):
        font = {"family": font_families(" ".join(models)), "size": 8}
        axes.legend(prop=font, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, below))
    save_figure(canvas.figure, path, scale=150 / DPI)
