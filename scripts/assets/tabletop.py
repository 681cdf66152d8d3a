"""Make TableTop: a fixed benchmark of 100 pictures with one question each, in the layout of Where2Place.

    python scripts/assets/tabletop.py --out data_samples/tabletop

70 questions are about relations that training sets hold as well (category "seen"), 30 about those that the
configuration keeps out of them ("unseen"); half of each point at an object, half at free space. Its scenes come from
the benchmark's random stream, which no training set draws from, whatever its seed. SHA256SUMS holds every file's hash.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from picks import Candidate, at_positions, jpeg, small_mask, spread

from trace_vlm.core.records import Question, read_questions, write_questions
from trace_vlm.utils.command import InputError, Parser, output_folder, run
from trace_vlm.utils.files import replacing

SEED = 2026
QUOTA = {"seen": 70, "unseen": 30}
TASKS = ("object_reference", "free_space")
SCENES = 220
# Free space is asked for small objects (the footprint's radius in metres): a reader does not know how large the object
# is that the generator placed.
SMALL = 0.06
DROPPED = ("instances",)
# Questions (by their number among the generated ones) that were taken out when all were looked at as pictures.
REJECTED: frozenset[int | str] = frozenset({439, 1208})
SUMS = "SHA256SUMS"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Make the TableTop benchmark.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the benchmark")
    parser.add_argument("--work", type=Path, help="folder for the scenes; without it a temporary one")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    args = parser.parse_args(argv)
    out = output_folder(args.out)
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another --out or remove what is in it")
    from trace_vlm.data.scenes.generate import main as generate

    flags = f"--scenes {SCENES} --seed {SEED} --size 640x480 --benchmark --workers {args.workers}".split()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary) / "scenes"
        generate([*flags, "--out", str(work)])
        questions = choose_questions(work)
        write_benchmark(out, work, questions)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out}: {len(questions)} questions, {size / 2**20:.1f} MB")
    return 0


def choose_questions(work: Path) -> list[tuple[Question, Question]]:
    """The point and the box question of every picture, seen ones first."""
    import numpy as np

    points, boxes = (read_questions(work / name) for name in ("point_questions.jsonl", "bbox_questions.jsonl"))
    rng, used, chosen = np.random.default_rng(SEED), set[str](), []
    for category, count in QUOTA.items():
        for task in TASKS:
            candidates = [
                Candidate.of(position, question.meta)
                for position, question in enumerate(points)
                if question.category == category and question.meta["task"] == task
                if question.question_id not in REJECTED
                if "removed" not in question.meta or question.meta["removed"]["radius"] <= SMALL
            ]
            wanted = count // len(TASKS)
            picked = spread(candidates, wanted, rng, used)
            if len(picked) < wanted:
                raise InputError(f"{work} has only {len(picked)} pictures with {category} questions of {task}")
            chosen += picked
    return list(zip(at_positions(points, chosen), at_positions(boxes, chosen), strict=True))


def write_benchmark(out: Path, work: Path, questions: Sequence[tuple[Question, Question]]) -> None:
    """Write the pictures, masks, both question files and the hashes."""
    points: list[Question] = []
    boxes: list[Question] = []
    for number, (point_question, box_question) in enumerate(questions):
        name = f"{number:02d}"
        meta = {key: value for key, value in point_question.meta.items() if key not in DROPPED}
        meta |= {"image": f"images/{name}.jpg", "mask": f"masks/{name}.png"}
        save(out / meta["image"], jpeg(work / point_question.meta["image"]))
        save(out / meta["mask"], small_mask(work / point_question.meta["mask"]))
        points.append(replace(point_question, question_id=number, image=f"{name}.jpg", meta=meta))
        boxes.append(replace(box_question, question_id=number, image=f"{name}.jpg", meta=meta))
    write_questions(out / "point_questions.jsonl", points)
    write_questions(out / "bbox_questions.jsonl", boxes)
    write_sums(out)


def write_sums(out: Path) -> None:
    """Write SHA256SUMS, as `sha256sum --check` reads it, over all files but README.md."""
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256((out / path).read_bytes()).hexdigest()}  {path.as_posix()}\n"
        for path in files
        if path.name not in (SUMS, "README.md")
    ]
    save(out / SUMS, "".join(lines).encode())


def save(path: Path, content: bytes) -> None:
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


if __name__ == "__main__":
    raise SystemExit(run(main))
