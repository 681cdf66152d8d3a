"""From scenes to a data set: the files that training and evaluation read, in the order of the scenes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...core.points import Point, format_points
from ...core.prompts import question_text
from ...core.records import Question, Sample, Turn, replacing, write_questions, write_samples
from .contact_sheet import contact_sheet
from .questions.baselines import Score, fit_shifts, shifted_reference
from .questions.wording import box_question
from .scene import Job
from .shards import Parts, Scene
from .totals import Tally

SHEET = 25


def assemble(job: Job, parts: Parts) -> dict[str, Any]:
    """Write views.jsonl, the samples or questions and the contact sheet; return counts, rejects and baselines."""
    shifts = fit_shifts(job.out, (sample["meta"] for scene in parts for sample in scene["samples"]))
    score, tally, rejects = Score(job.out), Tally(), Counter[str]()
    decimals, unseen, views = job.config.questions.decimals, job.config.questions.unseen, 0

    def samples() -> Iterator[Scene]:
        for scene in parts:
            for sample in scene["samples"]:
                sample["meta"]["shortcuts"]["near_reference"] = shifted_reference(sample["meta"], shifts)
                yield sample

    def counted() -> Iterator[Scene]:
        for sample in samples():
            score.add(sample["meta"])
            tally.add(sample["meta"])
            yield sample

    with replacing(job.out / "views.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for scene in parts:
            file.writelines(json.dumps(view) + "\n" for view in scene["views"])
            views += len(scene["views"])
            rejects.update(scene["rejects"])
    if job.benchmark:
        point_file, box_file = (job.out / f"{kind}_questions.jsonl" for kind in ("point", "bbox"))
        write_questions(point_file, (_question(sample, unseen, boxes=False) for sample in counted()))
        write_questions(box_file, (_question(sample, unseen, boxes=True) for sample in samples()))
    else:
        write_samples(job.out / "data.json", (_sample(sample, decimals) for sample in counted()))
    contact_sheet(job.out, _chosen(parts), job.out / "contact_sheet.png")
    return {
        "views": views,
        "samples": tally.samples,
        **tally.result(),
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
    return Sample(sample["id"], meta["image"], turns, meta)


def _question(sample: Mapping[str, Any], unseen: tuple[str, ...], boxes: bool) -> Question:
    meta, instruction = sample["meta"], sample["instruction"]
    text = box_question(instruction) if boxes else question_text(instruction, reasoning=False)
    category = "unseen" if meta["relation"] in unseen else "seen"
    return Question(sample["id"], meta["image"].removeprefix("images/"), text, category, meta)


def _chosen(parts: Parts) -> list[Mapping[str, Any]]:
    """Samples for the sheet: spread over the scenes, and over what is asked."""
    total = len(parts)
    wanted = Counter(number * total // SHEET for number in range(SHEET))
    asked: Counter[str] = Counter()
    chosen: list[Mapping[str, Any]] = []

    def often(sample: Mapping[str, Any]) -> tuple[int, int]:
        return asked[sample["meta"]["kind"]], asked[sample["meta"]["relation"] or ""]

    for position, scene in enumerate(parts):
        for _ in range(wanted[position] if scene["samples"] else 0):
            sample = min((one for one in scene["samples"] if one not in chosen), key=often, default=None)
            if sample is not None:
                chosen.append(sample)
                asked.update([sample["meta"]["kind"], sample["meta"]["relation"] or ""])
    return chosen
