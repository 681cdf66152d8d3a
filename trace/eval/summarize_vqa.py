"""Answer files -> accuracy, with what may be concluded from it.

    python -m trace.eval.summarize_vqa --answer out/trace.jsonl out/robopoint.jsonl --labels trace robopoint

Prints tables and writes summary.json, summary.md and summary.csv, and calibration.png where confidences are known.
Every question of the benchmark counts, failures as 0. Intervals are 95 % bootstrap intervals that resample images;
each model is compared with the first one on the same questions. Several runs of a model (out/m-1.jsonl, out/m-2.jsonl
..., all meant by out/m.jsonl; any files under one label; or one file whose answers differ in `run`) give their mean and
standard deviation.
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

from ..core.conventions import CONVENTIONS
from ..drawing.overlay import model_colors
from ..utils.command import InputError, Parser, existing_file, output_folder, run
from ..utils.files import read_jsonl, replacing, sha256, write_json
from .benchmark import Benchmark, open_benchmark, read_run, settings_of
from .calibration import calibration, draw
from .error_classes import CLASSES
from .scoring import BenchmarkScores, RunScores, conventions_per_file, full_mask_warnings, groups, read_runs, score_runs
from .statistics import RESAMPLES, Difference, difference, interval
from .tables import as_csv, as_markdown, as_text, sentences, tables
from .unparsed import summed

__all__ = ["as_csv", "as_markdown", "as_text", "main", "sentences", "summarize", "tables"]

Groups = dict[tuple[str, str], list[int]]
Values = Sequence[float | None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Accuracy of answer files on a benchmark.")
    parser.add_argument(
        "--answer", "--answer-file", "--answer-files", "--answers-file", type=Path, nargs="+", required=True,
        metavar="JSONL", help="answers, one file a model or run",
    )  # fmt: skip
    parser.add_argument("--labels", nargs="+", help="names for the tables, the same one for runs of one model; "
                        "by default those of the files")  # fmt: skip
    parser.add_argument("--runs", choices=["single", "numbered"], help="which files m.jsonl means where m-1.jsonl, "
                        "m-2.jsonl ... are there too: itself, or those runs")  # fmt: skip
    parser.add_argument("--convention", nargs="+", metavar="NAME", help="how models write coordinates whose answers do "
                        f"not record it, one for all files or one each: {', '.join(CONVENTIONS)}")  # fmt: skip
    parser.add_argument("--data-dir", help="the benchmark, by name or folder; by default the one that the run's "
                        "record names")  # fmt: skip
    parser.add_argument("--question-file", help="by default point_questions.jsonl, or what the run's record names")
    parser.add_argument("--num-questions", type=int, help="only the first ones of the file")
    parser.add_argument("--output", "--output-dir", type=Path, help="folder for summary.json, .md and .csv; "
                        "by default that of the first answers")  # fmt: skip
    parser.add_argument("--compat", choices=["robopoint"], help="also score as the reference's script does")
    parser.add_argument("--paper", action="store_true", help="print the papers' tables beside it, as published")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    arguments = parser.parse_args(argv)
    if arguments.resamples < 1 or arguments.seed < 0:
        raise InputError(f"--resamples {arguments.resamples} must be at least 1 and --seed {arguments.seed} at least 0")
    files = [_files(path, arguments.runs) for path in arguments.answer]
    _check_once([path for group in files for path in group])
    labels = _labels(arguments.answer, arguments.labels)
    asked = conventions_per_file(arguments.convention, len(files))
    arguments.answer = [path for group in files for path in group]
    suite = _find_suite(arguments)
    folder = output_folder(arguments.output or arguments.answer[0].parent)
    runs = [
        one
        for group, label, how in zip(files, labels, asked, strict=True)
        for path in group
        for one in read_runs(path, label, suite, how)
    ]
    rng = np.random.default_rng(arguments.seed)
    graded = score_runs(_first(suite, arguments), runs, rng, robopoint=arguments.compat == "robopoint")
    summary = summarize(graded, arguments.seed, arguments.resamples) | {"paper": arguments.paper}
    write_json(folder / "summary.json", summary)
    written = ["summary.json"]
    for name, text in (("summary.md", as_markdown(summary)), ("summary.csv", as_csv(summary))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(name)
    calibrated = {one["label"]: one["calibration"] for one in summary["models"] if one["calibration"]}
    if calibrated:
        draw(calibrated, folder / "calibration.png", model_colors(one["label"] for one in summary["models"]))
        written.append("calibration.png")
    print(as_text(summary))
    print(f"\nwritten: {', '.join(str(folder / name) for name in written)}")
    return 0


def _files(path: Path, which: str | None) -> list[Path]:
    """A file of answers, or the files of the runs that `model_vqa --runs` wrote under its name.

    InputError: both are there, and `which` ("single" or "numbered") does not say what is meant.
    """
    numbers = {one: one.stem[len(path.stem) + 1 :] for one in path.parent.glob(f"{path.stem}-*{path.suffix}")}
    runs = sorted((one for one, text in numbers.items() if text.isdecimal()), key=lambda one: int(numbers[one]))
    if path.exists():  # then another model's file, gpt-4.jsonl beside gpt.jsonl, is none of its runs
        runs = [one for one in runs if _holds_run(one, int(numbers[one]))]
    if path.exists() and runs and which is None:
        raise InputError(
            f"{path} is one run, and {', '.join(one.name for one in runs)} beside it are numbered runs of the same "
            "name: say which are meant with --runs single or --runs numbered"
        )
    if runs and (which == "numbered" or (which is None and not path.exists())):
        return runs
    return [existing_file(path, "the answer file")]


def _holds_run(path: Path, number: int) -> bool:
    """Whether the answers of a file say that they are those of run `number`."""
    return next((record.get("run") == number for _, record in read_jsonl(path, skip_partial_line=True)), False)


def _check_once(paths: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{path} is given twice: its answers would count as two runs")
        seen.add(path.resolve())


def _labels(paths: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    if labels is None:
        labels = [path.stem for path in paths]
        whole, shown = [path.resolve().with_suffix("") for path in paths], 1
        if len(set(whole)) < len(whole):  # of one name but for the suffix
            whole = [path.resolve() for path in paths]
        while len(set(labels)) < len(labels):  # as many of the folders above as tell them apart
            shown += 1
            labels = ["/".join(path.parts[-shown:]) for path in whole]
    if len(labels) != len(paths):
        raise InputError(f"{len(labels)} labels for {len(paths)} answer files: give one each")
    return list(labels)


def _find_suite(arguments: argparse.Namespace) -> Benchmark:
    """The benchmark that was asked for, or the one that the first answers' record names."""
    first = arguments.answer[0]
    record = read_run(first)
    if arguments.data_dir is not None or not record:
        if arguments.data_dir is None and arguments.question_file is None:
            raise InputError(f"no record beside {first} names its benchmark: give the folder with --data-dir")
        return open_benchmark(arguments.data_dir, arguments.question_file)
    question_file = arguments.question_file or record.get("question_file")
    folder, images = Path(record.get("data_dir") or "?"), Path(record.get("image_folder") or "?")
    if not folder.is_dir():  # answers and benchmark may have been moved together
        moved = first.parent / (record.get("data_dir_from_here") or "?")
        if not moved.is_dir():
            raise InputError(f"{folder}, which the record beside {first} names, is gone: give --data-dir")
        folder = moved
    return open_benchmark(folder, question_file, images if images.is_dir() else None)


def _first(suite: Benchmark, arguments: argparse.Namespace) -> Benchmark:
    """The questions to score: those asked for, or as many as the run that wrote the answers was asked for."""
    asked: list[Any] = [settings_of(read_run(path)).get("num_questions") for path in arguments.answer]
    count = arguments.num_questions
    if count is None and all(asked):
        count = max(asked)
    return suite.first(count)


# --- the numbers -------------------------------------------------------------------------------------------------


def summarize(graded: BenchmarkScores, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything that summary.json holds; accuracies are fractions from 0 to 1. Runs under one label are one model."""
    suite, questions = graded.suite, graded.suite.questions
    images = graded.pictures
    parts = groups(questions)
    models: dict[str, list[RunScores]] = {}
    for one in graded.runs:
        models.setdefault(one.run.label, []).append(one)
    baselines = {name: _by_group([values], images, parts, 0, 0) for name, values in graded.baselines.items()}
    for label, runs in models.items():
        name = "other images" if len(models) == 1 else f"other images, {label}"
        baselines[name] = _by_group([one.shuffled for one in runs], images, parts, 0, 0)
    first = next(iter(models.values()))
    return {
        "benchmark": {
            "name": suite.name,
            "note": suite.note,
            "folder": str(suite.question_file.parent),
            "question_file": suite.question_file.name,
            "sha256": sha256(suite.question_file),
            "questions": len(questions),
            "images": len(set(images)),
        },
        "paper": False,
        "seed": seed,
        "resamples": resamples,
        "models": [_model(runs, first, graded, parts, seed, resamples) for runs in models.values()],
        "baselines": baselines,
    }


def _model(
    runs: Sequence[RunScores],
    first: Sequence[RunScores],
    graded: BenchmarkScores,
    parts: Groups,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    questions, total = graded.suite.questions, len(graded.suite.questions)
    images = graded.pictures
    tokens = [one.run.tokens[name] for one in runs for name in map(_key, questions) if name in one.run.tokens]
    scores = _mean_of([one.scores for one in runs])
    compared = None
    if runs is not first:
        rng = np.random.default_rng(seed)
        others = _mean_of([one.scores for one in first])
        compared = _difference(difference(scores, others, images, rng, resamples), first[0].run.label)
    per_run = len(runs)
    unanswered, cut, unparsable, outside = (
        sum(getattr(one, name) for one in runs) / per_run for name in ("unanswered", "cut", "unparsable", "outside")
    )
    gaps = [gap for one in runs for gap in one.distances if gap is not None]
    return {
        "label": runs[0].run.label,
        "answers": str(runs[0].run.path),
        "files": list(dict.fromkeys(str(one.run.path) for one in runs)),
        "runs": per_run,
        "run": {name: runs[0].run.record.get(name) for name in ("settings", "versions", "seconds")},
        "convention": ", ".join(dict.fromkeys(one.run.convention for one in runs)),
        "accuracy": _by_group([one.scores for one in runs], images, parts, seed, resamples),
        "difference": compared,
        "first_point": float(np.mean(_mean_of([one.first for one in runs]))),
        "micro": float(np.mean([_micro(one) for one in runs])),
        "parsable": 1 - (unparsable + cut + unanswered) / total,
        "unanswered": _whole(unanswered),
        "cut": _whole(cut),
        "unparsable": _whole(unparsable),
        "outside": _whole(outside),
        "unread": summed([found for one in runs for found in one.run.unread]),
        "failures": {
            name: sum(shares.get(name, 0.0) for one in runs for shares in one.failures) / (per_run * total)
            for name in CLASSES
        },
        "distance": float(np.mean(gaps)) if gaps else None,
        "mean_points": float(np.mean([count for one in runs for count in one.points])),
        "mean_tokens": float(np.mean(tokens)) if tokens else None,
        "robopoint": _reference(runs) if runs[0].robopoint else None,
        "calibration": calibration(
            [pair for one in runs for pair in one.sure_points], [pair for one in runs for pair in one.sure_answers]
        ),
        "warnings": _warnings(runs, graded),
        "scores": {_key(question): value for question, value in zip(questions, scores, strict=True)},
    }


def _mean_of(values: Sequence[Sequence[float]]) -> list[float]:
    """The mean over runs, one value a question."""
    return [sum(column) / len(column) for column in zip(*values, strict=True)]


def _micro(one: RunScores) -> float:
    return sum(s * n for s, n in zip(one.scores, one.weights, strict=True)) / max(1.0, sum(one.weights))


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _key(question: Any) -> str:
    return str(question.question_id)


def _by_group(
    runs: Sequence[Values], images: Sequence[str], parts: Groups, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Mean and interval of each group; questions without a value are left out, groups without one have a null mean.

    `runs` holds one value a question and run. `std` is the sample deviation of the runs' means, None for one run.
    """
    found = []
    for (name, value), places in parts.items():
        known = [
            (sum(ours) / len(ours), images[place])
            for place in places
            if (ours := [one for run in runs if (one := run[place]) is not None])
        ]
        # one stream a group, from the same seed: two runs and two groups share their resamples, so they compare well
        rng = np.random.default_rng(seed)
        result = interval([one for one, _ in known], [image for _, image in known], rng, resamples) if known else None
        entry = asdict(result) if result else {"mean": None, "low": None, "high": None, "questions": 0}
        found.append({"field": name, "value": value, **entry, "std": _deviation(runs, places)})
    return found


def _deviation(runs: Sequence[Values], places: Sequence[int]) -> float | None:
    means = [[value for place in places if (value := run[place]) is not None] for run in runs]
    if len(runs) < 2 or not all(means):
        return None
    return float(np.std([np.mean(values) for values in means], ddof=1))


def _difference(found: Difference, label: str) -> dict[str, Any]:
    return {"to": label, **asdict(found.interval), "p_value": found.p_value, "clear": found.clear}


def _reference(runs: Sequence[RunScores]) -> dict[str, Any]:
    counted = [[value for value in one.robopoint if value is not None] for one in runs]
    means = [float(np.mean(values)) for values in counted if values]
    number = sum(map(len, counted)) / len(runs)
    return {
        "accuracy": float(np.mean(means)) if means else None,
        "counted": _whole(number),
        "skipped": _whole(len(runs[0].robopoint) - number),
    }


def _warnings(runs: Sequence[RunScores], graded: BenchmarkScores) -> list[str]:
    suite, count = graded.suite, len(graded.suite.questions)
    asked_keys = {_key(question) for question in suite.questions}
    found = []
    for one in runs:
        where = f" in {one.run.source}" if len(runs) > 1 else ""
        skipped = len(asked_keys.intersection(one.run.skipped))
        if skipped:
            found.append(
                f"{skipped} of {count} questions were skipped{where}, as their images are broken, and count as 0"
            )
        if one.unanswered > skipped:
            found.append(f"{one.unanswered - skipped} of {count} questions are not answered{where} and count as 0")
        asked = settings_of(one.run.record).get("question_sha256")
        if asked and asked != sha256(suite.question_file):
            found.append(f"{suite.question_file} is not the file that was answered{where}, or was changed since")
        found.extend(f"{note}{where}" for note in one.run.notes)
    return found + full_mask_warnings(graded.covered, count)


if __name__ == "__main__":
    raise SystemExit(run(main))
