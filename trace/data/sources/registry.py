"""The kinds of sources (docs/data.md lists them), and reading one: raw records in, usable samples with unique ids out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...core.images import Images
from ...core.records import Sample, read_records
from ...utils.command import InputError, existing_file
from .hub import read_hub, unpack
from .lvis import read_lvis
from .own_points import points_file, read_points
from .sample_checks import ImageCheck, Problem, Problems, content_problem, conversation_problem

KINDS = ("llava", "scenes", "trace", "robopoint", "llava_mix", "lvis", "points", "hub")
_GENERATOR_FILES = ("generate.json", "views.jsonl", "parts.jsonl")  # beside data.json, no samples
_NOT_DATA = (".problems.jsonl", ".check.jsonl", ".rejects.jsonl", ".card.json", "_infos.json")


@dataclass(frozen=True, slots=True)
class Source:
    """What to read and where its images are; `max_turns` and `seed` are for kinds that word questions themselves."""

    kind: str
    path: Path
    image_folder: Path | None = None
    max_turns: int = 5
    seed: int = 0
    unpack_to: Path | None = None  # of a zip (default: beside it, by its name)

    def open(self) -> OpenSource:
        """InputError if the kind is unknown or its files do not exist."""
        path, folder = self.path, self.image_folder
        if self.kind not in KINDS:
            raise InputError(f"there is no kind of source {self.kind!r}; known: {', '.join(KINDS)}")
        if self.kind == "hub":
            if folder is None:
                raise InputError("--kind hub needs --images: the folder its pictures are written to")
            return OpenSource((), Images(folder), partial(read_hub, str(path), folder))
        if not path.exists():
            raise InputError(f"the source {path} ({self.kind}) does not exist")
        if self.kind == "lvis":
            images = Images(folder or path.parent)
            return OpenSource((path,), images, partial(read_lvis, path, self.max_turns, self.seed))
        if self.kind == "points":
            path = points_file(path)
            images = Images(folder or path.parent)
            return OpenSource((path,), images, partial(read_points, path, images))
        if self.kind == "scenes" and path.is_dir():
            path = existing_file(path / "data.json", "the samples of generated scenes,")
        if self.kind == "robopoint" and path.is_dir():
            path = next(iter(sorted(path.glob("robopoint_*.json"))), None) or _data_files(path)[0]
        if path.suffix.lower() == ".zip":
            path = unpack(path, self.unpack_to or path.with_suffix(""))
        files = (path,) if path.is_file() else _data_files(path)
        images, shared_ids = Images(folder or files[0].parent), self.kind in ("robopoint", "llava_mix")
        return OpenSource(files, images, lambda: (pair for file in files for pair in read_records(file)), shared_ids)


@dataclass(frozen=True, slots=True)
class OpenSource:
    """The files of a source, where its images are, and its records as (where, record or Sample or Problem).

    `shared_ids`: several samples of one image have its id, so that a repeated id is numbered instead of refused; and
    conversations that begin with an answer lose it, as in LLaVA's own training.
    """

    files: tuple[Path, ...]
    images: Images
    records: Callable[[], Iterator[tuple[str, Any]]]
    shared_ids: bool = False

    def samples(self, problems: Problems) -> Iterator[Sample]:
        """Samples whose turns and ids are sound; `content_problem` looks at coordinates and images."""
        unique = UniqueIds(self.shared_ids)
        for number, (where, record) in enumerate(self.records()):
            sample = as_sample(record, where, number, problems)
            if sample is None:
                continue
            if self.shared_ids and sample.conversations[0].speaker == "gpt":
                sample = replace(sample, conversations=sample.conversations[1:])
            name = unique.name(sample.id)
            if name is None:
                problems.report(Problem(sample.id, "duplicate id", f"{where}: the id was used before"))
            elif trouble := conversation_problem(sample):
                problems.report(Problem(name, "conversation", trouble))
            else:
                yield sample if name == sample.id else replace(sample, id=name)

    def usable_samples(self, problems: Problems, image_check: ImageCheck = "exist") -> Iterator[Sample]:
        """Samples without a problem; their images are named relative to the image folder."""
        for sample in self.samples(problems):
            if problem := content_problem(sample, self.images, image_check):
                problems.report(problem)
                continue
            path = None if sample.image is None or image_check == "ignore" else self.images.find(sample.image)
            if path is not None and path.is_relative_to(self.images.folder):
                sample = replace(sample, image=path.relative_to(self.images.folder).as_posix())
            yield sample

    def refuse_output(self, out: Path) -> None:
        """InputError if `out` would be read as well: every sample would be there twice."""
        if out.exists() and any(out.resolve() == path.resolve() for path in self.files):
            raise InputError(f"{out} is the output, but is among the files that are read; remove it or write elsewhere")


def as_sample(record: Any, where: str, number: int, problems: Problems) -> Sample | None:
    """A raw record as a sample; None, with a problem reported, if it is none."""
    if isinstance(record, Sample):
        return record
    try:
        if not isinstance(record, Problem):
            return Sample.from_json(record, where)
    except InputError as error:
        record = Problem(str(record.get("id", f"#{number}")), "record", str(error))
    problems.report(record)
    return None


class UniqueIds:
    """Recognises repeated ids by 8 bytes of hash each (about 100 MB for RoboPoint's 1.43 million in Python's set)."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._seen: set[int] = set()
        self._repeats: dict[int, int] = {}

    def name(self, identifier: str) -> str | None:
        """The id if it is new; a repeated one numbered (`id#2`) if ids are shared, otherwise None."""
        key = stable_hash(identifier)
        name = identifier
        while stable_hash(name) in self._seen:
            if not self._shared:
                return None
            self._repeats[key] = self._repeats.get(key, 1) + 1
            name = f"{identifier}#{self._repeats[key]}"
        self._seen.add(stable_hash(name))
        return name


def stable_hash(*words: str | int) -> int:
    """A number below 2 ** 64 that depends on the words alone: the same on every machine and in every run."""
    text = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _data_files(folder: Path) -> tuple[Path, ...]:
    """The sample files of a folder, or of the folders in it: JSON lists and JSONL whose records hold conversations."""
    for pattern in ("*", "*/*", "*/*/*"):
        if files := [path for path in sorted(folder.glob(pattern)) if _holds_samples(path)]:
            return tuple(files)
    raise InputError(f"{folder} holds no JSON or JSONL file of samples (records with an id and conversations). "
                     "If a download was cut off, the same command continues it")  # fmt: skip


def _holds_samples(path: Path) -> bool:
    other = path.name.startswith(".") or path.name in _GENERATOR_FILES or path.name.endswith(_NOT_DATA)
    if other or path.suffix.lower() not in (".json", ".jsonl") or "__MACOSX" in path.parts or not path.is_file():
        return False
    try:
        return "conversations" in next(read_records(path), ("", {}))[1]
    except InputError:
        return False
