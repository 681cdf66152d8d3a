"""Summarize answer files: accuracy with intervals, error classes, calibration and comparisons of models.

    python -m trace.eval.summarize_vqa --answers out/trace.jsonl out/robopoint.jsonl --labels trace robopoint

Writes summary.json, .md and .csv, and calibration.png if confidences are known. Each model is compared with the first one.
Runs of a model (out/m-1.jsonl, out/m-2.jsonl ..., all meant by out/m.jsonl; files under one label; or one file whose
answers differ in `run`) give their mean and standard deviation.
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.summarize_vqa", run_name="__main__", alter_sys=True)

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..core.conventions import CONVENTIONS
from ..drawing.overlay import model_colors
from ..utils.command import InputError, Parser, existing_file, output_folder, run
from ..utils.files import read_json, read_jsonl, replacing, sha256, write_json
from .absence import Outcomes, mean_outcomes, summarize_absence
from .benchmark import Benchmark, add_benchmark_flags, open_benchmark, read_run_record, run_settings
from .error_classes import CLASSES, summarize_unparsed
from .quality import mean_quality
from .rules import NOTHING, YES_NO, rule_of
from .scoring import (
    BenchmarkScores,
    RunScores,
    conventions_per_file,
    full_mask_warnings,
    question_groups,
    read_runs,
    score_runs,
)
from .statistics import RESAMPLES, calibration, difference, interval
from .tables import as_csv, as_markdown, as_text, draw_calibration

Groups = dict[tuple[str, str], list[int]]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.resamples < 1 or arguments.seed < 0:
        raise InputError(f"--resamples {arguments.resamples} must be at least 1 and --seed {arguments.seed} at least 0")
    files = [_run_files(path, arguments.runs) for path in arguments.answers]
    paths = [path for group in files for path in group]
    for index, path in enumerate(paths):
        if path.resolve() in (other.resolve() for other in paths[:index]):
            raise InputError(f"{path} is given twice: its answers would count as two runs")
    labels = _labels(arguments.answers, arguments.labels)
    conventions = conventions_per_file(arguments.convention, len(files))
    benchmark = _open_benchmark(arguments, paths[0])
    counts: list[Any] = [run_settings(read_run_record(path)).get("num_questions") for path in paths]
    # the questions asked for, or as many as the runs that wrote the answers were asked for
    count = arguments.num_questions if arguments.num_questions is not None else max(counts) if all(counts) else None
    folder = output_folder(arguments.out or paths[0].parent)
    runs = []
    for group, label, convention in zip(files, labels, conventions, strict=True):
        for path in group:
            runs += read_runs(path, label, benchmark, convention)
    rng = np.random.default_rng(arguments.seed)
    scores = score_runs(benchmark.first(count), runs, rng, robopoint=arguments.compat == "robopoint")
    summary = summarize(scores, arguments.seed, arguments.resamples) | {"paper": arguments.paper}
    replaced = _other_answers(folder / "summary.json", paths)
    write_json(folder / "summary.json", summary)
    written = ["summary.json", "summary.md", "summary.csv"]
    for name, text in zip(written[1:], (as_markdown(summary), as_csv(summary)), strict=True):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if calibrated := {one["label"]: one["calibration"] for one in summary["models"] if one["calibration"]}:
        colors = model_colors(model["label"] for model in summary["models"])
        draw_calibration(calibrated, folder / "calibration.png", colors)
        written.append("calibration.png")
    print(f"{as_text(summary)}\n\nwritten: {', '.join(str(folder / name) for name in written)}")
    if replaced:
        print(f"this replaced a summary with other answers ({replaced}); --out keeps both")
    return 0


def _parser() -> Parser:
    parser = Parser(description="Summarize answer files: accuracy on a benchmark.", examples=__doc__)
    add = parser.add_argument
    add("--answers", type=Path, nargs="+", required=True, metavar="JSONL", help="answer files, one per model or run")
    add("--labels", nargs="+", help="names of the models, one name for all runs of a model (default: the file names)")
    add("--runs", choices=["single", "numbered"], help="if m-1.jsonl, m-2.jsonl ... exist beside m.jsonl: score which?")
    add("--convention", nargs="+", metavar="NAME", help="coordinate convention of answers that do not record it, one "
        f"for all files or one each: {', '.join(CONVENTIONS)}")  # fmt: skip
    add_benchmark_flags(parser)
    add("--out", type=Path, help="folder for the summary (default: that of the first answers)")
    add("--compat", choices=["robopoint"], help="also score as the reference's script does")
    add("--paper", action="store_true", help="add the papers' tables, as published")
    add("--seed", type=int, default=0, help="seed of the resampling")
    add("--resamples", type=int, default=RESAMPLES, help="bootstrap resamples")
    return parser


def _run_files(path: Path, choice: str | None) -> list[Path]:
    """Return the answer file, or the files of the runs that `model_vqa --runs` wrote under its name."""
    numbers = {file: file.stem[len(path.stem) + 1 :] for file in path.parent.glob(f"{path.stem}-*{path.suffix}")}
    runs = {file: int(number) for file, number in numbers.items() if number.isdecimal()}
    if path.exists():  # then another model's file, gpt-4.jsonl beside gpt.jsonl, is not one of its runs
        first = {file: next(read_jsonl(file, skip_partial_line=True), (0, {}))[1] for file in runs}
        runs = {file: number for file, number in runs.items() if first[file].get("run") == number}
    numbered = sorted(runs, key=lambda file: runs[file])
    if path.exists() and numbered and choice is None:
        raise InputError(
            f"{path} is one run, and {', '.join(file.name for file in numbered)} beside it are numbered runs of the same "
            "name. Choose with --runs single or --runs numbered"
        )
    if numbered and (choice == "numbered" or (choice is None and not path.exists())):
        return numbered
    return [existing_file(path, "the answer file")]


def _other_answers(path: Path, answers: Sequence[Path]) -> str:
    """Name the answer files of the summary at `path` that are not among `answers`; "" without any."""
    models = read_json(path).get("models", ()) if path.is_file() else ()
    files = {Path(file).name for model in models for file in model.get("files", ())}
    return ", ".join(sorted(files - {file.name for file in answers}))


def _labels(paths: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        labels = [path.stem for path in paths]
        full, shown = [path.resolve().with_suffix("") for path in paths], 1
        if len(set(full)) < len(full):  # names that differ in the suffix only
            full = [path.resolve() for path in paths]
        while len(set(labels)) < len(labels):  # add as many parent folders as tell them apart
            shown += 1
            labels = ["/".join(path.parts[-shown:]) for path in full]
    if len(labels) != len(paths):
        raise InputError(f"{len(labels)} labels for {len(paths)} answer files. Give one each")
    return list(labels)


def _open_benchmark(arguments: argparse.Namespace, answers: Path) -> Benchmark:
    """Open the given benchmark, or the one that the record of the first answers names."""
    record = read_run_record(answers)
    if arguments.data is not None or not record:
        if arguments.data is None and arguments.questions is None:
            raise InputError(f"no record beside {answers} names its benchmark. Give its folder with --data")
        return open_benchmark(arguments.data, arguments.questions, arguments.images)
    folder, images = Path(record.get("data_dir") or "?"), Path(record.get("image_folder") or "?")
    if not folder.is_dir():  # answers and benchmark may have been moved together
        moved = answers.parent / (record.get("data_dir_from_here") or "?")
        if not moved.is_dir():
            raise InputError(f"{folder}, which the record beside {answers} names, does not exist. Give --data")
        folder = moved
    question_file = arguments.questions or record.get("question_file")
    return open_benchmark(folder, question_file, arguments.images or (images if images.is_dir() else None))


def summarize(scores: BenchmarkScores, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return the contents of summary.json; accuracies are fractions. Runs under one label are one model."""
    benchmark, images = scores.benchmark, scores.images
    groups = question_groups(benchmark.questions)
    models: dict[str, list[RunScores]] = {}
    for run_scores in scores.runs:
        models.setdefault(run_scores.run.label, []).append(run_scores)
    baselines = {name: _by_group([values], images, groups, 0, 0) for name, values in scores.baselines.items()}
    for label, runs in models.items():
        name = "other images" if len(models) == 1 else f"other images, {label}"
        baselines[name] = _by_group([one.shuffled for one in runs], images, groups, 0, 0)
    first = next(iter(models.values()))
    absence = _absence(scores, models, seed, resamples)
    return {
        "benchmark": {
            "name": benchmark.name, "note": benchmark.note, "folder": str(benchmark.question_file.parent),
            "question_file": benchmark.question_file.name, "sha256": sha256(benchmark.question_file),
            "questions": len(benchmark.questions), "images": len(set(images)),
            "rules": dict(Counter(map(rule_of, benchmark.questions))),
        },
        "paper": False, "seed": seed, "resamples": resamples,
        "models": [_summarize_model(runs, first, scores, groups, seed, resamples) for runs in models.values()],
        "baselines": baselines, "absence": absence,
    }  # fmt: skip


def _absence(
    scores: BenchmarkScores, models: Mapping[str, Sequence[RunScores]], seed: int, resamples: int
) -> dict[str, Any]:
    """Return how every model and baseline answers where nothing is there, by label; {} if something always is."""
    kept = [(index, rule) for index, one in enumerate(scores.benchmark.questions) if (rule := rule_of(one)) != YES_NO]
    absent, images = [rule == NOTHING for _, rule in kept], [scores.images[index] for index, _ in kept]
    ones, zeros = [1.0] * len(kept), [0.0] * len(kept)
    outcomes = {label: mean_outcomes([run.outcomes for run in runs]) for label, runs in models.items()}
    outcomes["always none"] = Outcomes(ones, zeros, list(map(float, absent)))
    uniform = scores.baselines["uniform points"]
    outcomes["never none: uniform points"] = Outcomes(zeros, ones, [uniform[index] or 0.0 for index, _ in kept])
    for label, runs in models.items():
        outcomes[f"other images, {label}"] = mean_outcomes([run.shuffled_outcomes for run in runs])
    return {label: summarize_absence(one, absent, images, seed, resamples) for label, one in outcomes.items()
            } if any(absent) else {}  # fmt: skip


def _summarize_model(
    runs: Sequence[RunScores], first: Sequence[RunScores], results: BenchmarkScores, groups: Groups, seed: int,
    resamples: int,
) -> dict[str, Any]:  # fmt: skip
    question_ids, images = [str(one.question_id) for one in results.benchmark.questions], results.images
    total, count = len(question_ids), len(runs)
    tokens = [one.run.tokens[name] for one in runs for name in question_ids if name in one.run.tokens]
    scores = _mean_over_runs([one.scores for one in runs])
    compared = None
    if runs is not first:
        others = _mean_over_runs([one.scores for one in first])
        gap = difference(scores, others, images, np.random.default_rng(seed), resamples)
        compared = {"to": first[0].run.label, **asdict(gap.interval), "p_value": gap.p_value, "clear": gap.clear}
    names = ("unanswered", "cut", "unparsable", "outside")
    failed = {name: sum(getattr(one, name) for one in runs) / count for name in names}
    weighted = [sum(s * n for s, n in zip(one.scores, one.weights, strict=True)) for one in runs]
    micro = [hits / max(1.0, sum(one.weights)) for hits, one in zip(weighted, runs, strict=True)]
    distances = [distance for one in runs for distance in one.distances if distance is not None]
    errors = [shares for one in runs for shares in one.errors]
    return {
        "label": runs[0].run.label, "answers": str(runs[0].run.path),
        "files": list(dict.fromkeys(str(one.run.path) for one in runs)), "runs": count,
        "run": {name: runs[0].run.record.get(name) for name in ("settings", "versions", "seconds")},
        "convention": ", ".join(dict.fromkeys(one.run.convention for one in runs)),
        "accuracy": _by_group([one.scores for one in runs], images, groups, seed, resamples),
        "difference": compared,
        "first_point": _mean_of_known([one.first for one in runs]),
        "micro": float(np.mean(micro)),
        "parsable": 1 - (failed["unparsable"] + failed["cut"] + failed["unanswered"]) / total,
        **{name: _integer_if_whole(value) for name, value in failed.items()},
        "unread": summarize_unparsed([answer for one in runs for answer in one.run.unparsed]),
        "failures": {name: sum(shares.get(name, 0.0) for shares in errors) / (count * total) for name in CLASSES},
        "distance": float(np.mean(distances)) if distances else None,
        "mean_points": _mean_of_known([one.points for one in runs]),
        "mean_tokens": float(np.mean(tokens)) if tokens else None,
        "quality": mean_quality([answer for one in runs for answer in one.quality]),
        "robopoint": _reference(runs) if runs[0].robopoint else None,
        "calibration": calibration(
            [pair for one in runs for pair in one.point_confidence],
            [pair for one in runs for pair in one.answer_confidence],
            1 - float(np.mean([none for one in runs for none in one.outcomes.none or [0.0]])),
        ),
        "warnings": _warnings(runs, results), "scores": dict(zip(question_ids, scores, strict=True)),
    }  # fmt: skip


def _mean_over_runs(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


def _mean_of_known(runs: Sequence[Sequence[float | None]]) -> float | None:
    """Return the mean over runs and questions, without the questions that have no value."""
    known = _mean_over_runs([[value for value in run if value is not None] for run in runs])
    return float(np.mean(known)) if known else None


def _integer_if_whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _by_group(
    runs: Sequence[Sequence[float | None]], images: Sequence[str], groups: Groups, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Return mean, interval and sample deviation of runs of each group; questions without a value are left out."""
    entries = []
    for (name, value), indices in groups.items():
        by_question = [(index, [one for run in runs if (one := run[index]) is not None]) for index in indices]
        known = [(sum(values) / len(values), images[index]) for index, values in by_question if values]
        # one stream per group, from the same seed: runs and groups share their resamples, so they compare well
        rng = np.random.default_rng(seed)
        entry: dict[str, Any] = {"mean": None, "low": None, "high": None, "questions": 0}
        if known:
            entry = asdict(interval([one for one, _ in known], [image for _, image in known], rng, resamples))
        of_runs = [[one for index in indices if (one := run[index]) is not None] for run in runs]
        means = [float(np.mean(values)) for values in of_runs if values]
        deviation = float(np.std(means, ddof=1)) if len(runs) > 1 and all(of_runs) else None
        entries.append({"field": name, "value": value, **entry, "std": deviation, "means": means})
    return entries


def _reference(runs: Sequence[RunScores]) -> dict[str, Any]:
    """The number that the reference's script prints, the mean over runs."""
    counted = [[value for value in one.robopoint if value is not None] for one in runs]
    means = [float(np.mean(values)) for values in counted if values]
    number = sum(map(len, counted)) / len(runs)
    return {"accuracy": float(np.mean(means)) if means else None, "counted": _integer_if_whole(number),
            "skipped": _integer_if_whole(len(runs[0].robopoint) - number)}  # fmt: skip


def _warnings(runs: Sequence[RunScores], scores: BenchmarkScores) -> list[str]:
    benchmark, count = scores.benchmark, len(scores.benchmark.questions)
    question_ids = {str(question.question_id) for question in benchmark.questions}
    warnings = []
    for one in runs:
        where = f" in {one.run.source}" if len(runs) > 1 else ""
        if skipped := len(question_ids.intersection(one.run.skipped)):
            reason = "because their images are broken, and count as 0"
            warnings.append(f"{skipped} of {count} questions were skipped{where}, {reason}")
        if one.unanswered > skipped:
            warnings.append(f"{one.unanswered - skipped} of {count} questions are not answered{where} and count as 0")
        warnings.extend(f"{note}{where}" for note in one.run.notes)
    return warnings + full_mask_warnings(scores.full_masks, count)


if __name__ == "__main__":
    raise SystemExit(run(main))
