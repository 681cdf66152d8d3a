"""Answers of one or more models side by side: over the image, with accuracy and the reasoning step by step.

    python visualization/visualize_results.py --answers output/robopoint.jsonl output/trace.jsonl \\
        --labels robopoint trace --data datasets/where2place/images --out output/comparison --num 10

`--data` is the benchmark's folder or its images folder. Writes `--num` figures (ground truth in cyan, predictions in
red), failures.png with the number of answers of each outcome, and report.html with every question.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from trace_vlm.utils.command import InputError, Parser, check_at_least, existing_file, output_folder, run

HARD = "unseen"  # the category of Where2Place's hard part
ORDERS = {
    "given": "the order of the question file",
    "worst": "lowest mean accuracy first",
    "best": "highest mean accuracy first",
    "disagree": "widest gap between models first",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Compare the answers of one or more models to the same questions.", examples=__doc__)
    # fmt: off
    add = parser.add_argument
    add("--answers", type=Path, nargs="+", required=True, metavar="JSONL", help="answer files, one a model")
    add("--labels", nargs="+", help="names of the models, one a file (default: the files' names)")
    add("--convention", nargs="+", metavar="NAME",
        help="how models write coordinates, for answers that do not record it: one for all, or one each")
    add("--data", type=Path, required=True, help="folder of the benchmark, or its images folder")
    add("--questions", help="question file: a path, or a name in the folder (default: point_questions.jsonl)")
    add("--out", type=Path, required=True, help="folder for the figures")
    add("--num", "--num-questions", type=int, default=10, help="number of figures")
    add("--failure", metavar="CLASS", help="only questions where some answer has this outcome")
    add("--category", help="only questions of this category (unseen: Where2Place's hard part)")
    add("--where2place-h", action="store_true", help="same as --category unseen")
    add("--where2place-h-count", type=int, metavar="N", help="number of figures of the hard part (default: --num)")
    add("--create-both", action="store_true", help="also write the hard part, into OUT/hard")
    add("--sort", choices=ORDERS, default="given",
        help="; ".join(f"{name}: {words}" for name, words in ORDERS.items()))
    # fmt: on
    arguments = parser.parse_args(argv)
    for path in arguments.answers:
        if not path.exists() and (first := path.with_stem(f"{path.stem}-1")).exists():
            raise InputError(f"{path} was answered in several runs. Choose one, for example {first}")
        existing_file(path, "the answer file")
    labels = arguments.labels or [path.stem for path in arguments.answers]
    if len(labels) != len(arguments.answers) or len(set(labels)) != len(labels):
        raise InputError(
            f"{len(arguments.answers)} answer files need as many different --labels, not {', '.join(labels)}"
        )
    check_at_least(arguments, num=1, where2place_h_count=1)
    if arguments.where2place_h and arguments.category not in (None, HARD):
        raise InputError(f"--where2place-h is --category {HARD}: leave out one, it or --category {arguments.category}")

    answers = dict(zip(labels, arguments.answers, strict=True))
    hard = arguments.where2place_h or arguments.category == HARD
    hard_count = arguments.where2place_h_count or arguments.num
    category = HARD if hard and not arguments.create_both else arguments.category
    draw(arguments, answers, category, hard_count if category == HARD else arguments.num, output_folder(arguments.out))
    if arguments.create_both:
        draw(arguments, answers, HARD, hard_count, output_folder(arguments.out / "hard"))
    return 0


def draw(arguments: Namespace, answers: Mapping[str, Path], category: str | None, count: int, folder: Path) -> None:
    """Compare the questions of a category in the order asked for; draw the first `count` of them into `folder`."""
    from tqdm import tqdm

    from trace_vlm.drawing.canvas import save_figure
    from trace_vlm.drawing.figures import draw_outcome_counts
    from trace_vlm.eval.benchmark import open_benchmark
    from trace_vlm.report import comparison
    from trace_vlm.report.page import render, write_html

    benchmark = open_benchmark(arguments.data, arguments.questions)
    compared = comparison.compare(benchmark, answers, category, arguments.convention)
    questions = comparison.sort_questions(compared, arguments.sort)
    questions = comparison.filter_by_outcome(compared, questions, arguments.failure)
    items = [
        comparison.write_question(folder, compared, question, index < count)
        for index, question in enumerate(tqdm(questions, unit="question"))
    ]
    comparison.write_comparison(folder, compared.overall, items)
    if compared.outcomes:
        counts = {score.label: dict(score.outcomes) for score in compared.overall}
        save_figure(draw_outcome_counts(counts), folder / "failures.png")
    for score in compared.overall:
        accuracy = "no ground truth" if score.accuracy is None else f"{score.accuracy:.1%}"
        if score.benchmark is not None and score.questions != score.asked:
            accuracy = f"{score.benchmark:.1%} of all {score.asked} questions of the benchmark, {accuracy}"
        outcomes = ", ".join(f"{name} {number}" for name, number in score.outcomes)
        print(f"{score.label}: {accuracy} of {score.questions} questions" + (f" ({outcomes})" if outcomes else ""))
    for warning in compared.warnings:
        print(f"warning: {warning}")
    if compared.outcomes:
        print("right: at least half of the answer's points lie in the target")
    print(f"{min(count, len(items))} pictures in {folder}")
    print(write_html(folder / "report.html", render(f"Answers of {', '.join(answers)}", comparison=folder)))


if __name__ == "__main__":
    raise SystemExit(run(main))
