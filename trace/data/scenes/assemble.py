"""From scenes to a data set: the files that training and evaluation read, in the order of the scenes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...points import Point, format_points
from ...prompts import question_text
from ...records import Question, Sample, Turn, replacing, write_questions, write_samples
from .instructions import box_question
from .scene import Job
from .sheet import contact_sheet
from .shortcuts import Score, fit_shifts, shifted_reference

SHEET = 25
Scene = dict[str, Any]


class Parts:
    """The lines of parts.jsonl by scene number: read one at a time, whatever the order in which they were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[int, int] = {}
        with open(path, "rb") as file:
            offset = 0
            for line in file:
                self._offsets.setdefault(json.loads(line)["scene"], offset)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Scene]:
        with open(self.path, "rb") as file:
            for number in sorted(self._offsets):
                file.seek(self._offsets[number])
                yield json.loads(file.readline())


def assemble(job: Job, parts: Parts) -> dict[str, Any]:
    """Write views.jsonl, the samples or questions and the contact sheet; return counts, rejects and baselines."""
    shifts = fit_shifts(job.out, (sample["meta"] for scene in parts for sample in scene["samples"]))
    score, counts, rejects = Score(job.out), Counter[str](), Counter[str]()
    decimals = job.config.questions.decimals

    def finished() -> Iterator[Scene]:
        for scene in parts:
            rejects.update(scene["rejects"])
            counts["views"] += len(scene["views"])
            for sample in scene["samples"]:
                sample["meta"]["shortcuts"]["near_reference"] = shifted_reference(sample["meta"], shifts)
                score.add(sample["meta"])
                counts[f"{sample['meta']['kind']} {sample['meta']['relation'] or ''}".strip()] += 1
                yield sample

    with replacing(job.out / "views.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for scene in parts:
            file.writelines(json.dumps(view) + "\n" for view in scene["views"])
    if job.benchmark:
        questions = list(finished())
        unseen = job.config.questions.unseen
        write_questions(
            job.out / "point_questions.jsonl", (_question(sample, unseen, boxes=False) for sample in questions)
        )
        write_questions(
            job.out / "bbox_questions.jsonl", (_question(sample, unseen, boxes=True) for sample in questions)
        )
    else:
        write_samples(job.out / "data.json", (_sample(sample, decimals) for sample in finished()))
    contact_sheet(job.out, _chosen(job, parts), job.out / "contact_sheet.png")
    views = counts.pop("views")
    return {
        "views": views,
        "samples": sum(counts.values()),
        "counts": dict(sorted(counts.items())),
        "rejects": dict(rejects.most_common()),
        "shortcut_baselines": score.result(),
        "fixed_shifts": {relation: [round(value, 4) for value in shift] for relation, shift in shifts.items()},
    }


def _sample(sample: Mapping[str, Any], decimals: int) -> Sample:
    meta = sample["meta"]
    turns = (
        Turn("human", f"<image>\n{question_text(sample['instruction'], reasoning=False)}"),
        Turn("gpt", format_points([Point(*point) for point in meta["points"]], decimals)),
    )
    return Sample(sample["id"], f"images/{meta['view']}.png", turns, meta)


def _question(sample: Mapping[str, Any], unseen: tuple[str, ...], boxes: bool) -> Question:
    meta, instruction = sample["meta"], sample["instruction"]
    text = box_question(instruction) if boxes else question_text(instruction, reasoning=False)
    category = "unseen" if meta["relation"] in unseen else "seen"
    return Question(sample["id"], f"{meta['view']}.png", text, category, meta)


def _chosen(job: Job, parts: Parts) -> list[Mapping[str, Any]]:
    """Samples for the sheet: spread over the scenes and, in turn, over the kinds of question."""
    per_scene = max(1, job.views * sum(job.counts.values()))
    total = len(parts)
    wanted = [number * total // SHEET for number in range(SHEET)]
    chosen: list[Mapping[str, Any]] = []
    for position, scene in enumerate(parts):
        for repeat in range(wanted.count(position)):
            place = (len(chosen) * 7 + repeat) % per_scene
            if place < len(scene["samples"]):
                chosen.append(scene["samples"][place])
    return chosen
