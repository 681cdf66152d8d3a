"""Make TableTop: a fixed benchmark of 100 pictures with one question each, in the layout of Where2Place.

    python scripts/assets/tabletop.py --out data_samples/tabletop
    python scripts/assets/tabletop.py --out data_samples/tabletop_chain --chains

70 questions are about relations that training sets hold as well (category "seen"), 30 about those that the
configuration keeps out of them ("unseen"); half of each point at an object, half at free space. Its scenes come from
the benchmark's random stream, which no training set draws from, whatever its seed. SHA256SUMS holds every file's hash.
With --chains it makes TableTop-Chain: 100 smaller pictures with three questions each, of one, two and three hops.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from picks import Candidate, at_positions, jpeg, small_mask, spread

from trace_vlm.core.records import Question, read_questions, write_questions
from trace_vlm.data.scenes.wording import DIRECTIONS
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
CONFIG = Path(__file__).parents[2] / "configs" / "scenes" / "tabletop.yaml"
# TableTop-Chain
CHAIN_CONFIG = CONFIG.with_name("tabletop_chain.yaml")
CHAIN_SCENES, CHAIN_SIZE, PICTURES, HOPS = 320, "400x300", 100, 3
CHAIN_REJECTED: frozenset[int | str] = frozenset({2377, 2383})


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Make the TableTop benchmark.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the benchmark")
    parser.add_argument("--work", type=Path, help="folder for the scenes; without it a temporary one")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--chains", action="store_true", help="make TableTop-Chain: questions of one to three hops")
    args = parser.parse_args(argv)
    out = output_folder(args.out)
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another --out or remove what is in it")
    from trace_vlm.data.scenes.generate import main as generate

    flags = f"--scenes {SCENES} --seed {SEED} --size 640x480 --benchmark --workers {args.workers}".split()
    flags += ["--config", str(CONFIG)]
    if args.chains:
        flags += f"--scenes {CHAIN_SCENES} --size {CHAIN_SIZE} --config {CHAIN_CONFIG}".split()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary) / "scenes"
        generate([*flags, "--out", str(work)])
        questions = choose_chains(work) if args.chains else choose_questions(work)
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


def choose_chains(work: Path) -> list[tuple[Question, Question]]:
    """The point and the box question of one, two and three hops of the first pictures that have all of them."""
    points, boxes = (read_questions(work / name) for name in ("point_questions.jsonl", "bbox_questions.jsonl"))
    by_view: dict[str, dict[int, tuple[Question, Question]]] = {}
    for point, box in zip(points, boxes, strict=True):
        hops, small = len(point.meta.get("hops", ())), point.meta.get("removed", {}).get("radius", 0) <= SMALL
        fits = hops and small and point.meta["relation"] in (*DIRECTIONS, "next to") and not point.meta["marks"]
        if fits and point.question_id not in CHAIN_REJECTED:
            asked = by_view.setdefault(point.meta["view"], {})
            # With one hop, every second picture asks for free space if it can, as the longer chains do in turn.
            free = hops == 1 and int(point.meta["view"].split("_")[0]) % 2 == 1 and point.meta["task"] == TASKS[1]
            if hops not in asked or (free and asked[hops][0].meta["task"] != TASKS[1]):
                asked[hops] = (point, box)
    complete = [asked for asked in by_view.values() if len(asked) == HOPS][:PICTURES]
    if len(complete) < PICTURES:
        raise InputError(f"{work} has only {len(complete)} pictures with questions of one to three hops")
    return [asked[hops] for asked in complete for hops in range(1, HOPS + 1)]


def write_benchmark(out: Path, work: Path, questions: Sequence[tuple[Question, Question]]) -> None:
    """Write the pictures, masks, both question files and the hashes."""
    points: list[Question] = []
    boxes: list[Question] = []
    names: dict[str, str] = {}  # of the pictures
    for number, (point_question, box_question) in enumerate(questions):
        name = names.setdefault(point_question.meta["view"], f"{len(names):02d}")
        meta = {key: value for key, value in point_question.meta.items() if key not in DROPPED}
        meta |= {"image": f"images/{name}.jpg", "mask": f"masks/{number:02d}.png"}
        save(out / meta["image"], jpeg(work / point_question.meta["image"]))
        save(out / meta["mask"], small_mask(work / point_question.meta["mask"]))
        points.append(replace(point_question, question_id=number, image=f"{name}.jpg", meta=meta))
        boxes.append(replace(box_question, question_id=number, image=f"{name}.jpg", meta=meta))
    write_questions(out / "point_questions.jsonl", points)
    write_questions(out / "bbox_questions.jsonl", boxes)
    if len(names) < len(questions):  # a number could be a picture's or a question's
        save(out / "suite.json", b'{"name": "TableTop-Chain", "masks": "question"}\n')
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
