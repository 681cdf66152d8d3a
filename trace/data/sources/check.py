"""Verify a whole training set on all cores: ids, turns, coordinates, images that open to their end, masks that match.

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

from tqdm import tqdm

from ...core.images import Images, decoded_size, image_size, is_turned, open_region
from ...core.reasoning import parse
from ...core.records import Sample, read_records
from ...utils.command import InputError
from ...utils.files import JsonlWriter, read_jsonl
from ...utils.parallel import Pool, WorkerDied
from .registry import UniqueIds, as_sample, stable_hash
from .sample_checks import (
    BROKEN,
    CONVERSATION,
    DUPLICATE,
    MASK,
    MISSING,
    POINTS,
    Problem,
    Problems,
    conversation_problem,
    part_of,
    points_problem,
)

CHUNK = 64  # samples handed to a process at a time
_DECIMALS = re.compile(r"\.(\d+)")


@dataclass(slots=True)
class Findings:
    """Counts of some samples, and their problems with the sample's position in the file."""

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
        problems = [{"sample": position, **asdict(problem)} for position, problem in self.problems]
        return {"problems": problems, "parts": self.parts, "sizes": self.sizes, "masks": self.masks}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Findings:
        problems = [
            (problem["sample"], Problem(problem["id"], problem["kind"], problem["detail"]))
            for problem in record["problems"]
        ]
        return cls(problems, Counter(record["parts"]), Counter(record["sizes"]), record["masks"])


@dataclass(slots=True)
class CheckSummary:
    """A whole set: counts and a few examples; every problem is in the report, for there may be one a sample."""

    problems: Problems
    bad: set[int] = field(default_factory=set)  # positions of samples with problems
    counts: Findings = field(default_factory=Findings)

    def add(self, findings: Findings) -> None:
        self.counts.add(replace(findings, problems=[]))
        for position, problem in findings.problems:
            self.bad.add(position)
            self.problems.report(problem)


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One record to check; `decode` if it is the first with its image."""

    position: int
    where: str
    record: Mapping[str, Any]
    repeated: bool
    decode: bool

    @property
    def id(self) -> str:
        return str(self.record.get("id", f"#{self.position}"))


def check_set(data: Path, folder: Path, report: Path, workers: int, strict: bool) -> CheckSummary:
    """Check every sample of `data`, whose images are in `folder`; `report` (JSONL) receives what was found.

    Raises:
        InputError: the file is broken beyond its samples, or `strict` is set and there is a problem.
    """
    summary = CheckSummary(Problems(strict))
    state = data.stat()
    head = {
        "data": str(data),
        "image_folder": str(folder),
        "bytes": state.st_size,
        "changed": state.st_mtime_ns,
        "chunk_size": CHUNK,
    }
    done = _finished_chunks(report, head)
    broken: dict[int, Problem] = {}
    with JsonlWriter(report) as writer:
        if not done:
            writer.write(head)
        for number, findings in _check_chunks(_chunks(data), done, folder, workers):
            if number not in done:
                writer.write({"chunk": number, **findings.as_json()})
            summary.add(findings)
            broken |= {position: problem for position, problem in findings.problems if problem.kind == BROKEN}
        if broken:
            others = Findings(_also_broken(data, broken))
            writer.write(others.as_json())
            summary.add(others)
        writer.write({"finished": True})
    return summary


def _also_broken(data: Path, broken: Mapping[int, Problem]) -> list[tuple[int, Problem]]:
    """The other samples that show an image which did not open: it was decoded for the first one only."""
    images: dict[str, Problem] = {}
    others: list[tuple[int, Problem]] = []
    for position, (_, record) in enumerate(read_records(data)):
        image = record.get("image")
        if not isinstance(image, str):
            continue
        if position in broken:
            images[image] = broken[position]
        elif image in images:
            others.append((position, replace(images[image], id=str(record.get("id", f"#{position}")))))
    return others


def _finished_chunks(report: Path, head: Mapping[str, Any]) -> dict[int, Findings]:
    """The chunks that an unfinished check of the same file has done; the report of another check is removed."""
    if not report.exists():
        return {}
    refusal = InputError(f"{report} is no report of this command; give another --report or remove it")
    try:
        lines = [record for _, record in read_jsonl(report, skip_partial_line=True)]
    except InputError:
        raise refusal from None
    if lines and "chunk_size" not in lines[0]:
        raise refusal
    if not lines or lines[0] != head or "finished" in lines[-1]:
        report.unlink()
        return {}
    return {record["chunk"]: Findings.from_json(record) for record in lines if "chunk" in record}


# --- chunks on all cores --------------------------------------------------------------------------


def _chunks(data: Path) -> Iterator[tuple[int, list[CheckItem]]]:
    unique, images = UniqueIds(shared=False), set[int]()
    chunk: list[CheckItem] = []
    number = 0
    for position, (where, record) in enumerate(read_records(data)):
        image = record.get("image")
        key = stable_hash(image) if isinstance(image, str) else None
        repeated = "id" in record and unique.name(str(record["id"])) is None
        chunk.append(CheckItem(position, where, record, repeated, key is not None and key not in images))
        if key is not None:
            images.add(key)
        if len(chunk) == CHUNK:
            yield number, chunk
            number, chunk = number + 1, []
    if chunk:
        yield number, chunk


def _check_chunks(
    chunks: Iterable[tuple[int, list[CheckItem]]], done: Mapping[int, Findings], folder: Path, workers: int
) -> Iterator[tuple[int, Findings]]:
    """The findings of every chunk, in order, with a progress bar; those that are `done` are the first ones."""
    yield from done.items()
    rest = (chunk for number, chunk in chunks if number not in done)
    with (
        tqdm(desc="check", unit=" samples", mininterval=0.5, initial=CHUNK * len(done)) as bar,
        Pool(workers, chunk_checker, folder) as pool,
    ):
        for number, (chunk, result) in enumerate(pool.in_order(rest), len(done)):
            try:
                findings = result.result()
            except WorkerDied:
                findings = _one_by_one(chunk, pool)
            bar.update(len(chunk))
            yield number, findings


def _one_by_one(chunk: list[CheckItem], pool: Pool) -> Findings:
    """The findings of a chunk that no worker survived: which of its samples ends the workers."""
    findings = Findings()
    for (item,), result in pool.in_order([item] for item in chunk):
        try:
            single = result.result()
        except WorkerDied as error:
            sample = as_sample(item.record, item.where, item.position, Problems())
            problem = Problem(item.id, BROKEN, f"{item.record.get('image')}: {error}")
            single = Findings([(item.position, problem)], Counter([part_of(sample)] if sample else ()))
        findings.add(single)
    return findings


def chunk_checker(folder: Path) -> Callable[[list[CheckItem]], Findings]:
    """What a worker runs."""
    return partial(check_chunk, images=Images(folder))


# --- one sample -----------------------------------------------------------------------------------


def check_chunk(chunk: Iterable[CheckItem], images: Images) -> Findings:
    findings = Findings()
    for item in chunk:
        problems: list[Problem] = []
        sample = as_sample(item.record, item.where, item.position, Problems(log=problems.append))
        if sample is not None:
            findings.parts[part_of(sample)] += 1
            problems += _sample_problems(sample, item, images, findings)
        elif item.decode:
            # Its image is decoded for all samples that show it, and this one shows it first.
            problems += _image_problem(item, images.find(item.record["image"]), findings)
        findings.problems += [(item.position, problem) for problem in problems]
    return findings


def _sample_problems(sample: Sample, item: CheckItem, images: Images, findings: Findings) -> Iterator[Problem]:
    if item.repeated:
        yield Problem(sample.id, DUPLICATE, f"{item.where}: the id was used before")
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
    if item.decode and (broken := list(_image_problem(item, path, findings))):
        yield from broken
        return
    mask = sample.meta.get("mask")
    if isinstance(mask, str):
        findings.masks += 1
        if trouble := _mask_problem(sample, mask, path, images):
            yield Problem(sample.id, MASK, trouble)


def _image_problem(item: CheckItem, path: Path | None, findings: Findings) -> Iterator[Problem]:
    size = None if path is None else decoded_size(path)
    if isinstance(size, str):
        yield Problem(item.id, BROKEN, f"{item.record['image']}: {size}")
    elif size is not None:
        findings.sizes[f"{size[0]}x{size[1]}"] += 1


def _mask_problem(sample: Sample, name: str, image: Path, images: Images) -> str | None:
    if trouble := images.problem(name):
        return trouble
    try:
        mask = open_region(images.path(name), name)
    except InputError as error:
        return str(error)
    height, width = mask.shape
    try:
        size = image_size(image)
    except InputError:
        return None  # reported where the image was decoded
    if (width, height) != size:
        hint = ", upright by its EXIF orientation as the mask has to be" if is_turned(image) else ""
        return f"{name} is {width}x{height}, the image {size[0]}x{size[1]}{hint}"
    if not mask.any():
        return f"{name} is empty"
    answer = sample.conversations[-1].text
    # A point is rounded to its last decimal, and may be half a unit of that beside its pixel.
    decimals = max((len(digits) for digits in _DECIMALS.findall(answer)), default=3)
    reach_x, reach_y = (1 + math.ceil(0.5 * 10**-decimals * side) for side in (width, height))
    for item in parse(answer).points:
        point = item.center
        pixel = point.to_pixel(width, height)
        if pixel is None:
            continue  # reported with the coordinates
        column, row = pixel
        around = mask[max(0, row - reach_y) : row + reach_y + 1, max(0, column - reach_x) : column + reach_x + 1]
        if not around.any():
            return f"the point ({point.x}, {point.y}) lies outside {name}"
    return None
