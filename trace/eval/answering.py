"""What every command that answers a benchmark shares: which questions, into which file, under which record.

`model_vqa` asks a model in this process, `api_vqa` one behind a network. Both write the same answers and the same record
beside them, so that everything that reads answers need not know who gave them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.images import decoded_size
from ..core.reasoning import Response
from ..core.records import Question, answered, read_answers
from ..utils.command import InputError, Parser, package_versions
from ..utils.files import read_json, replacing, sha256, write_json
from .benchmark import Benchmark, open_benchmark, read_run, run_file, settings_of
from .scoring import response_of, score

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
PROCESSING = ("processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json",
              "added_tokens.json")  # fmt: skip
NAMED = 5  # broken images that a message names
READERS = 8  # images decoded at a time
PROTOCOLS = {"paper": {"temperature": 0.2, "runs": 3}}  # TRACE and RoboPoint: mean and deviation of three runs

# whose versions decide the numbers of a model
PACKAGES = ("trace-vlm", "torch", "transformers", "tokenizers", "llguidance", "numpy", "pillow")


def add_question_flags(parser: Parser) -> None:
    parser.add_argument("--data-dir", help="a benchmark: its name (where2place, tabletop ...), folder or parquet file")
    parser.add_argument("--image-folder", type=Path, help="by default images/ beside the questions")
    parser.add_argument("--question-file", type=Path, help="JSONL, one question a line")
    parser.add_argument(
        "--answer-file", "--answers-file", "--answer", type=Path, required=True, help="JSONL to write or to continue"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again, whatever the answer file holds")
    parser.add_argument(
        "--skip-broken", action="store_true", help="do not ask about images that cannot be read: they count as failed"
    )
    parser.add_argument("--num-questions", type=int, help="only the first ones of the file")
    parser.add_argument("--runs", type=int, default=1, help="with a seed and a file each")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, help="paper: temperature 0.2 and three runs, as the papers' tables are made"
    )


def checked(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with those that a protocol stands for. InputError when they contradict one another."""
    arguments: argparse.Namespace = parser.parse_args(argv)
    if arguments.protocol is not None:
        for name, value in PROTOCOLS[arguments.protocol].items():
            if getattr(arguments, name) not in (value, parser.get_default(name)):
                raise InputError(
                    f"--protocol {arguments.protocol} means --{name} {value}, not {getattr(arguments, name)}: "
                    "leave out one of the two"
                )
            setattr(arguments, name, value)
    if arguments.runs < 1:
        raise InputError(f"there cannot be {arguments.runs} runs: --runs has to be at least 1")
    if arguments.runs > 1 and arguments.temperature == 0:
        raise InputError(f"{arguments.runs} greedy runs are all the same: give --temperature, or --protocol paper")
    return arguments


def asked_questions(arguments: argparse.Namespace) -> Benchmark:
    if arguments.data_dir is None and arguments.question_file is None:
        raise InputError("which questions? give --question-file and --image-folder, or a benchmark with --data-dir")
    suite = open_benchmark(arguments.data_dir, arguments.question_file, arguments.image_folder)
    if arguments.answer_file.resolve() == suite.question_file.resolve():
        raise InputError(f"--answer-file {arguments.answer_file} is the question file, which answers would replace")
    return suite.first(arguments.num_questions)


def broken_images(suite: Benchmark, questions: Sequence[Question], skip: bool) -> frozenset[str]:
    """Keys of the questions whose image cannot be decoded to its end: told before any question is asked.

    Raises:
        InputError: an image is missing; one is broken and `skip` is not set; or all of them are.
    """
    from tqdm import tqdm

    paths = {str(question.question_id): suite.image_path(question) for question in questions}
    files = list(dict.fromkeys(paths.values()))
    with ThreadPoolExecutor(READERS) as readers:
        sizes = readers.map(decoded_size, files)
        bar = tqdm(sizes, "looking at the images", len(files), unit="image", leave=False, delay=1, dynamic_ncols=True)
        reasons = {path: size for path, size in zip(files, bar, strict=True) if isinstance(size, str)}
    if not reasons:
        return frozenset()
    broken = frozenset(name for name, path in paths.items() if path in reasons)
    named = "; ".join(f"{path}: {reason}" for path, reason in list(reasons.items())[:NAMED])
    more = "; ..." if len(reasons) > NAMED else ""
    told = f"{len(reasons)} of {len(files)} images cannot be read ({named}{more})"
    if not skip:
        raise InputError(f"{told}: replace them, or give --skip-broken, which counts their questions as failed")
    if len(broken) == len(suite.questions):
        raise InputError(f"{told}: there is nothing to ask")
    print(f"{told}: {len(broken)} questions are skipped and count as failed")
    return broken


def begun(
    command: str, answers: Path, suite: Benchmark, arguments: argparse.Namespace, settings: Mapping[str, Any],
    continued: bool,
) -> dict[str, Any]:  # fmt: skip
    """The record of a run; the time that earlier parts of it took is kept."""
    path = run_file(answers)
    earlier = read_json(path) if continued and path.is_file() else {}
    folder = suite.question_file.parent
    return {
        "command": command,
        "arguments": {name: _plain(value) for name, value in vars(arguments).items()},
        "settings": dict(settings),
        "data_dir": str(folder.resolve()),
        "data_dir_from_here": os.path.relpath(folder.resolve(), path.parent.resolve()),
        "question_file": suite.question_file.name,
        "image_folder": str(suite.image_folder.resolve()),
        "versions": package_versions(*PACKAGES),
        "started": earlier.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": earlier.get("finished"),
        "seconds": earlier.get("seconds", 0.0),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def ended(record: Mapping[str, Any], answers: int) -> dict[str, Any]:
    """The record of a run that has answered everything."""
    return {**record, "finished": datetime.now(UTC).isoformat(timespec="seconds"), "answers": answers}


class Tally:
    """The running accuracy of a run, over the questions whose masks can be used."""

    def __init__(self, suite: Benchmark) -> None:
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
        by_key = {str(question.question_id): question for question in questions}
        for answer in read_answers(path):
            question = by_key[str(answer.question_id)]
            self.add(question, response_of(answer, self.suite.image_size(question), path))

    def describe(self) -> str:
        parts = [f"parsable {self.parsable / self.answers:.1%}" if self.answers else "none to score"]
        if self.scores:
            parts.insert(0, f"accuracy {sum(self.scores) / len(self.scores):.1%}")
        return ", ".join([*parts, *([self.problem] if self.problem else [])])


# --- the record of a run, and its files ---


def fingerprint(path: str | Path) -> str:
    """A hash that changes with a model: of its configuration and processor, and of both ends of every file of weights.

    Reading 26 GB to name a model would take longer than answering with it; training changes all of the weights, so
    a megabyte from each end tells two checkpoints apart. A name that is no folder stands for itself.
    """
    folder = Path(path)
    if not folder.is_dir():
        return str(path)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in (*WEIGHTS, *PROCESSING) for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return f"sha256:{digest.hexdigest()}"


def pictures(suite: Benchmark) -> str:
    """A hash of the pictures that are asked about, wherever they lie. InputError: one is missing."""
    found = {question.image: suite.image_path(question) for question in suite.questions}
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        digest.update(f"{name} {sha256(path)} ".encode("utf-8", "surrogatepass"))
    return f"sha256:{digest.hexdigest()}"


def done_before(path: Path, settings: Mapping[str, Any], questions: Sequence[Question]) -> set[str]:
    """Keys of the questions that an earlier run under the same settings has answered.

    Raises:
        InputError: the file has no record, was begun with other settings, or answers other questions.
    """
    if not path.exists():
        return set()
    done = {str(name) for name in answered(path)}
    if not done:
        return set()
    record = run_file(path)
    begun = settings_of(read_run(path)) if record.is_file() else None
    if begun is None:
        raise InputError(
            f"{path} holds answers, but no {record.name} says how they were made: give another --answer-file, "
            "or --overwrite to begin again"
        )
    for name, value in settings.items():
        if name not in begun:
            raise InputError(
                f"{record} does not say with which {name} {path.name} was begun: give another --answer-file, or "
                "--overwrite to begin again"
            )
        if begun[name] != value:
            raise InputError(
                f"{path} was begun with {name} {_short(begun[name])}, not {_short(value)}: use the same settings, "
                "another --answer-file, or --overwrite to begin again"
            )
    strange = done - {str(question.question_id) for question in questions}
    if strange:
        raise InputError(f"{path} answers question {min(strange)}, which is not asked: these are other questions")
    return done


def _short(value: Any) -> str:
    return value[:19] + "..." if isinstance(value, str) and len(value) > 64 else str(value)


# --- several files ------------------------------------------------------------------------------------------------


def numbered(path: Path, run: int, runs: int) -> Path:
    """The file of one of several runs, counted from 1: out/m.jsonl has out/m-1.jsonl, out/m-2.jsonl ..."""
    return path if runs == 1 else path.with_name(f"{path.stem}-{run}{path.suffix}")


def part_of(path: Path, chunk: int, chunks: int) -> Path:
    """The file of one part of the questions: out/m.jsonl has out/m.0-of-4.jsonl ..."""
    return path.with_name(f"{path.stem}.{chunk}-of-{chunks}{path.suffix}")


def torchrun() -> tuple[int, int, int] | None:
    """(rank, processes, rank on this machine) of a process that torchrun started with others; None otherwise."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 2 or "RANK" not in os.environ:
        return None
    return int(os.environ["RANK"]), processes, int(os.environ.get("LOCAL_RANK", "0"))


def merge(path: Path, chunks: int, questions: Sequence[Question]) -> bool:
    """Put the parts of `path` together, in the order of the questions, if all of them are finished; say whether.

    Two processes that both find the last part finished write the same file twice, each time whole.
    """
    parts = [part_of(path, chunk, chunks) for chunk in range(chunks)]
    records = [read_json(run_file(part)) if run_file(part).is_file() else {} for part in parts]
    if not all(record.get("finished") for record in records):
        return False
    first = {name: value for name, value in records[0]["settings"].items() if name != "chunk"}
    for part, record in zip(parts, records, strict=True):
        if {name: value for name, value in record["settings"].items() if name != "chunk"} != first:
            raise InputError(
                f"{part} was made with other settings than {parts[0]}: remove it and answer that part again"
            )
    lines = [line for part in parts for line in _lines(part)]
    write_sorted(path, lines, questions)
    whole = records[0] | {
        "settings": first | {"chunk": [0, 1]},
        "seconds": max(record["seconds"] for record in records),
        "finished": max(record["finished"] for record in records),
        "answers": len(lines),
        "skipped": [name for record in records for name in record.get("skipped") or ()],
        "parts": [part.name for part in parts],
    }
    write_json(run_file(path), whole)
    return True


def sort_answers(path: Path, questions: Sequence[Question]) -> None:
    """Bring the answers into the order of the questions; a file in that order is left alone."""
    order = {str(question.question_id): place for place, question in enumerate(questions)}
    places = [order[str(answer.question_id)] for answer in read_answers(path)]
    if places != sorted(places):
        write_sorted(path, _lines(path), questions)


def write_sorted(path: Path, lines: Sequence[tuple[str, bytes]], questions: Sequence[Question]) -> None:
    order = {str(question.question_id): place for place, question in enumerate(questions)}
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(line for _, line in sorted(lines, key=lambda one: order[one[0]])))


def _lines(path: Path) -> list[tuple[str, bytes]]:
    """The lines of an answer file, each with its question's key."""
    keys = [str(answer.question_id) for answer in read_answers(path)]
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()]
    return list(zip(keys, lines, strict=True))
