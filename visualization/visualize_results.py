"""Pictures that compare models: every answer over its image, its accuracy, its Chain of Reasoning step by step.

    python visualization/visualize_results.py --answer-files output/robopoint.jsonl output/trace.jsonl \\
        --labels robopoint trace --data-dir datasets/where2place/images --output output/comparison --num 10

`--data-dir` is the benchmark's folder or its images folder. Writes one picture a question (ground truth in cyan,
predictions in red) and `index.json`, from which `python -m trace.report` makes a page. Accuracies are those of
`trace.eval.summarize_vqa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trace_vlm.command import InputError, Parser, existing_file, output_folder, run

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
    parser.add_argument("--data-dir", type=Path, required=True, help="the benchmark's folder, or its images folder")
    parser.add_argument("--question-file", help="a path, or a name in the data folder; point_questions.jsonl if absent")
    parser.add_argument("--output", "--output-dir", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--num", "--num-questions", type=int, default=10, help="how many questions")
    parser.add_argument("--category", help="only questions of this category (unseen: Where2Place's hard part)")
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

    from tqdm import tqdm

    from trace_vlm.comparing import compare, ordered, write_question
    from trace_vlm.eval.suites import open_suite
    from trace_vlm.galleries import ComparisonGallery, write_comparisons

    suite = open_suite(arguments.data_dir, arguments.question_file)
    comparison = compare(suite, dict(zip(labels, arguments.answer_files, strict=True)), arguments.category)
    chosen = ordered(comparison, arguments.sort)[: arguments.num]
    folder = output_folder(arguments.output)
    items = [write_question(folder, comparison, question) for question in tqdm(chosen, unit="picture")]
    write_comparisons(folder, ComparisonGallery(comparison.overall, tuple(items)))
    for score in comparison.overall:
        known = "no ground truth" if score.accuracy is None else f"{score.accuracy:.1%}"
        print(f"{score.label}: {known} of {score.questions} questions")
    print(f"{len(items)} pictures in {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
