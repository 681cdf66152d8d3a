"""What `model_vqa` and `api_vqa` share: flags, the questions, the record of a run and the files of its parts.

Every answer file has a record (out/m.jsonl: out/m.run.json) with the settings that decide the answers, versions and
hashes. A file is continued only under the settings it was started with. Work shared among processes is written to one
file each (out/m.0-of-4.jsonl); the process that finishes last merges them.
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
from ..model.presets import resolve_model
from ..utils.command import InputError, Parser, check_at_least, package_versions
from ..utils.files import read_json, replacing, sha256, write_json
from .benchmark import Benchmark, add_benchmark_flags, open_benchmark, read_run_record, run_file, run_settings
from .rules import is_readable
from .scoring import read_response, score_response

PACKAGES = ("trace-vlm", "torch", "transformers", "tokenizers", "llguidance", "numpy", "pillow")
MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "processor_config.json",
               "preprocessor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json")  # fmt: skip
IMAGE_READERS = 8  # images decoded at a time
NAMED_IMAGES = 5  # broken images that a message names
PROTOCOLS = {"paper": {"temperature": 0.2, "runs": 3}}  # TRACE and RoboPoint: mean and deviation of three runs


def add_answering_flags(parser: Parser) -> None:
    add_benchmark_flags(parser)
    add = parser.add_argument
    add("--answers", type=Path, required=True, help="JSONL file to write or to continue")
    add("--overwrite", action="store_true", help="discard existing answers and start again")
    add("--skip-broken", action="store_true", help="questions whose image cannot be read count as failed")
    add("--runs", type=int, default=1, help="number of runs, each with its own seed and file")
    add("--protocol", choices=PROTOCOLS, help="paper: temperature 0.2 and three runs")


def parse_answering_flags(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments and apply --protocol. InputError: they contradict each other."""
    arguments: argparse.Namespace = parser.parse_args(argv)
    if arguments.protocol is not None:
        for name, value in PROTOCOLS[arguments.protocol].items():
            given = getattr(arguments, name)
            if given not in (value, parser.get_default(name)):
                raise InputError(f"--protocol {arguments.protocol} sets --{name} {value}, not {given}: drop one")
            setattr(arguments, name, value)
    check_at_least(arguments, runs=1)
    if arguments.runs > 1 and arguments.temperature == 0:
        raise InputError(f"{arguments.runs} greedy runs are all the same: give --temperature, or --protocol paper")
    return arguments


def load_questions(arguments: argparse.Namespace) -> Benchmark:
    """Open the benchmark that the flags name."""
    benchmark = open_benchmark(arguments.data, arguments.questions, arguments.images)
    if arguments.answers.resolve() == benchmark.question_file.resolve():
        raise InputError(f"--answers {arguments.answers} is the question file, which answers would replace")
    return benchmark.first(arguments.num_questions)


def find_broken_images(benchmark: Benchmark, questions: Sequence[Question], skip: bool) -> frozenset[str]:
    """Decode every image before any question is asked; return the ids of questions whose image is broken.

    InputError: an image is missing, one is broken and `skip` is not set, or all are broken.
    """
    from tqdm import tqdm

    paths = {str(question.question_id): benchmark.image_path(question) for question in questions}
    files = list(dict.fromkeys(paths.values()))
    with ThreadPoolExecutor(IMAGE_READERS) as readers:
        sizes = readers.map(decoded_size, files)
        bar = tqdm(sizes, "checking the images", len(files), unit="image", leave=False, delay=1, dynamic_ncols=True)
        reasons = {path: size for path, size in zip(files, bar, strict=True) if isinstance(size, str)}
    if not reasons:
        return frozenset()
    broken = frozenset(name for name, path in paths.items() if path in reasons)
    named = "; ".join(f"{path}: {reason}" for path, reason in list(reasons.items())[:NAMED_IMAGES])
    message = f"{len(reasons)} of {len(files)} images cannot be read ({named}{'; ...' * (len(reasons) > NAMED_IMAGES)})"
    if not skip:
        raise InputError(f"{message}. Replace them, or give --skip-broken, which counts their questions as failed")
    if len(broken) == len(benchmark.questions):
        raise InputError(f"{message}: there is nothing to ask")
    print(f"{message}: {len(broken)} questions are skipped and count as failed")
    return broken


class RunningAccuracy:
    """The accuracy of a run so far, over the questions whose masks can be used."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.answers = self.parsable = 0
        self.scores: list[float] = []
        self.problem = ""

    def add(self, question: Question, response: Response) -> None:
        self.answers += 1
        self.parsable += is_readable(question, response)
        if not self.benchmark.scored:
            return
        try:
            self.scores.append(score_response(response, question, self.benchmark.region(question)))
        except InputError as error:  # answering continues: the summary refuses such a mask
            self.problem = self.problem or f"not scored: {error}"

    def add_file(self, path: Path, questions: Sequence[Question]) -> None:
        by_id = {str(question.question_id): question for question in questions}
        for answer in read_answers(path):
            question = by_id[str(answer.question_id)]
            self.add(question, read_response(answer, self.benchmark.image_size(question), path))

    def describe(self) -> str:
        parsable = f"parsable {self.parsable / self.answers:.1%}" if self.answers else "none to score"
        accuracy = f"accuracy {sum(self.scores) / len(self.scores):.1%}" if self.scores else ""
        return ", ".join(filter(None, (accuracy, parsable, self.problem)))


def common_settings(arguments: argparse.Namespace, benchmark: Benchmark, run: int) -> dict[str, Any]:
    """Return the settings that decide the answers of any model; a file is only continued under the same ones."""
    paths = {question.image: benchmark.image_path(question) for question in benchmark.questions}
    images = hashlib.sha256()  # of the images that are asked about, wherever they are stored
    for name, path in sorted(paths.items()):
        images.update(f"{name} {sha256(path)} ".encode("utf-8", "surrogatepass"))
    return {
        "question_sha256": sha256(benchmark.question_file), "reasoning": arguments.reasoning,
        "prompt_template": sha256(arguments.prompt_template) if arguments.prompt_template else None,
        "num_questions": arguments.num_questions, "images": f"sha256:{images.hexdigest()}", "run": run,
    }  # fmt: skip


def start_record(
    command: str, answers: Path, benchmark: Benchmark, arguments: argparse.Namespace, settings: Mapping[str, Any],
    continued: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a run; the time that its earlier parts took is kept."""
    path, folder = run_file(answers), benchmark.question_file.parent.resolve()
    earlier = read_json(path) if continued and path.is_file() else {}
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    return {
        "command": command, "arguments": flags, "settings": dict(settings),
        "data_dir": str(folder), "data_dir_from_here": os.path.relpath(folder, path.parent.resolve()),
        "question_file": benchmark.question_file.name, "image_folder": str(benchmark.image_folder.resolve()),
        "versions": package_versions(*PACKAGES),
        "started": earlier.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": earlier.get("finished"), "seconds": earlier.get("seconds", 0.0),
    }  # fmt: skip


def finish_record(record: Mapping[str, Any], answers: int) -> dict[str, Any]:
    """Return the record of a run that has answered everything."""
    return {**record, "finished": datetime.now(UTC).isoformat(timespec="seconds"), "answers": answers}


def fingerprint(path: str | Path) -> str:
    """Hash a model: its configuration, its processor, and a megabyte from both ends of every weight file.

    Reading all 26 GB would take longer than answering; training changes all weights, so the ends tell two checkpoints
    apart. A name that is not a folder stands for itself.
    """
    folder = Path(resolve_model(path))
    if not folder.is_dir():
        return str(path)
    digest = hashlib.sha256()
    for file in sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return f"sha256:{digest.hexdigest()}"


def answered_before(path: Path, settings: Mapping[str, Any], questions: Sequence[Question]) -> set[str]:
    """Return the ids of the questions that an earlier run under the same settings has answered.

    InputError: the file has no record, was started with other settings, or answers other questions.
    """
    done = {str(question_id) for question_id in answered(path)} if path.exists() else set()
    if not done:
        return set()
    record, choose = run_file(path), "Give another --answers, or --overwrite to start again"
    if not record.is_file():
        raise InputError(f"{path} holds answers, but no {record.name} says how they were made. {choose}")
    earlier = run_settings(read_run_record(path))
    for name, value in settings.items():
        if name not in earlier:
            raise InputError(f"{record} does not say with which {name} {path.name} was begun. {choose}")
        if earlier[name] != value:
            if name in ("question_sha256", "images"):
                what = "questions" if name == "question_sha256" else "images"
                raise InputError(f"the {what} have changed since {path} was begun. {choose}")
            before, now = (text[:19] + "..." if len(text := str(v)) > 64 else text for v in (earlier[name], value))
            raise InputError(f"{path} was begun with {name} {before}, now it is {now}. Use the same settings. {choose}")
    unknown = done - {str(question.question_id) for question in questions}
    if unknown:
        raise InputError(f"{path} answers question {min(unknown)}, which is not asked: these are other questions")
    return done


def run_path(path: Path, run: int, runs: int) -> Path:
    """Return the file of one of several runs, counted from 1: out/m.jsonl has out/m-1.jsonl, out/m-2.jsonl ..."""
    return path if runs == 1 else path.with_name(f"{path.stem}-{run}{path.suffix}")


def chunk_path(path: Path, chunk: int, chunks: int) -> Path:
    """Return the file of one share of the questions: out/m.jsonl has out/m.0-of-4.jsonl ..."""
    return path.with_name(f"{path.stem}.{chunk}-of-{chunks}{path.suffix}")


def torchrun_rank() -> tuple[int, int, int] | None:
    """Return (rank, processes, rank on this machine) under torchrun; None for a single process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 2 or "RANK" not in os.environ:
        return None
    return int(os.environ["RANK"]), processes, int(os.environ.get("LOCAL_RANK", "0"))


def merge_chunks(path: Path, chunks: int, questions: Sequence[Question]) -> bool:
    """Merge the chunks of `path` in the order of the questions if all are finished; return whether they are.

    Two processes that both find the last chunk finished write the same file twice, each time completely.
    """
    parts = [chunk_path(path, chunk, chunks) for chunk in range(chunks)]
    records = [read_json(run_file(part)) if run_file(part).is_file() else {} for part in parts]
    if not all(record.get("finished") for record in records):
        return False
    settings = [{**record["settings"], "chunk": [0, 1]} for record in records]
    for part, other in zip(parts, settings, strict=True):
        if other != settings[0]:
            raise InputError(f"{part} was made with other settings than {parts[0]}. Remove it and answer it again")
    merged = {
        **records[0], "settings": settings[0], "seconds": max(record["seconds"] for record in records),
        "finished": max(record["finished"] for record in records), "answers": sort_answers(path, questions, parts),
        "skipped": [question_id for record in records for question_id in record.get("skipped") or ()],
        "parts": [part.name for part in parts],
    }  # fmt: skip
    write_json(run_file(path), merged)
    return True


def sort_answers(path: Path, questions: Sequence[Question], parts: Sequence[Path] = ()) -> int:
    """Bring the answers of `path`, or those of its parts, into the order of the questions; return their number."""
    order = {str(question.question_id): index for index, question in enumerate(questions)}
    lines: list[tuple[int, bytes]] = []
    for part in parts or [path]:
        indices = [order[str(answer.question_id)] for answer in read_answers(part)]
        written = [line for line in part.read_bytes().splitlines(keepends=True) if line.strip()]
        lines += zip(indices, written, strict=True)
    content = b"".join(line for _, line in sorted(lines, key=lambda entry: entry[0]))
    if not path.exists() or path.read_bytes() != content:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return len(lines)
