"""The files of a data set, written from its finished scenes: training JSON or benchmark, views.jsonl, contact sheet.

Every finished scene is a line of parts*.jsonl, one file for each shard. A scene is finished when its line is complete
and every picture that it names can be read. Lines are only ever appended; a broken one is skipped, and of two lines of
one scene the later counts. So a crash costs the scenes that it broke and nothing else, however scenes are shared out.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.absence import format_none
from ...core.images import open_image, open_region
from ...core.points import Point, format_points
from ...core.prompts import question_text
from ...core.records import Question, Sample, Turn, write_questions, write_samples
from ...drawing.contact_sheet import Tile, draw_contact_sheet
from ...utils.command import InputError
from ...utils.files import replacing
from .config import QuestionsConfig
from .questions.baselines import BaselineScores, fit_shifts, format_table, shifted_reference
from .wording import box_question

Record = dict[str, Any]
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
FILE_KEYS = ("image", "instances", "depth", "mask")  # of a view and of a sample's meta: paths in the data set's folder


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count` (from 1) of a data set: every `count`-th scene."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n"; InputError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard must be i/n with i from 1 to n, such as 1/8, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def scenes(self, total: int) -> range:
        return range(self.index - 1, total, self.count)

    def file(self, out: Path) -> Path:
        return out / ("parts.jsonl" if self.count == 1 else f"parts.{self.index}-of-{self.count}.jsonl")


def part_files(out: Path) -> list[Path]:
    return sorted(out.glob("parts*.jsonl"))


class FinishedScenes:
    """The finished scenes of a folder, read one at a time in the order of their numbers."""

    def __init__(self, out: Path, total: int) -> None:
        self.out = out
        self.paths = part_files(out)
        self._positions: NDArray[np.int64] = np.full((total, 2), -1, np.int64)  # of each scene: file, offset in it
        for index, path in enumerate(self.paths):
            with open(path, "rb") as file:
                offset = 0
                for line in file:
                    number = _scene_number(line)
                    if number is not None and number < total:
                        self._positions[number] = index, offset
                    offset += len(line)

    def __len__(self) -> int:
        return int((self._positions[:, 0] >= 0).sum())

    def __iter__(self) -> Iterator[Record]:
        for number in np.flatnonzero(self._positions[:, 0] >= 0):
            yield self[int(number)]

    def __getitem__(self, number: int) -> Record:
        index, offset = self._positions[number]
        with open(self.paths[index], "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the scenes that have no line, or a picture that is missing or broken."""
        lines = self._positions[:, 0]
        return [n for n in numbers if lines[n] < 0 or not pictures_are_readable(self.out, self[n])]


def _scene_number(line: bytes) -> int | None:
    """The number of the scene that a line holds; None for a broken line."""
    try:
        scene = json.loads(line)
    except ValueError:
        return None
    if not line.endswith(b"\n") or not isinstance(scene, dict) or not {"views", "samples", "rejects"} <= set(scene):
        return None
    number = scene.get("scene")
    return number if isinstance(number, int) and number >= 0 else None


def pictures_are_readable(out: Path, scene: Record) -> bool:
    """Whether every picture that a scene's line names is complete (its checksums are compared)."""
    records = [*scene["views"], *(sample["meta"] for sample in scene["samples"])]
    try:
        for name in {record[key] for record in records for key in FILE_KEYS if record.get(key)}:
            content = (out / name).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.verify()
            if not content.endswith(PNG_END):
                return False
    except (OSError, SyntaxError, ValueError, struct.error):  # what PIL raises for cuts, wrong checksums and nonsense
        return False
    return True


def write_dataset(scenes: FinishedScenes, questions: QuestionsConfig, benchmark: bool) -> dict[str, Any]:
    """Write views.jsonl, the samples or questions and the contact sheet; return counts, rejects and baselines."""
    out = scenes.out
    shifts = fit_shifts(out, (sample["meta"] for scene in scenes for sample in scene["samples"]))
    scores, rejects, views = BaselineScores(out), Counter[str](), 0
    counts = {name: Counter[str]() for name in ("counts", "tasks", "relations", "categories", "absent")}

    def samples() -> Iterator[Record]:
        for scene in scenes:
            for sample in scene["samples"]:
                if "absent" not in sample["meta"]:
                    sample["meta"]["shortcuts"]["near_reference"] = shifted_reference(sample["meta"], shifts)
                yield sample

    def counted_samples() -> Iterator[Record]:
        for sample in samples():
            meta, relation = sample["meta"], sample["meta"]["relation"] or ""
            if "absent" in meta:
                counts["absent"].update([meta["absent"]["reason"], *["one word"] * bool(meta["absent"]["word"])])
            else:
                scores.add(meta)
            counts["counts"][f"{meta['kind']} {relation}".strip()] += 1
            counts["tasks"][meta["task"]] += 1
            counts["relations"][relation or "none"] += 1
            if meta["target"]:
                counts["categories"][meta["target"]["category"]] += 1
            yield sample

    with replacing(out / "views.jsonl") as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for scene in scenes:
            file.writelines(json.dumps(view) + "\n" for view in scene["views"])
            views += len(scene["views"])
            rejects.update(scene["rejects"])
    if benchmark:
        point_file, box_file = (out / f"{kind}_questions.jsonl" for kind in ("point", "bbox"))
        unseen = questions.unseen
        write_questions(point_file, (_question(sample, unseen, boxes=False) for sample in counted_samples()))
        write_questions(box_file, (_question(sample, unseen, boxes=True) for sample in samples()))
    else:
        write_samples(out / "data.json", (_sample(sample, questions.decimals) for sample in counted_samples()))
    draw_contact_sheet((_tile(out, sample) for sample in _choose_for_sheet(scenes)), out / "contact_sheet.png")
    return {
        "views": views, "samples": counts["tasks"].total(),
        **{name: dict(sorted(counter.items())) for name, counter in counts.items() if counter or name != "absent"},
        "rejects": dict(rejects.most_common()), "shortcut_baselines": scores.by_kind(),
        "fixed_shifts": {relation: [round(value, 4) for value in shift] for relation, shift in shifts.items()},
    }  # fmt: skip


def _sample(sample: Record, decimals: int) -> Sample:
    meta = sample["meta"]
    question = f"<image>\n{question_text(sample['instruction'], reasoning=False)}"
    answer = format_points([Point(*point) for point in meta["points"]], decimals)
    if "absent" in meta:
        answer = format_none(meta["absent"]["answer"])
    return Sample(sample["id"], meta["image"], (Turn("human", question), Turn("gpt", answer)), meta)


def _question(sample: Record, unseen: tuple[str, ...], boxes: bool) -> Question:
    meta, instruction = sample["meta"], sample["instruction"]
    text = box_question(instruction) if boxes else question_text(instruction, reasoning=False)
    category = "unseen" if any(hop["relation"] in unseen for hop in meta.get("hops", [meta])) else "seen"
    return Question(sample["id"], meta["image"].removeprefix("images/"), text, category, meta)


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary of a data set as text."""
    lines = [f"{summary['views']} views, {summary['samples']} questions"]
    for title in ("tasks", "relations", "categories"):
        cells = [f"{name:18} {count:7}" for name, count in summary[title].items()]
        lines += [title, *("  " + "   ".join(cells[start : start + 4]) for start in range(0, len(cells), 4))]
    if absent := summary.get("absent"):
        reasons = {reason: count for reason, count in absent.items() if reason != "one word"}
        total, share = sum(reasons.values()), 100 * absent.get("one word", 0) / sum(reasons.values())
        each = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        lines.append(f"not there: {total} questions ({each}), {share:.0f} % differ from a true one in one word")
    lines.append("drawn again, by reason")
    lines += [f"  {reason:64} {count:8}" for reason, count in summary["rejects"].items()]
    lines += ["point accuracy of shortcuts, percent", format_table(summary["shortcut_baselines"])]
    meshes = summary["settings"].get("meshes", {})
    lines += [f"mesh {name}: {mesh['licence']}" for name, mesh in meshes.items()]
    timing = summary["timing"]
    if timing and timing["images_per_second"]:
        speed = f"{timing['images_per_second']} images a second, {timing['workers']} worker(s)"
        lines.append(f"{timing['scenes_rendered']} scenes rendered in {timing['seconds']} s: {speed}")
    return "\n".join(lines)


SHEET = 25  # samples


def _choose_for_sheet(scenes: FinishedScenes) -> list[Record]:
    """Samples for the contact sheet, spread over the scenes and over what is asked."""
    total = len(scenes)
    wanted = Counter(number * total // SHEET for number in range(SHEET))
    asked: Counter[str] = Counter()
    chosen: list[Record] = []

    def times_asked(sample: Record) -> tuple[int, int]:
        return asked[sample["meta"]["kind"]], asked[sample["meta"]["relation"] or ""]

    for position, scene in enumerate(scenes):
        for _ in range(wanted[position]):
            rest = (sample for sample in scene["samples"] if sample not in chosen)
            sample = min(rest, key=times_asked, default=None)
            if sample is not None:
                chosen.append(sample)
                asked.update([sample["meta"]["kind"], sample["meta"]["relation"] or ""])
    return chosen


def _tile(folder: Path, sample: Record) -> Tile:
    """A sample for the contact sheet; what rectangles mark in the picture itself needs no box."""
    meta = sample["meta"]
    marked = {mark["instance"] for mark in meta.get("marks", ())}
    boxes = [one["box"] for one in meta["references"] if one["instance"] not in marked]
    picture = open_image(folder / meta["image"])
    return Tile(picture, sample["instruction"], meta["points"], boxes, open_region(folder / meta["mask"]))
