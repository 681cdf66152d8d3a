"""TableTop: a fixed benchmark of 100 pictures with one question each, in the layout of Where2Place.

    python -m trace.data.scenes.tabletop --out data_samples/tabletop

70 questions are about relations that training sets hold as well (category "seen"), 30 about the ones that the
configuration keeps out of them ("unseen"); half of each point at an object, half at free space. Its scenes come from
the benchmark's random stream, which no training set draws from, whatever its seed. SHA256SUMS holds the hash of every
file; pictures are JPEG, so that the folder stays small, masks PNG.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.command import InputError, Parser, output_folder, run

if TYPE_CHECKING:
    from ...core.records import Question

SEED = 2026
QUOTA = {"seen": 70, "unseen": 30}
TASKS = ("object_reference", "free_space")
SCENES = 220
SMALL = 0.06  # metres: the largest footprint's radius of an object for which free space is asked
DROPPED = ("instances",)
# Questions (by their number among the generated ones) that were taken out when all were looked at as pictures.
REJECTED: frozenset[int | str] = frozenset({439, 1208})
SUMS = "SHA256SUMS"


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = Parser(prog="trace.data.scenes.tabletop", description="Make the TableTop benchmark.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the benchmark")
    parser.add_argument("--work", type=Path, default=None, help="folder for the scenes (default: a temporary one)")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    args = parser.parse_args(argv)
    out = output_folder(args.out)
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another --out or remove what is in it")
    from .generate import main as generate

    flags = f"--scenes {SCENES} --seed {SEED} --size 640x480 --benchmark --workers {args.workers}".split()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary) / "scenes"
        generate([*flags, "--out", str(work)])
        questions = _chosen(work)
        _write(out, work, questions)
    print(f"wrote {out}: {len(questions)} questions, {_size(out) / 2**20:.1f} MB")
    return 0


def _chosen(work: Path) -> list[tuple[Question, Question]]:
    """The point and the box question of every picture, seen ones first."""
    import numpy as np

    from ...core.records import read_questions
    from .picks import Candidate, at_places, spread

    points, boxes = (read_questions(work / name) for name in ("point_questions.jsonl", "bbox_questions.jsonl"))
    rng, used, chosen = np.random.default_rng(SEED), set[str](), []
    for category, count in QUOTA.items():
        for task in TASKS:
            found = [
                Candidate.of(place, question.meta)
                for place, question in enumerate(points)
                if question.category == category and question.meta["task"] == task
                if question.question_id not in REJECTED and _clear(question.meta)
            ]
            wanted = count // len(TASKS)
            picked = spread(found, wanted, rng, used)
            if len(picked) < wanted:
                raise InputError(f"{work} has only {len(picked)} pictures with {category} questions of {task}")
            chosen += picked
    return list(
        zip(
            at_places(points, chosen, lambda candidate: candidate.place),
            at_places(boxes, chosen, lambda candidate: candidate.place),
            strict=True,
        )
    )


def _clear(meta: Mapping[str, Any]) -> bool:
    """Free space for a small object: a reader does not know how large the object is that the generator had in mind."""
    return "removed" not in meta or meta["removed"]["radius"] <= SMALL


def _write(out: Path, work: Path, questions: Sequence[tuple[Question, Question]]) -> None:
    from ...core.records import write_questions
    from .picks import jpeg, small_mask

    points: list[Question] = []
    boxes: list[Question] = []
    for number, (question, box) in enumerate(questions):
        name = f"{number:02d}"
        meta = _meta(question.meta, name)
        _save(out / meta["image"], jpeg(work / question.meta["image"]))
        _save(out / meta["mask"], small_mask(work / question.meta["mask"]))
        for one, kept in ((question, points), (box, boxes)):
            kept.append(replace(one, question_id=number, image=f"{name}.jpg", meta=meta))
    write_questions(out / "point_questions.jsonl", points)
    write_questions(out / "bbox_questions.jsonl", boxes)
    write_sums(out)


def _meta(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in meta.items() if key not in DROPPED}
    return kept | {"image": f"images/{name}.jpg", "mask": f"masks/{name}.png"}


def _save(path: Path, content: bytes) -> None:
    from ...core.records import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_sums(out: Path) -> None:
    """SHA256SUMS, as `sha256sum --check` reads it: every file of the benchmark but notes about it."""
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256((out / path).read_bytes()).hexdigest()}  {path.as_posix()}\n"
        for path in files
        if path.name not in (SUMS, "README.md")
    ]
    _save(out / SUMS, "".join(lines).encode())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(run(main))
