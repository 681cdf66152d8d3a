"""The kinds of sources, and reading one: raw records in, sound samples with unique ids out.

| kind | what `path` is |
| --- | --- |
| `llava` | LLaVA's JSON list or JSONL, or a folder that holds such files, or a zip of such a folder |
| `scenes` | a folder of `trace.data.scenes.generate` |
| `trace` | the downloaded folder of `jink-ucla/TRACE` |
| `robopoint` | the downloaded folder of `wentao-yuan/robopoint-data` |
| `llava_mix` | `llava_v1_5_mix665k.json` or `llava_instruct_150k.json` |
| `lvis` | LVIS v1 annotations, `lvis_v1_train.json` |
| `points` | a CSV or JSONL of one's own points, or the folder that holds it |
| `hub` | a data set as `datasets.load_dataset` reads it; its pictures are written to the image folder |

A mix reads every kind but `hub`, which is converted first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...core.images import Images
from ...core.records import Sample
from ...utils.command import InputError
from ...utils.files import first_character, read_json_list, read_jsonl
from .problems import CONVERSATION, DUPLICATE, RECORD, Problem, Problems
from .sample_checks import conversation_problem, late_problem

DATA_SUFFIXES = (".json", ".jsonl")
_OURS = ("generate.json", "views.jsonl", "parts.jsonl")  # a generator's folder: beside data.json, no samples
_NOT_DATA = (".problems.jsonl", ".check.jsonl", ".rejects.jsonl", ".card.json", "_infos.json")


@dataclass(frozen=True, slots=True)
class Source:
    """What to read and where its images lie; `max_turns` and `seed` are for kinds that word questions themselves."""

    kind: str
    path: Path
    image_folder: Path | None = None
    max_turns: int = 5
    seed: int = 0
    unpack_to: Path | None = None  # of a zip; beside it, under its stem, when None


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind is read: `open` gives the source with its real path, image folder, and a stream of raw records.

    `shared_ids`: several samples of one image bear its id, so that a repeated id is numbered instead of refused; and
    conversations that begin with an answer lose it, as in LLaVA's own training.
    """

    open: Callable[[Source], Opened]
    shared_ids: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that was found: the files it is read from, its image folder, and its records."""

    files: tuple[Path, ...]
    image_folder: Path
    records: Callable[[], Iterator[tuple[str, Any]]]  # (where, a raw record or a finished Sample)


def open_source(source: Source) -> Opened:
    """InputError when the kind is unknown or its files are not there."""
    if source.kind not in KINDS:
        raise InputError(f"there is no kind of source {source.kind!r}; known: {', '.join(KINDS)}")
    if not source.path.exists() and source.kind != "hub":
        raise InputError(f"the source {source.path} ({source.kind}) does not exist")
    return KINDS[source.kind].open(source)


def read_source(source: Source, problems: Problems) -> Iterator[Sample]:
    """The sound samples of a source, their image names relative to its image folder; others go to `problems`."""
    opened = open_source(source)
    images = Images(opened.image_folder)
    for sample in sound_samples(opened, problems, KINDS[source.kind].shared_ids):
        if trouble := late_problem(sample, images):
            problems.report(Problem(sample.id, *trouble))
        else:
            yield sample


def sound_samples(opened: Opened, problems: Problems, shared_ids: bool) -> Iterator[Sample]:
    """Samples whose turns and ids are sound; coordinates and images were not looked at (`late_problem` does)."""
    unique = UniqueIds(shared_ids)
    for number, (where, record) in enumerate(opened.records()):
        sample = as_sample(record, where, number, problems)
        if sample is None:
            continue
        if shared_ids and sample.conversations[0].speaker == "gpt":
            sample = replace(sample, conversations=sample.conversations[1:])
        name = unique.name(sample.id)
        if name is None:
            problems.report(Problem(sample.id, DUPLICATE, f"{where}: the id was used before"))
            continue
        if trouble := conversation_problem(sample):
            problems.report(Problem(name, CONVERSATION, trouble))
            continue
        yield sample if name == sample.id else replace(sample, id=name)


def as_sample(record: Any, where: str, number: int, problems: Problems) -> Sample | None:
    """A raw record as a sample; None, and a problem, when it is none."""
    if isinstance(record, Sample):
        return record
    if isinstance(record, Problem):
        problems.report(record)
        return None
    try:
        return Sample.from_json(record, where)
    except InputError as error:
        problems.report(Problem(str(record.get("id", f"#{number}")), RECORD, str(error)))
        return None


class UniqueIds:
    """Tells repeated ids with 8 bytes of hash each (about 100 MB for RoboPoint's 1.43 million in Python's set)."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._seen: set[int] = set()
        self._repeats: dict[int, int] = {}

    def name(self, identifier: str) -> str | None:
        """The id itself when it is new; a repeated one numbered (`id#2`) when ids are shared, otherwise None."""
        key = number_of(identifier)
        if key not in self._seen:
            self._seen.add(key)
            return identifier
        if not self._shared:
            return None
        while True:
            self._repeats[key] = self._repeats.get(key, 1) + 1
            name = f"{identifier}#{self._repeats[key]}"
            if number_of(name) not in self._seen:
                self._seen.add(number_of(name))
                return name


def number_of(*words: str | int) -> int:
    """A number below 2 ** 64 that depends on the words alone: the same on every machine and in every run."""
    text = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# --- LLaVA's format -------------------------------------------------------------------------------


def raw_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of a JSON list or JSONL; broken JSON is an InputError, for nothing behind it can be trusted."""
    first = first_character(path)
    if not first:
        raise InputError(f"{path} is empty: a JSON list of samples, or one sample a line, was expected")
    if first == "[":
        for line, index, record in read_json_list(path):
            yield f"{path}, line {line} (sample {index})", record
    else:
        for line, record in read_jsonl(path):
            yield f"{path}, line {line}", record


def _open_llava(source: Source) -> Opened:
    path = source.path
    if path.suffix.lower() == ".zip":
        from .archive import unpack

        path = unpack(path, source.unpack_to or path.with_suffix(""))
    files = (path,) if path.is_file() else data_files(path)
    folder = source.image_folder or files[0].parent
    return Opened(files, folder, lambda: (pair for file in files for pair in raw_records(file)))


def not_read(out: Path, files: Sequence[Path]) -> None:
    """InputError when what is to be written would be read as well: everything would be there twice."""
    if out.exists() and any(out.resolve() == path.resolve() for path in files):
        raise InputError(
            f"{out} is to be written, but lies among the files that are read; remove it or write elsewhere"
        )


def data_files(folder: Path) -> tuple[Path, ...]:
    """The sample files of a folder, or of the folders in it: JSON lists and JSONL whose records hold conversations."""
    for pattern in ("*", "*/*", "*/*/*"):
        found = [path for path in sorted(folder.glob(pattern)) if _holds_samples(path)]
        if found:
            return tuple(found)
    raise InputError(f"{folder} holds no JSON or JSONL file of samples (records with an id and conversations)")


def _holds_samples(path: Path) -> bool:
    name = path.name
    if path.suffix.lower() not in DATA_SUFFIXES or name.startswith(".") or name in _OURS or name.endswith(_NOT_DATA):
        return False
    if "__MACOSX" in path.parts or not path.is_file() or first_character(path) not in ("[", "{"):
        return False
    try:
        record = next(raw_records(path), (None, None))[1]
    except InputError:
        return False
    return record is not None and "conversations" in record


def _open_robopoint(source: Source) -> Opened:
    path = source.path
    if path.is_dir():
        known = sorted(path.glob("robopoint_*.json"))
        path = known[0] if known else data_files(path)[0]
    return _open_llava(replace(source, path=path))


def _open_scenes(source: Source) -> Opened:
    path = source.path / "data.json" if source.path.is_dir() else source.path
    if not path.is_file():
        raise InputError(f"{source.path} has no data.json; trace.data.scenes.generate writes one")
    return _open_llava(replace(source, path=path))


def _open_lvis(source: Source) -> Opened:
    from .lvis import read_lvis

    folder = source.image_folder or source.path.parent
    return Opened((source.path,), folder, lambda: read_lvis(source.path, source.max_turns, source.seed))


def _open_points(source: Source) -> Opened:
    from .own_points import points_file, read_points

    path = points_file(source.path)
    images = Images(source.image_folder or path.parent)
    return Opened((path,), images.folder, lambda: read_points(path, images))


def _open_hub(source: Source) -> Opened:
    from .hub import read_hub

    folder = source.image_folder
    if folder is None:
        raise InputError("--kind hub needs --image-folder: the folder its pictures are written to")
    return Opened((), folder, lambda: read_hub(str(source.path), folder))


KINDS = MappingProxyType(
    {
        "llava": Kind(_open_llava),
        "scenes": Kind(_open_scenes),
        "trace": Kind(_open_llava),
        "robopoint": Kind(_open_robopoint, shared_ids=True),
        "llava_mix": Kind(_open_llava, shared_ids=True),
        "lvis": Kind(_open_lvis),
        "points": Kind(_open_points),
        "hub": Kind(_open_hub),
    }
)
