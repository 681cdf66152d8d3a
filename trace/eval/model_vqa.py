"""A local model answers the questions of a benchmark.

    python -m trace.eval.model_vqa --model-path M --image-folder D/images \\
        --question-file D/point_questions.jsonl --answer-file out/m.jsonl
    python -m trace.eval.model_vqa --model-path M --data-dir where2place --answer-file out/m.jsonl --protocol paper
    torchrun --nproc-per-node 8 -m trace_vlm.eval.model_vqa --model-path M --data-dir where2place --answer-file m.jsonl

Answers are appended batch by batch; the same command after a kill goes on where it stopped, and the finished file is
in the order of the questions. What made them is recorded beside them (out/m.run.json, see `runs`). Several runs
(--runs 3, or the paper's protocol) write a file each: out/m-1.jsonl, out/m-2.jsonl, out/m-3.jsonl.
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.model_vqa", run_name="__main__", alter_sys=True)

import argparse
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.prompts import render_prompt
from ..core.records import FINISHED_AT_LIMIT, Answer, Question, read_answers
from ..inference.generation import Decoding
from ..inference.predict import add_decoding_flags, decoding_from_flags, prompt_template
from ..inference.predictor import Prediction, Predictor, build_question, device_and_dtype
from ..model.checkpoint import loaded_dtype
from ..model.presets import resolve_model
from ..utils.command import InputError, Parser, output_folder, run
from ..utils.files import JsonlWriter, sha256, write_json
from .answering import (
    Tally,
    add_question_flags,
    asked_questions,
    begun,
    broken_images,
    checked,
    done_before,
    ended,
    fingerprint,
    merge,
    numbered,
    part_of,
    pictures,
    sort_answers,
    torchrun,
)
from .benchmark import Benchmark, run_file

ALONE = 8  # answers that are repeated at batch 1 to say how many of a half-precision run depend on the batch


@dataclass(frozen=True, slots=True)
class Job:
    """One file of answers: which questions of the suite, asked how."""

    arguments: argparse.Namespace
    decoding: Decoding
    template: str | None
    suite: Benchmark
    start: int  # place of the first question in the suite
    questions: Sequence[Question]
    path: Path
    run: int  # from 1; 0 where there is one run only
    chunk: tuple[int, int]
    device: str
    dtype: str  # of the weights in memory
    pictures: str  # a hash of what is asked about
    broken: frozenset[str]  # keys of questions whose images cannot be read


def main(argv: Sequence[str] | None = None) -> int:
    arguments = checked(_parser(), argv)
    decoding, template = decoding_from_flags(arguments), prompt_template(arguments)
    suite = asked_questions(arguments)
    shared = torchrun()
    chunk, chunks = shared[:2] if shared else (arguments.chunk_idx, arguments.num_chunks)
    together = bool(shared) or arguments.merge
    start, questions = _share(suite.questions, chunks, chunk)
    broken = broken_images(suite, questions, arguments.skip_broken)  # shows now, not after an hour
    output_folder(arguments.answer_file.parent)
    device, dtype = _placement(arguments)
    shown = pictures(suite)
    predictor: Predictor | None = None
    for number in range(1, arguments.runs + 1):
        whole = numbered(arguments.answer_file, number, arguments.runs)
        path = part_of(whole, chunk, chunks) if together and chunks > 1 else whole
        seeded = replace(decoding, seed=decoding.seed + number - 1)
        at = number if arguments.runs > 1 else 0
        job = Job(arguments, seeded, template, suite, start, questions, path, at, (chunk, chunks), device, dtype, shown,
                  broken)  # fmt: skip
        predictor = _answer_file(job, predictor)
        if together and chunks > 1 and merge(whole, chunks, suite.questions):
            print(f"{whole}: the answers of all {chunks} parts")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="model_vqa", description="A local model answers the questions of a benchmark.")
    parser.add_argument("--model-path", required=True, help='folder of the model, or "nano-base", which ships with it')
    parser.add_argument("--model-base", help="the model that an adapter belongs to")
    add_question_flags(parser)
    parser.add_argument(
        "--reasoning", action=argparse.BooleanOptionalAction, default=True, help="ask for reasoning before the points"
    )
    parser.add_argument(
        "--batch-size", type=_batch_size, default="auto", help="answers generated together, or auto: as many as fit"
    )
    parser.add_argument("--num-chunks", type=int, default=1, help="share the questions among this many processes")
    parser.add_argument("--chunk-idx", type=int, default=0, help="which share this one answers, from 0")
    parser.add_argument(
        "--merge", action="store_true",
        help="write the share into a part of the answer file, and put the parts together when all are there",
    )  # fmt: skip
    parser.add_argument(
        "--check-alone", type=int, metavar="N",
        help="answer N questions again at batch 1 and say how many differ; by default 8 in half precision, else 0",
    )  # fmt: skip
    add_decoding_flags(parser)
    return parser


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        size = int(text)
    except ValueError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 1 on")
    return size


def _share(questions: Sequence[Question], chunks: int, index: int) -> tuple[int, Sequence[Question]]:
    """One of `chunks` contiguous shares of the questions; empty for some where there are more shares than questions."""
    if chunks < 1 or not 0 <= index < chunks:
        raise InputError(f"there is no chunk {index} of {chunks}: --chunk-idx counts from 0 to --num-chunks - 1")
    start = len(questions) * index // chunks
    return start, questions[start : len(questions) * (index + 1) // chunks]


# --- one file of answers -------------------------------------------------------------------------------------------


def _answer_file(job: Job, predictor: Predictor | None) -> Predictor | None:
    """Write or continue one file; returns the loaded model for the next one, None if it was not needed."""
    arguments, path, questions = job.arguments, job.path, job.questions
    settings = _settings(job)
    if arguments.overwrite:
        path.unlink(missing_ok=True)
        run_file(path).unlink(missing_ok=True)
    done = done_before(path, settings, questions)
    record = begun("model_vqa", path, job.suite, arguments, settings, continued=bool(done))
    skipped = job.broken - done
    record["skipped"] = [question.question_id for question in questions if str(question.question_id) in skipped]
    tally = Tally(job.suite)
    if done:
        print(f"{len(done)} of {len(questions)} questions are already answered in {path}")
    if len(done | skipped) < len(questions) or not path.exists() or not run_file(path).exists():
        predictor = _ask(job, predictor, done, tally, record)
    sort_answers(path, questions)
    if not tally.answers:  # nothing was left to do: say how the whole file did
        tally.read(path, questions)
    print(f"{path}: {tally.answers} answers, {tally.describe()}")
    cut = sum(answer.cut for answer in read_answers(path))
    if cut:
        print(f"  {cut} answers were cut at {job.decoding.max_new_tokens} new tokens: give more --max-new-tokens")
    return predictor


def _settings(job: Job) -> dict[str, Any]:
    """What decides the answers. A file of answers is only continued under the same ones."""
    arguments = job.arguments
    return {
        "model": fingerprint(resolve_model(arguments.model_path)),
        "model_base": fingerprint(arguments.model_base) if arguments.model_base else None,
        "dtype": job.dtype,
        "question_sha256": sha256(job.suite.question_file),
        "reasoning": arguments.reasoning,
        "conv_mode": arguments.conv_mode,
        "prompt_template": sha256(arguments.prompt_template) if arguments.prompt_template else None,
        "num_questions": arguments.num_questions,
        "images": job.pictures,
        "chunk": list(job.chunk),
        **asdict(job.decoding),
        "run": job.run,
    }


def _ask(
    job: Job, predictor: Predictor | None, done: set[str], tally: Tally, record: dict[str, Any]
) -> Predictor | None:
    """Answer what is not answered yet, appending every batch, and keep the record of the run."""
    from tqdm import tqdm

    questions, path = job.questions, run_file(job.path)
    with JsonlWriter(job.path) as writer:
        write_json(path, record | {"finished": None})
        if done:
            tally.read(job.path, questions)
        before = float(record["seconds"])
        unasked = done | {str(question_id) for question_id in record["skipped"]}
        if len(unasked) < len(questions):
            predictor = predictor or _load(job)
            record["device"] = str(predictor.checkpoint.model.device)
            record["batch_size"] = _batch(job, predictor)
            places = {index for index, question in enumerate(questions) if str(question.question_id) in unasked}
            batches = predictor.stream(*_inputs(job), job.decoding, **_options(job, record["batch_size"]), done=places)
            started = time.monotonic()
            with tqdm(total=len(questions), initial=len(unasked), unit="question", dynamic_ncols=True) as bar:
                for batch in batches:
                    for index, prediction in batch.items():
                        writer.write(_answer(job, questions[index], prediction, predictor).as_json())
                        tally.add(questions[index], prediction.response)
                    bar.update(len(batch))
                    rate = 60 * (bar.n - len(unasked)) / (time.monotonic() - started)
                    bar.set_postfix_str(f"{rate:.0f} questions/min, {tally.describe()}")
                    record["seconds"] = round(before + time.monotonic() - started, 3)
                    write_json(path, record | {"finished": None})
            record["batching"] = _check_alone(job, predictor)
        write_json(path, ended(record, len(questions) - len(record["skipped"])))
    return predictor


def _placement(arguments: argparse.Namespace) -> tuple[str, str]:
    """The device and the type of the weights in memory; both are known before the model is loaded."""
    device, shared = arguments.device, torchrun()
    if device is None and shared is not None:
        import torch

        device = f"cuda:{shared[2] % torch.cuda.device_count()}" if torch.cuda.is_available() else None
    device, dtype = device_and_dtype(device, arguments.dtype)
    return device, loaded_dtype(resolve_model(arguments.model_path), arguments.model_base, dtype)


def _load(job: Job) -> Predictor:
    return Predictor.load(job.arguments.model_path, job.arguments.model_base, job.device, job.dtype)


def _batch(job: Job, predictor: Predictor) -> int:
    if job.arguments.batch_size != "auto":
        return int(job.arguments.batch_size)
    arguments = job.arguments
    turns = [build_question(question.text, arguments.reasoning, job.template) for question in job.questions]
    prompts = [render_prompt(turn, arguments.conv_mode) for turn in turns]
    size = predictor.largest_batch(prompts, job.decoding)
    print(f"batches of {size} answers")
    return size


def _inputs(job: Job) -> tuple[list[Path], list[str]]:
    return [job.suite.image_path(question) for question in job.questions], [question.text for question in job.questions]


def _options(job: Job, batch_size: int) -> dict[str, Any]:
    arguments = job.arguments
    return {
        "reasoning": arguments.reasoning,
        "batch_size": batch_size,
        "style": arguments.conv_mode,
        "template": job.template,
        # By the place in the whole benchmark: shares of it draw what one process would.
        "seeds": range(job.start, job.start + len(job.questions)),
    }


def _check_alone(job: Job, predictor: Predictor) -> dict[str, int] | None:
    """How many answers come out otherwise at batch 1, which rounding makes possible in half precision."""
    half = str(predictor.checkpoint.model.dtype) != "torch.float32"
    wanted = job.arguments.check_alone if job.arguments.check_alone is not None else (ALONE if half else 0)
    count = min(wanted, len(job.questions))
    if not count:
        return None
    images, texts = _inputs(job)
    options = _options(job, 1)
    options["seeds"] = options["seeds"][:count]
    given = {str(answer.question_id): answer.token_ids for answer in read_answers(job.path)}
    skipped = {index for index in range(count) if str(job.questions[index].question_id) not in given}
    count -= len(skipped)
    differ = 0
    for batch in predictor.stream(images[: len(options["seeds"])], texts[: len(options["seeds"])], job.decoding,
                                  **options, done=skipped):  # fmt: skip
        differ += sum(
            given[str(job.questions[index].question_id)] != prediction.token_ids for index, prediction in batch.items()
        )
    dtype = str(predictor.checkpoint.model.dtype).removeprefix("torch.")
    print(f"{count} answers repeated at batch 1 in {dtype}: {differ} differ ({differ / count:.0%})")
    return {"repeated": count, "differ": differ}


def _answer(job: Job, question: Question, prediction: Prediction, predictor: Predictor) -> Answer:
    model, arguments = predictor.checkpoint.name, job.arguments
    made_of = f"{model} {question.question_id} {job.decoding} {arguments.reasoning} {job.run}"
    metadata: dict[str, Any] = {
        "point_confidence": [round(value, 6) for value in prediction.point_confidence],
        "finish": FINISHED_AT_LIMIT[0] if prediction.cut else "stop",
    }
    if prediction.samples:
        metadata["samples"] = list(prediction.samples)
    return Answer(
        question_id=question.question_id,
        prompt=build_question(question.text, arguments.reasoning, job.template),
        text=prediction.text,
        answer_id=hashlib.sha256(made_of.encode()).hexdigest()[:22],  # the same run twice writes the same file
        model_id=model,
        category=question.category,
        confidence=None if prediction.confidence is None else round(prediction.confidence, 6),
        seed=job.decoding.seed if job.decoding.temperature > 0 else None,
        run=job.run,
        token_ids=prediction.token_ids,
        metadata=metadata,
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
