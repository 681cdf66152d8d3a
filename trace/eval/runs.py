"""What is known of a run beside its answers: the record that makes it repeatable, and how a part of it is continued.

Every file of answers has a record (out/m.jsonl: out/m.run.json) with the settings that decide the answers, versions,
hashes of the questions and of the weights. A file is only continued under the settings that began it. Work that is
shared among processes lies in a part each (out/m.0-of-4.jsonl); whoever finishes last puts the parts together.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.records import Question, answered, read_answers
from ..utils.command import InputError
from ..utils.files import read_json, replacing, sha256, write_json
from .benchmark import Suite, key, read_run, run_file, settings_of

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
PROCESSING = ("processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json",
              "added_tokens.json")  # fmt: skip


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


def pictures(suite: Suite) -> str:
    """A hash of the pictures that are asked about, wherever they lie. InputError: one is missing."""
    found = {question.image: suite.image_path(question) for question in suite.questions}
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        digest.update(f"{name} {sha256(path)} ".encode("utf-8", "surrogatepass"))
    return f"sha256:{digest.hexdigest()}"


def versions() -> dict[str, str]:
    """Versions of Python and of what decides a model's numbers."""
    from importlib import metadata  # a tenth of a second, which no --help has to wait for

    found = {"python": platform.python_version()}
    for name in ("trace-vlm", "torch", "transformers", "tokenizers", "llguidance", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def done_before(path: Path, settings: Mapping[str, Any], questions: Sequence[Question]) -> set[str]:
    """Keys of the questions that an earlier run under the same settings has answered.

    Raises:
        InputError: the file has no record, was begun with other settings, or answers other questions.
    """
    if not path.exists():
        return set()
    done = {key(name) for name in answered(path)}
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
    strange = done - {key(question.question_id) for question in questions}
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
    order = {key(question.question_id): place for place, question in enumerate(questions)}
    places = [order[key(answer.question_id)] for answer in read_answers(path)]
    if places != sorted(places):
        write_sorted(path, _lines(path), questions)


def write_sorted(path: Path, lines: Sequence[tuple[str, bytes]], questions: Sequence[Question]) -> None:
    order = {key(question.question_id): place for place, question in enumerate(questions)}
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(line for _, line in sorted(lines, key=lambda one: order[one[0]])))


def _lines(path: Path) -> list[tuple[str, bytes]]:
    """The lines of an answer file, each with its question's key."""
    keys = [key(answer.question_id) for answer in read_answers(path)]
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.strip()]
    return list(zip(keys, lines, strict=True))
