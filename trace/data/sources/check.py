"""Verify a whole training set on all cores: ids, turns, coordinates, images that open to their end, masks that match.

Each image is decoded once however many samples show it; a JPEG is decoded at an eighth of its size, which reads every
byte of it all the same. The report is written as the check goes, so that a killed one continues with the same command.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...core.images import Images, decoded_size, image_size, is_turned, open_image, open_region
from ...core.points import Box, Point
from ...core.prompts import bare_instruction
from ...core.reasoning import parse
from ...core.records import Sample, read_records
from ...drawing.contact_sheet import Tile, draw_contact_sheet
from ...utils.command import InputError
from ...utils.files import JsonlWriter, read_jsonl
from ...utils.parallel import Pool, WorkerDied
from .registry import UniqueIds, as_sample, stable_hash
from .sample_checks import Problem, Problems, conversation_problem, part_of, points_problem

CHUNK = 64  # samples handed to a process at a time
ON_SHEET = 25  # samples
_DECIMALS = re.compile(r"\.(\d+)")


@dataclass(slots=True)
class Findings:
    """Counts of some samples, and their problems by the sample's position in the file."""

    problems: list[tuple[int, Problem]] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # "WIDTHxHEIGHT" of the images that opened
    masks: int = 0
    broken: dict[str, str] = field(default_factory=dict)  # image -> what is wrong with it

    def add(self, others: Findings) -> None:
        self.problems += others.problems
        self.parts.update(others.parts)
        self.sizes.update(others.sizes)
        self.masks += others.masks
        self.broken |= others.broken

    def add_broken(self, item: CheckItem, detail: str) -> None:
        self.problems.append((item.position, Problem(item.id, "image broken", detail)))
        if item.image is not None:
            self.broken[item.image] = detail

    def as_json(self) -> dict[str, Any]:
        problems = [{"sample": position, **asdict(problem)} for position, problem in self.problems]
        counts = {"parts": self.parts, "sizes": self.sizes, "masks": self.masks}  # asdict cannot copy a Counter
        return {"problems": problems, **counts, "broken": self.broken}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Findings:
        problems = [(problem.pop("sample"), Problem(**problem)) for problem in record["problems"]]
        return cls(problems, Counter(record["parts"]), Counter(record["sizes"]), record["masks"], record["broken"])


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

    @property
    def image(self) -> str | None:
        image = self.record.get("image")
        return image if isinstance(image, str) else None


def check_set(data: Path, folder: Path, report: Path, workers: int, strict: bool) -> CheckSummary:
    """Check every sample of `data`, whose images are in `folder`; `report` (JSONL) receives what was found.

    Raises:
        InputError: the file is broken beyond its samples, or `strict` is set and there is a problem.
    """
    summary = CheckSummary(Problems(strict))
    head = {"data": str(data), "image_folder": str(folder), "chunk_size": CHUNK}
    head |= {"bytes": data.stat().st_size, "changed": data.stat().st_mtime_ns}
    head |= {"keys": [item.name for item in fields(Findings)]}  # a report of another version is begun anew
    done = _finished_chunks(report, head)
    broken: dict[str, str] = {}  # image -> what is wrong with it
    with JsonlWriter(report) as writer:
        if not report.stat().st_size:  # one that was killed before its first chunk has its head already
            writer.write(head)
        for findings in done:
            broken |= findings.broken
            summary.add(findings)
        with (
            tqdm(desc="check", unit=" samples", mininterval=0.5, initial=CHUNK * len(done)) as bar,
            Pool(workers, chunk_checker, folder) as pool,
        ):
            chunks = itertools.islice(_chunks(data), len(done), None)
            for number, (chunk, findings) in enumerate(_check_chunks(chunks, pool), start=len(done)):
                broken |= findings.broken
                for item in chunk:  # an image is decoded for the first sample that shows it, and broken for all
                    if not item.decode and item.image in broken:
                        findings.add_broken(item, broken[item.image])
                writer.write({"chunk": number, **findings.as_json()})
                summary.add(findings)
                bar.update(len(chunk))
        writer.write({"finished": True})
    return summary


def _finished_chunks(report: Path, head: Mapping[str, Any]) -> list[Findings]:
    """The findings of the chunks that an unfinished check of the same file has done; another report is removed."""
    if not report.exists():
        return []
    refusal = InputError(f"{report} is no report of this command; give another --report or remove it")
    try:
        lines = [record for _, record in read_jsonl(report, skip_partial_line=True)]
    except InputError:
        raise refusal from None
    if lines and "chunk_size" not in lines[0]:
        raise refusal
    if not lines or lines[0] != head or "finished" in lines[-1]:
        report.unlink()
        return []
    return [Findings.from_json(record) for record in lines if "chunk" in record]


def _chunks(data: Path) -> Iterator[list[CheckItem]]:
    unique, images = UniqueIds(shared=False), set[int]()
    chunk: list[CheckItem] = []
    for position, (where, record) in enumerate(read_records(data)):
        repeated = "id" in record and unique.name(str(record["id"])) is None
        image = record.get("image")
        before = len(images)
        images |= {stable_hash(image)} if isinstance(image, str) else set()
        chunk.append(CheckItem(position, where, record, repeated, decode=len(images) > before))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _check_chunks(chunks: Iterator[list[CheckItem]], pool: Pool) -> Iterator[tuple[list[CheckItem], Findings]]:
    """Every chunk with its findings, in order; where no worker survives a chunk, its samples are checked one by one."""
    for chunk, result in pool.in_order(chunks):
        try:
            findings = result.result()
        except WorkerDied as error:
            findings = Findings()
            if len(chunk) > 1:
                for _, single in _check_chunks(([item] for item in chunk), pool):
                    findings.add(single)
            else:
                (item,) = chunk
                if sample := as_sample(item.record, item.where, item.position, Problems()):
                    findings.parts[part_of(sample)] += 1
                findings.add_broken(item, f"{item.image}: {error}")
        yield chunk, findings


def chunk_checker(folder: Path) -> Callable[[list[CheckItem]], Findings]:
    """What a worker runs."""
    return partial(check_chunk, images=Images(folder))


def check_chunk(chunk: Iterable[CheckItem], images: Images) -> Findings:
    findings = Findings()
    for item in chunk:
        problems: list[Problem] = []
        sample = as_sample(item.record, item.where, item.position, Problems(log=problems.append))
        opened = not item.decode or _decode(item, images, findings)  # for all samples that show the image
        if sample is not None:
            findings.parts[part_of(sample)] += 1
            problems += _sample_problems(sample, item, images if opened else None, findings)
        findings.problems += [(item.position, problem) for problem in problems]
    return findings


def _decode(item: CheckItem, images: Images, findings: Findings) -> bool:
    """Count the image's size, or what is wrong with it; whether it opens (a missing one is reported elsewhere)."""
    path = images.find(item.image or "")
    size = None if path is None else decoded_size(path)
    if isinstance(size, str):
        findings.add_broken(item, f"{item.image}: {size}")
        return False
    if size is not None:
        findings.sizes[f"{size[0]}x{size[1]}"] += 1
    return True


def _sample_problems(sample: Sample, item: CheckItem, images: Images | None, findings: Findings) -> Iterator[Problem]:
    if item.repeated:
        yield Problem(sample.id, "duplicate id", f"{item.where}: the id was used before")
    if trouble := conversation_problem(sample):
        yield Problem(sample.id, "conversation", trouble)
    elif trouble := points_problem(sample):
        yield Problem(sample.id, "points", trouble)
    if sample.image is None or images is None:
        return
    path = images.find(sample.image)
    if path is None:
        yield Problem(sample.id, "image missing", images.problem(sample.image) or sample.image)
        return
    mask = sample.meta.get("mask")
    if isinstance(mask, str):
        findings.masks += 1
        if trouble := _mask_problem(sample, mask, path, images):
            yield Problem(sample.id, "mask", trouble)


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
    answer = sample.conversations[-1].text
    if parse(answer).none:
        return f"{name} is not empty, but the answer is that there is nothing to point at" if mask.any() else None
    if not mask.any():
        return f"{name} is empty"
    # A point is rounded to its last decimal, and may be half a unit of that beside its pixel.
    decimals = max((len(digits) for digits in _DECIMALS.findall(answer)), default=3)
    reach_x, reach_y = (1 + math.ceil(0.5 * 10**-decimals * side) for side in (width, height))
    for point in (item.center for item in parse(answer).points):
        pixel = point.to_pixel(width, height)
        if pixel is None:
            continue  # reported with the coordinates
        column, row = pixel
        around = mask[max(0, row - reach_y) : row + reach_y + 1, max(0, column - reach_x) : column + reach_x + 1]
        if not around.any():
            return f"the point ({point.x}, {point.y}) lies outside {name}"
    return None


def draw_samples(data: Path, folder: Path, bad: set[int], total: int, path: Path) -> int:
    """Draw some samples without problems, the same ones every time, as a contact sheet; return how many.

    Args:
        bad: positions that are left out, as are samples without a picture.
        total: the number of samples in `data`.
    """
    images, chosen = Images(folder), set(random.Random(0).sample(range(total), min(total, 4 * ON_SHEET))) - bad
    records = (pair for position, pair in enumerate(read_records(data)) if position in chosen)
    samples = (Sample.from_json(record, where) for where, record in records)
    shown = list(itertools.islice((sample for sample in samples if sample.image is not None), ON_SHEET))
    if shown:
        draw_contact_sheet((_tile(sample, images) for sample in shown), path)
    return len(shown)


def _tile(sample: Sample, images: Images) -> Tile:
    """A sample with the points or boxes of its last answer; an answer without any is part of the caption."""
    question, answer = sample.conversations[-2].text, sample.conversations[-1].text
    items = parse(answer).points
    mask = sample.meta.get("mask")
    return Tile(
        open_image(images.path(sample.image or "")),
        bare_instruction(question) + ("" if items else f" {answer}"),
        [(one.x, one.y) for one in items if isinstance(one, Point)],
        [(one.x0, one.y0, one.x1, one.y1) for one in items if isinstance(one, Box)],
        open_region(images.path(mask), mask) if isinstance(mask, str) else None,
    )
