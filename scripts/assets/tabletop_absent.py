"""Make TableTop-Absent: 100 questions about what is not there, one for each picture of TableTop.

    python scripts/assets/tabletop_absent.py --out data_samples/tabletop_absent

TableTop's scenes are made again with a larger share of such questions, which changes neither the pictures nor the other
questions. The choice is spread over the reasons; of colors, nouns and relations it takes only questions that differ from
a true one in one word (`meta.absent.near_text`; `near` is its number if TableTop asks it). `images` is a link to
TableTop's, and every mask is empty.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from picks import Candidate, at_positions, jpeg, small_mask, spread
from tabletop import CONFIG, DROPPED, SEED, save, write_sums

from trace_vlm.core.prompts import question_text
from trace_vlm.core.records import Question, read_questions, write_questions
from trace_vlm.utils.command import InputError, Parser, output_folder, run

TABLETOP = Path(__file__).parents[2] / "data_samples" / "tabletop"
SHARE = 0.65  # of the questions of a scene, so that there are some of every reason
ONE_WORD_ONLY = ("color", "category", "relation")
# Views and reasons that were taken out when all were looked at as pictures: between two objects is a gap to be seen.
REJECTED = frozenset({("000150_0", "impossible"), ("000137_0", "impossible")})


def main(argv: Sequence[str] | None = None) -> int:
    import numpy as np

    parser = Parser(description="Make the TableTop-Absent benchmark.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the benchmark")
    parser.add_argument("--work", type=Path, help="folder for the scenes; without it a temporary one")
    args = parser.parse_args(argv)
    out = output_folder(args.out)
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty; give another --out or remove what is in it")
    pictures = {question.meta["view"]: question for question in read_questions(TABLETOP / "point_questions.jsonl")}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        samples = make_samples(work, pictures)
        fits = [
            Candidate(position, sample["meta"]["view"], "", sample["meta"]["absent"]["reason"])
            for position, sample in enumerate(samples)
            if (sample["meta"]["view"], sample["meta"]["absent"]["reason"]) not in REJECTED
            if sample["meta"]["absent"]["word"] or sample["meta"]["absent"]["reason"] not in ONE_WORD_ONLY
        ]
        chosen = spread(fits, len(pictures), np.random.default_rng(SEED))
        if len(chosen) < len(pictures):
            raise InputError(f"only {len(chosen)} of {len(pictures)} pictures have such a question")
        points, boxes = [], []
        for number, sample in enumerate(at_positions(samples, chosen)):
            meta = {key: value for key, value in sample["meta"].items() if key not in DROPPED}
            picture = pictures[meta["view"]]
            meta |= {"image": f"images/{picture.image}", "mask": f"masks/{number:02d}.png"}
            save(out / meta["mask"], small_mask(work / sample["meta"]["mask"]))
            text = question_text(sample["instruction"], reasoning=False)
            points.append(Question(number, picture.image, text, "absent", meta))
            boxes.append(replace(points[-1], text=sample["boxes"]))
    write_questions(out / "point_questions.jsonl", points)
    write_questions(out / "bbox_questions.jsonl", boxes)
    save(out / "suite.json", b'{"name": "TableTop-Absent", "masks": "question"}\n')
    os.symlink(os.path.relpath(TABLETOP / "images", out), out / "images")
    write_sums(out)
    print(f"wrote {out}: {len(points)} questions")
    return 0


def make_samples(work: Path, pictures: dict[str, Question]) -> list[dict[str, Any]]:
    """Every question about what is not there that TableTop's scenes allow."""
    from trace_vlm.data.scenes.config import DatasetSpec, load_scene_config
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.scene import make_scene
    from trace_vlm.data.scenes.wording import box_question

    config = load_scene_config(CONFIG)
    config = replace(config, questions=replace(config.questions, absent=SHARE))
    spec = DatasetSpec(work, config, ((640, 480),), 1, SEED, True)
    for folder in ("images", "masks", "instances"):
        output_folder(work / folder)
    made: list[dict[str, Any]] = []
    with SceneRenderer(config, spec.sizes) as renderer:
        for view, asked in pictures.items():
            scene = make_scene(spec, int(view.split("_")[0]), renderer)
            texts = {sample["id"]: question_text(sample["instruction"], False) for sample in scene["samples"]}
            own = next((sample for sample in scene["samples"] if texts[sample["id"]] == asked.text), None)
            known = (TABLETOP / "images" / asked.image).read_bytes()
            if own is None or jpeg(work / own["meta"]["image"]) != known:
                raise InputError(f"{view} is another picture here than {asked.image} of TableTop; use its GL driver")
            for sample in scene["samples"]:
                if absent := sample["meta"].get("absent"):
                    near = texts.get(absent["near"])
                    absent["near_text"], absent["near"] = near, asked.question_id if near == asked.text else None
                    made.append(sample | {"boxes": box_question(sample["instruction"])})
    return made


if __name__ == "__main__":
    raise SystemExit(run(main))
