"""Verifies a whole training set on all cores: ids, turns, coordinates, images that open to their end, masks that match.

Each image is decoded once however many samples show it; a JPEG is decoded at an eighth of its size, which reads every
byte of it all the same. The report is written as the check goes, so that a killed one continues with the same command.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...core.images import Images, decoded_size, image_size, is_turned, open_region
from ...core.reasoning import parse
from ...core.records import Sample
from ...utils.command import InputError
from ...utils.files import JsonlWriter, read_jsonl
from ...utils.parallel import Pool, WorkerDied
from .problems import BROKEN, CONVERSATION, DUPLICATE, MASK, MISSING, POINTS, Problem, Problems
from .registry import UniqueIds, as_sample, number_of, raw_records
from .sample_checks import conversation_problem, part_of, points_problem

CHUNK = 64  # samples handed to a process at a time
_DECIMALS = re.compile(r"\.(\d+)")


@dataclass(slots=True)
class Findings:
    """What one chunk was found to hold; problems carry the sample's place in the file."""

    problems: list[tuple[int, Problem]] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # "WIDTHxHEIGHT" of the images that opened
    masks: int = 0

    def add(self, others: Findings) -> None:
        self.problems += others.problems
        self.parts.update(others.parts)
        self.sizes.update(others.sizes)
        self.masks += others.masks

    def as_json(self) -> dict[str, Any]:
        problems = [{"sample": place, **asdict(problem)} for place, problem in self.problems]
        return {"problems": problems, "parts": self.parts, "sizes": self.sizes, "masks": self.masks}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Findings:
        problems = [(one["sample"], Problem(one["id"], one["kind"], one["detail"])) for one in record["problems"]]
        return cls(problems, Counter(record["parts"]), Counter(record["sizes"]), record["masks"])


@dataclass(frozen=True, slots=True)
class _Task:
    """One record to look at; `decode` when it is the first with its image."""

    place: int
    where: str
    record: Mapping[str, Any]
    repeated: bool
    decode: bool


@dataclass(slots=True)
class Summary:
    """A whole set: counts and a few examples; every problem is in the report, for there may be one a sample."""

    problems: Problems
    bad: set[int] = field(default_factory=set)  # places of samples with problems
    parts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    masks: int = 0

    def add(self, findings: Findings) -> None:
        self.parts.update(findings.parts)
        self.sizes.update(findings.sizes)
        self.masks += findings.masks
        for place, problem in findings.problems:
            self.bad.add(place)
            self.problems.report(problem)


def check(data: Path, folder: Path, report: Path, workers: int, strict: bool) -> Summary:
    """Look at every sample of `data`, whose images lie in `folder`; `report` (JSONL) receives what was found.

    Raises:
        InputError: the file is broken beyond its samples, or `strict` is set and there is a problem.
    """
    summary = Summary(Problems(strict))
    head = _head(data, folder)
    done = _begin(report, head)
    broken: dict[int, Problem] = {}  # by the sample's place
    with JsonlWriter(report) as writer:
        if not done:
            writer.write(head)
        for number, findings in _run(_chunks(data), done, folder, workers):
            if number not in done:
                writer.write({"chunk": number, **findings.as_json()})
            summary.add(findings)
            broken |= {place: problem for place, problem in findings.problems if problem.kind == BROKEN}
        if broken:
            others = Findings(_also_broken(data, broken))
            writer.write(others.as_json())
            summary.add(others)
        writer.write({"finished": True})
    return summary


def _also_broken(data: Path, broken: Mapping[int, Problem]) -> list[tuple[int, Problem]]:
    """The other samples that show an image which did not open: it was decoded for the first one only."""
    images: dict[str, Problem] = {}
    found: list[tuple[int, Problem]] = []
    for place, (_, record) in enumerate(raw_records(data)):
        image = record.get("image")
        if not isinstance(image, str):
            continue
        if place in broken:
            images[image] = broken[place]
        elif image in images:
            found.append((place, replace(images[image], id=str(record.get("id", f"#{place}")))))
    return found


# --- the report, by which a killed check continues ------------------------------------------------


def _head(data: Path, folder: Path) -> dict[str, Any]:
    state = data.stat()
    return {
        "data": str(data),
        "image_folder": str(folder),
        "bytes": state.st_size,
        "changed": state.st_mtime_ns,
        "chunk_size": CHUNK,
    }


def _begin(report: Path, head: Mapping[str, Any]) -> dict[int, Findings]:
    """The chunks an unfinished check of the same file has done already; another report is removed."""
    if not report.exists():
        return {}
    try:
        lines = [record for _, record in read_jsonl(report, skip_partial_line=True)]
    except InputError:
        raise InputError(f"{report} is no report of this command; give another --report or remove it") from None
    if lines and "chunk_size" not in lines[0]:
        raise InputError(f"{report} is no report of this command; give another --report or remove it")
    if not lines or lines[0] != head or "finished" in lines[-1]:
        report.unlink()
        return {}
    return {record["chunk"]: Findings.from_json(record) for record in lines if "chunk" in record}


# --- chunks on all cores --------------------------------------------------------------------------


def _chunks(data: Path) -> Iterator[tuple[int, list[_Task]]]:
    unique, images = UniqueIds(shared=False), set[int]()
    chunk: list[_Task] = []
    number = 0
    for place, (where, record) in enumerate(raw_records(data)):
        image = record.get("image")
        key = number_of(image) if isinstance(image, str) else None
        repeated = "id" in record and unique.name(str(record["id"])) is None
        chunk.append(_Task(place, where, record, repeated, key is not None and key not in images))
        if key is not None:
            images.add(key)
        if len(chunk) == CHUNK:
            yield number, chunk
            number, chunk = number + 1, []
    if chunk:
        yield number, chunk


def _run(
    chunks: Iterable[tuple[int, list[_Task]]], done: Mapping[int, Findings], folder: Path, workers: int
) -> Iterator[tuple[int, Findings]]:
    """The findings of every chunk, in order, with a progress bar; those that are `done` are the first ones."""
    from tqdm import tqdm

    yield from done.items()
    rest = (chunk for number, chunk in chunks if number not in done)
    with (
        tqdm(desc="check", unit=" samples", mininterval=0.5, initial=CHUNK * len(done)) as bar,
        Pool(workers, _looker, folder) as pool,
    ):
        for number, (chunk, result) in enumerate(pool.in_order(rest), len(done)):
            try:
                findings = result.result()
            except WorkerDied:
                findings = _one_by_one(chunk, pool)
            bar.update(len(chunk))
            yield number, findings


def _one_by_one(chunk: list[_Task], pool: Pool) -> Findings:
    """The findings of a chunk that no worker survived: which of its samples ends the workers."""
    found = Findings()
    for task, result in pool.in_order([task] for task in chunk):
        try:
            found.add(result.result())
        except WorkerDied as error:
            (dead,) = task
            sample = as_sample(dead.record, dead.where, dead.place, _Into([]))
            if sample is not None:
                found.parts[part_of(sample)] += 1
            name = str(dead.record.get("id", f"#{dead.place}"))
            found.problems.append((dead.place, Problem(name, BROKEN, f"{dead.record.get('image')}: {error}")))
    return found


def _looker(folder: Path) -> Callable[[list[_Task]], Findings]:
    return partial(look, images=Images(folder))


# --- one sample -----------------------------------------------------------------------------------


def look(chunk: Iterable[_Task], images: Images) -> Findings:
    found = Findings()
    for task in chunk:
        refused: list[Problem] = []
        sample = as_sample(task.record, task.where, task.place, _Into(refused))
        if sample is not None:
            found.parts[part_of(sample)] += 1
            refused += _problems(sample, task, images, found)
        elif task.decode:
            refused += _undecoded(task, images, found)
        found.problems += [(task.place, problem) for problem in refused]
    return found


def _undecoded(task: _Task, images: Images, found: Findings) -> Iterator[Problem]:
    """The image of a record that is no sample: it is decoded for all that show it, and this one shows it first."""
    name = task.record["image"]
    path = images.find(name)
    decoded = None if path is None else decoded_size(path)
    if isinstance(decoded, str):
        yield Problem(str(task.record.get("id", f"#{task.place}")), BROKEN, f"{name}: {decoded}")
    elif decoded is not None:
        found.sizes[f"{decoded[0]}x{decoded[1]}"] += 1


class _Into(Problems):
    """Problems gathered in a list."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(log=problems.append)


def _problems(sample: Sample, task: _Task, images: Images, found: Findings) -> Iterator[Problem]:
    if task.repeated:
        yield Problem(sample.id, DUPLICATE, f"{task.where}: the id was used before")
    if trouble := conversation_problem(sample):
        yield Problem(sample.id, CONVERSATION, trouble)
    elif trouble := points_problem(sample):
        yield Problem(sample.id, POINTS, trouble)
    if sample.image is None:
        return
    path = images.find(sample.image)
    if path is None:
        yield Problem(sample.id, MISSING, images.problem(sample.image) or sample.image)
        return
    size: tuple[int, int] | None = None
    if task.decode:
        decoded = decoded_size(path)
        if isinstance(decoded, str):
            yield Problem(sample.id, BROKEN, f"{sample.image}: {decoded}")
            return
        size = decoded
        found.sizes[f"{size[0]}x{size[1]}"] += 1
    mask = sample.meta.get("mask")
    if isinstance(mask, str):
        found.masks += 1
        if trouble := _mask_problem(sample, mask, size or _size(path), images):
            yield Problem(sample.id, MASK, trouble)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except InputError:
        return None  # told where it was decoded


def _is_turned(sample: Sample, images: Images) -> bool:
    path = images.find(sample.image or "")
    return path is not None and is_turned(path)


def _mask_problem(sample: Sample, name: str, size: tuple[int, int] | None, images: Images) -> str | None:
    path = images.find(name)
    if path is None:
        return images.problem(name)
    try:
        mask = open_region(path, name)
    except InputError as error:
        return str(error)
    height, width = mask.shape
    if size is not None and (width, height) != size:
        hint = ", upright by its EXIF orientation as the mask has to be" if _is_turned(sample, images) else ""
        return f"{name} is {width}x{height}, the image {size[0]}x{size[1]}{hint}"
    if not mask.any():
        return f"{name} is empty"
    answer = sample.conversations[-1].text
    for item in parse(answer).points:
        point = item.center
        # Written with so many decimals, a point may be half a unit of the last one beside its pixel.
        decimals = max((len(digits) for digits in _DECIMALS.findall(answer)), default=3)
        reach_x, reach_y = (1 + math.ceil(0.5 * 10**-decimals * side) for side in (width, height))
        place = point.to_pixel(width, height)
        if place is None:
            continue  # told by the coordinates
        column, row = place
        around = mask[max(0, row - reach_y) : row + reach_y + 1, max(0, column - reach_x) : column + reach_x + 1]
        if not around.any():
            return f"the point ({point.x}, {point.y}) lies outside {name}"
    return None
