"""Answer files -> accuracy, with what may be concluded from it.

    python -m trace.eval.summarize_vqa --answer out/trace.jsonl out/robopoint.jsonl --labels trace robopoint

Prints tables and writes summary.json and summary.md. Every question of the benchmark counts, failures as 0. Intervals
are 95 % bootstrap intervals that resample images; each run is compared with the first one on the same questions.
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.summarize_vqa", run_name="__main__", alter_sys=True)

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..command import InputError, Parser, existing_file, output_folder, run
from ..files import replacing, sha256, write_json
from .grading import Graded, Grades, grade, groups, read_answer_file
from .metrics import REFERENCE_SIZE, RESAMPLES, Difference, difference, interval
from .suites import Suite, open_suite, read_run

Groups = dict[tuple[str, str], list[int]]
NAMES = {"unseen": "unseen (hard)"}  # Where2Place's hard part: relations that training does not hold


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Accuracy of answer files on a benchmark.")
    parser.add_argument(
        "--answer", "--answer-file", "--answer-files", "--answers-file", type=Path, nargs="+", required=True,
        metavar="JSONL", help="answers, one file a model",
    )  # fmt: skip
    parser.add_argument("--labels", nargs="+", help="names for the tables; by default those of the files")
    parser.add_argument("--data-dir", type=Path, help="the benchmark; by default the one that the run's record names")
    parser.add_argument("--question-file", help="by default point_questions.jsonl, or what the run's record names")
    parser.add_argument("--num-questions", type=int, help="only the first ones of the file")
    parser.add_argument("--output", "--output-dir", type=Path, help="folder for summary.json and summary.md; "
                        "by default that of the first answers")  # fmt: skip
    parser.add_argument("--compat", choices=["robopoint"], help="also score as the reference's script does")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    arguments = parser.parse_args(argv)
    for path in arguments.answer:
        existing_file(path, "the answer file")
    labels = _labels(arguments.answer, arguments.labels)
    suite = _find_suite(arguments)
    folder = output_folder(arguments.output or arguments.answer[0].parent)
    runs = [read_answer_file(path, label, suite) for path, label in zip(arguments.answer, labels, strict=True)]
    rng = np.random.default_rng(arguments.seed)
    graded = grade(_first(suite, arguments), runs, rng, robopoint=arguments.compat == "robopoint")
    summary = summarize(graded, arguments.seed, arguments.resamples)
    write_json(folder / "summary.json", summary)
    with replacing(folder / "summary.md") as temporary:
        temporary.write_text(as_markdown(summary), encoding="utf-8")
    print(as_text(summary))
    print(f"\nwritten: {folder / 'summary.json'}, {folder / 'summary.md'}")
    return 0


def _labels(paths: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        labels = [path.stem for path in paths]
        if len(set(labels)) < len(labels):
            labels = [f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    if len(labels) != len(paths):
        raise InputError(f"{len(labels)} labels for {len(paths)} answer files: give one each")
    if len(set(labels)) < len(labels):
        raise InputError(f"the labels {', '.join(labels)} are not all different: give other --labels")
    return list(labels)


def _find_suite(arguments: argparse.Namespace) -> Suite:
    """The benchmark that was asked for, or the one that the first answers' record names."""
    first = arguments.answer[0]
    record = read_run(first)
    if arguments.data_dir is not None or not record:
        if arguments.data_dir is None and arguments.question_file is None:
            raise InputError(f"no record beside {first} names its benchmark: give the folder with --data-dir")
        return open_suite(arguments.data_dir, arguments.question_file)
    question_file = arguments.question_file or record.get("question_file")
    folder, images = Path(record.get("data_dir") or "?"), Path(record.get("image_folder") or "?")
    if not folder.is_dir():  # answers and benchmark may have been moved together
        moved = first.parent / (record.get("data_dir_from_here") or "?")
        if not moved.is_dir():
            raise InputError(f"{folder}, which the record beside {first} names, is gone: give --data-dir")
        folder = moved
    return open_suite(folder, question_file, images if images.is_dir() else None)


def _first(suite: Suite, arguments: argparse.Namespace) -> Suite:
    """The questions to score: those asked for, or as many as the run that wrote the answers was asked for."""
    asked = [read_run(path).get("settings", {}).get("num_questions") for path in arguments.answer]
    count = arguments.num_questions
    if count is None and all(asked):
        count = max(asked)
    return suite.first(count)


# --- the numbers -------------------------------------------------------------------------------------------------


def summarize(graded: Graded, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that summary.json holds; accuracies are fractions from 0 to 1."""
    questions = graded.suite.questions
    images = [question.image for question in questions]
    parts = groups(questions)
    baselines = {name: _by_group(values, images, parts, 0, 0) for name, values in graded.baselines.items()}
    for one in graded.runs:
        name = "other images" if len(graded.runs) == 1 else f"other images, {one.run.label}"
        baselines[name] = _by_group(one.shuffled, images, parts, 0, 0)
    return {
        "benchmark": {
            "folder": str(graded.suite.question_file.parent),
            "question_file": graded.suite.question_file.name,
            "sha256": sha256(graded.suite.question_file),
            "questions": len(questions),
            "images": len(set(images)),
        },
        "seed": seed,
        "resamples": resamples,
        "models": [_model(one, graded, parts, seed, resamples) for one in graded.runs],
        "baselines": baselines,
    }


def _model(one: Grades, graded: Graded, parts: Groups, seed: int, resamples: int) -> dict[str, Any]:
    questions, first = graded.suite.questions, graded.runs[0]
    images = [question.image for question in questions]
    total = len(questions)
    tokens = [one.run.tokens[name] for name in map(_key, questions) if name in one.run.tokens]
    compared = None
    if one is not first:
        rng = np.random.default_rng(seed)
        compared = _difference(difference(one.scores, first.scores, images, rng, resamples), first.run.label)
    return {
        "label": one.run.label,
        "answers": str(one.run.path),
        "run": {name: one.run.record.get(name) for name in ("settings", "versions", "seconds")},
        "accuracy": _by_group(one.scores, images, parts, seed, resamples),
        "difference": compared,
        "first_point": float(np.mean(one.first)),
        "micro": sum(s * n for s, n in zip(one.scores, one.points, strict=True)) / max(1, sum(one.points)),
        "parsable": 1 - (one.unparsable + one.unanswered) / total,
        "unanswered": one.unanswered,
        "unparsable": one.unparsable,
        "outside": one.outside,
        "mean_points": float(np.mean(one.points)),
        "mean_tokens": float(np.mean(tokens)) if tokens else None,
        "robopoint": _reference(one) if one.robopoint else None,
        "warnings": _warnings(one, graded.suite),
        "scores": {_key(question): value for question, value in zip(questions, one.scores, strict=True)},
    }


def _key(question: Any) -> str:
    return str(question.question_id)


def _by_group(
    values: Sequence[float | None], images: Sequence[str], parts: Groups, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Mean and interval of each group; questions without a value are left out, groups without one have a null mean."""
    found = []
    for (name, value), places in parts.items():
        known = [(values[place], images[place]) for place in places if values[place] is not None]
        # one stream a group, from the same seed: two runs and two groups share their resamples, so they compare well
        rng = np.random.default_rng(seed)
        numbers = [float(number) for number, _ in known if number is not None]
        result = interval(numbers, [image for _, image in known], rng, resamples) if known else None
        entry = asdict(result) if result else {"mean": None, "low": None, "high": None, "questions": 0}
        found.append({"field": name, "value": value, **entry})
    return found


def _difference(found: Difference, label: str) -> dict[str, Any]:
    return {"to": label, **asdict(found.interval), "p_value": found.p_value, "clear": found.clear}


def _reference(one: Grades) -> dict[str, Any]:
    counted = [value for value in one.robopoint if value is not None]
    return {
        "accuracy": float(np.mean(counted)) if counted else None,
        "counted": len(counted),
        "skipped": len(one.robopoint) - len(counted),
    }


def _warnings(one: Grades, suite: Suite) -> list[str]:
    found = []
    if one.unanswered:
        found.append(f"{one.unanswered} of {len(suite.questions)} questions are not answered and count as 0")
    asked = one.run.record.get("settings", {}).get("question_sha256")
    if asked and asked != sha256(suite.question_file):
        found.append(f"{suite.question_file} is not the file that was answered, or was changed since")
    return found


# --- the tables --------------------------------------------------------------------------------------------------


def tables(summary: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows (the first one the header) of every table, for the terminal and for Markdown alike."""
    models, baselines = summary["models"], summary["baselines"]
    overview = [["model", "accuracy", "first point", "parsable", "failed", "points", "tokens"]]
    for one in models:
        failed = one["unanswered"] + one["unparsable"] + one["outside"]
        tokens = "-" if one["mean_tokens"] is None else f"{one['mean_tokens']:.0f}"
        numbers = [_percent(one["first_point"]), _percent(one["parsable"]), str(failed), f"{one['mean_points']:.1f}"]
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
        ("What guessing reaches", guessing),
    ]


def sentences(summary: dict[str, Any]) -> list[str]:
    """What the tables do not say: comparisons, the reference's number, and what went wrong."""
    found = []
    for one in summary["models"]:
        if one["difference"]:
            found.append(_compared(one["label"], one["difference"]))
    for one in summary["models"]:
        if one["unparsable"] or one["outside"]:
            found.append(
                f"{one['label']}: counted as 0 are answers without a point ({one['unparsable']}) and with points only "
                f"outside the image ({one['outside']})."
            )
        if one["robopoint"]:
            found.append(_as_published(one))
        found.extend(f"{one['label']}: {warning}." for warning in one["warnings"])
    return found


def _compared(label: str, found: dict[str, Any]) -> str:
    gap = f"{label} minus {found['to']}: {100 * found['mean']:+.1f} points"
    if found["low"] is None:
        return f"{gap}; one image is too little for an interval."
    verdict = f"{label} is {'better' if found['mean'] > 0 else 'worse'}" if found["clear"] else "no difference is shown"
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
        f"{width} x {height} pixels, counts {reference['counted']} answers and skips {reference['skipped']}."
    )


def _cell(entry: dict[str, Any]) -> str:
    if entry["mean"] is None or entry["low"] is None:
        return _percent(entry["mean"])
    return f"{100 * entry['mean']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


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
    return (
        f"{benchmark['folder']}: {benchmark['questions']} questions about {benchmark['images']} images; "
        "in brackets 95 % bootstrap intervals over images"
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
