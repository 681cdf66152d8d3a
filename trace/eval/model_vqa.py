"""A local model answers the questions of a benchmark.

    python -m trace.eval.model_vqa --model-path M --image-folder D/images \\
        --question-file D/point_questions.jsonl --answer-file out/m.jsonl

Answers are appended batch by batch; the same command after a kill goes on where it stopped, and the finished file is
in the order of the questions. What made them is recorded beside them (out/m.run.json): settings, versions, and
hashes of the questions and the weights. A run is only continued under the settings that began it.
"""

from __future__ import annotations

if not __package__:  # run by its path: the relative imports below need the installed name
    import runpy
    import sys

    del sys.path[0]  # this file's folder, whose modules must not be found under bare names
    runpy.run_module("trace_vlm.eval.model_vqa", run_name="__main__", alter_sys=True)

import argparse
import hashlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..command import InputError, Parser, output_folder, run
from ..files import JsonlWriter, read_json, replacing, sha256, write_json
from ..model.predictor import Decoding, Prediction, Predictor, add_decoding_flags, decoding_of
from ..prompts import question_text
from ..reasoning import Response, parse
from ..records import Answer, Question, answered, read_answers
from .metrics import score
from .suites import Suite, key, open_suite, run_file

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    decoding = decoding_of(arguments)
    suite = open_suite(None, arguments.question_file, arguments.image_folder)
    questions = _share(suite.first(arguments.num_questions).questions, arguments.num_chunks, arguments.chunk_idx)
    for question in questions:
        suite.image_path(question)  # a missing image shows now, not after an hour
    output_folder(arguments.answer_file.parent)
    settings = _settings(arguments, decoding, suite)
    if arguments.overwrite:
        arguments.answer_file.unlink(missing_ok=True)
        run_file(arguments.answer_file).unlink(missing_ok=True)
    done = _done(arguments.answer_file, settings, questions)
    record = _begin(arguments, suite, settings, continued=bool(done))
    tally = Tally(suite)
    if done:
        print(f"{len(done)} of {len(questions)} questions are already answered in {arguments.answer_file}")
    if len(done) < len(questions) or not arguments.answer_file.exists():
        _ask(arguments, decoding, suite, questions, done, tally, record)
    _sort(arguments.answer_file, questions)
    if not tally.answers:  # nothing was left to do: say how the whole file did
        tally.read(arguments.answer_file, questions)
    print(f"{arguments.answer_file}: {len(questions)} answers, {tally.describe()}")
    return 0


def _parser() -> Parser:
    parser = Parser(description="A local model answers the questions of a benchmark.")
    parser.add_argument("--model-path", required=True, help="folder of the model")
    parser.add_argument("--model-base", help="the model that an adapter belongs to")
    parser.add_argument("--image-folder", type=Path, required=True)
    parser.add_argument("--question-file", type=Path, required=True, help="JSONL, one question a line")
    parser.add_argument(
        "--answer-file", "--answers-file", "--answer", type=Path, required=True, help="JSONL to write or to continue"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again, whatever the answer file holds")
    parser.add_argument(
        "--reasoning", action=argparse.BooleanOptionalAction, default=True, help="ask for reasoning before the points"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-questions", type=int, help="only the first ones of the file")
    parser.add_argument("--num-chunks", type=int, default=1, help="share the questions among this many runs")
    parser.add_argument("--chunk-idx", type=int, default=0, help="which share this run answers, from 0")
    add_decoding_flags(parser)
    return parser


def _share(questions: Sequence[Question], chunks: int, index: int) -> Sequence[Question]:
    """One of `chunks` contiguous shares of the questions; empty for some where there are more shares than questions."""
    if chunks < 1 or not 0 <= index < chunks:
        raise InputError(f"there is no chunk {index} of {chunks}: --chunk-idx counts from 0 to --num-chunks - 1")
    return questions[len(questions) * index // chunks : len(questions) * (index + 1) // chunks]


# --- what is known of a run before it starts ---------------------------------------------------------------------


def _settings(arguments: argparse.Namespace, decoding: Decoding, suite: Suite) -> dict[str, Any]:
    """What decides the answers. A file of answers is only continued under the same ones."""
    return {
        "model": fingerprint(arguments.model_path),
        "model_base": fingerprint(arguments.model_base) if arguments.model_base else None,
        "question_sha256": sha256(suite.question_file),
        "reasoning": arguments.reasoning,
        "conv_mode": arguments.conv_mode,
        "num_questions": arguments.num_questions,
        "chunk": [arguments.chunk_idx, arguments.num_chunks],
        **asdict(decoding),
        # The batches decide what is sampled; greedy answers do not depend on them.
        "batch_size": arguments.batch_size if decoding.temperature > 0 else None,
    }


def fingerprint(path: str | Path) -> str:
    """A hash that changes with a model: of its configuration, and of both ends of every file of weights.

    Reading 26 GB to name a model would take longer than answering with it; training changes all of the weights, so
    a megabyte from each end tells two checkpoints apart. A name that is no folder stands for itself.
    """
    folder = Path(path)
    if not folder.is_dir():
        return str(path)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return f"sha256:{digest.hexdigest()}"


def _done(path: Path, settings: Mapping[str, Any], questions: Sequence[Question]) -> set[str]:
    """Keys of the questions that an earlier run under the same settings has answered."""
    if not path.exists():
        return set()
    done = {key(name) for name in answered(path)}
    if not done:
        return set()
    record = run_file(path)
    begun = read_json(record).get("settings", {}) if record.is_file() else None
    if begun is None:
        raise InputError(
            f"{path} holds answers, but no {record.name} says how they were made: give another --answer-file, "
            "or --overwrite to begin again"
        )
    for name, value in settings.items():
        if begun.get(name) != value:
            raise InputError(
                f"{path} was begun with {name} {_short(begun.get(name))}, not {_short(value)}: use the same settings, "
                "another --answer-file, or --overwrite to begin again"
            )
    strange = done - {key(question.question_id) for question in questions}
    if strange:
        raise InputError(f"{path} answers question {min(strange)}, which is not asked: these are other questions")
    return done


def _short(value: Any) -> str:
    return value[:19] + "..." if isinstance(value, str) and len(value) > 64 else str(value)


def _begin(arguments: argparse.Namespace, suite: Suite, settings: Mapping[str, Any], continued: bool) -> dict[str, Any]:
    """The record of the run; the time that earlier parts of it took is kept."""
    path = run_file(arguments.answer_file)
    earlier = read_json(path) if continued else {}
    folder = suite.question_file.parent
    return {
        "command": "model_vqa",
        "arguments": {name: _plain(value) for name, value in vars(arguments).items()},
        "settings": dict(settings),
        "data_dir": str(folder.resolve()),
        "data_dir_from_here": os.path.relpath(folder.resolve(), path.parent.resolve()),
        "question_file": suite.question_file.name,
        "image_folder": str(suite.image_folder.resolve()),
        "versions": versions(),
        "started": earlier.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": earlier.get("finished"),
        "seconds": earlier.get("seconds", 0.0),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Versions of Python and of what decides a model's numbers."""
    found = {"python": platform.python_version()}
    for name in ("trace-vlm", "torch", "transformers", "tokenizers", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# --- the run -----------------------------------------------------------------------------------------------------


class Tally:
    """The running accuracy of a run, over the questions whose masks can be used."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.answers = self.parsable = 0
        self.scores: list[float] = []
        self.problem = ""

    def add(self, question: Question, response: Response) -> None:
        self.answers += 1
        self.parsable += response.parsable
        if not self.suite.masks:
            return
        try:
            self.scores.append(score(response.points, self.suite.mask(question)))
        except InputError as error:  # answering goes on: the summary refuses such a mask
            self.problem = self.problem or f"not scored: {error}"

    def read(self, path: Path, questions: Sequence[Question]) -> None:
        """Add the answers of a file."""
        by_key = {key(question.question_id): question for question in questions}
        for answer in read_answers(path):
            question = by_key[key(answer.question_id)]
            self.add(question, parse(answer.text, self.suite.image_size(question)))

    def describe(self) -> str:
        parts = [f"parsable {self.parsable / self.answers:.1%}" if self.answers else "none to score"]
        if self.scores:
            parts.insert(0, f"accuracy {sum(self.scores) / len(self.scores):.1%}")
        return ", ".join([*parts, *([self.problem] if self.problem else [])])


def _ask(
    arguments: argparse.Namespace,
    decoding: Decoding,
    suite: Suite,
    questions: Sequence[Question],
    done: set[str],
    tally: Tally,
    record: dict[str, Any],
) -> None:
    """Answer what is not answered yet, appending every batch, and keep the record of the run."""
    from tqdm import tqdm

    with JsonlWriter(arguments.answer_file) as writer:
        path = run_file(arguments.answer_file)
        write_json(path, record | {"finished": None})
        if done:
            tally.read(arguments.answer_file, questions)
        started, before = time.monotonic(), float(record["seconds"])
        if len(done) < len(questions):
            predictor = Predictor.load(arguments.model_path, arguments.model_base, arguments.device, arguments.dtype)
            model = predictor.checkpoint.model
            record["device"], record["dtype"] = str(model.device), str(model.dtype).removeprefix("torch.")
            batches = predictor.stream(
                [suite.image_path(question) for question in questions],
                [question.text for question in questions],
                decoding,
                reasoning=arguments.reasoning,
                batch_size=arguments.batch_size,
                style=arguments.conv_mode,
                done={index for index, question in enumerate(questions) if key(question.question_id) in done},
            )
            started = time.monotonic()
            with tqdm(total=len(questions), initial=len(done), unit="question", dynamic_ncols=True) as bar:
                for batch in batches:
                    for index, prediction in batch.items():
                        writer.write(_answer(questions[index], prediction, predictor, arguments, decoding).as_json())
                        tally.add(questions[index], prediction.response)
                    bar.update(len(batch))
                    rate = 60 * (bar.n - len(done)) / (time.monotonic() - started)
                    bar.set_postfix_str(f"{rate:.0f} questions/min, {tally.describe()}")
                    record["seconds"] = round(before + time.monotonic() - started, 3)
                    write_json(path, record | {"finished": None})
        record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, record | {"answers": len(questions)})


def _answer(
    question: Question, prediction: Prediction, predictor: Predictor, arguments: argparse.Namespace, decoding: Decoding
) -> Answer:
    model = predictor.checkpoint.name
    made_of = f"{model} {question.question_id} {decoding} {arguments.reasoning}"
    return Answer(
        question_id=question.question_id,
        prompt=question_text(question.text, arguments.reasoning),
        text=prediction.text,
        answer_id=hashlib.sha256(made_of.encode()).hexdigest()[:22],  # the same run twice writes the same file
        model_id=model,
        category=question.category,
        confidence=prediction.confidence,
        seed=decoding.seed if decoding.temperature > 0 else None,
        token_ids=prediction.token_ids,
    )


def _sort(path: Path, questions: Sequence[Question]) -> None:
    """Bring the answers into the order of the questions; a file in that order is left alone."""
    order = {key(question.question_id): place for place, question in enumerate(questions)}
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()]
    answers = read_answers(path)
    places = [order[key(answer.question_id)] for answer in answers]
    if places == sorted(places):
        return
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(line for _, line in sorted(zip(places, lines, strict=True))))


if __name__ == "__main__":
    raise SystemExit(run(main))
