"""Where a model looks while it reasons: attention over the image for each step of the reasoning.

    python visualization/attention_map.py --model M --data datasets/where2place --out OUT --end-idx 84 --every 7 --resume

Each question is answered once, greedily; then one pass records the attention of the answer, or, with
`--method teacher-forced --answers A.jsonl`, of answers that were saved. Writes one picture for each step (heat map over
the image, ground truth in cyan, predicted points in red), one with all of them, a record with the numbers, and over all
questions summary.json and report.html. `--resume` skips complete questions and retries failed ones. `--intervene`
edits one step at a time and lets the model continue (interventions.json).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_vlm.utils.command import InputError, Parser, check_at_least, output_folder, run

if TYPE_CHECKING:
    from trace_vlm.core.records import Answer, Question
    from trace_vlm.eval.benchmark import Benchmark
    from trace_vlm.model.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)

    from trace_vlm.attention import results
    from trace_vlm.core.prompts import template
    from trace_vlm.core.records import read_answers
    from trace_vlm.eval.benchmark import open_benchmark, pair_answers
    from trace_vlm.inference.predictor import Predictor
    from trace_vlm.model.presets import default_model

    arguments.model = arguments.model or str(default_model())
    if (arguments.answers is not None) != (arguments.method == "teacher-forced"):
        raise InputError("--method teacher-forced reads saved answers: it goes with --answers, and only it does")
    check_at_least(arguments, max_new_tokens=1, every=1)
    if template(arguments.conv_mode).name == "plain":
        raise InputError("the conversation template 'plain' has no place for a question")
    benchmark = open_benchmark(arguments.data, arguments.questions)
    count = len(benchmark.questions)
    end = count if arguments.end_idx is None else min(arguments.end_idx, count)
    if not 0 <= arguments.start_idx < end:
        raise InputError(
            f"--start-idx {arguments.start_idx} to --end-idx {arguments.end_idx} is no part of the {count} questions "
            f"in {benchmark.question_file}"
        )
    answers = {}
    if arguments.answers is not None:
        answers = pair_answers(read_answers(arguments.answers), benchmark, arguments.answers)
    folder, settings = output_folder(arguments.out), _settings(arguments)
    asked = list(enumerate(benchmark.questions))[arguments.start_idx : end : arguments.every]
    wanted = [
        (order, question, of_question)
        for order, question in asked
        for of_question in [settings | _image_hash(benchmark, question)]
        if not (arguments.resume and results.is_complete(folder, question.question_id, of_question))
    ]
    results.require_same_settings(folder, settings, [question.question_id for _, question, _ in wanted])
    if len(wanted) < len(asked):
        print(f"{len(asked) - len(wanted)} of {len(asked)} questions are complete already")
    checkpoint = None
    if wanted or arguments.intervene:
        predictor = Predictor.load(arguments.model, arguments.model_base, arguments.device, arguments.dtype)
        checkpoint = predictor.checkpoint
    failures = results.read_failures(folder)
    if wanted and checkpoint is not None:
        _draw_all(folder, checkpoint, benchmark, wanted, answers, arguments, failures)
    failed = {name: failures[name] for _, question in asked if (name := str(question.question_id)) in failures}
    for name, reason in failed.items():
        print(f"question {name} failed: {reason}")
    print(f"{len(wanted) - len(failed)} questions drawn into {folder}")
    _report(folder, checkpoint if arguments.intervene else None, benchmark, arguments)
    return 1 if failed else 0


def _parser() -> Parser:
    parser = Parser(description="Attention to the image during each step of the reasoning.", examples=__doc__)
    # fmt: off
    add = parser.add_argument
    add("--model", help="folder or name of the model (default: the bundled one)")
    add("--model-base", help="the model that an adapter belongs to")
    add("--data", type=Path, required=True, help="folder of the benchmark, with images/ and masks/")
    add("--questions", help="question file: a path, or a name in the folder (default: point_questions.jsonl)")
    add("--out", type=Path, required=True, help="output folder")
    add("--start-idx", type=int, default=0, help="first question, counted from 0")
    add("--end-idx", type=int, help="one past the last question (default: all)")
    add("--every", type=int, default=1, help="take every N-th question only, for more images in less time")
    add("--resume", action="store_true", help="skip complete questions, retry failed ones")
    add("--layers", type=int, nargs="+", help="decoder layers to average (default: the last three)")
    add("--reduce", choices=("mean", "max"), default="mean", help="reduction over the heads of a layer")
    add("--heads", type=int, nargs="+", default=[], metavar="LAYER", help="layers whose heads are kept one by one")
    add("--row", choices=("fed", "predict"), default="fed",
        help="a token's row: where it is fed in, or the one before, which chose it")
    add("--method", choices=("generate", "teacher-forced"), default="generate",
        help="generate answers, or read those of --answers in one pass each")
    add("--answers", type=Path, help="saved answers of this model")
    add("--scaling", choices=("shared", "each"), default="shared", help="one colour scale over all steps, or one a step")
    add("--intervene", action="store_true", help="edit one step at a time and measure whether the points follow")
    add("--max-new-tokens", type=int, default=512, help="longest answer")
    add("--conv-mode", default="vicuna_v1", help="conversation template")
    add("--device", help="torch device (default: a GPU if there is one)")
    add("--dtype", help="type of the weights (default: float32 on a CPU, as stored on a GPU)")
    # fmt: on
    return parser


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides a record; --resume skips it only under the same settings."""
    from trace_vlm.eval.answering import fingerprint
    from trace_vlm.inference.predictor import device_and_dtype
    from trace_vlm.model.checkpoint import loaded_dtype
    from trace_vlm.utils.files import sha256

    dtype = device_and_dtype(arguments.device, arguments.dtype)[1]
    return {
        "model": fingerprint(arguments.model),
        "model_base": fingerprint(arguments.model_base) if arguments.model_base else None,
        "dtype": loaded_dtype(arguments.model, arguments.model_base, dtype),
        "answers": sha256(arguments.answers) if arguments.answers else None,
        **{name: getattr(arguments, name)
           for name in ("layers", "reduce", "heads", "row", "scaling", "max_new_tokens", "conv_mode")},
    }  # fmt: skip


def _image_hash(benchmark: Benchmark, question: Question) -> dict[str, Any]:
    from trace_vlm.utils.files import sha256

    try:
        return {"image": sha256(benchmark.image_path(question))}
    except InputError:  # reported where the question is drawn
        return {}


def _draw_all(
    folder: Path, checkpoint: Checkpoint, benchmark: Benchmark,
    wanted: Sequence[tuple[int, Question, Mapping[str, Any]]], answers: Mapping[str, Answer],
    arguments: argparse.Namespace, failures: dict[str, str],
) -> None:  # fmt: skip
    """Ask and draw every wanted question; one that fails is recorded with its reason and does not end a long run."""
    from tqdm import tqdm

    from trace_vlm.attention import results
    from trace_vlm.attention.capture import CaptureConfig
    from trace_vlm.attention.steps import ask_with_attention, replay_answer
    from trace_vlm.core.images import open_image
    from trace_vlm.utils.files import write_json

    layers = None if arguments.layers is None else tuple(arguments.layers)
    config = CaptureConfig(layers, arguments.reduce, tuple(arguments.heads), arguments.row)
    config.resolve(checkpoint.model)  # a layer that does not exist is a mistake of the command, not of a question
    for order, question, settings in tqdm(wanted, unit="question"):
        name, style = str(question.question_id), arguments.conv_mode
        failures.pop(name, None)
        try:
            image = open_image(benchmark.image_path(question))
            target = benchmark.region(question) if benchmark.masks else None
            masks = target, results.named_object_mask(benchmark, question)
            if arguments.answers is None:
                limit = arguments.max_new_tokens
                attention = ask_with_attention(checkpoint, image, question.text, config, limit, style)
            elif name in answers:
                attention = replay_answer(checkpoint, image, question.text, answers[name], config, style)
            else:
                raise InputError(f"{arguments.answers} holds no answer to question {name}")
            results.write_record(folder, order, question, image, masks, attention, checkpoint.name, settings,
                                 arguments.scaling)  # fmt: skip
        except InputError as error:
            failures[name] = str(error)
            write_json(folder / results.FAILURES, failures)
    write_json(folder / results.FAILURES, failures)


def _report(folder: Path, checkpoint: Checkpoint | None, benchmark: Benchmark, arguments: argparse.Namespace) -> None:
    """Interventions if `checkpoint` is given, then the summary and the page over all records."""
    from trace_vlm.attention.results import read_records
    from trace_vlm.attention.summary import describe, write_summary
    from trace_vlm.report.page import render, write_html

    if not read_records(folder):
        return
    if checkpoint is not None:
        from trace_vlm.attention.interventions import intervene_all

        limit, style = arguments.max_new_tokens, arguments.conv_mode
        print("\n".join(intervene_all(folder, checkpoint, benchmark, limit, style, arguments.resume)))
    print("\n".join(describe(write_summary(folder))))
    title = f"Attention of {Path(arguments.model).resolve().name}"
    print(write_html(folder / "report.html", render(title, attention=folder)))


if __name__ == "__main__":
    raise SystemExit(run(main))
