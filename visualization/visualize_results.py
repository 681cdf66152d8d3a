"""Pictures that compare models: every answer over its image, its accuracy, its Chain of Reasoning step by step.

    python visualization/visualize_results.py --answer-files output/robopoint.jsonl output/trace.jsonl \\
        --labels robopoint trace --data-dir datasets/where2place/images --output output/comparison --num 10

`--data-dir` is the benchmark's folder or its images folder. Writes `--num` pictures (ground truth in cyan, predictions
in red), failures.png, which counts how the answers came out, and report.html with every question. Accuracies and
failure classes are those of `trace.eval`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from trace_vlm.utils.command import InputError, Parser, existing_file, output_folder, run

HARD = "unseen"  # the category of Where2Place's hard part
ORDERS = {
    "given": "the order of the question file",
    "worst": "lowest mean accuracy first",
    "best": "highest mean accuracy first",
    "disagree": "widest gap between models first",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Answers of one or more models to the same questions, side by side.")
    parser.add_argument(
        "--answer-files", "--answer-file", "--answer", type=Path, nargs="+", required=True, metavar="JSONL"
    )
    parser.add_argument("--labels", nargs="+", help="one a file; by default the files' names")
    parser.add_argument(
        "--convention", nargs="+", metavar="NAME",
        help="how models write coordinates whose answers do not record it, as for summarize_vqa: one for all, or one each",
    )  # fmt: skip
    parser.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder, or its images folder")
    parser.add_argument("--question-file", help="a path, or a name in the data folder; point_questions.jsonl if absent")
    parser.add_argument("--output", "--output-dir", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--num", "--num-questions", type=int, default=10, help="how many pictures")
    parser.add_argument("--failure", metavar="CLASS", help="only questions that some answer failed in this way")
    parser.add_argument("--category", help="only questions of this category (unseen: Where2Place's hard part)")
    parser.add_argument("--where2place-h", action="store_true", help="the hard part: the same as --category unseen")
    parser.add_argument(
        "--where2place-h-count", type=int, metavar="N", help="how many of the hard part; --num if absent"
    )
    parser.add_argument("--create-both", action="store_true", help="the questions, and the hard part in OUTPUT/hard")
    parser.add_argument(
        "--sort", choices=ORDERS, default="given", help="; ".join(f"{name}: {what}" for name, what in ORDERS.items())
    )
    arguments = parser.parse_args(argv)
    for path in arguments.answer_files:
        existing_file(path, "the answer file")
    labels = arguments.labels or [path.stem for path in arguments.answer_files]
    if len(labels) != len(arguments.answer_files) or len(set(labels)) != len(labels):
        raise InputError(
            f"{len(arguments.answer_files)} answer files need as many different --labels, not {', '.join(labels)}"
        )
    if arguments.num < 1:
        raise InputError(f"--num has to be at least 1, not {arguments.num}")
    if arguments.where2place_h_count is not None and arguments.where2place_h_count < 1:
        raise InputError(f"--where2place-h-count has to be at least 1, not {arguments.where2place_h_count}")
    if arguments.where2place_h and arguments.category not in (None, HARD):
        raise InputError(f"--where2place-h is --category {HARD}: leave out one, it or --category {arguments.category}")

    answers = dict(zip(labels, arguments.answer_files, strict=True))
    hard = arguments.where2place_h or arguments.category == HARD
    category = HARD if hard and not arguments.create_both else arguments.category
    count = (arguments.where2place_h_count or arguments.num) if category == HARD else arguments.num
    draw(arguments, answers, category, count, output_folder(arguments.output))
    if arguments.create_both:
        count = arguments.where2place_h_count or arguments.num
        draw(arguments, answers, HARD, count, output_folder(arguments.output / "hard"))
    return 0


def draw(arguments: Namespace, answers: Mapping[str, Path], category: str | None, count: int, folder: Path) -> None:
    """The first `count` questions of a category, in the order asked for, as pictures in `folder`."""
    from tqdm import tqdm

    from trace_vlm.drawing.canvas import save
    from trace_vlm.drawing.figures import outcome_counts
    from trace_vlm.eval.benchmark import open_benchmark
    from trace_vlm.report.comparison import compare, failing, ordered, write_question
    from trace_vlm.report.comparison_files import ComparisonGallery, write_comparisons
    from trace_vlm.report.page import write_page

    suite = open_benchmark(arguments.data_dir, arguments.question_file)
    comparison = compare(suite, answers, category, arguments.convention)
    questions = failing(comparison, ordered(comparison, arguments.sort), arguments.failure)
    items = [
        write_question(folder, comparison, question, place < count)
        for place, question in enumerate(tqdm(questions, unit="question"))
    ]
    write_comparisons(folder, ComparisonGallery(comparison.overall, tuple(items)))
    if comparison.outcomes:
        save(outcome_counts({one.label: dict(one.outcomes) for one in comparison.overall}), folder / "failures.png")
    for score in comparison.overall:
        known = "no ground truth" if score.accuracy is None else f"{score.accuracy:.1%}"
        if score.benchmark is not None and score.questions != score.asked:
            known = f"{score.benchmark:.1%} of all {score.asked} questions of the benchmark, {known}"
        told = ", ".join(f"{name} {number}" for name, number in score.outcomes)
        print(f"{score.label}: {known} of {score.questions} questions" + (f" ({told})" if told else ""))
    for warning in comparison.warnings:
        print(f"warning: {warning}")
    if comparison.outcomes:
        print("right: at least half of the answer's points lie in the target")
    print(f"{min(count, len(items))} pictures in {folder}")
    print(write_page(folder / "report.html", f"Answers of {', '.join(answers)}", comparison=folder))


if __name__ == "__main__":
    raise SystemExit(run(main))
