"""Where a model looks while it reasons: attention over the image for each of the five milestones.

    python visualization/attention_map.py --model-path M --dataset-dir datasets/where2place --output-dir OUT \\
        --end-idx 84 --every 7 --resume

Each question is answered once, greedily; attention is read out while the answer is generated, or, with
`--method teacher-forced --answer-file A.jsonl`, from answers that were saved. For every milestone that the answer
holds one picture is written (heat-map over the original image, ground truth in cyan, predicted points in red, the
step's words below), all of them in one strip, and a record with the numbers; then summary.json with intervals and
tests, and report.html. `--resume` skips questions whose files are whole and tries again what failed. `--intervene`
edits one step at a time and lets the model go on from there (interventions.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_vlm.utils.command import InputError, Parser, output_folder, run

if TYPE_CHECKING:
    from trace_vlm.attention.capture import Capture
    from trace_vlm.core.records import Answer, Question
    from trace_vlm.eval.benchmark import Benchmark
    from trace_vlm.model.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)

    from trace_vlm.attention.results import read_failures, refuse_other_settings, whole, write_attention_index
    from trace_vlm.core.prompts import template
    from trace_vlm.eval.benchmark import open_benchmark
    from trace_vlm.model.presets import default_model

    arguments.model_path = arguments.model_path or str(default_model())
    if (arguments.answer_file is not None) != (arguments.method == "teacher-forced"):
        raise InputError("--method teacher-forced reads saved answers: it goes with --answer-file, and only it does")
    if arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens has to be at least 1, not {arguments.max_new_tokens}")
    if template(arguments.conv_mode).name == "plain":
        raise InputError("the conversation template 'plain' has no place for a question")
    suite = open_benchmark(arguments.dataset_dir, arguments.question_file)
    end = len(suite.questions) if arguments.end_idx is None else min(arguments.end_idx, len(suite.questions))
    if not 0 <= arguments.start_idx < end:
        raise InputError(
            f"--start-idx {arguments.start_idx} to --end-idx {arguments.end_idx} is no part of the "
            f"{len(suite.questions)} questions in {suite.question_file}"
        )
    if arguments.every < 1:
        raise InputError(f"--every {arguments.every}: every first question is every one; give 1 or more")
    answers = _answers(arguments.answer_file, suite)
    folder = output_folder(arguments.output_dir)
    settings = _settings(arguments)
    asked = [(place, suite.questions[place]) for place in range(arguments.start_idx, end, arguments.every)]
    wanted = [
        (place, question)
        for place, question in asked
        if not (arguments.resume and whole(folder, question.question_id, settings | _picture(suite, question)))
    ]
    refuse_other_settings(folder, settings, [question.question_id for _, question in wanted])
    if len(wanted) < len(asked):
        print(f"{len(asked) - len(wanted)} of {len(asked)} questions are whole already")
    failures = read_failures(folder)
    checkpoint = _load(arguments) if wanted or arguments.intervene else None
    if wanted and checkpoint is not None:
        _draw_all(folder, checkpoint, suite, wanted, answers, arguments, settings, failures)
    write_attention_index(folder)
    failed = {name: failures[name] for _, question in asked if (name := str(question.question_id)) in failures}
    for name, reason in failed.items():
        print(f"question {name} failed: {reason}")
    print(f"{len(wanted) - len(failed)} questions drawn into {folder}")
    _conclude(folder, checkpoint if arguments.intervene else None, suite, arguments)
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser(description="Attention to the image during each step of the reasoning.")
    parser.add_argument("--model-path", help="folder of the model; one that ships with the package if absent")
    parser.add_argument("--model-base", help="the model that an adapter belongs to")
    parser.add_argument("--dataset-dir", "--data-dir", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--question-file", help="a path, or a name in the folder; point_questions.jsonl if absent")
    parser.add_argument("--output-dir", "--output", type=Path, required=True)
    parser.add_argument("--start-idx", type=int, default=0, help="first question, counted from 0")
    parser.add_argument("--end-idx", type=int, help="one past the last question; all if absent")
    parser.add_argument("--every", type=int, default=1, help="every such question only: other images, sooner a verdict")
    parser.add_argument("--resume", action="store_true", help="skip questions whose files are whole; retry failures")
    parser.add_argument("--layers", type=int, nargs="+", help="decoder layers to average; the last three if absent")
    parser.add_argument("--reduce", choices=("mean", "max"), default="mean", help="over the heads of a layer")
    parser.add_argument("--heads", type=int, nargs="+", default=[], metavar="LAYER", help="layers whose heads are kept")
    parser.add_argument(
        "--row",
        choices=("fed", "predict"),
        default="fed",
        help="a token's row: where it is fed in, or the one before, which chose it",
    )
    parser.add_argument(
        "--method",
        choices=("generate", "teacher-forced"),
        default="generate",
        help="answer now, or read the answers of --answer-file in one pass each",
    )
    parser.add_argument("--answer-file", type=Path, help="saved answers of this model")
    parser.add_argument(
        "--scaling", choices=("shared", "each"), default="shared", help="one colour scale over all steps, or one a step"
    )
    parser.add_argument(
        "--intervene", action="store_true", help="edit one step at a time and see whether the points follow"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--conv-mode", default="vicuna_v1", help="conversation template")
    parser.add_argument("--device", help="as torch names it; a GPU if there is one")
    parser.add_argument("--dtype", help="of the weights; float32 on a CPU, as stored on a GPU")
    return parser


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides a record: it is only skipped under the same ones."""
    from trace_vlm.eval.answering import fingerprint
    from trace_vlm.inference.predictor import device_and_dtype
    from trace_vlm.model.checkpoint import loaded_dtype
    from trace_vlm.model.presets import resolve_model
    from trace_vlm.utils.files import sha256

    model, dtype = resolve_model(arguments.model_path), device_and_dtype(arguments.device, arguments.dtype)[1]
    return {
        "model": fingerprint(model),
        "model_base": fingerprint(arguments.model_base) if arguments.model_base else None,
        "dtype": loaded_dtype(model, arguments.model_base, dtype),
        "layers": arguments.layers,
        "reduce": arguments.reduce,
        "heads": arguments.heads,
        "row": arguments.row,
        "answers": sha256(arguments.answer_file) if arguments.answer_file else None,
        "scaling": arguments.scaling,
        "max_new_tokens": arguments.max_new_tokens,
        "conv_mode": arguments.conv_mode,
    }


def _picture(suite: Benchmark, question: Question) -> dict[str, Any]:
    """What tells the picture of a question from another one; nothing for one that is missing."""
    from trace_vlm.utils.files import sha256

    try:
        return {"image": sha256(suite.image_path(question))}
    except InputError:  # told where it is drawn
        return {}


def _answers(path: Path | None, suite: Benchmark) -> dict[str, Answer]:
    from trace_vlm.core.records import read_answers
    from trace_vlm.eval.benchmark import pair_answers

    return {} if path is None else pair_answers(read_answers(path), suite, path)


def _load(arguments: argparse.Namespace) -> Checkpoint:
    from trace_vlm.inference.predictor import Predictor

    return Predictor.load(arguments.model_path, arguments.model_base, arguments.device, arguments.dtype).checkpoint


def _draw_all(
    folder: Path,
    checkpoint: Checkpoint,
    suite: Benchmark,
    wanted: Sequence[tuple[int, Any]],
    answers: Mapping[str, Answer],
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    failures: dict[str, str],
) -> None:
    """Every wanted question; one that fails is recorded with its reason and does not end a long run."""
    from tqdm import tqdm

    from trace_vlm.attention.capture import Capture
    from trace_vlm.attention.results import write_failures

    layers = None if arguments.layers is None else tuple(arguments.layers)
    capture = Capture(layers, arguments.reduce, tuple(arguments.heads), arguments.row)
    capture.of(checkpoint.model)  # a layer that does not exist is a mistake of the command, not of a question
    for place, question in tqdm(wanted, unit="question"):
        failures.pop(str(question.question_id), None)
        try:
            _draw(folder, checkpoint, suite, place, answers, arguments, settings, capture)
        except InputError as error:
            failures[str(question.question_id)] = str(error)
            write_failures(folder, failures)
    write_failures(folder, failures)


def _draw(
    folder: Path,
    checkpoint: Checkpoint,
    suite: Benchmark,
    place: int,
    answers: Mapping[str, Answer],
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    capture: Capture,
) -> None:
    """Ask and draw the question at `place`. InputError: its image, mask or saved answer cannot be used."""
    from trace_vlm.attention.results import named_object, write_attended
    from trace_vlm.attention.steps import analyse, analyse_answer
    from trace_vlm.core.images import open_image

    question = suite.questions[place]
    image = open_image(suite.image_path(question))
    masks = suite.mask(question) if suite.masks else None, named_object(suite, question)
    if arguments.method == "generate":
        maps = analyse(checkpoint, image, question.text, capture, arguments.max_new_tokens, arguments.conv_mode)
    else:
        answer = answers.get(str(question.question_id))
        if answer is None:
            raise InputError(f"{arguments.answer_file} holds no answer to question {question.question_id}")
        maps = analyse_answer(checkpoint, image, question.text, answer, capture, arguments.conv_mode)
    settings = {**settings, **_picture(suite, question)}
    write_attended(folder, place, question, image, masks, maps, checkpoint.name, settings, arguments.scaling)


def _conclude(folder: Path, checkpoint: Checkpoint | None, suite: Benchmark, arguments: argparse.Namespace) -> None:
    """What is said about all records: interventions if asked for, the summary, and the page."""
    from trace_vlm.attention.results import read_attention
    from trace_vlm.attention.summary import describe, write_summary

    if not read_attention(folder):
        return
    if checkpoint is not None:
        from trace_vlm.attention.interventions import intervene_all

        told = intervene_all(folder, checkpoint, suite, arguments.max_new_tokens, arguments.conv_mode, arguments.resume)
        print("\n".join(told))
    print("\n".join(describe(write_summary(folder))))
    from trace_vlm.report.page import write_page

    title = f"Attention of {Path(arguments.model_path).resolve().name}"
    print(write_page(folder / "report.html", title, attention=folder))


if __name__ == "__main__":
    raise SystemExit(run(main))
