"""Answer the questions of a benchmark with a local model.

    python -m trace.eval.model_vqa --model M --data where2place --answers out/m.jsonl --protocol paper
    torchrun --nproc-per-node 8 -m trace_vlm.eval.model_vqa --model M --data where2place --answers out/m.jsonl

Answers are appended batch by batch; after a kill the same command continues, and the finished file is in the order of the
questions. Its record is out/m.run.json (see `answering`). Several runs write out/m-1.jsonl, out/m-2.jsonl, ...
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.model_vqa", run_name="__main__", alter_sys=True)

import argparse
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core.prompts import asks_yes_no
from ..core.records import FINISHED_AT_LIMIT, Answer, Question, read_answers
from ..inference.generation import Decoding
from ..inference.predict import add_decoding_flags, decoding_from_flags, prompt_template
from ..inference.predictor import Prediction, Predictor, build_question, device_and_dtype
from ..model.checkpoint import loaded_dtype
from ..model.record import reasons
from ..utils.command import InputError, Parser, output_folder, run
from ..utils.files import JsonlWriter, write_json
from . import answering
from .benchmark import Benchmark, run_file

CHECKED_ALONE = 8  # answers repeated at batch 1, to report how many of a half-precision run depend on the batch


def main(argv: Sequence[str] | None = None) -> int:
    arguments = answering.parse_answering_flags(_parser(), argv)
    decoding, template = decoding_from_flags(arguments), prompt_template(arguments)
    benchmark = answering.load_questions(arguments)
    if decoding.constrained and any(asks_yes_no(question.text) for question in benchmark.questions):
        raise InputError(
            "--constrain and --num-points write points, but some questions ask for yes or no. Leave them out"
        )
    rank = answering.torchrun_rank()
    chunk, chunks = rank[:2] if rank else (arguments.chunk_idx, arguments.num_chunks)
    if chunks < 1 or not 0 <= chunk < chunks:
        raise InputError(f"there is no chunk {chunk} of {chunks}: --chunk-idx counts from 0 to --num-chunks - 1")
    merging = chunks > 1 and (rank is not None or arguments.merge)
    count = len(benchmark.questions)
    start, end = count * chunk // chunks, count * (chunk + 1) // chunks
    questions = benchmark.questions[start:end]  # none for some if there are more chunks than questions
    broken = answering.find_broken_images(benchmark, questions, arguments.skip_broken)  # now, not after an hour
    output_folder(arguments.answers.parent)
    device = arguments.device
    if device is None and rank is not None:
        import torch

        device = f"cuda:{rank[2] % torch.cuda.device_count()}" if torch.cuda.is_available() else None
    device, dtype = device_and_dtype(device, arguments.dtype)
    dtype = loaded_dtype(arguments.model, arguments.model_base, dtype)
    if arguments.reasoning is None:
        arguments.reasoning = reasons(arguments.model)

    @functools.cache
    def load() -> Predictor:
        return Predictor.load(arguments.model, arguments.model_base, device, dtype)

    for number in range(1, arguments.runs + 1):
        complete = answering.run_path(arguments.answers, number, arguments.runs)
        path = answering.chunk_path(complete, chunk, chunks) if merging else complete
        seeded = replace(decoding, seed=decoding.seed + number - 1)
        run_number = number if arguments.runs > 1 else 0
        settings = {
            "model": answering.fingerprint(arguments.model),
            "model_base": answering.fingerprint(arguments.model_base) if arguments.model_base else None,
            "conv_mode": arguments.conv_mode, "dtype": dtype, "chunk": [chunk, chunks],
            **answering.common_settings(arguments, benchmark, run_number), **asdict(seeded),
        }  # fmt: skip
        model_run = ModelRun(arguments, seeded, template, benchmark, start, questions, path, run_number, settings, load)
        model_run.write_answers(broken)
        if merging and answering.merge_chunks(complete, chunks, benchmark.questions):
            print(f"{complete}: the answers of all {chunks} chunks")
    return 0


def _parser() -> Parser:
    parser = Parser(description="Answer the questions of a benchmark with a local model.", examples=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder, name on the hub, or a bundled one: nano, nano-direct")
    add("--model-base", help="base model of an adapter")
    answering.add_answering_flags(parser)
    add(
        "--reasoning",
        action=argparse.BooleanOptionalAction,
        help="ask for reasoning before the points (default: as the model was trained)",
    )
    add("--batch-size", type=_batch_size, default="auto", help="answers generated together; auto: as many as fit")
    add("--num-chunks", type=int, default=1, help="number of processes that share the questions")
    add("--chunk-idx", type=int, default=0, help="the share that this process answers, from 0")
    add("--merge", action="store_true", help="write the share to its own file; merge all shares when complete")
    add("--check-alone", type=int, metavar="N", help="answers repeated at batch 1, whose differences are reported "
        f"(default: {CHECKED_ALONE} in half precision, 0 in float32)")  # fmt: skip
    add_decoding_flags(parser)
    return parser


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of at least 1")
    return int(text)


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One answer file of a local model: which questions are asked, how, and where the answers go."""

    arguments: argparse.Namespace
    decoding: Decoding
    template: str | None
    benchmark: Benchmark
    start: int  # index of the first question in the benchmark
    questions: Sequence[Question]
    path: Path
    run: int  # from 1; 0 for a single run
    settings: Mapping[str, Any]
    load: Callable[[], Predictor]  # called if a question is left

    def write_answers(self, broken: frozenset[str]) -> None:
        """Write or continue the file without the questions in `broken`, and report its accuracy."""
        path, questions = self.path, self.questions
        if self.arguments.overwrite:
            path.unlink(missing_ok=True)
            run_file(path).unlink(missing_ok=True)
        done = answering.answered_before(path, self.settings, questions)
        record = answering.start_record("model_vqa", path, self.benchmark, self.arguments, self.settings, bool(done))
        skipped = broken - done
        record["skipped"] = [one.question_id for one in questions if str(one.question_id) in skipped]
        accuracy = answering.RunningAccuracy(self.benchmark)
        if done:
            print(f"{len(done)} of {len(questions)} questions are already answered in {path}")
        if len(done | skipped) < len(questions) or not path.exists() or not run_file(path).exists():
            self._answer_rest(done, done | skipped, accuracy, record)
        answering.sort_answers(path, questions)
        if not accuracy.answers:  # nothing was left to answer: report the whole file
            accuracy.add_file(path, questions)
        print(f"{path}: {accuracy.answers} answers, {accuracy.describe()}")
        if cut := sum(answer.cut for answer in read_answers(path)):
            print(f"  {cut} answers were cut at {self.decoding.max_new_tokens} new tokens: raise --max-new-tokens")

    def _answer_rest(
        self, done: set[str], unasked: set[str], accuracy: answering.RunningAccuracy, record: dict[str, Any]
    ) -> None:
        """Answer all but the `unasked` questions, appending every batch, and keep the record up to date."""
        from tqdm import tqdm

        questions, path, before = self.questions, run_file(self.path), float(record["seconds"])
        with JsonlWriter(self.path) as writer:
            write_json(path, record | {"finished": None})
            if done:
                accuracy.add_file(self.path, questions)
            if len(unasked) < len(questions):
                predictor = self.load()
                record["device"] = str(predictor.checkpoint.model.device)
                record["batch_size"] = self.arguments.batch_size
                if record["batch_size"] == "auto":
                    write = functools.partial(predictor.checkpoint.prompt, style=self.arguments.conv_mode)
                    prompts = [write(self._question(question, predictor)) for question in questions]
                    record["batch_size"] = predictor.largest_batch(prompts, self.decoding)
                    print(f"batches of {record['batch_size']} answers")
                indices = {index for index, question in enumerate(questions) if str(question.question_id) in unasked}
                started = time.monotonic()
                with tqdm(total=len(questions), initial=len(unasked), unit="question", dynamic_ncols=True) as bar:
                    for batch in self._stream(predictor, questions, record["batch_size"], indices):
                        for index, prediction in batch.items():
                            writer.write(self._answer(questions[index], prediction, predictor).as_json())
                            accuracy.add(questions[index], prediction.response)
                        bar.update(len(batch))
                        rate = 60 * (bar.n - len(unasked)) / (time.monotonic() - started)
                        bar.set_postfix_str(f"{rate:.0f} questions/min, {accuracy.describe()}")
                        record["seconds"] = round(before + time.monotonic() - started, 3)
                        write_json(path, record | {"finished": None})
                record["batching"] = self._check_alone(predictor)
            write_json(path, answering.finish_record(record, len(questions) - len(record["skipped"])))

    def _stream(
        self, predictor: Predictor, questions: Sequence[Question], batch_size: int, done: set[int]
    ) -> Iterator[dict[int, Prediction]]:
        """Answer the first questions of this share, batch by batch."""
        images = [self.benchmark.image_path(question) for question in questions]
        # by the index in the benchmark: chunks draw what one process would
        seeds = range(self.start, self.start + len(questions))
        return predictor.stream(
            images, [question.text for question in questions], self.decoding, reasoning=self.arguments.reasoning,
            batch_size=batch_size, style=self.arguments.conv_mode, template=self.template, seeds=seeds, done=done,
        )  # fmt: skip

    def _question(self, question: Question, predictor: Predictor) -> str:
        coordinates = predictor.checkpoint.coordinates
        return build_question(question.text, self.arguments.reasoning, self.template, coordinates)

    def _check_alone(self, predictor: Predictor) -> dict[str, int] | None:
        """Count the answers that differ at batch 1, which rounding makes possible in half precision."""
        dtype = str(predictor.checkpoint.model.dtype).removeprefix("torch.")
        wanted = self.arguments.check_alone
        if wanted is None:
            wanted = CHECKED_ALONE if dtype != "float32" else 0
        questions = self.questions[:wanted]
        if not questions:
            return None
        by_id = {str(answer.question_id): answer.token_ids for answer in read_answers(self.path)}
        given = [by_id.get(str(question.question_id)) for question in questions]
        skipped = {index for index, token_ids in enumerate(given) if token_ids is None}
        count, differ = len(questions) - len(skipped), 0
        for batch in self._stream(predictor, questions, 1, skipped):
            differ += sum(given[index] != prediction.token_ids for index, prediction in batch.items())
        print(f"{count} answers repeated at batch 1 in {dtype}: {differ} differ ({differ / count:.0%})")
        return {"repeated": count, "differ": differ}

    def _answer(self, question: Question, prediction: Prediction, predictor: Predictor) -> Answer:
        model = predictor.checkpoint.name
        identity = f"{model} {question.question_id} {self.decoding} {self.arguments.reasoning} {self.run}"
        metadata = {
            "point_confidence": [round(value, 6) for value in prediction.point_confidence],
            "finish": FINISHED_AT_LIMIT[0] if prediction.cut else "stop",
            **({"samples": list(prediction.samples)} if prediction.samples else {}),
            **({"convention": prediction.convention, "sent": list(prediction.sent)} if prediction.sent else {}),
        }
        answer_id = hashlib.sha256(identity.encode()).hexdigest()[:22]  # the same run twice writes the same file
        return Answer(
            question.question_id, self._question(question, predictor), prediction.text, answer_id, model, question.category,
            confidence=None if prediction.confidence is None else round(prediction.confidence, 6),
            seed=self.decoding.seed if self.decoding.temperature > 0 else None,
            run=self.run, token_ids=prediction.token_ids, metadata=metadata,
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run(main))
